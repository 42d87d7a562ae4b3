"""`python -m harness.report.volume_page RUN...` writes docs/filesystems.md from finished runs of `outage` and
`power_loss`.

It runs nothing and judges nothing: every number of its tables stands in those runs' folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.runner import judge

PAGE = Path(__file__).resolve().parents[2] / "docs" / "filesystems.md"
_HEAD = """# What a root's file system does

Written by `python -m harness.report.volume_page` from runs of `make shared-volume` and `make power-loss`; change the
text there.

kvtier asks nothing of a file system that POSIX does not promise on one host. What differs between file systems is how
soon another host sees a block, what is left after a host has vanished, and what a loss of power costs. A wrong byte
is served on none of them: each block is verified against its trailer before it counts as loaded.

## Shared by two hosts

GlusterFS: two network namespaces with a FUSE client each, one brick, no replica. MooseFS: the same, one master and one
chunk server. NFSv4.2: two kernels of their own (user-mode-linux) and nfs-ganesha. Seconds are the longest seen. "Seen
as missing before": a process of the reading host had asked for the block before it was stored. Throughput is that of
O_DIRECT files of 1 MiB by one thread, in relation to the disk of the same machine; a user-mode kernel has slow system
calls, so its ratio says little about NFS.
"""
_ADVICE = """
## What to know of each

- **NFS.** A client remembers for 30 s that a name was missing (`acdirmax`), and neither `stat` nor `open` of the file
  asks again. What does is opening the folder (`O_DIRECTORY`), listing it, or anything that changes it; looking at the
  folder's attributes does not. kvtier sees at its start that the root is on NFS, and opens the folder after each miss:
  one question more for a block that is not there, and the bound above without any mount option
  (`lookupcache=positive` does the same in the kernel). A host that is cut off waits, as long as it takes (`hard`), and
  goes on: nothing fails. Meanwhile kvtier answers lookups with a miss, and replaces threads that hang (`hung_seconds`).
- **nfs-ganesha** 4.2 and 4.3 (Debian 12) die of a client that closes a file while it holds a lock on it: its
  FREE_STATEID of the lock meets the CLOSE of the file (SIGSEGV in `dec_nfs4_state_ref`; 5.0 has it right). A program
  that stores files in the usual order, lock, write, rename, close, kills it within some hundred to some thousand files.
  kvtier gives the lock back before it publishes the file, after which none died; but a process that is killed leaves
  its locks to its kernel, which closes in the other order. Use 5.0 or newer, or have it started again when it dies:
  clients go on then. Its other hosts may have to wait with one that is cut off.
- **GlusterFS.** A host that is cut off waits `ping-timeout` and then fails with ENOTCONN (EBADFD on files that were
  open), which is a miss or a failed store of just those blocks; it works again some seconds after the network does. A
  file that another host *replaced* is ESTALE to whoever had seen the old one, for up to a second.
- **MooseFS** (3.0.117, stock). Visible at once, also after a miss. A host that is cut off waits, and goes on some 2 s
  after the heal; but an unlock (`flock`) that was under way may not return: of 32 threads that only wrote, locked and
  unlocked files, without any tier, at least 3 still hung in it half a minute after cuts of 12 s. kvtier locks its temp
  files, so there a job may get its result and its slots late or never, while its thread is replaced. The scenario
  outage, in which one process stood still so, is left out there; sharing, crash and starvation are true.
- None has unnamed files (`O_TMPFILE`): a process or a host that dies may leave one temp file for each of its
  threads.
"""
_POWER = """
## Loss of power

A file system in an image loses its power while a process stores on it; then another process opens what the image holds
and asks for every block. This is done in two ways. *snapshot*: the image is cloned at one instant, while the machine
goes on. *kernel*: the storing process runs under a Linux kernel of its own (user-mode-linux) whose disk the image is,
and that kernel is ended by SIGKILL, with whatever it had not written yet. In both the device itself loses nothing that
it was given, and gets it in order: neither says anything of a device that lies about its cache.

