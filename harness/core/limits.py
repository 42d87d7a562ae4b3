"""The least that a run needs, compared with this machine before any process starts or file is made.

Scenarios declare their `Needs`; `run` and `conform` compare them with a `Machine`. Every estimate is a lower
bound, so that no run is refused that would work: of the slots an eighth counts, since a tier's memory is taken as slots
are filled, and few scenarios fill them all; of the blocks to be stored only those that any run of that length stores;
of a process its interpreter alone.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

PROCESS_BYTES = 12 << 20
"""Memory of an idle worker that no other process shares; 19 to 25 MiB were measured."""
PROCESS_THREADS = 3
"""Threads of a worker besides the tier's: the main thread, the one that reads stdin, the canary."""
PIPES_PER_PROCESS = 2
OWN_DESCRIPTORS = 12
THREAD_MAPPINGS = 2
"""Mappings of a thread's stack and its guard page, of which the kernel allows a process `vm.max_map_count`."""
RUN_BYTES = 8 << 20
"""Histories, results and report of the shortest run."""
SLOTS_FILLED = 0.125


@dataclass(frozen=True)
class Needs:
    """Lower bounds. `processes` run at one time, each with `threads` of its tier and `slot_bytes` of slots."""

    processes: int
    threads: int
    slots: int
    block_bytes: int
    root_blocks: int = 0  # that the root holds at the end
    slots_filled: float = SLOTS_FILLED

    @property
    def slot_bytes(self) -> int:
        return self.slots * self.block_bytes


@dataclass(frozen=True)
class Place:
    """A file system: a folder in it, its identity, and what is free there."""

    path: str
    device: int
    free_bytes: int
    free_files: float
    in_memory: bool

    @classmethod
    def of(cls, path: Path) -> Place:
        """The file system of the nearest folder at or above `path` that exists."""
        path = path.absolute()
        while not path.exists():
            path = path.parent
        disk = os.statvfs(path)
        files = float(disk.f_favail) if disk.f_files else math.inf  # some file systems count none
        return cls(str(path), path.stat().st_dev, disk.f_bavail * disk.f_frsize, files, _is_tmpfs(path))


@dataclass(frozen=True)
class Machine:
    """The machine's resources, by the operating system and its limits."""

    memory_bytes: int
    process_bytes: float  # of address space of one process
    tasks: float  # processes and threads that may still be started
    process_threads: float  # of one process
    descriptors: float
    file_bytes: float  # of one file
    root: Place
    runs: Place

    @classmethod
    def here(cls, root_dir: Path, runs_dir: Path) -> Self:
        swap = psutil.swap_memory().free
        return cls(
            memory_bytes=int(min(psutil.virtual_memory().available + swap, _cgroup_left("memory"))),
            process_bytes=_soft(resource.RLIMIT_AS),
            tasks=min(_user_tasks(), _cgroup_left("pids"), _number("kernel/threads-max"), _number("kernel/pid_max")),
            process_threads=_number("vm/max_map_count") / THREAD_MAPPINGS,
            descriptors=_soft(resource.RLIMIT_NOFILE),
            file_bytes=_soft(resource.RLIMIT_FSIZE),
            root=Place.of(root_dir),
            runs=Place.of(runs_dir),
        )


def shortage(needs: Needs, machine: Machine) -> str:
    """One sentence for a person on what is lacking, with the options that change it; empty if nothing is."""
    return next(_shortages(needs, machine), "")


