"""A store in the memory of one process, for agents that are threads of a test: no port and no torch."""

from __future__ import annotations

import threading
import time


class MemoryStore:
    """Calls raise ConnectionError from `end` on; nothing is delivered to names that begin with one of `deaf`."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._counts: dict[str, int] = {}
        self._changed = threading.Condition()
        self._ended = False
        self.deaf: set[str] = set()

    def connect(self) -> MemoryStore:
        return self

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def put(self, key: str, value: bytes) -> None:
        with self._changed:
            self._check()
            if not key.startswith(tuple(self.deaf)):
                self._values[key] = value
                self._changed.notify_all()

    def take(self, key: str, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        with self._changed:
            while key not in self._values:
                self._check()
                if not self._changed.wait(deadline - time.monotonic()) and key not in self._values:
                    raise TimeoutError(key)
            return self._values.pop(key)

    def has(self, key: str) -> bool:
        with self._changed:
            self._check()
            return key in self._values

    def count(self, key: str) -> int:
        with self._changed:
            self._check()
            self._counts[key] = self._counts.get(key, 0) + 1
            return self._counts[key]

    def values(self) -> int:
        return len(self._values)

    def _check(self) -> None:
        if self._ended:
            raise ConnectionError("the store has ended")