*Reported*: the store had succeeded before that instant. *Damaged*: a file of the right size whose bytes are not the
block's; it was refused and quarantined. *Wrong*: served with wrong bytes. `durability=cache` promises that nothing is
wrong, `durability=durable` that nothing reported is missing. Without it, how many are missing says how long a file
system holds back what it was given: here ext4 commits every second, XFS every 30, and each case stored for some two.
What `durable` costs a store, `make bench` measures (section "durability"). On XFS and 2 cores, jobs of 16: at 64 KiB it
stores 0.17 as many bytes a second (95 %: 0.15 to 0.17), at 256 KiB 0.21 (0.16 to 0.23), at 1 MiB 0.53 (0.43 to 0.61).
"""


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def volume_table(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """One column per run: what `volume.json` and the verdict of "outage" hold."""
    rows: dict[str, list[str]] = {}

    def add(name: str, text: str) -> None:
        rows.setdefault(name, []).append(text)

    for facts, verdict in runs:
        data = verdict["data"]
        add("mount options", facts["mount_options"])
        for what, said in facts["abilities"].items():
            add(what, said)
        add("the volume: visible, never asked for", _seconds(facts["visible unasked seconds"]))
        add("the volume: visible, seen as missing before", _seconds(facts["visible missed seconds"]))
        add("the same, its folder opened before each look", _seconds(facts["visible missed, folder seconds"]))
        add("the volume: a removed file seems there for", _seconds(facts["gone seconds"]))
        for what, seconds in data["visible_seconds"].items():
            add(f"the tier: visible, {what}", _seconds(seconds))
        add("bound that the harness checks", _seconds(verdict["bound"]))
        for what, text in (("cut", "a host cut off"), ("power", "a host's power lost"), ("server", "server restarted")):
            add(f"{text}: works again after", _seconds(data["recovery_seconds"].get(what)))
        for what, text in (("cut", "a host cut off"), ("power", "a host's power lost")):
            add(f"{text}: the other host waits for", _seconds(data["others_waited_seconds"].get(what)))
        add("a host cut off: longest that a call hung", _seconds(data["hung_seconds"].get("cut", 0.0)))
        add("threads replaced at a time, in one process", f"{data['threads_hung']:g}")
        add("blocks that failed in all outages", str(data.get("failed blocks", 0)))
        add("reported blocks lost with a host's power", str(data.get("lost with the power", 0)))
        add("throughput to local, write / read", f"{facts['write ratio']:.2f} / {facts['read ratio']:.2f}")
        add("verdict of outage", verdict["value"])
    names = [facts["file_system"] for facts, _ in runs]
    return [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"] + [
        f"| {name} | {' | '.join(values)} |" for name, values in rows.items()
    ]


def power_table(cases: list[dict[str, Any]]) -> list[str]:
    """One line per case."""
    names = ("failure", "file_system", "way", "reported", "present", "missing", "damaged", "wrong")
    heads = ("power fails by", "file system", "stores", *names[3:])
    return [f"| {' | '.join(heads)} |", "|---" * len(names) + "|"] + [
        f"| {' | '.join(str(case[name]) for name in names)} |" for case in cases
    ]


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(runs: tuple[Path, ...]) -> None:
    """Write docs/filesystems.md from these run folders."""
    volumes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    cases: list[dict[str, Any]] = []
    for run in runs:
        verdict = judge(run).verdicts[0]
        if verdict["name"] == "power_loss":
            cases += verdict["data"]["cases"]
        else:
            options = json.loads((run / "options.json").read_text())
            bound = {"bound": options["visible_seconds_max"]}
            volumes.append((json.loads((run / "volume.json").read_text()), verdict | bound))
    lines = [_HEAD, *volume_table(volumes), _ADVICE.rstrip()]
    if cases:
        lines += [_POWER, *power_table(cases)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
