"""Times every call that the scheduler's thread makes, one window after the other, as the scenario orders them.

One pass is a request of its own: it starts, looks up blocks that are there and blocks that nobody stored, ends. Beside
it single blocks are stored and loaded, so that polls have something to return. It judges no time.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from harness.adapters.base import Verdict
from harness.core import notes
from harness.drivers.jobs import Jobs, Question
from harness.runtime.worker import Worker

T = TypeVar("T")

STORED_BLOCKS = 64
PREPARE_SECONDS_MAX = 30.0
KEYS = 4
"""Keys of a lookup: half of them of stored blocks, half of blocks that nobody stores."""
FLYING_MAX = 4
PASS_SECONDS = 0.002
PASSES_MIN = 24
WINDOW_SECONDS_MAX = 2.0
"""A window whose calls wait for a slow device ends after this time."""
STRANGERS_BASE = 1 << 24
FRESH_BASE = 1 << 22
TAG_STORE, TAG_LOAD = 1, 2


class Calls:
    """One process's requests, jobs and timed calls."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.adapter = worker, worker.adapter
        self.jobs = Jobs(worker, announce=False, name=False)
        base = worker.process << 26
        self._stored = [base + block for block in range(1, STORED_BLOCKS + 1)]
        self._fresh = itertools.count(base + FRESH_BASE)
        self._strangers = itertools.count(base + STRANGERS_BASE)
        self._requests = itertools.count()
        self._took: dict[str, list[float]] = defaultdict(list)
        self._computed: dict[str, list[float]] = defaultdict(list)  # CPU seconds
        self._open: list[tuple[str, list[bytes]]] = []
        self._question: Question | None = None

    def prepare(self) -> None:
        """Store what is looked up and loaded."""
        for start in range(0, len(self._stored), 16):
            self.jobs.store(0, self._stored[start : start + 16])
        if not self.jobs.until(lambda: not self.jobs.flying, PREPARE_SECONDS_MAX):
            self.worker.note(notes.Phase(), "the blocks to be looked up were not stored in time")

    def fill(self, files: int) -> int:
        """Add files of other blocks: links to those that are stored, in their folders, under names of the same kind.
        Returns how many were made."""
        root = Path(self.worker.setup.root_dir)
        names = [name for block in self._stored if (name := self.adapter.file_name(self.jobs.keys([block])[0]))]
        made = 0
        for number, name in zip(range(files), itertools.cycle(names)):  # the names have no end
            path = root / name
            tail = f"{number:08x}"
            try:
                os.link(path, path.with_name(f"{path.stem[: -len(tail)]}{tail}{path.suffix}"))
                made += 1
            except OSError:
                continue
        return made

    def _timed(self, name: str, call: Callable[..., T], *arguments: Any) -> T:
        before, cpu_before = time.monotonic(), time.thread_time()
        result = call(*arguments)
        self._took[name].append(time.monotonic() - before)
        self._computed[name].append(time.thread_time() - cpu_before)
        return result

    def window(self, number: int, condition: str, seconds: float, delay_seconds: float, files: int) -> None:
        """Passes for so long, and `PASSES_MIN` if there is time; then a note of each kind of call."""
        self._took.clear()
        self._computed.clear()
        began = time.monotonic()
        passes = 0
        while (now := time.monotonic()) < began + seconds or (passes < PASSES_MIN and now < began + WINDOW_SECONDS_MAX):
            if self.worker.parent.stop.is_set():
                return
            self._pass(passes)
            passes += 1
            time.sleep(PASS_SECONDS)
        over = time.monotonic()
        for name, took in self._took.items():
            slow = sum(seconds >= delay_seconds for seconds in took)
            what = (number, condition, name, files, began, over, delay_seconds)
            cpu_seconds = round(median(self._computed[name]), 6)
            self.worker.note(notes.Calls(*what, len(took), slow, median(took), max(took), cpu_seconds))

    def _pass(self, number: int) -> None:
        req_id = f"{self.worker.process}-calls-{next(self._requests)}"
        self._timed("request_started", self.adapter.request_started, req_id)
        old = [self._stored[(number * KEYS // 2 + i) % len(self._stored)] for i in range(KEYS // 2)]
        new = list(itertools.islice(self._strangers, KEYS // 2))
        self._open.append((req_id, self.jobs.keys([*old, *new])))
        still: list[tuple[str, list[bytes]]] = []
        for one, keys in self._open:
            verdicts = self._timed("lookup", self.adapter.lookup, keys, one)
            if left := _unanswered(keys, verdicts):
                still.append((one, left))
            else:
                self._timed("request_finished", self.adapter.request_finished, one)
        self._open = still
        if len(self.jobs.flying) < FLYING_MAX and self.jobs.room(1):
            self.jobs.store(TAG_STORE, [next(self._fresh)])
        if self._question is None:
            self._question = self.jobs.ask(TAG_LOAD, [self._stored[number % len(self._stored)]])
        elif self.jobs.answered(self._question) and self.jobs.room(1):
            self.jobs.load(self._question)
            self._question = None
        self._timed("step", self.adapter.step)
        self.jobs.collect(lambda poll: self._timed("poll", poll))
        self.worker.tick()

    def end(self) -> None:
        for req_id in [*(one for one, _ in self._open), *([self._question.req_id] if self._question else [])]:
            self.adapter.request_finished(req_id)
        self.jobs.end()


def _unanswered(keys: Sequence[bytes], verdicts: Sequence[Verdict]) -> list[bytes]:
    return [key for key, verdict in zip(keys, verdicts, strict=True) if verdict == "retry"]


def drive(worker: Worker) -> None:
    """Store some blocks, then carry out orders ({"do": {...}}): windows, or {"fill": files}; until told to stop."""
    calls = Calls(worker)
    try:
        if worker.parent.receive("go") is None:
            return
        calls.prepare()
        while (order := worker.parent.receive("do")) is not None:
            if "fill" in order:
                worker.counts["files"] = calls.fill(order["fill"])
            else:
                calls.window(**order)
            worker.counts["carried_out"] = worker.counts.get("carried_out", 0) + 1
            worker.parent.send("progress", counts=worker.counts, gauges={})
    finally:
        calls.end()
