"""Paths as the kernel resolves them: each component's folder and name, the inode at the end, links followed.

Nothing else runs while a path is resolved, so that the answer is that of the stopped call.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

LINKS_MAX = 40
_UNNAMED = re.compile(r"#\d+ \(deleted\)$")
_MAGIC = re.compile(r"/(?:proc/(?:self|thread-self|\d+)|dev)/fd/(\d+)$")

Object = tuple[str, int] | tuple[str, int, str]
"""What calls read and write: ("entry", folder's inode, name), ("list", folder), ("data", inode), ("meta", inode),
("lock", inode), ("pipe", inode). An inode has one number on all names and descriptors."""


@dataclass
class Place:
    """Where a path leads: `folder` (inode) and `name` of its last component, and `status` of what is there, if any.

    `reads` are the entries on the way. `shown` is the path for people, relative to the root. `open` is a path under
    which this process reaches the place; `lost` says that a folder on the way does not exist.
    """

    shown: str
    open: str
    status: os.stat_result | None
    folder: int = 0
    name: str = ""
    reads: set[Object] = field(default_factory=set)
    lost: bool = False
    unnamed: bool = False  # a file without a name, made so

    @property
    def inode(self) -> int:
        return self.status.st_ino if self.status else 0

    def now(self) -> os.stat_result | None:
        """What is there at present, links not followed."""
        return lstat(self.open)


def lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


class Resolver:
    """Resolves the paths of one process; `root` is the real path of the folder that is explored."""

    def __init__(self, pid: int, root: Path) -> None:
        self.pid = pid
        self.root = str(root)

    def under_root(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + "/")

    def shown(self, path: str) -> str:
        """A path for people: relative to the root."""
        path = _UNNAMED.sub("(unnamed file)", path)
        return path[len(self.root) + 1 :] or "." if self.under_root(path) else path

    def descriptor(self, number: int) -> Place | None:
        """The file of a descriptor; None if it is none below the root."""
        path = f"/proc/{self.pid}/fd/{number}"
        try:
            target = os.readlink(path)
        except OSError:
            return None
        if not self.under_root(target):
            return None
        try:
            status = os.stat(path)
        except OSError:
            return None
        unnamed = status.st_nlink == 0 and _UNNAMED.search(target) is not None
        return Place(self.shown(target), path, status, unnamed=unnamed)

    def path(self, base: int | None, path: str, follow: bool) -> Place | None:
        """A path, relative to descriptor `base` (None: the working directory); None if it leads outside the root."""
        if magic := _MAGIC.match(path):
            return self.descriptor(int(magic[1]))
        if path.startswith("/"):
            if not self.under_root(path):
                return None
            return self._walk(self.root, ".", path[len(self.root) + 1 :], follow)
        folder = f"/proc/{self.pid}/cwd" if base is None else f"/proc/{self.pid}/fd/{base}"
        try:
            above = os.readlink(folder)
        except OSError:
            return None
        if not self.under_root(above):
            return None
        return self._walk(folder, self.shown(above), path, follow)

    def _walk(self, base: str, shown: str, path: str, follow: bool) -> Place | None:
        reads: set[Object] = set()
        try:
            status: os.stat_result | None = os.stat(base)
        except OSError:
            return Place(_join(shown, path), _join(base, path), None, lost=True)
        place = Place(shown, base, status, reads=reads)
        parts, links, stack = [p for p in path.split("/") if p not in ("", ".")], 0, [place]
        while parts:
            name = parts.pop(0)
            if name == "..":
                stack = stack[:-1] or stack
                place = stack[-1]
                continue
            here = _join(place.open, name)
            reads.add(("entry", place.inode, name))
            found = lstat(here)
            at = Place(_join(place.shown, name), here, found, place.inode, name, reads)
            if found is None:
                at.lost = bool(parts)
                return at
            if stat.S_ISLNK(found.st_mode) and (parts or follow):
                links += 1
                target = os.readlink(here)
                if links > LINKS_MAX or (target.startswith("/") and not self.under_root(target)):
                    return at
                if target.startswith("/"):
                    stack, place = stack[:1], Place(".", self.root, os.stat(self.root), reads=reads)
                    target = target[len(self.root) + 1 :]
                parts = [p for p in target.split("/") if p not in ("", ".")] + parts
                continue
            if parts and not stat.S_ISDIR(found.st_mode):
                at.lost = True
                return at
            place = at
            stack.append(at)
        return place


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder != "." else name
