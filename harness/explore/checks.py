"""What must be so after every schedule of a program, a sentence for each violation, which begins with its kind. The
rules of the checker `interleavings` say in words what each kind demands.

After the schedule a fresh process opens the tier on a copy of the root, loads each block, stores it, and loads it
again: the next reader and the next writer. Equal roots are asked once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.core import content
from harness.explore.model import CannotExplore, Outcome
from harness.explore.programs import KEEP_BLOCKS, Kit, Spec, Step, Subject, age, in_child

EXCUSED = "a store left a damaged file of the right size, and a load quarantined it"
LIMITS = {"EMFILE", "ENFILE", "ENOMEM"}
FREE_BYTES_MIN = 1 << 20
"""With less free where the roots are made, ENOSPC is no finding: nothing here injects faults."""
_VOLATILE = re.compile(r"[0-9a-f]{8,}|\d+")
_SEALED_BYTES = 32
"""Of a file's bytes after its block, so many do not depend on when and by whom it was written."""


class Check:
    """Judges each outcome of one program."""

    def __init__(self, kit: Kit, spec: Spec) -> None:
        self._kit, self._spec = kit, spec
        self._excused: set[str] = set()  # of the last outcome
        self._known: dict[tuple[Any, ...], list[dict[str, Any]]] = {}

    def __call__(self, outcome: Outcome) -> list[str]:
        """One sentence for each violation."""
        self._excused.clear()
        found = [*self._ends(outcome), *self._results(outcome), *self._openings(outcome)]
        if outcome.stuck is None:
            found += [*self._left_over(outcome), *self._next(outcome)]
        return found

    def state(self, outcome: Outcome) -> tuple[Any, ...]:
        """The final state of the outcome that was checked last: results, files, and what was so by design."""
        ends = [[(r.get("ok"), r.get("seen"), r.get("wrong")) for r in results or ()] for results in outcome.results]
        files = _fingerprint(outcome.root, self._kit)
        return (tuple(sorted(self._excused)), repr(ends), outcome.killed, bool(outcome.stuck), files)

    def _ends(self, outcome: Outcome) -> Iterator[str]:
        if outcome.stuck is not None:
            yield f"stuck: {outcome.stuck}"
        for actor, error in enumerate(outcome.errors):
            if error is not None:
                yield f"raised: process {actor}: {error}"

    def _done(self, outcome: Outcome) -> Iterator[tuple[int, Step, dict[str, Any]]]:
        """Every operation whose result its process reported, also before it was killed."""
        for actor, (steps, results) in enumerate(zip(self._spec.actors, outcome.results, strict=True)):
            for step, result in zip(steps, results or (), strict=False):
                yield actor, step, result

    def _results(self, outcome: Outcome) -> Iterator[str]:
        known = {(actor, block) for actor in range(len(self._spec.actors)) for block in self._lasting(present=True)}
        for actor, step, result in self._done(outcome):
            who, found = f"process {actor}: {step}", (actor, step.block) in known
            if step.operation == "lookup":
                yield from self._lookup(who, step.block, result["seen"], found)
            if step.block in self._lasting() and result.get("seen", "hit") == "hit" and result["ok"]:
                known.add((actor, step.block))
            if step.operation not in ("load", "store"):
                continue
            if result["results"] != 1 or result.get("outcomes", 1) != 1:
                yield f"results: {who} got {result['results']} results for {result.get('outcomes', 1)} blocks"
            if result.get("wrong"):
                yield f"wrong bytes: {who} is reported ok, and the bytes are wrong: {_kind(result['wrong'])}"
            if result["ok"]:
                continue
            if why := _shortage(outcome.root, result["reasons"]):
                raise CannotExplore(f"{who} failed: {why}")
            why = f"{who} failed ({result['reasons'] or 'no reason given'})"
            if step.operation == "store" and not result["refused_blocks"]:
                yield f"failed store: {why} although no fault was injected"
            if step.operation == "load" and found:
                yield f"failed load: {why} although the block was there"

    def _lasting(self, present: bool = False) -> set[str]:
        """The blocks that nothing removes or damages; with `present` those of them that are there at the beginning."""
        given = dict(self._spec.given)
        blocks = set(given) if present else set(self._spec.blocks)
        return set() if self._spec.has("evict") else {block for block in blocks if not given.get(block)}

    def _lookup(self, who: str, block: str, seen: str, found: bool) -> Iterator[str]:
        """`found`: the block was there at the beginning, or this process has found or stored it."""
        stored = any(Step("store", block) in steps for steps in self._spec.actors)
        if seen == "hit" and not stored and block not in dict(self._spec.given):
            yield f"lookup: {who} is a hit, and no process stores the block"
        if seen == "miss" and found:
            yield f"lookup: {who} is a miss although the block was there"

    def _openings(self, outcome: Outcome) -> Iterator[str]:
        opened = [(a, r) for a, s, r in self._done(outcome) if s.operation.startswith("open") and "digest" in r]
        refused = [(a, r) for a, s, r in self._done(outcome) if s.operation.startswith("open") and "refused" in r]
        if len(digests := {r["digest"] for _, r in opened}) > 1:
            who = " and ".join(f"process {actor}" for actor, _ in opened)
            yield f"two seeds: {who} opened one root with {len(digests)} seeds"
        if refused and (not self._spec.has_other_seed or not (opened or outcome.killed)):
            actor, result = refused[0]
            yield f"refused opening: process {actor}: {result['refused']}"

    def _left_over(self, outcome: Outcome) -> Iterator[str]:
        if not outcome.killed:
            for name in self._strangers(outcome.root):
                yield f"left over: {name} is left, and no process was killed"

    def _strangers(self, root: Path) -> list[str]:
        """Files that are neither blocks nor the tier's own nor quarantined, by what their names have in common."""
        blocks, found = set(self._kit.files.values()), []
        for path in _files(root):
            own = any(fnmatchcase(os.path.basename(path), glob) for glob in self._kit.tier.bookkeeping)
            if path not in blocks and not own and "quarantine" not in path.split("/")[:-1]:
                found.append(_VOLATILE.sub("#", path))
        return sorted(found)

    # --- what the next process finds ---

    def _next(self, outcome: Outcome) -> Iterator[str]:
        reported = {step.block for _, step, result in self._done(outcome) if step.operation == "store" and result["ok"]}
        key = _fingerprint(outcome.root, self._kit)
        if key not in self._known:
            self._known[key] = in_child(lambda: self._ask(outcome.root, "open"))
            if self._spec.has_other_seed and not self._known[key][0]["ok"]:
                self._known[key] = in_child(lambda: self._ask(outcome.root, "open other"))
        asked = self._known[key]
        opened = asked[0]
        if not opened["ok"]:
            yield f"next process: it cannot open the root: {opened['refused']}"
            return
        present = 0
        for block in self._spec.blocks:
            first = _of(asked, f"load {block}", 0)
            present += bool(first["ok"])
            if first.get("wrong"):
                yield f"wrong bytes: the next process loads {block}, and the bytes are wrong: {_kind(first['wrong'])}"
            elif not first["ok"] and not self._spec.has("evict"):
                yield from self._missing(outcome, block, block in reported)
            stored, again = _of(asked, f"store {block}", 0), _of(asked, f"load {block}", 1)
            if not stored["ok"]:
                yield f"next process: it cannot store {block} ({stored['reasons'] or 'no reason given'})"
            elif not again["ok"]:
                yield f"next process: it stores {block}, which is reported ok, and cannot load it"
            elif again.get("wrong") and not first.get("wrong"):
                yield f"next process: it stores {block}, and loads wrong bytes: {_kind(again['wrong'])}"
        if self._spec.has("evict") and present < min(KEEP_BLOCKS, self._placed(reported)):
            yield f"evicted too much: {present} blocks are left, and the limit allows {KEEP_BLOCKS}"
        if (left := asked[-1]["blocks"]) is not None and left > KEEP_BLOCKS:
            yield f"next process: it evicts, and {left} blocks are left, where the limit allows {KEEP_BLOCKS}"
        if outcome.killed:
            for name in asked[-1]["left"]:
                yield f"left over: {name} of the killed process stays"

    def _placed(self, reported: set[str]) -> int:
        """Blocks that were there or were reported stored."""
        return len(reported | {block for block, damage in self._spec.given if not damage})

    def _missing(self, outcome: Outcome, block: str, reported: bool) -> Iterator[str]:
        """A block that the next process does not load."""
        damage = dict(self._spec.given).get(block)
        if reported and damage in ("corrupt", "foreign") and not self._right_bytes_aside(outcome.root, block):
            self._excused.add(EXCUSED)
        elif reported:
            yield f"lost store: {block} was reported stored, and the next process does not find it"
        elif damage == "":
            yield f"lost store: {block} was there from the beginning, and the next process does not find it"

    def _right_bytes_aside(self, root: Path, block: str) -> bool:
        """Whether the block's right bytes are in a file that is not its own: a good file was moved away."""
        right = _expected(self._kit, block)
        others = (path for path in _files(root) if path not in self._kit.files.values())
        return any((root / path).read_bytes()[: len(right)] == right for path in others)

    def _ask(self, root: Path, opening: str) -> list[dict[str, Any]]:
        """The next process, on a copy of the root."""
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            copy = Path(folder) / "root"
            shutil.copytree(root, copy, symlinks=True)
            subject = Subject(self._kit, copy)
            steps = [Step(opening)]
            for block in self._spec.blocks:
                steps += [Step("load", block), Step("store", block), Step("load", block)]
            asked = subject.run(steps)
            age(copy)
            present = None
            if asked[0]["ok"] and "evict" in self._kit.tier.operations:
                subject.adapter.operate("evict", KEEP_BLOCKS)
                present = sum((copy / path).exists() for path in self._kit.files.values())
            if asked[0]["ok"] and "collect" in self._kit.tier.operations:
                subject.adapter.operate("collect")
            return [*asked, {"step": "", "left": self._strangers(copy), "blocks": present}]


