"""The power fails while blocks are stored: what is there afterwards is right, and durable stores lose nothing.

For each file system (ext4 with ordered and with writeback data, XFS) and each way to store (direct and buffered, with
and without waiting for the device) a process stores on a file system in an image, and the power fails in the middle of
it. "snapshot": the image is cloned at one instant, as a disk would be found after its power had failed. "kernel": the
process runs under a kernel of its own (user-mode-linux) whose disk the image is, and that kernel is ended by SIGKILL;
what the process had reported until then counts. In both, another process then opens what the disk holds, and looks up
every block.

Proves for these file systems on a device that keeps what it was given, in the order it was given: no block that is
served is wrong, and with `durability=durable` none that was reported stored is missing. The kernel that dies is Linux
6.1 or what its package brings, the one that is cloned under is this machine's. It does not prove anything about devices
that lie about their caches or tear what they write, nor about the loss of power of a file server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from harness.core import notes
from harness.core.seeds import stream
from harness.faults.mounts import require_root, run_command, undertaken
from harness.faults.rules import FaultUnavailable
from harness.hosts.namespaces import Network, network
from harness.hosts.user_mode_kernel import Kernel, add_control, require_kernels
from harness.runtime.worker import Instruction
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option
from harness.scenarios.worker_group import Chain, WorkerGroup

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
    "direct durable": {"io": "direct", "durability": "durable"},
    "buffered durable": {"io": "buffered", "durability": "durable"},
}
"""Ways to store, as options of the tier."""


@dataclass(frozen=True, kw_only=True)
class PowerLossOptions(CommonOptions):
    """Options of `run power_loss`."""

    seconds: float = option(2.0, "how long is stored before the power fails, in each case", low=0.1)
    processes: int = option(48, "processes in all: one that stores and one that finds, in each case", low=2)
    block_bytes: int = option(256 << 10, "size of a block", low=4096, multiple_of=4096)
    blocks: int = option(4, "blocks of a chain", low=1)
    slots: int = option(64, "blocks that a process holds in memory at once", low=2)
    file_systems: str = option(",".join(FILE_SYSTEMS), "file systems, between commas")
    ways: str = option(",".join(WAYS), "ways to store, between commas")
    failures: str = option("snapshot,kernel", "how the power fails, between commas")


class Plan(NamedTuple):
    """The file systems of this run, the ways to store, and how the power fails."""

    file_systems: list[str]
    ways: list[str]
    failures: list[str]
    source: str


def prepare(options: PowerLossOptions) -> Plan:
    file_systems = _chosen("--file-systems", options.file_systems, FILE_SYSTEMS)
    ways = _chosen("--ways", options.ways, WAYS)
    failures = _chosen("--failures", options.failures, FAILURES)
    if os.geteuid() != 0:
        raise UsageError("power_loss mounts images and takes root")
    source = f"{len(file_systems)} file systems, {len(ways)} ways to store, power fails by {' and '.join(failures)}"
    return Plan(file_systems, ways, failures, source)


def _chosen(name: str, text: str, valid: Iterable[str]) -> list[str]:
    chosen = [word.strip() for word in text.split(",")]
    if unknown := set(chosen) - set(valid):
        raise UsageError(f"{name} has {', '.join(sorted(unknown))}; valid choices: {', '.join(valid)}")
    return chosen


def run(context: Context, plan: Plan) -> None:
    """Every way on every file system, one after the other."""
    group = WorkerGroup(context)
    number = 0
    for failure in plan.failures:
        random = stream(context.options.seed or 0, "power_loss", failure)
        try:
            with FAILURES[failure](context) as machine:
                for name in plan.file_systems:
                    for way in plan.ways:
                        _case(context, group, machine, number, name, way, random.uniform(0.0, 0.3))
                        number += 1
        except FaultUnavailable as reason:
            context.note(time.monotonic(), notes.Skipped(), f"power that fails by {failure}: {reason}")


class _Failed(NamedTuple):
    """A failure of the power: what had been reported before `failed_seconds` counts, what began after `found_seconds`
    cannot be in the image that is `found`."""

    failed_seconds: float
    found_seconds: float
    found: Path


class _Machine(Protocol):
    """Where the storing process runs, and whose power fails; images lie in `disk`."""

    failure: str
    disk: Path

    def on(self, image: Path, file_system: str) -> contextlib.AbstractContextManager[tuple[Path, str]]:
        """Powered on with the image's file system mounted: its folder, and the interpreter of processes there."""

    def fail(self, image: Path, order: int, group: WorkerGroup, writer: int, moment_seconds: float) -> _Failed:
        """Fail at a moment after the writer was given this order."""


