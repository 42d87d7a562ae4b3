"""The root as a program's setup leaves it, and its fresh copy for each schedule."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class _Entry(NamedTuple):
    path: str
    status: os.stat_result
    content: bytes | str | int  # of a file; a link's target; the index of an earlier name of the same inode


class Snapshot:
    """Files, folders, links, FIFOs, hard links, modes and times below a root, kept in memory.

    `restore` makes `root` anew. The path is the same each time: paths may be part of what a tier writes.
    """

    def __init__(self, root: Path, setup: Callable[[Path], None]) -> None:
        self.root = root
        root.mkdir(parents=True)
        setup(root)
        self._mode = stat.S_IMODE(root.stat().st_mode)
        self._entries: list[_Entry] = []
        names: dict[int, int] = {}
        for folder, folders, files in os.walk(root):
            for name in sorted([*folders, *files]):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                content: bytes | str | int = b""
                if stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)
                elif stat.S_ISREG(status.st_mode):
                    index = names.setdefault(status.st_ino, len(self._entries))
                    content = Path(path).read_bytes() if index == len(self._entries) else index
                self._entries.append(_Entry(path, status, content))
        self._entries.sort(key=lambda entry: entry.path.count("/"))  # stable; links to earlier names are by path below
        self._paths = [entry.path for entry in self._entries]

    def restore(self) -> Path:
        shutil.rmtree(self.root)
        self.root.mkdir()
        self.root.chmod(self._mode)
        first: dict[int, str] = {}
        folders = []
        for path, status, content in self._entries:
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(path)
                os.chmod(path, mode)
                folders.append((path, status))
                continue
            if status.st_ino in first:
                os.link(first[status.st_ino], path)
                continue
            first[status.st_ino] = path
            if isinstance(content, str):
                os.symlink(content, path)
                continue
            if stat.S_ISFIFO(status.st_mode):
                os.mkfifo(path, mode)
            else:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                assert isinstance(content, bytes)
                os.write(descriptor, content)
                os.fchmod(descriptor, mode)
                os.close(descriptor)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        for path, status in reversed(folders):
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return self.root

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
