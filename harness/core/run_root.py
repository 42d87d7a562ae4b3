"""The folder in which the tiers of a run keep their blocks, marked so that one which a killed run left can be found.

`run` makes and removes it; `clean` and the next run list what was left. The mark is a file beside the folder, since
the folder belongs to the tier: ROOT/.harness-RUN.json marks ROOT/harness-RUN. It is written before the folder is made,
removed after it, and locked while the run lives. No link is followed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from harness.core.inputs import UsageError

PREFIX = "harness-"
MARK_BYTES_MAX = 1 << 16
FILES_COUNTED_MAX = 200_000
"""Files of a folder whose sizes are added up; a larger folder is "at least" so large."""

State = Literal["live", "killed", "other host"]


@dataclass(frozen=True)
class Mark:
    """Which process made a folder. `process_ticks` is its start, so that a reused pid is no live run."""

    run: str
    pid: int
    process_ticks: int
    boot_id: str
    host: str
    started: str  # UTC, ISO 8601

    @classmethod
    def of_this_process(cls, run: str) -> Mark:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(run, os.getpid(), _process_ticks(os.getpid()), _boot_id(), socket.gethostname(), started)


@dataclass(frozen=True)
class Left:
    """A marked folder: its path, its mark, and what became of its run."""

    path: Path
    mark_path: Path
    mark: Mark
    state: State


@contextmanager
def run_root(root_dir: str | None, run_dir: Path, keep: bool) -> Iterator[Path]:
    """Makes a run's folder, in `root_dir` with a mark or else in the run's own, and removes it afterwards unless
    `keep`. Raises `UsageError`, and removes `run_dir`, when it cannot be made."""
    marked = root_dir is not None
    path = (Path(root_dir) / f"{PREFIX}{run_dir.name}" if root_dir is not None else run_dir / "root").resolve()
    mark_path = path.with_name(f".{path.name}.json")
    with ExitStack() as stack:
        try:
            if marked:
                stack.callback(os.close, _make_mark(mark_path, run_dir.name))
                stack.callback(_remove_mark, mark_path, path, keep)
            path.mkdir()
        except OSError as error:
            shutil.rmtree(run_dir, ignore_errors=True)
            raise UsageError(f"the folder for blocks {str(path)!r} cannot be made: {error.strerror}") from error
        if not keep:
            stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def device_folder(path: Path) -> Path:
    """Where a probe of the device works during the run; `remove` removes it with the run's folder."""
    return path.with_name(f"{path.name}.device")


def _make_mark(path: Path, run: str) -> int:
    """Its descriptor, which holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):  # a file system without locks: the pid decides whether the run lives
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps(asdict(Mark.of_this_process(run))).encode())
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


def _remove_mark(mark_path: Path, path: Path, keep: bool) -> None:
    """Unless the folder is still there although it should be gone; one that is kept on purpose is not left behind."""
    if keep or not path.exists():
        mark_path.unlink(missing_ok=True)


def left_behind(root_dir: str) -> list[Left]:
    """Every marked folder in `root_dir`, those of live runs included, by name; also a mark without its folder."""
    found = []
    for entry in sorted(Path(root_dir).glob(f".{PREFIX}*.json")):
        if (mark := _read(entry)) is not None:
            path = entry.with_name(entry.name.removeprefix(".").removesuffix(".json"))
            found.append(Left(path, entry, mark, _state(mark, entry)))
    return found


def size(path: Path) -> tuple[int, int, bool]:
    """Files below `path`, their bytes, and whether all were counted."""
    files = total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            if files == FILES_COUNTED_MAX:
                return files, total, False
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
                files += 1
    return files, total, True


def remove(left: Left) -> None:
    """Remove a marked folder and its mark. Raises OSError, also when something else is mounted in the folder or when it
    is a link."""
    with suppress(FileNotFoundError):
        status = os.lstat(left.path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder; not removed", str(left.path))
        for folder, names, _ in os.walk(left.path):
            for name in names:
                inner = os.lstat(path := os.path.join(folder, name))
                if stat.S_ISDIR(inner.st_mode) and inner.st_dev != status.st_dev:
                    raise OSError(errno.EBUSY, "another file system is mounted there; unmount it first", path)
        shutil.rmtree(left.path)
    shutil.rmtree(device_folder(left.path), ignore_errors=True)
    left.mark_path.unlink(missing_ok=True)


def _read(path: Path) -> Mark | None:
    """None when it is no mark of ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            mark = Mark(**json.loads(file.read(MARK_BYTES_MAX)))
    except (OSError, ValueError, TypeError):
        return None
    return mark if f".{PREFIX}{mark.run}.json" == path.name else None


def _state(mark: Mark, path: Path) -> State:
    same_boot = mark.boot_id == _boot_id()
    if (same_boot and mark.process_ticks == _process_ticks(mark.pid)) or _is_locked(path):
        return "live"
    return "killed" if same_boot or mark.host == socket.gethostname() else "other host"


def _is_locked(path: Path) -> bool:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _process_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; -1 when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return -1
    return int(fields[19]) if fields[0] not in ("Z", "X") else -1


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