def _shortage(root: Path, reasons: str) -> str:
    """Why a job failed that this machine explains; "": it does not."""
    found = set(reasons.split())
    if lacking := sorted(found & LIMITS):
        return f"this machine has reached a limit ({', '.join(lacking)})"
    status = os.statvfs(root)
    free = status.f_bavail * status.f_frsize
    return f"{free} bytes are free at {root}" if found & {"ENOSPC", "EDQUOT"} and free < FREE_BYTES_MIN else ""


def _of(asked: list[dict[str, Any]], step: str, number: int) -> dict[str, Any]:
    return [result for result in asked if result["step"] == step][number]


def _kind(difference: str) -> str:
    """A difference of bytes without what may differ from run to run."""
    return difference.partition(" (")[0]


def _files(root: Path) -> Iterator[str]:
    """Relative paths of all files, links and FIFOs below a root."""
    for folder, _, names in os.walk(root):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), root)


def _expected(kit: Kit, block: str) -> bytes:

    view = bytearray(kit.setup.block_bytes)
    content.fill(memoryview(view), kit.keys[block])
    return bytes(view)


def _fingerprint(root: Path, kit: Kit) -> tuple[Any, ...]:
    """A root without what depends on when, and by which process, it was written: equal for roots in which the next
    process finds the same."""
    blocks = {path: block for block, path in kit.files.items()}
    found = []
    for folder, folders, names in os.walk(root):
        for name in (*names, *folders):
            path = os.path.relpath(os.path.join(folder, name), root)
            shown = blocks.get(path) or _VOLATILE.sub("#", path)
            status = os.lstat(root / path)
            digest = ""
            if os.path.isfile(root / path) and not os.path.islink(root / path):
                with open(root / path, "rb") as file:
                    head = file.read(kit.setup.block_bytes + _SEALED_BYTES)
                digest = hashlib.blake2b(head, digest_size=16).hexdigest()
            found.append((shown, status.st_mode, status.st_size * bool(digest), digest))
    return tuple(sorted(found))
