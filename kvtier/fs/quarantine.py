"""`move_to_quarantine`: a file that is not the block it should be is moved away, unless another process repaired it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Callable

from kvtier.fs import posix

logger = logging.getLogger(__name__)


def move_to_quarantine(
    path: str, reason: str, is_bad: Callable[[int, os.stat_result], bool], quarantine: Callable[[], int], moved_to: str
) -> str:
    """Move the file at `path` if `is_bad` (its folder's descriptor, its status) still says so; returns its new path.

    "" when it cannot be moved, or is no longer bad. `quarantine` opens the folder `moved_to`, for use and close here.
    """
    name = os.path.basename(path)
    try:
        with posix.opened(os.path.dirname(path)) as folder, contextlib.ExitStack() as closing:
            # The lock: between check and move no other process moves the file, so no good one gets its name.
            with contextlib.suppress(OSError):  # NFS refuses it
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
                closing.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            now = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not is_bad(folder, now):
                return ""  # another process has repaired it
            if not stat.S_ISREG(now.st_mode):
                reason = "kind"
            closing.callback(os.close, below := quarantine())
            target = f"{name}.{reason}.{os.urandom(4).hex()}"
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=below)
    except OSError as error:
        logger.warning("cannot quarantine %s (%s): %s", path, reason, error)
        return ""
    logger.warning("quarantined %s: %s", path, reason)
    return os.path.join(moved_to, target)
