"""The frozen yardstick of `compare`: what a plain, honest Python program needs for the same blocks on the same machine.

It is never improved: baselines hold ratios to it. A change that moves its speed must raise `VERSION`, and every
baseline is measured anew. Threads take one block at a time from a queue; a store is temp file, write, rename, direct
where that works; a load comes through the page cache, as the tier's does: else one would be timed against the device
and the other against memory, and they do not slow down together.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
import zlib
from collections.abc import Callable, Sequence

VERSION = 2
THREADS = 16

Work = Callable[[mmap.mmap], bool]


class Yardstick:
    """Blocks as files in `folder`. `store`, `load`, `lookup` return when all is done; raise if anything failed."""

    def __init__(self, folder: str, block_bytes: int) -> None:
        self._folder = folder
        self._block_bytes = block_bytes
        self._direct = self._direct_works()
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[bool] = queue.SimpleQueue()
        for _ in range(THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def store(self, names: Sequence[str]) -> None:
        self._each([lambda buffer, name=name: self._write(name, buffer) for name in names])  # type: ignore[misc]

    def load(self, names: Sequence[str]) -> None:
        self._each([lambda buffer, name=name: self._read(name, buffer) for name in names])  # type: ignore[misc]

    def lookup(self, names: Sequence[str]) -> None:
        """In two batches, each on one thread: as many threads as the tier asks with."""
        self._each([lambda _, half=names[i::2]: not any(map(self._there, half)) for i in range(2)])  # type: ignore[misc]

    def _each(self, works: Sequence[Work]) -> None:
        for work in works:
            self._queue.put(work)
        done = [self._done.get() for _ in works]  # each one, or the next call would take them for its own
        if not all(done):
            raise OSError("the yardstick failed")

    def _work(self) -> None:
        buffer = mmap.mmap(-1, self._block_bytes)
        buffer[:8] = b"yardstic"
        while (work := self._queue.get()) is not None:
            try:
                self._done.put(work(buffer))
            except OSError:
                self._done.put(False)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name[:2]}/{name}"

    def _write(self, name: str, buffer: mmap.mmap) -> bool:
        path = self._path(name)
        zlib.crc32(buffer)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL | self._direct, 0o600)
        try:
            written = os.pwritev(descriptor, [buffer], 0)
        finally:
            os.close(descriptor)
        os.rename(path + ".tmp", path)
        return written == self._block_bytes

    def _read(self, name: str, buffer: mmap.mmap) -> bool:
        descriptor = os.open(self._path(name), os.O_RDONLY)
        try:
            read = os.preadv(descriptor, [buffer], 0)
        finally:
            os.close(descriptor)
        zlib.crc32(buffer)
        return read == self._block_bytes

    def _there(self, name: str) -> bool:
        try:
            return os.stat(self._path(name)).st_size == self._block_bytes
        except OSError:
            return False

    def _direct_works(self) -> int:
        path = f"{self._folder}/probe"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
        except OSError:
            return 0
        try:
            with mmap.mmap(-1, 4096) as page:
                os.pwrite(descriptor, page, 0)
            return os.O_DIRECT
        except OSError:
            return 0
        finally:
            os.close(descriptor)
            os.unlink(path)
