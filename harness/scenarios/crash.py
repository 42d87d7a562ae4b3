"""Processes are killed and paused while they publish and start again on the same root; no other process is affected.

In each round all processes but one are victims: each stores chains of blocks and meets one fault, either at an exact
step of publishing (the n-th system call that creates, writes, syncs, links, renames, unlinks or makes a folder, by
strace) or at a random moment: SIGKILL, or SIGSTOP and later SIGCONT. The other process reads blocks as they are
published, and stores those that a paused process has not finished. Afterwards all look up every block. Killed processes
start again and first store again what they had been storing.

Proves for the steps that the tier passes on this file system: no part of a block and no wrong byte is ever visible,
what was reported stored before a death is found by every process, a process that starts again loses no store, a paused
one goes on, no temp file stays where the file system has unnamed files. It does not prove anything about power loss, a
host that vanishes, or a death while the root is being opened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from harness.core import notes
from harness.core.seeds import stream
from harness.faults import PUBLISH_STEPS, FaultUnavailable, Injection
from harness.faults.failing_system_calls import Attached
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option
from harness.scenarios.worker_group import RENDEZVOUS_SECONDS, WorkerGroup

CHASE_SECONDS = 0.3
RANDOM_SECONDS_MAX = 0.06
"""A random kill or pause comes within this time after the common start."""
WHEN_MAX = 16
PULSE_SECONDS = 0.03
WINDOW = 3
"""So many chains a victim stores at a time, so that some are done and some under way when it falls."""
SEEN_CHAINS = 4
"""Of each victim's chains the witness reads so many while they are published."""
APPLICATION_SEED = 0
"""Engines seed `random` with the same number in each incarnation; what a tier draws from it comes again."""
MOMENT = "a random moment"


@dataclass(frozen=True, kw_only=True)
class CrashOptions(CommonOptions):
    """Options of `run crash`."""

    seconds: float = option(4.0, "how long rounds are begun; each fault happens at least once", low=0)
    processes: int = option(4, "worker processes; all but the first are victims", low=2)
    block_bytes: int = option(16 << 10, "size of a block", low=4096, multiple_of=4096)
    read_threads: int = option(1, "read-priority threads of each process", low=1)
    write_threads: int = option(1, "write-priority threads of each process", low=1)
    blocks: int = option(4, "blocks of a chain", low=1)
    chains: int = option(16, "chains that a victim stores in a round", low=1)
    lookups: int = option(1, "by which lookup a process must find what was reported stored before it asked", low=1)


class Plan(NamedTuple):
    """Nothing but words: faults are drawn from the seed as they come."""

    source: str


class Blow(NamedTuple):
    """One fault for one victim: which signal, at which publish step (or `MOMENT`), and at which of its calls."""

    signal: str
    step: str
    when: int = 1
    delay_seconds: float = 0.0

    @property
    def how(self) -> str:
        return "killed" if self.signal == "SIGKILL" else "paused"


def prepare(options: CrashOptions) -> Plan:
    if options.slots < 2 * options.blocks:
        raise UsageError(f"--slots is {options.slots}; it must be at least {2 * options.blocks}, twice --blocks")
    return Plan(f"{options.processes - 1} victims, each storing {options.chains} chains of {options.blocks} blocks")


def blows(random: Random, by_step: bool) -> Iterator[Blow]:
    """Every fault once in random order, again and again. `by_step`: system calls can be hit."""
    steps = tuple(PUBLISH_STEPS) if by_step else (MOMENT,) * 4
    kinds = [("SIGKILL", step) for step in steps]
    kinds += [("SIGKILL", MOMENT), ("SIGSTOP", MOMENT), ("SIGSTOP", "write" if by_step else MOMENT)]
    first = True
    while True:
        for name, step in random.sample(kinds, len(kinds)):
            # Before its first rename a process leaves the temp file that its next incarnation would make.
            when = 1 if first and step in ("rename", "link") else random.randint(1, WHEN_MAX)
            yield Blow(name, step, when, random.uniform(0, RANDOM_SECONDS_MAX))
        first = False


def run(context: Context, plan: Plan) -> None:
    """Rounds until `seconds` are over and each fault has had its turn."""
    options: CrashOptions = context.options
    random = stream(options.seed or 0, "crash")
    group = WorkerGroup(context, application_seed=APPLICATION_SEED)
    group.start(range(options.processes))
    victims = range(1, options.processes)
    by_step = _can_attach(context, group.members[0].pid)
    coming = blows(random, by_step)
    left = len(PUBLISH_STEPS) + 3
    temp_files = 0 if unnamed_files_work(context.root_dir) else 1 + options.read_threads + options.write_threads
    if temp_files:
        context.note(time.monotonic(), notes.Phase(), "no unnamed files here: a killed process may leave temp files")
    began = time.monotonic()
    while left > 0 or time.monotonic() - began < options.seconds:
        round_ = _Round(group, {v: next(coming) for v in victims if group.members[v].alive}, temp_files)
        if not round_.blows or not group.members[0].alive:
            break
        round_.strike()
        round_.recover()
        left -= len(round_.blows)
    group.end(group.alive())


