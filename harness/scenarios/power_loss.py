"""The power fails while blocks are being stored: what was reported stored, what is there afterwards, and is it right?

For each file system (ext4 with ordered and with writeback data, XFS) and each way to store (direct and buffered, with
and without waiting for the device) a process stores on a file system in an image; in the middle of it the image is
cloned at one instant, as a disk would be found after its power had failed; another process opens the clone and asks for
everything.

Proves for these file systems on a device that keeps what it was given, in the order it was given: no block that is
served is wrong, and with `durability=durable` none that was reported stored is missing. It does not prove anything
about devices that lie about their caches or tear what they write, nor about the loss of power of a file server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.faults.mounts import require_root, run_command, undertaken
from harness.faults.rules import FaultUnavailable
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, option
from harness.scenarios.crew import Chain, Crew
from harness.seeds import stream

FICLONE = 0x40049409
IMAGE_BYTES = 400 << 20
"""Of one file system; XFS takes no less than 300 MiB."""
FILE_SYSTEMS: dict[str, tuple[list[str], str]] = {
    "ext4 ordered": (["mkfs.ext4", "-q", "-F"], "data=ordered,commit=1"),
    "ext4 writeback": (["mkfs.ext4", "-q", "-F"], "data=writeback,nodelalloc,commit=1"),
    "xfs": (["mkfs.xfs", "-q"], "nouuid"),
}
WAYS: dict[str, dict[str, str]] = {
    "direct": {"io": "direct", "durability": "cache"},
    "buffered": {"io": "buffered", "durability": "cache"},
    "direct, durable": {"io": "direct", "durability": "durable"},
    "buffered, durable": {"io": "buffered", "durability": "durable"},
}
"""Ways to store, as options of the tier."""


@dataclass(frozen=True, kw_only=True)
class PowerLossOptions(CommonOptions):
    """Options of `run power_loss`."""

    seconds: float = option(2.0, "how long is stored before the power fails, in each case", low=0.1)
    processes: int = option(24, "processes in all: one that stores and one that finds, in each case", low=2)
    block_bytes: int = option(256 << 10, "size of a block", low=4096, multiple_of=4096)
    blocks: int = option(4, "blocks of a chain", low=1)
    slots: int = option(64, "blocks that a process holds in memory at once", low=2)
    file_systems: str = option(",".join(FILE_SYSTEMS), "file systems, between commas")


class Plan(NamedTuple):
    """The file systems of this run."""

    file_systems: list[str]
    source: str


def prepare(options: PowerLossOptions) -> Plan:
    chosen = [name.strip() for name in options.file_systems.split(",")]
    if unknown := set(chosen) - set(FILE_SYSTEMS):
        raise UsageError(f"--file-systems has {', '.join(sorted(unknown))}; valid choices: {', '.join(FILE_SYSTEMS)}")
    if os.geteuid() != 0:
        raise UsageError("power_loss mounts images and takes root")
    return Plan(chosen, f"{len(chosen)} file systems, {len(WAYS)} ways to store")


def run(context: Context, plan: Plan) -> None:
    """Every way on every file system, one after the other."""
    random = stream(context.options.seed or 0, "power_loss")
    crew = Crew(context)
    number = 0
    try:
        with _cloning_disk() as disk:
            for name in plan.file_systems:
                for way in WAYS:
                    _case(context, crew, disk, number, name, way, random.uniform(0.0, 0.3))
                    number += 1
    except FaultUnavailable as reason:
        context.note(time.monotonic(), "skip", str(reason))


def _case(
    context: Context, crew: Crew, disk: Path, number: int, file_system: str, way: str, moment_seconds: float
) -> None:
    options: PowerLossOptions = context.options
    writer, reader = 2 * number, 2 * number + 1
    image, clone = disk / f"{number}.img", disk / f"{number}.clone"
    mkfs, mount_options = FILE_SYSTEMS[file_system]
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    run_command(file_system, *mkfs, str(image))
    chains: list[Chain] = []
    with _mounted(image, mount_options, file_system) as folder:
        os.sync()
        _start(context, crew, writer, folder, way)
        until = time.monotonic() + options.seconds + moment_seconds
        stored_max = IMAGE_BYTES // 2
        while time.monotonic() < until and len(chains) * options.blocks * options.block_bytes < stored_max:
            fresh = [crew.chain(options.blocks) for _ in range(options.slots // options.blocks // 2)]
            chains += fresh
            order = crew.order({writer: {"store": fresh}})
            if time.monotonic() < until:
                crew.settle(order, [writer])
        last = [crew.chain(options.blocks) for _ in range(options.slots // options.blocks // 2)]
        order = crew.order({writer: {"store": last}}, together=True)
        context.workers.until(lambda: False, moment_seconds / 10 + 0.02)  # the power fails while these are on their way
        failed_seconds = time.monotonic()
        _clone(image, clone)
        cloned_seconds = time.monotonic()
        crew.settle(order, [writer])
        crew.end([writer])
    case = {"file_system": file_system, "way": way, "writer": writer, "reader": reader}
    case |= {"durable": WAYS[way]["durability"] == "durable", "cloned_seconds": cloned_seconds}
    context.note(failed_seconds, "power", f"{file_system}, {way}", **case)
    context.note(failed_seconds, "fault", f"the power fails on {file_system}, {way}", process=-1)
    with _mounted(clone, mount_options, file_system) as folder:
        _start(context, crew, reader, folder, way)
        crew.do({reader: {"find": [*chains, *last]}})
        crew.end([reader])
    image.unlink()
    clone.unlink()


def _start(context: Context, crew: Crew, process: int, folder: Path, way: str) -> None:
    tier_options = {**context.options.tier_options(), **WAYS[way]}
    child = context.start(process, "obey", {}, root_dir=str(folder), options=tier_options)
    context.workers.await_ready([child])
    context.workers.go([child])
    crew.members[process] = child


def _clone(image: Path, clone: Path) -> None:
    """One instant of the image, as a file of its own. What the mounted file system has not written is not in it."""
    with open(image, "rb") as source, open(clone, "wb") as target:
        fcntl.ioctl(target, FICLONE, source.fileno())


@contextlib.contextmanager
def _cloning_disk() -> Iterator[Path]:
    """A file system that can clone files: XFS in a sparse image."""
    require_root("a file system that clones files")
    with tempfile.TemporaryDirectory(prefix="power-loss-") as name:
        image, mount = Path(name, "image"), Path(name, "disk")
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(4 << 30)
        with undertaken(["umount", "-l", str(mount)]):
            run_command("a file system that clones files", "mkfs.xfs", "-q", str(image))
            run_command("a file system that clones files", "mount", "-o", "loop", str(image), str(mount))
            yield mount


@contextlib.contextmanager
def _mounted(image: Path, mount_options: str, what: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mounted-", dir=image.parent.parent))
    commands: Any = (["umount", "-l", str(folder)], ["rmdir", str(folder)])
    with undertaken(*commands):
        run_command(what, "mount", "-o", f"loop,{mount_options}", str(image), str(folder))
        yield folder
        subprocess.run(["umount", str(folder)], check=False)


SCENARIO = Scenario(
    name="power_loss",
    text=__doc__ or "",
    options=PowerLossOptions,
    checkers=("power_loss", "integrity", "results"),
    prepare=prepare,
    run=run,
)