def _case(
    context: Context,
    group: WorkerGroup,
    machine: _Machine,
    number: int,
    file_system: str,
    way: str,
    moment_seconds: float,
) -> None:
    options: PowerLossOptions = context.options
    writer, reader = 2 * number, 2 * number + 1
    image = machine.disk / f"{number}.img"
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    run_command(file_system, *FILE_SYSTEMS[file_system][0], str(image))
    chains: list[Chain] = []
    with machine.on(image, file_system) as (folder, python):
        _start(context, group, writer, folder, way, python)
        until = time.monotonic() + options.seconds + moment_seconds
        stored_max = IMAGE_BYTES // 2
        while time.monotonic() < until and len(chains) * options.blocks * options.block_bytes < stored_max:
            fresh = [group.chain(options.blocks) for _ in range(options.slots // options.blocks // 2)]
            chains += fresh
            order = group.order({writer: {"store": fresh}})
            if time.monotonic() < until:
                group.settle(order, [writer])
        context.workers.until(lambda: False, max(0.0, until - time.monotonic()))  # the disk is half full, or it is time
        last = [group.chain(options.blocks) for _ in range(options.slots // options.blocks // 2)]
        order = group.order({writer: {"store": last}}, together=True)
        failed = machine.fail(image, order, group, writer, moment_seconds)
        group.settle(order, [writer])
        group.end([writer])
    what = f"{file_system}, {way}, by {machine.failure}"
    durable = WAYS[way]["durability"] == "durable"
    case = notes.Power(machine.failure, file_system, way, writer, reader, durable, failed.found_seconds)
    context.note(failed.failed_seconds, case, what)
    with _mounted(failed.found, file_system) as folder:
        _start(context, group, reader, folder, way, context.python)
        group.do({reader: {"find": [*chains, *last]}})
        group.end([reader])
    image.unlink()
    if failed.found != image:
        failed.found.unlink()


def _start(context: Context, group: WorkerGroup, process: int, folder: Path, way: str, python: str) -> None:
    options = {**context.options.tier_options(), **WAYS[way]}
    # A kernel of its own has another working directory.
    setup = context.setup(process, root_dir=str(folder), options=options, run_dir=str(context.run_dir.resolve()))
    child = context.workers.start(Instruction(context.options.tier, setup, {}, "commands"), None, python)
    context.workers.await_ready([child])
    context.workers.go([child])
    group.members[process] = child


class _Cloned:
    """This machine, which goes on: what is found is a clone."""

    failure = "snapshot"

    def __init__(self, context: Context, disk: Path) -> None:
        self.disk = disk
        self._context = context

    @contextlib.contextmanager
    def on(self, image: Path, file_system: str) -> Iterator[tuple[Path, str]]:
        with _mounted(image, file_system) as folder:
            run_command(file_system, "sync", "-f", str(folder))
            yield folder, self._context.python

    def fail(self, image: Path, order: int, group: WorkerGroup, writer: int, moment_seconds: float) -> _Failed:
        self._context.workers.until(lambda: False, moment_seconds / 10 + 0.02)  # while the order's stores are under way
        failed_seconds = time.monotonic()
        self._context.note(failed_seconds, notes.Fault(process=-1), "the disk is cloned")
        _clone(image, clone := image.with_suffix(".clone"))
        return _Failed(failed_seconds, time.monotonic(), clone)


@contextlib.contextmanager
def _by_snapshot(context: Context) -> Iterator[_Machine]:
    with _cloning_disk() as disk:
        yield _Cloned(context, disk)


class _OwnKernel:
    """A kernel that is killed: what is found is its disk. What its last process wrote into its history was reported."""

    failure = "kernel"

    def __init__(self, context: Context, disk: Path, net: Network) -> None:
        self.disk = disk
        self._context, self._net = context, net

    @contextlib.contextmanager
    def on(self, image: Path, file_system: str) -> Iterator[tuple[Path, str]]:
        folder = Path("/mnt/disk")
        kind, mount_options = file_system.split()[0], FILE_SYSTEMS[file_system][1]
        lines = (
            # As on a host with much memory, nobody writes back because there is too much to write back.
            f"echo {IMAGE_BYTES} > /proc/sys/vm/dirty_background_bytes; echo {IMAGE_BYTES} > /proc/sys/vm/dirty_bytes\n"
            f"mknod /run/disk b 98 0; mkdir {folder}\nmount -t {kind} -o {mount_options} /run/disk {folder} || exit 1"
        )
        writable = self._context.run_dir.resolve()
        self._kernel = Kernel(0, self.disk, self._net, writable, lines, [f"ubd0={image}"])
        try:
            self._kernel.boot()
            self._kernel.await_ready()
            yield folder, self._kernel.python(self._context.python)
        finally:
            self._kernel.kill()

    def fail(self, image: Path, order: int, group: WorkerGroup, writer: int, moment_seconds: float) -> _Failed:
        group.await_begun(order, [writer])  # its calls are slow, and its orders come over a network
        self._context.workers.until(lambda: False, moment_seconds / 10)
        self._context.note(time.monotonic(), notes.Fault(process=writer), "the kernel is killed")
        self._kernel.kill()
        group.members[writer].kill()  # what ran it from here, and would notice in some seconds
        now = time.monotonic()
        return _Failed(now, now, image)


@contextlib.contextmanager
def _by_kernel(context: Context) -> Iterator[_Machine]:
    require_kernels("a kernel of its own")
    require_root("a kernel of its own")
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="power-loss-", ignore_cleanup_errors=True))
        net = stack.enter_context(network(Path(name)))
        add_control(net, [0])
        (disk := Path(name, "disk")).mkdir()
        yield _OwnKernel(context, disk, net)


FAILURES: dict[str, Callable[[Context], contextlib.AbstractContextManager[_Machine]]] = {
    "snapshot": _by_snapshot,
    "kernel": _by_kernel,
}
"""How the power fails."""


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
def _mounted(image: Path, file_system: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mounted-", dir=image.parent.parent))
    commands: Any = (["umount", "-l", str(folder)], ["rmdir", str(folder)])
    with undertaken(*commands):
        run_command(file_system, "mount", "-o", f"loop,{FILE_SYSTEMS[file_system][1]}", str(image), str(folder))
        yield folder
        subprocess.run(["umount", str(folder)], check=False)


SCENARIO = Scenario(
    name="power_loss",
    text=__doc__ or "",
    options=PowerLossOptions,
    checkers=("power_loss", "integrity", "results"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, processes=2),
    apart="takes root, disks of its own and options of kvtier's: make power-loss",
    tiers=("kvtier",),
)
