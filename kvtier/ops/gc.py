"""Garbage collection (gc): what may be removed below a root, and how. Evicted blocks, files that killed writers left,
the oldest of a large quarantine, and all of a run. Called by `evictor` and the command line. No symbolic link is
followed, so that nothing outside the root can be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator

from kvtier.fs.block_io import errno_name
from kvtier.fs.posix import open_no_links
from kvtier.ops.catalog import GONE, TEMP_SUFFIX, BlockFile, Folder, Unreadable, folders, ranks, scan
from kvtier.ops.pacing import DutyCycle

TEMP_AGE_SECONDS = 60.0
"""A writer locks its temp file right after creating it: younger ones may not be locked yet."""
MANIFEST_TEMP_AGE_SECONDS = 3600.0
"""The temp file of a `config.json` or manifest has no lock, and exists for one fsync and one link."""
MANIFEST_TEMP = re.compile(r"(config|kvtier(_r\d+)?)\.json\.[0-9a-f]{16}\.tmp")
QUARANTINE_FILES_MAX = 1000
QUARANTINE_BYTES_MAX = 1 << 30
GC_EVERY_SECONDS = 3600.0
ATTEMPTS_MAX = 100


class Collector:
    """Collects the garbage of a root every hour, a time slice at a time. `removed`: files and folders, since the start;
    its reader may reset it."""

    def __init__(self, root_dir: str, duty: DutyCycle, unreadable: Unreadable | None = None) -> None:
        self.removed = 0
        self._root_dir, self._duty, self._unreadable = root_dir, duty, unreadable
        self._steps: Iterator[int] = iter(())
        self._begun_seconds = -math.inf

    def collect_for(self, seconds: float) -> None:
        """Continue a collection, or begin one if the last began an hour ago, for about so long."""
        now = time.monotonic()
        self._duty.begin()
        if now - self._begun_seconds > GC_EVERY_SECONDS:
            self._begun_seconds = now
            found = folders(self._root_dir, self._unreadable)
            self._steps = (removed for folder in found for removed in collect(folder))
        for removed in self._steps:
            self.removed += removed
            self._duty.pause()
            if time.monotonic() - now > seconds or self._duty.stopped:
                break


def collect(folder: Folder) -> Iterator[int]:
    """Remove temp files of killed writers (unlocked, or long unchanged where they have no lock), empty folders, and the
    oldest of a large quarantine; yields now and then how many were removed. vLLM's temp files are left alone: they
    have no lock, and the age of a slow one is not known."""
    old = time.time() - TEMP_AGE_SECONDS
    base = scan(folder.mapper.base_path)
    yield _remove_temps(base, old)  # of processes killed in `BlockIO.probe`
    yield _remove_manifest_temps(base)
    for prefix in folder.prefixes():
        removed = 0
        for leaf in folder.leaves(prefix):
            entries = scan(leaf, folder.unreadable)
            if not entries:
                _remove_empty(leaf, old)
            removed += _remove_temps(entries, old)
        _remove_empty(prefix, old)
        yield removed
    yield _trim(folder)


def _remove_temps(entries: list[os.DirEntry[str]], old_seconds: float) -> int:
    temps = [entry.path for entry in entries if entry.name.startswith(".") and entry.name.endswith(TEMP_SUFFIX)]
    return sum(_remove_unlocked(path, old_seconds) for path in temps)


def _remove_manifest_temps(entries: list[os.DirEntry[str]]) -> int:
    removed, old = 0, time.time() - MANIFEST_TEMP_AGE_SECONDS
    for entry in entries:
        if MANIFEST_TEMP.fullmatch(entry.name):
            with contextlib.suppress(OSError), _opened(os.path.dirname(entry.path)) as descriptor:
                if entry.stat(follow_symlinks=False).st_mtime < old:
                    os.unlink(entry.name, dir_fd=descriptor)
                    removed += 1
    return removed


def _trim(folder: Folder) -> int:
    """The newest of the quarantine stay, up to its limits. A folder counts as one file, with all bytes in it."""
    files, size, removed = 0, 0, 0
    for path, status in sorted(folder.quarantined(), key=lambda item: item[1].st_mtime, reverse=True):
        is_folder = stat.S_ISDIR(status.st_mode)
        held = _bytes_below(path, status.st_dev) if is_folder else status.st_size
        files, size = files + 1, size + (held or 0)
        if held is None or (files <= QUARANTINE_FILES_MAX and size <= QUARANTINE_BYTES_MAX):
            continue
        with contextlib.suppress(OSError), _opened(os.path.dirname(path)) as descriptor:
            name = os.path.basename(path)
            shutil.rmtree(name, dir_fd=descriptor) if is_folder else os.unlink(name, dir_fd=descriptor)
            removed += 1
    return removed


def _bytes_below(path: str, device: int) -> int | None:
    """Bytes of the files in a folder; None when another file system is mounted there, or a part cannot be read."""
    total, paths = 0, [path]
    try:
        while paths:
            with os.scandir(paths.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != device:
                        return None
                    total += status.st_size
                    if stat.S_ISDIR(status.st_mode):
                        paths.append(entry.path)
    except OSError:
        return None
    return total


def remove_run(base: str) -> None:
    """Remove all that a run configuration has below its root: the blocks of every rank, the quarantine, and last its
    `config.json` and manifest. Raises OSError when something stays."""
    with _opened(os.path.dirname(base)) as root:
        for path in (*ranks(base), base):
            for attempt in range(ATTEMPTS_MAX):
                try:
                    shutil.rmtree(os.path.basename(path), dir_fd=root)
                except FileNotFoundError:  # an evictor removed a part at the same time
                    if attempt == ATTEMPTS_MAX - 1 and os.path.lexists(path):
                        raise
                    continue
                break


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int]:
    """A folder below the root, reached through no symbolic link: what is removed in it lies inside the root."""
    descriptor = open_no_links(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_block(block: BlockFile, on_error: Callable[[str, OSError], None] | None = None) -> bool:
    """Unlink a block unless it was used since it was listed; its folder is removed with the last block. `on_error`
    receives the path and the error of a block that may not be removed."""
    folder, name = os.path.split(block.path)
    try:
        with _opened(folder) as descriptor:
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime == block.used_seconds:
                os.unlink(name, dir_fd=descriptor)
                _remove_empty(folder, math.inf)
                return True
    except OSError as error:
        if on_error is not None and errno_name(error) not in GONE:
            on_error(block.path, error)
    return False


def _remove_empty(folder: str, old_seconds: float) -> None:
    """Unless it was made or changed after `old_seconds`: a writer may be about to put a block there."""
    parent, name = os.path.split(folder)
    with contextlib.suppress(OSError), _opened(parent) as descriptor:
        if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime < old_seconds:
            os.rmdir(name, dir_fd=descriptor)  # refused while anything is in it


def _remove_unlocked(path: str, old_seconds: float) -> int:
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError), _opened(folder) as parent:
        descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        try:
            if os.fstat(descriptor).st_mtime < old_seconds:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=parent)
                return 1
        finally:
            os.close(descriptor)
    return 0
