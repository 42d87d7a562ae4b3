"""`EvictorLease`: the right to evict below a root, and the last measurement, in one file that all processes share.

The file is read by other versions, so its bytes must not change: 128 bytes, which hold 16 random hex digits, then
bytes, files and oldest age as whole numbers, all separated by a space and ended by a newline, then spaces. A longer
file requests urgent eviction; the next publication truncates it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

LEASE_NAME = ".kvtier-evictor"
LEASE_BYTES_MAX = 128
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Root(NamedTuple):
    """A root as measured; `oldest_seconds`: for how long its least recently used block has not been used."""

    bytes: float
    files: float
    oldest_seconds: float


class EvictorLease:
    """The lease of one root, as one process uses it, from one thread. Every method raises OSError if the volume fails.

    `is_leader`: this process held the lease last, and has read no measurement of another process since.
    `followed_seconds`: when it last read one (`time.monotonic()`).
    """

    def __init__(self, root_dir: str) -> None:
        self.path = os.path.join(root_dir, LEASE_NAME)
        self.is_leader = False
        self.followed_seconds = -math.inf
        self._published = b""  # the last measurement that this process wrote or read

    @contextlib.contextmanager
    def acquire(self) -> Iterator[int | None]:
        """The file's descriptor, locked until the end of the block. None: another process holds the lease. The lock
        ends with its holder, also across hosts."""
        mode = os.stat(os.path.dirname(self.path)).st_mode & 0o666 | 0o600
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                if os.fstat(descriptor).st_size == 0:  # a user that may write to the root may hold the lease
                    os.fchmod(descriptor, mode)
                self.is_leader = True
                yield descriptor
        finally:
            os.close(descriptor)

    def publish(self, descriptor: int, root: Root) -> None:
        """Write a measurement for the other processes; requests for urgent eviction end."""
        self._published = f"{os.urandom(8).hex()} {' '.join(f'{figure:.0f}' for figure in root)}\n".encode()
        os.pwrite(descriptor, self._published.ljust(LEASE_BYTES_MAX), 0)
        os.ftruncate(descriptor, LEASE_BYTES_MAX)

    def poll(self) -> Root | None:
        """What another process measured since the last call, if one did."""
        before, now = self._published, self._read()
        if not now.endswith(b"\n"):  # absent, or half written
            return None
        self._published = now
        if not before or now == before:  # the age of the first one read is unknown
            return None
        try:
            root = Root(*map(float, now.split()[1:]))
        except (ValueError, TypeError):
            return None
        self.is_leader, self.followed_seconds = False, time.monotonic()
        return root

    def _read(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDONLY | _OPEN_FLAGS)
            try:
                return os.read(descriptor, LEASE_BYTES_MAX).rstrip(b" ")
            finally:
                os.close(descriptor)
        return b""

    def request_urgent(self) -> None:
        """Make the file longer, which the leader reads as a request for urgent eviction."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_WRONLY | _OPEN_FLAGS)
            try:
                os.ftruncate(descriptor, LEASE_BYTES_MAX + 1)
            finally:
                os.close(descriptor)

    def is_urgent_requested(self) -> bool:
        """Whether a process has requested urgent eviction since the last measurement."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path, follow_symlinks=False).st_size > LEASE_BYTES_MAX
        return False
