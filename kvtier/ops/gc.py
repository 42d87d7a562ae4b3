"""What may be removed below a root, and how: evicted blocks, what dead writers left, all that a run has. Called by
`capacity` and the command line. It follows no symbolic link, so that nothing outside the root can go.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import time
from collections.abc import Iterator

from kvtier.fs.posix import open_no_links
from kvtier.ops.catalog import BlockFile, Folder, Unreadable, note_error, ranks, scan

TEMP_AGE_SECONDS = 60.0
"""A writer locks its temp file right after creating it: younger ones may not be locked yet."""
QUARANTINE_FILES_MAX = 1000
QUARANTINE_BYTES_MAX = 1 << 30
ATTEMPTS_MAX = 100
_TEMP_NAME = re.compile(r"\..+\.tmp|(config|kvtier(_r\d+)?)\.json\.[0-9a-f]{16}\.tmp")
"""The second form: as kvtier 0.1.0 published a run's records where the file system has no unnamed files."""


def sweep(folder: Folder) -> Iterator[int]:
    """Remove temp files whose writer is dead (their lock is free), empty folders, and the oldest of a large quarantine;
    yields now and then how many files went. vLLM's temp files carry no lock and are left alone."""
    old = time.time() - TEMP_AGE_SECONDS
    yield _remove_temps(scan(folder.mapper.base_path), old)  # of processes killed in `BlockIO.probe`
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
    temps = [entry.path for entry in entries if _TEMP_NAME.fullmatch(entry.name)]
    return sum(_remove_unlocked(path, old_seconds) for path in temps)


def _trim(folder: Folder) -> int:
    """The newest of the quarantine stay, up to its limits."""
    files, size, removed = 0, 0, 0
    for path, status in sorted(folder.quarantined(), key=lambda item: item[1].st_mtime, reverse=True):
        files, size = files + 1, size + status.st_size
        if files > QUARANTINE_FILES_MAX or size > QUARANTINE_BYTES_MAX:
            with contextlib.suppress(OSError), _opened(os.path.dirname(path)) as descriptor:
                os.unlink(os.path.basename(path), dir_fd=descriptor)
                removed += 1
    return removed


def remove_run(base: str) -> None:
    """Remove all that a run configuration has below its root: the blocks of every rank, what was quarantined, and last
    the record that says what they were. Raises OSError when something stays."""
    with _opened(os.path.dirname(base)) as root:
        for path in (*ranks(base), base):
            for attempt in range(ATTEMPTS_MAX):
                try:
                    shutil.rmtree(os.path.basename(path), dir_fd=root)
                except FileNotFoundError:  # an evictor was here at the same time
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


def remove_block(block: BlockFile, unreadable: Unreadable | None = None) -> bool:
    """Unlink a block unless it was used since it was listed; its folder goes with the last block. An error is noted."""
    folder, name = os.path.split(block.path)
    try:
        with _opened(folder) as descriptor:
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime == block.used_seconds:
                os.unlink(name, dir_fd=descriptor)
                _remove_empty(folder, math.inf)
                return True
    except OSError as error:
        if unreadable is not None:
            note_error(unreadable, block.path, error, "cannot be removed")
    return False


def _remove_empty(folder: str, old_seconds: float) -> None:
    """Not one that was made or changed after `old_seconds`: somebody may be about to put a block there."""
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
