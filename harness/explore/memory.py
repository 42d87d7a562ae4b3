"""The memory of a stopped process, read through /proc/PID/mem."""

from __future__ import annotations

import os

PAGE = 4096


class Memory:
    """Reads another process's memory. Raises OSError where it may not, or the address is not mapped."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, address: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, address)

    def text(self, address: int, length_max: int) -> str:
        """A string up to its final zero, at most `length_max` bytes."""
        found = b""
        while len(found) < length_max:  # never beyond a page that is not mapped
            piece = os.pread(self._descriptor, min(PAGE - address % PAGE, 256), address)
            end = piece.find(b"\0")
            if end >= 0 or not piece:
                found += piece[:end] if end >= 0 else b""
                break
            found += piece
            address += len(piece)
        return os.fsdecode(found)

    def close(self) -> None:
        os.close(self._descriptor)
