"""Records what a tier does to its files, phase by phase; then opens the tier on every state that a crash may leave.

Two processes: the first, under strace, marks phases in the log of its own calls; the second reads the log. In each
state it opens the tier, looks up and loads every block, stores those that did not come back right, and loads them
again. It writes a note "crashphase" for each phase and a "crashstate" for each state with something wrong, and judges
neither.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.adapters import adapter_class
from harness.core import content, notes
from harness.core.patience import Patience
from harness.core.request_traces import tokens_of
from harness.explore.crash_states import CrashStates, State, Tree, materialise, owed_after, tree_at
from harness.explore.recording import Recording, Step, mark
from harness.runtime.worker import Worker

ANSWER_SECONDS_MAX = 10.0
"""A lookup or a job that takes longer in a tier with nothing else to do hangs."""
BLOCKS = (0, 1, 2, 3)
SHOWN_MAX = 3
"""States of one phase that are written down for each kind of thing that went wrong; all are counted."""


class Silent(Exception):
    """The tier gave no answer in time."""


class _Tier:
    """A tier on a root, driven by one call at a time. Slot i is block i's."""

    def __init__(self, worker: Worker, root: Path, max_bytes: int = 0, **options: Any) -> None:
        setup = worker.setup
        chosen = dataclasses.replace(
            setup,
            root_dir=str(root),
            slots=len(BLOCKS),
            n_read_threads=1,
            n_write_threads=1,
            max_bytes=max_bytes,
            options={**setup.options, **options},
        )
        self.adapter = adapter_class(worker.instruction.tier)(chosen)
        self.keys = [self.adapter.keys(tokens_of(block, setup.tokens_per_block))[0] for block in BLOCKS]
        self._numbers = iter(range(1 << 30))

    def store(self, blocks: Sequence[int]) -> list[int]:
        """The blocks that were reported stored."""
        for block in blocks:
            content.fill(self._slot(block), self.keys[block])
        return self._job(blocks, store=True)

    def find(self, blocks: Sequence[int]) -> dict[int, str]:
        """Of each block "" if it came back right, "missing", "failed", or how its bytes differ."""
        request = f"find-{next(self._numbers)}"
        self.adapter.request_started(request)
        keys = [self.keys[block] for block in blocks]
        patience = Patience(ANSWER_SECONDS_MAX)
        while "retry" in (verdicts := self.adapter.lookup(keys, request)):
            self.adapter.step()
            if patience.is_over():
                raise Silent("a lookup had no answer")
            time.sleep(0.0002)
        hits = [block for block, verdict in zip(blocks, verdicts, strict=True) if verdict == "hit"]
        found = dict.fromkeys(blocks, "missing") | dict.fromkeys(hits, "failed")
        for block in hits:
            content.poison(self._slot(block))
        for block in self._job(hits, store=False, request=request) if hits else ():
            found[block] = content.judge(self._slot(block), self.keys[block]) or ""
        self.adapter.request_finished(request)
        return found

    def _slot(self, block: int) -> memoryview:
        size = self.adapter.setup.block_bytes
        return self.adapter.view.cast("B")[block * size : (block + 1) * size]

    def _job(self, blocks: Sequence[int], store: bool, request: str = "") -> list[int]:
        number = next(self._numbers)
        name = request or f"store-{number}"
        if not request:
            self.adapter.request_started(name)
        submit = self.adapter.submit_store if store else self.adapter.submit_load
        submit(number, [self.keys[block] for block in blocks], list(blocks), name)
        patience = Patience(ANSWER_SECONDS_MAX)
        while not (finished := self.adapter.poll()):
            self.adapter.step()
            if patience.is_over():
                raise Silent(f"a {'store' if store else 'load'} had no result")
            time.sleep(0.0002)
        if not request:
            self.adapter.request_finished(name)
        return [block for block in blocks if self.keys[block] in finished[0].ok]


def drive(worker: Worker, log: str = "", way: str = "", rules: Sequence[str] = ()) -> None:
    """Without `log` record, else judge the states of that log."""
    if worker.parent.receive("go") is None:
        return
    root = Path(worker.setup.root_dir) / "recorded"
    if log:
        _judge(worker, root, log, way, rules)
    else:
        root.mkdir()
        _record(worker, root)


# --- the process that is recorded ---


