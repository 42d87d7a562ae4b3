"""How much of a root its readable folders account for: what could not be read, and the files that belong to no folder.
The command line reports it, and exits with 0 only when the coverage is complete. It reads names and sizes, follows no
link, stays on the root's file system, and stops counting at a limit.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kvtier.ops.catalog import FOLDER_NAME, Folder, Unreadable, bases, folders, list_root, note, note_error
from kvtier.ops.lease import LEASE_NAME
from kvtier.ops.text import path_text, size_text

UNOWNED_FILES_MAX = 200_000
UNOWNED_SECONDS_MAX = 5.0
ATTEMPTS_MAX = 3
NAMED_MAX = 20  # problems in a text
LARGEST_MAX = 5  # entries of the root, by the bytes in them
_NOT_COUNTED = (LEASE_NAME, "lost+found")


@dataclass
class Coverage:
    """What `cover` found. `unreadable` grows while `folders` are walked: read it after that."""

    root_dir: str
    folders: list[Folder] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)  # of the run configurations that could be read
    unreadable: Unreadable = field(default_factory=dict)
    unowned_files: int = 0  # that belong to no readable folder, of those that were counted
    unowned_bytes: int = 0
    all_counted: bool = True
    largest: Counter[str] = field(default_factory=Counter)  # entries of the root -> bytes of such files

    @property
    def is_complete(self) -> bool:
        """Whether all files below the root belong to folders that could be read, and there is one."""
        return bool(self.bases) and self.all_counted and not self.unreadable and not self.unowned_files

    def damaged_bases(self) -> list[str]:
        """Folders named as those of run configurations whose `config.json` is damaged or missing."""
        paths = [os.path.dirname(path) for path in self.unreadable if os.path.basename(path) == "config.json"]
        names = [(path, FOLDER_NAME.fullmatch(os.path.basename(path))) for path in paths]
        root_path = os.path.realpath(self.root_dir)
        return [path for path, name in names if name and not name[2] and os.path.dirname(path) == root_path]

    def problems(self) -> list[str]:
        """One sentence each; none when it is complete."""
        found = []
        if not (self.bases or self.unreadable):
            found.append(
                f"no kvtier folder below {path_text(self.root_dir)}: no engine has opened this root, or the path is "
                "wrong; give the root_dir of the engines"
            )
        found += [f"{path_text(path)} {problem}" for path, problem in list(self.unreadable.items())[:NAMED_MAX]]
        if (more := len(self.unreadable) - NAMED_MAX) > 0:
            found.append(f"and {more:,} more paths that could not be read")
        if damaged := [path_text(os.path.basename(base)) for base in self.damaged_bases()]:
            found.append(
                f"restore config.json, or free the space when no engine uses the folder: kvtier remove "
                f"{path_text(self.root_dir)} {damaged[0] if len(damaged) == 1 else 'FOLDER'}"
            )
        if self.unowned_files:
            largest = (f"{path_text(path)} ({size_text(size)})" for path, size in self.largest.most_common(LARGEST_MAX))
            found.append(
                f"{'' if self.all_counted else 'at least '}{self.unowned_files:,} files, "
                f"{size_text(self.unowned_bytes)}, belong to no readable folder: in {', '.join(largest)}"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "root_dir": self.root_dir,
            "complete": self.is_complete,
            "run_configurations": len(self.bases),
            "unreadable": [{"path": path, "problem": problem} for path, problem in self.unreadable.items()],
            "unowned": {
                "files": self.unowned_files,
                "bytes": self.unowned_bytes,
                "all_counted": self.all_counted,
                "largest": dict(self.largest.most_common(LARGEST_MAX)),
            },
        }


def cover(root_dir: str) -> Coverage:
    """Read a root. Raises RootError when there is none, or it cannot be listed."""
    for _ in range(ATTEMPTS_MAX):
        coverage = _cover(root_dir)
        # An engine may have opened the root after the folders were read, and stored before the rest was counted.
        if not coverage.largest or bases(root_dir) == coverage.bases:
            break
    return coverage


def _cover(root_dir: str) -> Coverage:
    unreadable: Unreadable = {}
    listed, known = list_root(root_dir), bases(root_dir)  # first: what an engine adds later is not counted as unowned
    coverage = Coverage(root_dir, list(folders(root_dir, unreadable)), known, unreadable)
    owned = {*coverage.bases, *(folder.mapper.blocks_path for folder in coverage.folders)}
    others = [entry for entry in listed if entry.path not in owned and entry.name not in _NOT_COUNTED]
    deadline = time.monotonic() + UNOWNED_SECONDS_MAX
    for top, size in _walk(others, os.stat(root_dir).st_dev, coverage):
        if size is not None:
            coverage.unowned_files += 1
            coverage.unowned_bytes += size
            coverage.largest[top] += size
        if coverage.unowned_files >= UNOWNED_FILES_MAX or time.monotonic() > deadline:
            coverage.all_counted = False
            break
    for path in coverage.largest:
        if name := FOLDER_NAME.fullmatch(os.path.basename(path)):
            config_path = os.path.join(os.path.dirname(path), name[1], "config.json")
            if config_path not in unreadable and not os.path.lexists(config_path):
                note(unreadable, config_path, "is missing")
    return coverage


def _walk(tops: Iterable[os.DirEntry[str]], device: int, coverage: Coverage) -> Iterator[tuple[str, int | None]]:
    """Each regular file and folder at or below each entry: the path of that entry, and the file's bytes."""
    for top in tops:
        folder_paths: list[str] = []
        entries: Iterable[os.DirEntry[str]] = [top]
        while True:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    _not_counted(coverage, entry.path, error)
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield top.path, status.st_size
                elif stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                    folder_paths.append(entry.path)
                    yield top.path, None
                elif stat.S_ISDIR(status.st_mode):
                    coverage.all_counted = False
                    note(coverage.unreadable, entry.path, "is on another file system, and is not counted")
            if not folder_paths:
                break
            entries = _entries(folder_paths.pop(), coverage)


def _entries(path: str, coverage: Coverage) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError as error:
        _not_counted(coverage, path, error)


def _not_counted(coverage: Coverage, path: str, error: OSError) -> None:
    if note_error(coverage.unreadable, path, error):
        coverage.all_counted = False