def _shortages(needs: Needs, machine: Machine) -> Iterator[str]:
    count, threads = needs.processes, PROCESS_THREADS + needs.threads
    processes = f"{count:,} process{'es' if count != 1 else ''}"
    root_bytes = needs.root_blocks * needs.block_bytes
    memory = count * (PROCESS_BYTES + int(needs.slots_filled * needs.slot_bytes))
    memory += root_bytes if machine.root.in_memory else 0
    fewer = "use a smaller --processes, --slots or --block-bytes"
    each = f"{processes}, each with {needs.slots:,} slots of {amount(needs.block_bytes)}"
    if memory > machine.memory_bytes:
        free = amount(machine.memory_bytes)
        yield f"the run needs about {amount(memory)} of memory ({each}), {free} is free; {fewer}"
    if (address := PROCESS_BYTES + needs.slot_bytes) > machine.process_bytes:
        yield (
            f"a process needs about {amount(address)} of address space, its limit (RLIMIT_AS) is "
            f"{amount(machine.process_bytes)}; raise it with `ulimit -v`, or {fewer}"
        )
    if count * threads > machine.tasks:
        yield (
            f"the run needs about {count * threads:,} threads ({processes}, each with {threads:,}), the limits of this "
            f"machine leave {machine.tasks:,.0f}; use a smaller --processes, --read-threads or --write-threads"
        )
    if threads > machine.process_threads:
        yield (
            f"a process needs about {threads:,} threads, the kernel (vm.max_map_count) allows "
            f"{machine.process_threads:,.0f}; use a smaller --read-threads or --write-threads"
        )
    if (descriptors := OWN_DESCRIPTORS + PIPES_PER_PROCESS * count) > machine.descriptors:
        yield (
            f"the run needs about {descriptors:,} open files for {processes}, the limit (RLIMIT_NOFILE) is "
            f"{machine.descriptors:,.0f}; raise it with `ulimit -n`, or use a smaller --processes"
        )
    if needs.block_bytes > machine.file_bytes:
        yield (
            f"a block is a file of {amount(needs.block_bytes)}, the limit (RLIMIT_FSIZE) is "
            f"{amount(machine.file_bytes)}; raise it with `ulimit -f`, or use a smaller --block-bytes"
        )
    is_one = machine.root.device == machine.runs.device
    for place, what, needed, option in (
        (machine.root, "blocks", root_bytes + is_one * RUN_BYTES, "--root-dir"),
        (machine.runs, "records", RUN_BYTES, "--runs-dir"),
    ):
        if needed > place.free_bytes:
            yield (
                f"the run needs about {amount(needed)} for {what} in the file system of {place.path}, "
                f"{amount(place.free_bytes)} is free; use a {option} with more room, or a smaller --block-bytes"
            )
    if needs.root_blocks > machine.root.free_files:
        yield (
            f"the run needs about {needs.root_blocks:,} files in the file system of {machine.root.path}, "
            f"{machine.root.free_files:,.0f} are free; use a --root-dir with more room"
        )


def amount(value: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} TiB" if value < 1000 else f"{value:,.0f} TiB"


def _soft(limit: int) -> float:
    soft = resource.getrlimit(limit)[0]
    return math.inf if soft == resource.RLIM_INFINITY else float(soft)


def _user_tasks() -> float:
    """RLIMIT_NPROC, which counts threads; what this user already runs is not taken off, and root is not held to it."""
    return math.inf if os.geteuid() == 0 else _soft(resource.RLIMIT_NPROC)


def _number(name: str) -> float:
    try:
        return float(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return math.inf


def _cgroup_left(controller: str) -> float:
    """What the nearest limit of this process's control group leaves, of either version; inf without one."""
    files = {
        "memory": (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        "pids": (("pids.max", "pids.current"), ("pids.max", "pids.current")),
    }[controller]
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = Path("/sys/fs/cgroup", controller if controllers else "")
            limit_name, used_name = files[bool(controllers)]
            for folder in (top / path.lstrip("/"), top):
                with suppress(OSError, ValueError):  # "max" is no number
                    limit = int((folder / limit_name).read_text())
                    cache = _cgroup_cache(folder) if controller == "memory" else 0
                    return max(0.0, limit - int((folder / used_name).read_text()) + cache)
    return math.inf


def _cgroup_cache(folder: Path) -> int:
    """Bytes of the page cache, which count as used and are given back on demand."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, value = line.split()
            if name in ("file", "total_cache"):
                return int(value)
    return 0


def _is_tmpfs(path: Path) -> bool:
    best, kind = -1, ""
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            point = left.split(" ")[4]
            if len(point) > best and (point == "/" or f"{path}/".startswith(f"{point}/")):
                best, kind = len(point), right.split(" ")[0]
    return kind in ("tmpfs", "ramfs")
