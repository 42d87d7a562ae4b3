"""Conditions of the machine under which a run is judged: busy neighbours, stops, other file systems, fewer cores.

A condition is a context manager that yields how the run's process is started: words before its command, the folder for
its root, and what accompanies it while it lasts. What a machine cannot do raises `FaultUnavailable` with the reason.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.faults.mounts import FaultFs, small_disk
from harness.faults.rules import FaultUnavailable

DISK_BYTES = 2 << 30
"""Of tmpfs, ext4 and XFS; the disks behind them are sparse."""
MEMORY_BYTES = 768 << 20
"""Of the memory cgroup; each of up to eight workers holds 30 to 60 MiB, the rest is page cache."""
STREAM_BYTES = 1 << 30
"""A file that a neighbour reads over and over through the page cache: more than the cgroup has room for."""
STOP_SECONDS = (0.005, 0.2)
BETWEEN_STOPS_SECONDS = (0.2, 2.0)

_UNTIL_PARENT_ENDS = "import sys,threading,os; threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()"
_BURN = f"{_UNTIL_PARENT_ENDS}\nwhile True: pass"
_WRITE = f"""{_UNTIL_PARENT_ENDS}
import mmap
page = mmap.mmap(-1, 1 << 20)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
while True:
    for place in range(64):
        os.pwrite(file, page, place << 20)
    os.fsync(file)
    os.ftruncate(file, 0)
"""
_STREAM = f"""{_UNTIL_PARENT_ENDS}
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(file, int(sys.argv[2]))
os.posix_fallocate(file, 0, int(sys.argv[2]))
while True:
    place = 0
    while part := os.pread(file, 1 << 20, place):
        place += len(part)
"""


@dataclass(frozen=True)
class Surroundings:
    """How a run's process is started under a condition."""

    prefix: tuple[str, ...] = ()  # words before the command
    root_dir: Path | None = None  # None: the run's folder
    beside: Callable[[int], contextlib.AbstractContextManager[None]] = lambda pid: contextlib.nullcontext()


Condition = Callable[[Path, random.Random], contextlib.AbstractContextManager[Surroundings]]
"""A folder on the file system of the runs, and the stream of its random choices -> the surroundings."""


@contextlib.contextmanager
def _neighbours(count: int, code: str, *arguments: str, prefix: tuple[str, ...] = ()) -> Iterator[None]:
    """Processes that run `code` for as long as the block, and this process, last."""
    command = [*prefix, sys.executable, "-c", code, *arguments]
    hogs = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.communicate()


@contextlib.contextmanager
def _quiet(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    yield Surroundings()


def _busy(times: int) -> Condition:
    @contextlib.contextmanager
    def condition(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
        with busy_neighbour(times):
            yield Surroundings()

    return condition


def busy_neighbour(times: int = 1) -> contextlib.AbstractContextManager[None]:
    """`times` processes for each core, each of which keeps a core busy."""
    return _neighbours(times * (os.cpu_count() or 1), _BURN)


@contextlib.contextmanager
def _io(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    with tempfile.TemporaryDirectory(prefix="io-", dir=folder) as place, _neighbours(1, _WRITE, f"{place}/file"):
        yield Surroundings()


@contextlib.contextmanager
def _memory(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    with (
        _memory_cgroup(MEMORY_BYTES) as prefix,
        tempfile.TemporaryDirectory(prefix="memory-", dir=folder) as place,
        _neighbours(1, _STREAM, f"{place}/file", f"{STREAM_BYTES}", prefix=prefix),
    ):
        yield Surroundings(prefix)


@contextlib.contextmanager
def _memory_cgroup(limit_bytes: int) -> Iterator[tuple[str, ...]]:
    """Words before a command that let it run in a memory cgroup of its own."""
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    paths = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines)}
    first = Path("/sys/fs/cgroup/memory") if "memory" in paths else Path("/sys/fs/cgroup")
    parent = first / paths.get("memory", paths.get("", "/")).lstrip("/")
    group = (parent if parent.is_dir() else first) / f"kvtier-harness-{os.getpid()}-{os.urandom(4).hex()}"
    limit = "memory.limit_in_bytes" if "memory" in paths else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        raise FaultUnavailable(f"a memory cgroup cannot be made here: {error.strerror}") from error
    try:
        try:
            (group / limit).write_text(f"{limit_bytes}", encoding="ascii")
        except OSError as error:
            raise FaultUnavailable(f"the memory of a cgroup cannot be limited here: {error.strerror}") from error
        yield ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{group / 'cgroup.procs'}")
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


@contextlib.contextmanager
def _stop(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    yield Surroundings(beside=lambda pid: _stopped_at_random(pid, choices))


@contextlib.contextmanager
def _stopped_at_random(pid: int, choices: random.Random) -> Iterator[None]:
    """Stop the process and all that it started, again and again, for 5 to 200 ms."""
    over = threading.Event()

    def stop() -> None:
        while not over.wait(choices.uniform(*BETWEEN_STOPS_SECONDS)):
            seconds = choices.uniform(*STOP_SECONDS)
            stopped = []
            with contextlib.suppress(psutil.Error):
                leader = psutil.Process(pid)
                stopped = [p for p in (leader, *leader.children(recursive=True)) if p.status() != psutil.STATUS_STOPPED]
            try:
                _send(stopped, signal.SIGSTOP)
                over.wait(seconds)
            finally:
                _send(stopped, signal.SIGCONT)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


@contextlib.contextmanager
def _tmpfs(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    with small_disk(DISK_BYTES, "tmpfs") as disk:
        yield Surroundings(root_dir=disk.mount)


@contextlib.contextmanager
def _ext4(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    with small_disk(DISK_BYTES, "ext4") as disk:
        yield Surroundings(root_dir=disk.mount)


@contextlib.contextmanager
def _xfs(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    with small_disk(DISK_BYTES, "xfs") as disk:
        yield Surroundings(root_dir=disk.mount)


@contextlib.contextmanager
def _fuse(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    with tempfile.TemporaryDirectory(prefix="fuse-", dir=folder) as backing, FaultFs(backing) as disk:
        yield Surroundings(root_dir=disk.mount)


@contextlib.contextmanager
def _one_core(folder: Path, choices: random.Random) -> Iterator[Surroundings]:
    core = choices.choice(sorted(os.sched_getaffinity(0)))
    pin = f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execv(sys.argv[1], sys.argv[1:])"
    yield Surroundings((sys.executable, "-c", pin))


CONDITIONS: Mapping[str, tuple[str, Condition]] = {
    "quiet": ("nothing beside the run", _quiet),
    "cpu1": ("a busy process for each core", _busy(1)),
    "cpu4": ("four busy processes for each core", _busy(4)),
    "io": ("a process that writes and syncs the same disk", _io),
    "memory": (f"a memory cgroup of {MEMORY_BYTES >> 20} MiB, whose page cache a neighbour fills", _memory),
    "stop": ("all processes stopped for 5 to 200 ms, every 0.2 to 2 s", _stop),
    "tmpfs": ("the root on tmpfs", _tmpfs),
    "ext4": ("the root on ext4 behind a loop device", _ext4),
    "xfs": ("the root on XFS behind a loop device", _xfs),
    "fuse": ("the root on a FUSE file system without page cache", _fuse),
    "one-core": ("one core for all processes", _one_core),
}
