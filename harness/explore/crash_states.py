"""All states that a file system may hold after a crash at any step of a recording, within the rules of its journal.

A crash cuts off the steps at one point. Of those before it, a file system keeps what its rules allow (`RULES`):

    ordered     the journal keeps changes of names in order, so a prefix of them survives. Data in the page cache is
                allocated late: a file may have any of its sizes in whole pages, and each page below it its bytes or
                zeros (ext4 data=ordered, XFS)
    writeback   the same, and a page below the size may hold what its place on the device held before: bytes of
                another file (ext4 data=writeback)
    unordered   only what was waited for is certain: any prefix of the changes of names, less any one of them, and pages
                as above, also of direct writes (no journal promises less)

Barriers: fsync and fdatasync of a file (its bytes and size), of a folder (its names). Where names are ordered, a
barrier of an inode keeps all changes up to the last one of that inode, and all before it if the file had bytes to
write. A direct write that has returned is on the device before the journal says how long the file is.

The model is that of ALICE (Pillai et al., OSDI 2014): a recording on one file system gives the states of any. Pages are
4096 bytes. Of a file with more than `PAGES_EACH` pages to write not every combination is made, but each page alone, all
but it, and each prefix; of several such files one at a time varies, while the others have all their bytes or none.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from harness.explore.recording import ROOT, Step

RULES = ("ordered", "writeback", "unordered")
PAGE_BYTES = 4096
PAGES_EACH = 3
STALE = b"\xa5" * PAGE_BYTES
"""What a page holds that another file left, where the recording has no such file."""

Names = Mapping[tuple[int, str], int]


class State(NamedTuple):
    """A tree that a crash may leave: paths to bytes, None for a folder. `what` describes the first crash that does."""

    files: Mapping[str, bytes | None]
    what: str
    owed: frozenset[int]  # the blocks that had been reported stored at some crash that leaves this state


class Tree(NamedTuple):
    """What is on the device for certain when the steps begin."""

    names: Names = MappingProxyType({})
    contents: Mapping[int, bytes] = MappingProxyType({})
    folders: frozenset[int] = frozenset({ROOT})

    def after(self, steps: Sequence[Step]) -> Tree:
        """The tree when all of the steps have reached the device."""
        contents = {inode: _written(self.contents.get(inode, b""), own) for inode, own in _by_inode(steps).items()}
        folders = self.folders | {step.inode for step in steps if step.kind == "mkdir"}
        return Tree(_named(self.names, steps), {**self.contents, **contents}, folders)

    def files(self) -> dict[str, bytes | None]:
        """Paths to bytes, None for a folder."""
        return {
            path: None if inode in self.folders else self.contents.get(inode, b"")
            for path, inode in _paths(self.names, self.folders)
        }


class CrashStates:
    """The states after a crash within `steps`, begun on `base`. `points` is how many crashes there are, one before each
    step and one after the last; `states` are all different trees that they may leave."""

    def __init__(self, base: Tree, steps: Sequence[Step], rules: str, owed: Iterable[int] = ()) -> None:
        assert rules in RULES, rules
        self._base, self._steps, self._rules = base, steps, rules
        self._folders = base.after(steps).folders
        self._stale = _stale(base, steps)
        self._found: dict[frozenset[tuple[str, bytes | None]], State] = {}
        self._seen: dict[object, list[frozenset[tuple[str, bytes | None]]]] = {}
        self.points = len(steps) + 1
        blocks = set(owed)
        for point in range(self.points):
            if point and steps[point - 1].kind == "mark":
                blocks = _owed_after(blocks, steps[point - 1].call)
            self._crash(point, frozenset(blocks))
        self.states = list(self._found.values())

    def _crash(self, point: int, owed: frozenset[int]) -> None:
        before = self._steps[:point]
        for kept, limit in self._kept(before):
            names = _named(self._base.names, [step for i, step in enumerate(before) if i in kept])
            paths = _paths(names, self._folders)
            files = {inode: self._fates(inode, before, kept, limit) for _, inode in paths if inode not in self._folders}
            key = (tuple(sorted(names.items())), tuple(sorted(files.items())))
            if key not in self._seen:
                after = before[-1].call if before else "nothing"
                self._seen[key] = [
                    self._state(paths, chosen, f"crash after {after}: {what}") for chosen, what in _combined(files)
                ]
            for state in self._seen[key]:
                self._found[state] = self._found[state]._replace(owed=self._found[state].owed | owed)

    def _state(
        self, paths: Sequence[tuple[str, int]], chosen: Mapping[int, bytes], what: str
    ) -> frozenset[tuple[str, bytes | None]]:
        files = {path: None if inode in self._folders else chosen[inode] for path, inode in paths}
        state = frozenset(files.items())
        self._found.setdefault(state, State(files, what, frozenset()))
        return state

    def _kept(self, before: Sequence[Step]) -> Iterator[tuple[frozenset[int], int]]:
        """Which changes survive, as indices of steps, and up to which step a file's bytes may be written."""
        certain = self._certain(before)
        made: set[frozenset[int]] = set()
        for end in range(max(certain, default=-1) + 1 if self._rules != "unordered" else 0, len(before) + 1):
            kept = certain | {i for i, step in enumerate(before[:end]) if step.kind in _CHANGES}
            limit = end if self._rules != "unordered" else len(before)
            yield frozenset(kept), limit
            if self._rules == "unordered":
                for i in sorted(kept - certain):
                    if (less := frozenset(kept - {i})) not in made:
                        made.add(less)
                        yield less, limit

    def _certain(self, before: Sequence[Step]) -> set[int]:
        """Changes of names and sizes that some barrier waited for."""
        certain: set[int] = set()
        for at, barrier in enumerate(before):
            if barrier.kind != "sync":
                continue
            earlier = [i for i in range(at) if before[i].kind in _CHANGES]
            if self._rules == "unordered":
                certain |= {i for i in earlier if barrier.inode in _folders_of(before[i])}
                certain |= {i for i in earlier if before[i].kind == "truncate" and before[i].inode == barrier.inode}
                continue
            touched = [i for i in range(at) if barrier.inode in (before[i].inode, *_folders_of(before[i]))]
            to_write = any(before[i].kind == "write" and before[i].inode == barrier.inode for i in touched)
            last = at if to_write else max(touched, default=-1)
            certain |= {i for i in earlier if i <= last}
        return certain

    def _fates(
        self, inode: int, before: Sequence[Step], kept: frozenset[int], limit: int
    ) -> tuple[tuple[bytes, str], ...]:
        """What a file may hold, each with words; the first is all of it, the second nothing that was not waited for."""
        own = [(i, step) for i, step in enumerate(before) if step.inode == inode and step.kind in ("write", "truncate")]
        synced = max((i for i, step in enumerate(before) if step.kind == "sync" and step.inode == inode), default=-1)
        sure, maybe = [], []
        for i, step in own:
            in_order = step.kind == "truncate" or (step.direct and self._rules != "unordered")
            if i < synced or (in_order and i in kept | {n for n in range(limit) if before[n].kind == "write"}):
                sure.append(step)
            elif not in_order and i < limit:
                maybe.append(step)
        base = self._base.contents.get(inode, b"")
        old = _written(base, sure)
        has_place = {page for start, end in _extents(base, sure) for page in range(start // PAGE_BYTES, end)}
        new = _written(old, maybe)
        if new == old:
            return ((new, ""),)
        found: dict[bytes, str] = {new: "", old: "unwritten"}
        pages = range(-(-len(new) // PAGE_BYTES))
        for size in _sizes(len(old), len(new)):
            choices = []
            for page in pages[: -(-size // PAGE_BYTES)]:
                fresh, was = _page(new, page), _page(old, page)
                fates = [(fresh, "")]
                if was != fresh:
                    fates.append((was, f"page {page} {'old' if page * PAGE_BYTES < len(old) else 'zeros'}"))
                    if self._rules != "ordered" and page not in has_place:
                        fates.append(
                            (_page(self._stale, page) if self._stale else STALE, f"page {page} of another file")
                        )
                choices.append(fates)
            for chosen in _chosen(choices):
                words = [f"size {size} of {len(new)}"] * (size < len(new)) + [word for _, word in chosen if word]
                found.setdefault(b"".join(page for page, _ in chosen)[:size], ", ".join(words))
        return tuple(found.items())


_CHANGES = ("create", "mkdir", "link", "unlink", "rename", "truncate")


def materialise(state: State, folder: Path) -> None:
    """Make the state's files and folders below an empty `folder`."""
    for path in sorted(state.files):
        content = state.files[path]
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def tree_at(folder: str) -> dict[str, bytes | None]:
    """What is below a folder, as `Tree.files` has it."""
    found: dict[str, bytes | None] = {}
    for above, folders, files in os.walk(folder):
        relative = os.path.relpath(above, folder)
        found |= {os.path.normpath(os.path.join(relative, name)): None for name in folders}
        found |= {os.path.normpath(os.path.join(relative, name)): Path(above, name).read_bytes() for name in files}
    return found


def _owed_after(owed: set[int], mark: str) -> set[int]:
    """Marks "stored 1 2" and "gone 1 2" say which blocks a tier owes from then on."""
    what, *blocks = mark.split()
    if what == "stored":
        return owed | set(map(int, blocks))
    return owed - set(map(int, blocks)) if what == "gone" else owed


def owed_after(owed: Iterable[int], steps: Iterable[Step]) -> set[int]:
    """The blocks that are owed when all steps are done."""
    blocks = set(owed)
    for step in steps:
        if step.kind == "mark":
            blocks = _owed_after(blocks, step.call)
    return blocks


def _named(names: Names, steps: Iterable[Step]) -> dict[tuple[int, str], int]:
    after = dict(names)
    for step in steps:
        place = step.folder, step.name
        if step.kind in ("create", "mkdir", "link") and step.folder >= 0:
            after[place] = step.inode
        elif step.kind == "unlink":
            after.pop(place, None)
        elif step.kind == "rename" and step.target is not None:
            after.pop(place, None)
            after[step.target] = step.inode
    return after


def _paths(names: Names, folders: frozenset[int]) -> list[tuple[str, int]]:
    """All paths that lead from the root to an inode."""
    below: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), inode in names.items():
        below.setdefault(folder, []).append((name, inode))
    found: list[tuple[str, int]] = []
    open_folders = [("", ROOT)]
    while open_folders:
        prefix, folder = open_folders.pop()
        for name, inode in below.get(folder, []):
            found.append((prefix + name, inode))
            if inode in folders:
                open_folders.append((f"{prefix}{name}/", inode))
    return found


def _folders_of(step: Step) -> tuple[int, ...]:
    return tuple(folder for folder in (step.folder, step.target[0] if step.target else -1) if folder >= 0)


def _by_inode(steps: Iterable[Step]) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    for step in steps:
        if step.kind in ("write", "truncate"):
            found.setdefault(step.inode, []).append(step)
    return found


def _written(content: bytes, steps: Iterable[Step]) -> bytes:
    after = bytearray(content)
    for step in steps:
        if step.kind == "truncate":
            after = after[: step.offset] + bytes(max(0, step.offset - len(after)))
        else:
            after += bytes(max(0, step.offset - len(after)))
            after[step.offset : step.offset + len(step.data)] = step.data
    return bytes(after)


def _extents(base: bytes, steps: Iterable[Step]) -> Iterator[tuple[int, int]]:
    """The first byte and the page after the last one of each part of a file that has its place on the device."""
    for offset, size in ((0, len(base)), *((s.offset, len(s.data)) for s in steps if s.kind == "write")):
        yield offset, -(-(offset + size) // PAGE_BYTES)


def _page(content: bytes, page: int) -> bytes:
    return content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES].ljust(PAGE_BYTES, b"\0")


def _sizes(old: int, new: int) -> list[int]:
    """The sizes that a growing file passes in whole pages, the largest first; one that does not grow has one."""
    if new <= old:
        return [new]
    first = -(-old // PAGE_BYTES) * PAGE_BYTES
    return sorted({old, new, *range(first, new, PAGE_BYTES)}, reverse=True)


Fate = tuple[bytes, str]


def _chosen(choices: Sequence[Sequence[Fate]]) -> Iterator[Sequence[Fate]]:
    """Combinations of what each page may hold: all of them if few pages may differ."""
    several = [page for page, fates in enumerate(choices) if len(fates) > 1]
    if len(several) <= PAGES_EACH:
        yield from itertools.product(*choices)
        return
    for fate in range(1, max(map(len, choices))):
        other = [fates[min(fate, len(fates) - 1)] for fates in choices]
        for page in range(len(choices) + 1):
            yield [fates[0] for fates in choices[:page]] + other[page:]  # a prefix
            if page in several:
                yield [other[i] if i == page else fates[0] for i, fates in enumerate(choices)]
                yield [fates[0] if i == page else other[i] for i, fates in enumerate(choices)]


def _combined(files: Mapping[int, Sequence[Fate]]) -> Iterator[tuple[dict[int, bytes], str]]:
    """One file at a time varies, while the others have all their bytes or none of the uncertain ones."""
    for others in (0, 1):
        rest = {inode: fates[min(others, len(fates) - 1)] for inode, fates in files.items()}
        varying = [inode for inode, fates in files.items() if len(fates) > 1]
        if not others or not varying:
            yield {inode: fate[0] for inode, fate in rest.items()}, _words(rest.values())
        for inode in varying:
            for fate in files[inode]:
                chosen = {**rest, inode: fate}
                yield {i: c[0] for i, c in chosen.items()}, _words(chosen.values())


def _words(fates: Iterable[Fate]) -> str:
    return "; ".join(words for _, words in fates if words) or "all bytes written"


def _stale(base: Tree, steps: Sequence[Step]) -> bytes:
    """Bytes that freed space may hold: those of the largest file there was, a block with its trailer."""
    return max(base.contents.values(), key=len, default=b"")
