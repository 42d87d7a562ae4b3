"""The files of a folder as they grow, in pieces for another node, and the folder there into which the pieces go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PIECE_BYTES = 1 << 20


class Files:
    """The sending side: what was added to each file since the last look. A file that was replaced is sent anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sent: dict[str, tuple[int, int]] = {}  # name -> inode and bytes sent

    def fresh(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Pieces as (head, data). Raises nothing: a file that is gone is left out."""
        with suppress(OSError):
            for entry in sorted(os.scandir(self._folder), key=lambda entry: entry.name):
                if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                    with suppress(OSError):
                        yield from self._pieces(entry.name)

    def _pieces(self, name: str) -> Iterator[tuple[dict[str, Any], bytes]]:
        with open(self._folder / name, "rb") as file:
            status = os.fstat(file.fileno())
            inode, sent = self._sent.get(name, (status.st_ino, 0))
            if inode != status.st_ino or status.st_size < sent:
                sent = 0
            file.seek(sent)
            while data := file.read(PIECE_BYTES):
                yield {"file": name, "at": sent}, data
                sent += len(data)
                self._sent[name] = (status.st_ino, sent)


def write_piece(folder: Path, head: dict[str, Any], data: bytes) -> None:
    """The receiving side. Raises OSError."""
    name, at = os.path.basename(head["file"]), head["at"]
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if at == 0:
            os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, at)
    finally:
        os.close(descriptor)
