"""What may be removed below a root, and how: evicted blocks, what dead writers left, all that a run has. Called by
`capacity` and the command line. It follows no symbolic link, so that nothing outside the root can go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator

from kvtier.survey import TEMP_SUFFIX, BlockFile, Folder, ranks, scan

TEMP_AGE_SECONDS = 60.0
"""A writer locks its temp file right after creating it: younger ones may not be locked yet."""
QUARANTINE_FILES_MAX = 1000
QUARANTINE_BYTES_MAX = 1 << 30
ATTEMPTS_MAX = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def sweep(folder: Folder) -> Iterator[int]:
    """Remove temp files whose writer is dead (their lock is free), empty folders, and the oldest of a large quarantine;
    yields now and then how many files went. vLLM's temp files carry no lock and are left alone."""
    root_dir, old = folder.mapper.root_dir, time.time() - TEMP_AGE_SECONDS
    for prefix in folder.prefixes():
        removed = 0
        for leaf in folder.leaves(prefix):
            entries = scan(leaf)
            if not entries:
                _remove_empty(root_dir, leaf, old)
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith(TEMP_SUFFIX):
                    removed += _remove_unlocked(root_dir, entry.path, old)
        _remove_empty(root_dir, prefix, old)
        yield removed
    yield _trim(folder)


def _trim(folder: Folder) -> int:
    """The newest of the quarantine stay, up to its limits."""
    files, size, removed = 0, 0, 0
    for path, status in sorted(folder.quarantined(), key=lambda item: item[1].st_mtime, reverse=True):
        files, size = files + 1, size + status.st_size
        if files > QUARANTINE_FILES_MAX or size > QUARANTINE_BYTES_MAX:
            with contextlib.suppress(OSError), _opened(folder.mapper.root_dir, os.path.dirname(path)) as descriptor:
                os.unlink(os.path.basename(path), dir_fd=descriptor)
                removed += 1
    return removed


def remove_run(base: str) -> None:
    """Remove all that a run configuration has below its root: the blocks of every rank, what was set aside, and last
    the record that says what they were. Raises OSError when something stays."""
    root_dir = os.path.dirname(base)
    descriptor = os.open(root_dir, _FOLDER)
    try:
        for path in (*ranks(base), base):
            for attempt in range(ATTEMPTS_MAX):
                try:
                    shutil.rmtree(os.path.basename(path), dir_fd=descriptor)
                except FileNotFoundError:  # an evictor was here at the same time
                    if attempt == ATTEMPTS_MAX - 1 and os.path.lexists(path):
                        raise
                    continue
                break
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(root_dir: str, folder: str) -> Iterator[int]:
    """A folder below the root, reached through no symbolic link: what is removed in it lies inside the root."""
    descriptor = os.open(root_dir, _FOLDER)
    try:
        for name in os.path.relpath(folder, root_dir).split(os.sep):
            inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def remove_block(root_dir: str, block: BlockFile) -> bool:
    """Unlink a block unless it was used since it was listed; its folder goes with the last block."""
    prefix, leaf, name = block.path.rsplit("/", 2)
    with contextlib.suppress(OSError), _opened(root_dir, prefix) as above:
        folder = os.open(leaf, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
        try:
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime != block.used_seconds:
                return False
            os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)
        with contextlib.suppress(OSError):
            os.rmdir(leaf, dir_fd=above)  # refused while anything is in it
        return True
    return False


def _remove_empty(root_dir: str, folder: str, old_seconds: float) -> None:
    """Not one that was made or changed after `old_seconds`: somebody may be about to put a block there."""
    parent, name = os.path.split(folder)
    with contextlib.suppress(OSError), _opened(root_dir, parent) as descriptor:
        if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime < old_seconds:
            os.rmdir(name, dir_fd=descriptor)  # refused while anything is in it


def _remove_unlocked(root_dir: str, path: str, old_seconds: float) -> int:
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError), _opened(root_dir, folder) as parent:
        descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        try:
            if os.fstat(descriptor).st_mtime < old_seconds:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=parent)
                return 1
        finally:
            os.close(descriptor)
    return 0