def _record(worker: Worker, root: Path) -> None:
    mark("begin the first open, and a store")
    tier = _Tier(worker, root)
    _stored(tier.store((0,)))
    mark("end")
    for phase, blocks in (("a store of two blocks", (1, 2)), ("a store of a stored block", (0,))):
        mark(f"begin {phase}")
        _stored(tier.store(blocks))
        mark("end")
    if worker.setup.options.get("durability") == "durable":
        hasty = _Tier(worker, root, durability="cache")
        mark("begin a store of a block that was stored without waiting")
        hasty.store((3,))
        _stored(tier.store((3,)))
        mark("end")
        hasty.adapter.close()
    name = tier.adapter.file_name(tier.keys[0])
    if name is not None and (root / name).is_file():
        _damage(root / name)
        mark("gone 0")
        mark("begin a load of a damaged block, and its store")
        if tier.find((0,))[0] in ("missing", "failed"):
            _stored(tier.store((0,)))
            mark("end")
        else:
            _damage(root / name)  # this tier verifies nothing: its block is made right again
            mark("void")
    mark("begin the close")
    tier.adapter.close()
    mark("end")
    if tier.adapter.keeps_limit:
        mark(" ".join(["gone", *map(str, BLOCKS)]))
        mark("begin an eviction")
        mark("end" if _evicts(_Tier(worker, root, max_bytes=(worker.setup.block_bytes + 4096) * 3 // 2)) else "void")


def _evicts(tier: _Tier) -> bool:
    """Whether a tier whose limit is exceeded has evicted blocks, and was closed."""
    patience = Patience(ANSWER_SECONDS_MAX)
    while not (evicted := tier.adapter.evictions()) and not patience.is_over():
        tier.adapter.step()
        time.sleep(0.0002)
    tier.adapter.close()
    return bool(evicted)


def _stored(blocks: Sequence[int]) -> None:
    mark(" ".join(["stored", *map(str, blocks)]))


def _damage(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        first = os.pread(file.fileno(), 1, 0)
        os.pwrite(file.fileno(), bytes([first[0] ^ 0xFF]), 0)


# --- the process that judges ---


class _Phase(NamedTuple):
    name: str
    base: Tree
    owed: frozenset[int]
    steps: list[Step]


def _phases(steps: Sequence[Step]) -> Iterator[_Phase]:
    """The phases of a recording. What happened before a phase has long reached the device."""
    name, began = "", 0
    for i, step in enumerate(steps):
        what, _, rest = step.call.partition(" ") if step.kind == "mark" else ("", "", "")
        if what == "begin":
            name, began = rest, i + 1
        elif what == "end":
            yield _Phase(
                name, Tree().after(steps[:began]), frozenset(owed_after((), steps[:began])), list(steps[began:i])
            )


def _judge(worker: Worker, root: Path, log: str, way: str, rules: Sequence[str]) -> None:
    with open(log, "rb") as lines:
        recording = Recording(lines, str(root))
    doubt = "; ".join(sorted(set(recording.unknown)))
    if not doubt and Tree().after(recording.steps).files() != tree_at(str(root)):
        doubt = "the recorded calls do not lead to the files that are there"
    if doubt:
        worker.note(notes.Skipped(), f"{way}: the recording is incomplete: {doubt}")
        return
    durable = worker.setup.options.get("durability") == "durable"
    folder = Path(worker.setup.root_dir) / "state"
    for phase in _phases(recording.steps):
        merged: dict[frozenset[tuple[str, bytes | None]], tuple[State, list[str]]] = {}
        counts, points = {}, 0
        for name in rules:
            explored = CrashStates(phase.base, phase.steps, name, phase.owed)
            counts[name], points = len(explored.states), explored.points
            for state in explored.states:
                key = frozenset(state.files.items())
                before, names = merged.get(key, (state, []))
                merged[key] = before._replace(owed=before.owed | state.owed), [*names, name]
        outcomes: Counter[str] = Counter()
        for state, names in merged.values():
            if worker.parent.stop.is_set():
                return
            said = _look(worker, folder, state)
            for outcome, (block, text) in said.items():
                if outcome == "lost" and not durable:
                    outcome = "missing"
                outcomes[outcome] += 1
                if outcome != "missing" and outcomes[outcome] <= SHOWN_MAX:
                    worker.note(notes.CrashState(way, phase.name, outcome, state.what, names, block), text)
            worker.tick()
        changes = sum(step.kind not in ("mark", "sync") for step in phase.steps)
        worker.note(notes.CrashPhase(way, durable, phase.name, changes, points, counts, len(merged), dict(outcomes)))


def _look(worker: Worker, folder: Path, state: State) -> Mapping[str, tuple[int | None, str]]:
    """What the tier does wrong in a state: kind -> block and words."""
    folder.mkdir()
    said: dict[str, tuple[int | None, str]] = {}
    try:
        materialise(state, folder)
        try:
            tier = _Tier(worker, folder)
        except Exception as error:
            return {"refused": (None, f"the tier does not open it: {type(error).__name__}: {error}"[:500])}
        try:
            found = tier.find(BLOCKS)
            for block, how in found.items():
                if how not in ("", "missing", "failed"):
                    said.setdefault("wrong", (block, f"block {block} is served wrong: {how}"))
                elif how and block in state.owed:
                    text = f"block {block}, which had been reported stored, is {how.replace('failed', 'refused')}"
                    said.setdefault("lost", (block, text))
            again = [block for block, how in found.items() if how in ("missing", "failed")]
            stored = tier.store(again) if again else []
            if refused := set(again) - set(stored):
                said["store"] = min(refused), f"block {min(refused)} cannot be stored again"
            for block, how in (tier.find(stored) if stored else {}).items():
                if how:
                    said.setdefault("store", (block, f"block {block} was stored again, and is {how}"))
        except Silent as error:
            said["silent"] = None, str(error)
        finally:
            tier.adapter.close()
        return said
    finally:
        shutil.rmtree(folder)