class _Round:
    """One round: a blow for each victim, and the chains that each was storing when it fell."""

    def __init__(self, group: WorkerGroup, blows: dict[int, Blow], temp_files: int) -> None:
        self.group, self.context, self.blows, self._temp_files = group, group.context, blows, temp_files
        options: CrashOptions = group.context.options
        self._find = {"asks": options.lookups}
        self._victims = {v: [group.chain(options.blocks) for _ in range(options.chains)] for v in blows}
        self._finished = {v: [group.chain(options.blocks)] for v in blows}  # stored before the blow
        self._all = [chain for mine in (self._victims, self._finished) for chains in mine.values() for chain in chains]

    def strike(self) -> None:
        """The victims store and are hit, the witness reads along; ends when each is dead or has done its part."""
        group, members = self.group, self.group.members
        group.do({v: {"store": chains} for v, chains in self._finished.items()})
        tracers = [self._attach(v, blow) for v, blow in self.blows.items() if blow.step != MOMENT]
        orders: dict[int, dict[str, Any]] = {
            v: {"store": chains, "window": WINDOW} for v, chains in self._victims.items()
        }
        seen = [chain for chains in self._victims.values() for chain in chains[:SEEN_CHAINS]]
        orders[0] = {"find": seen, "chase_seconds": CHASE_SECONDS}
        go_seconds = time.monotonic() + RENDEZVOUS_SECONDS
        number = group.order(orders, together=True)
        for victim, blow in sorted(self.blows.items(), key=lambda item: item[1].delay_seconds):
            if blow.step == MOMENT:
                time.sleep(max(0.0, go_seconds + blow.delay_seconds - time.monotonic()))
                members[victim].signal(signal.Signals[blow.signal])
        group.settle(number, orders, also=lambda process: _is_stopped(members[process].pid))
        paused = [v for v in self.blows if members[v].alive and _is_stopped(members[v].pid)]
        for victim, blow in self.blows.items():
            reached = victim in paused or members[victim].exit_code == -signal.SIGKILL
            text = f"process {victim} {blow.how} at {blow.step}" + (f" {blow.when}" if blow.step != MOMENT else "")
            if reached:
                fault = notes.Fault(victim, how=blow.how, step=blow.step, files_left_max=self._temp_files)
                self.context.note(go_seconds, fault, text)
            elif blow.step != MOMENT:
                self.context.note(go_seconds, notes.Skipped(step=blow.step), f"not {text}: it made fewer such calls")
        if paused:
            held = [chain for v in paused for chain in self._victims[v][:SEEN_CHAINS]]
            group.do({0: {"store": held, "find": held, **self._find}})
        for tracer in filter(None, tracers):
            tracer.detach()  # else the next thread that comes to its n-th call would be hit as well
        for victim in paused:
            members[victim].resume()
        group.settle(number, paused)

    def recover(self) -> None:
        """The dead start again, all look for what was stored before, and each stores anew what it had been storing."""
        group = self.group
        up = group.restart([v for v in self.blows if not group.members[v].alive])
        group.do({p: {"find": self._all, **self._find} for p in group.alive()})
        group.do({v: {"store": self._victims[v]} for v in up})
        group.do({0: {"find": self._all, **self._find}})

    def _attach(self, victim: int, blow: Blow) -> Attached | None:
        """None where the victim has ended by itself before it was hit."""
        injection = Injection(PUBLISH_STEPS[blow.step].calls, str(blow.when), kill=blow.signal)
        with contextlib.suppress(ProcessLookupError):
            return Attached(self.group.members[victim].pid, injection)
        return None


def unnamed_files_work(folder: Path) -> bool:
    """Whether the file system there has files that get their name when they are whole."""
    try:
        file = os.open(folder, os.O_TMPFILE | os.O_WRONLY)
    except OSError:
        return False
    name = folder / f".unnamed-{os.urandom(8).hex()}"
    try:
        os.link(f"/proc/self/fd/{file}", name, src_dir_fd=file, follow_symlinks=True)
    except OSError:
        return False
    finally:
        os.close(file)
    name.unlink()
    return True


def _can_attach(context: Context, pid: int) -> bool:
    """Whether steps can be hit here; if not, the run says so and strikes at random moments only."""
    try:
        Attached(pid, calls="getpid").detach()
    except FaultUnavailable as reason:
        context.note(time.monotonic(), notes.Skipped(), f"no exact publish step: {reason}")
        return False
    return True


def _is_stopped(pid: int) -> bool:
    """Whether no thread of the process moves; a traced one seems to stop for a moment at each call."""
    before = _pulse(pid)
    if before is None:
        return False
    time.sleep(PULSE_SECONDS)
    return _pulse(pid) == before


def _pulse(pid: int) -> int | None:
    """How often its threads have run, if all of them are stopped."""
    switches = 0
    try:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if fields["State"].split()[0] not in "Tt":
                return None
            switches += int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
    except (OSError, KeyError):  # it has just ended
        return None
    return switches or None


SCENARIO = Scenario(
    name="crash",
    text=__doc__ or "",
    options=CrashOptions,
    checkers=("recovery", "visibility", "integrity", "results", "determinism", "leftovers"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=(options.processes - 1) * options.blocks),
    short={"seconds": 1.0},
    on_hosts={"seconds": 4.0},
)
