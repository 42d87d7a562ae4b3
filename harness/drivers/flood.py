"""Floods a tier with jobs of one class and, through the flood, sends one block at a time of a class that must get by.

The flood is a closed loop always deeper than the tier's threads: a job that ends is replaced at once. The single
blocks, the *probes*, are a closed loop of one. Phases come as orders, one at a time; it judges no schedule.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from harness.core import notes
from harness.core.history import DIRECTIONS, Direction
from harness.drivers.jobs import IDLE_SECONDS_MIN, Jobs, Question
from harness.runtime.worker import Worker

PASS_BLOCKS_MAX = 64
"""Blocks filled for the flood between two looks at the results."""
SETTLE_SECONDS_MAX = 10.0
"""How long jobs still in flight may take once a phase is over."""
PREPARE_SECONDS_MAX = 30.0
STORED_BASE = 1 << 16
FRESH_BASE = 1 << 20
FRESH_BLOCKS_MIN = 2048
FRESH_BYTES = 1 << 30
"""Stores take so many blocks, or blocks of so many bytes, in turn. Once round, a tier may find that it has them: the
flood goes on, the disk does not fill."""
PROCESS_BLOCKS_MAX = 1 << 25
"""Ids of one process: those stored before the floods, then those that the floods store."""
STRANGERS = 512
"""Blocks that nobody stores, looked up in turn where a device may hang: what a tier remembers asks no device."""
STRANGER = -1  # their tag
PROBES_MIN = 9
UNLOADED_PROBES = 40
UNLOADED_SECONDS_MAX = 1.0
UNLOADED_TAGS: dict[Direction, int] = {"load": -2, "store": -3}
ROUNDS_MAX = 8
PATIENCE_SECONDS = 10.0
"""A flood goes on until so many probes have ended, or so many rounds of its own jobs; but not longer than this."""


class Flood:
    """The phases of one process. Blocks [STORED_BASE, +stored) are stored first; loads take them in turn."""

    def __init__(self, worker: Worker, stored_blocks: int) -> None:
        self.worker = worker
        self.jobs = Jobs(worker, announce=False)
        base = worker.process % 32 * PROCESS_BLOCKS_MAX
        self._stored = [base + STORED_BASE + i for i in range(stored_blocks)]
        fresh = max(FRESH_BLOCKS_MIN, FRESH_BYTES // worker.setup.block_bytes)
        self._fresh = itertools.cycle(range(base + FRESH_BASE, base + FRESH_BASE + fresh))
        self._strangers = itertools.cycle(range(base + FRESH_BASE - STRANGERS, base + FRESH_BASE))
        self._at = 0
        self._questions: list[Question] = []
        self._ended: dict[int, int] = {}
        self._answer_seconds = 0.0

    def prepare(self) -> None:
        """Store what will be loaded. A tier whose stores do not come through has nothing to load, and says so."""
        jobs = self.jobs
        for start in range(0, len(self._stored), 64):
            jobs.store(0, self._stored[start : start + 64])
        if not jobs.until(lambda: not jobs.flying, PREPARE_SECONDS_MAX):
            self.worker.note(notes.Phase(), "the blocks to be loaded were not stored in time")

    def unloaded(self, probe: Direction, probes: int, seconds_max: float) -> None:
        """So many probes of one direction one by one, with nothing else in flight: what a flood is compared with."""
        tag = UNLOADED_TAGS[probe]
        self._ended, began = {tag: 0}, time.monotonic()
        until = began + seconds_max
        while self._ended[tag] < probes and time.monotonic() < until and not self.worker.parent.stop.is_set():
            if not self._under_way(tag):
                self._begin(tag, probe, 1)
            self._pass()
        over = time.monotonic()
        self.jobs.until(lambda: not self.jobs.flying, SETTLE_SECONDS_MAX)
        self.worker.note(notes.Unloaded(tag, probe, began, over))

    def phase(
        self,
        number: int,
        seconds: float,
        probe: Direction,
        flood: Direction,
        flood_blocks: int,
        flood_jobs: int,
        probes_min: int = PROBES_MIN,
        rounds_min: int = 0,
        recovery_seconds_max: float | None = None,
        counts_when_told: bool = False,
        repetition: int | None = None,
    ) -> None:
        """Flood for so long, and until so many probes and rounds of the flood have ended. Probes have the tag
        2 * number + 1, the flood's jobs 2 * number. With `counts_when_told` only those count that end after a "count"
        was heard. With `recovery_seconds_max` only those that succeed after that time, and they are waited for so long;
        and all the while somebody asks for a block that is not there."""
        patience = PATIENCE_SECONDS if recovery_seconds_max is None else recovery_seconds_max
        self._ended, self._answer_seconds = {2 * number: 0, 2 * number + 1: 0}, 0.0
        depths: list[int] = []
        while self._top_up(2 * number, flood, flood_blocks, flood_jobs):
            self._pass()  # jobs that end in this pass are replaced later
        self.worker.counts["started"] = number
        self.worker.parent.send("progress", counts=self.worker.counts, gauges={})
        began = now = time.monotonic()
        counts_since = None if counts_when_told or recovery_seconds_max is not None else began
        while not self.worker.parent.stop.is_set():
            now = time.monotonic()
            if counts_since is None:
                if self.worker.parent.received("count") if counts_when_told else now > began + seconds:
                    counts_since, self._ended = now, dict.fromkeys(self._ended, 0)
            elif now > began + seconds:
                rounds = self._ended[2 * number] / flood_jobs  # a flood of which nothing ended shows nothing
                enough = rounds >= ROUNDS_MAX or (rounds >= rounds_min and self._ended[2 * number + 1] >= probes_min)
                enough = enough and rounds > 0
                if enough or now > max(began + seconds, counts_since) + patience:
                    break
            self._top_up(2 * number, flood, flood_blocks, flood_jobs)
            if not self._under_way(2 * number + 1):
                depths.append(self._under_way(2 * number))
                self._begin(2 * number + 1, probe, 1)
            if recovery_seconds_max is not None and not self._under_way(STRANGER):
                self._questions.append(self.jobs.ask(STRANGER, [next(self._strangers)]))
            self._pass(failed_too=recovery_seconds_max is None)
        over = time.monotonic()
        self.worker.counts["over"] = number
        self.worker.parent.send("progress", counts=self.worker.counts, gauges={})
        for question in self._questions:
            self._answer_seconds = max(self._answer_seconds, over - question.asked_seconds)
            self.jobs.adapter.request_finished(question.req_id)
        self._questions.clear()
        settled = self.jobs.until(lambda: not self.jobs.flying, SETTLE_SECONDS_MAX)
        detail: dict[str, Any] = {"number": number, "probe": probe, "flood": flood, "flood_blocks": flood_blocks}
        detail |= {"began_seconds": began, "over_seconds": over, "settled": settled}
        detail |= {"jobs_ahead": sorted(depths)[len(depths) // 2] if depths else 0}
        detail |= {"answer_seconds": self._answer_seconds, "repetition": repetition}
        self.worker.note(notes.Flood(**detail))

    def _under_way(self, tag: int) -> int:
        return sum(f.tag == tag for f in self.jobs.flying.values()) + sum(q.tag == tag for q in self._questions)

    def _top_up(self, tag: int, flood: Direction, flood_blocks: int, flood_jobs: int) -> bool:
        """Begin jobs of the flood that are missing, a few at a time, since filling slots takes a while; whether more
        are missing."""
        budget = PASS_BLOCKS_MAX
        for _ in range(flood_jobs - self._under_way(tag)):
            if budget <= 0:
                return self._ended[tag] < flood_jobs
            if not self._begin(tag, flood, flood_blocks):
                break
            budget -= flood_blocks
        return False

    def _pass(self, failed_too: bool = True) -> None:
        self.jobs.adapter.step()
        asked = len(self._questions)
        self._questions[:] = [q for q in self._questions if not self._ready(q)]
        ended = self.jobs.collect()
        for _, record in ended:
            if record.request in self._ended and (failed_too or record.outcome == "ok"):
                self._ended[record.request] += 1
        if not ended and len(self._questions) == asked:
            time.sleep(IDLE_SECONDS_MIN)
        self.worker.tick()

    def _begin(self, tag: int, direction: Direction, blocks: int) -> bool:
        if not self.jobs.room(blocks):
            return False
        if direction == "store":
            self.jobs.store(tag, list(itertools.islice(self._fresh, blocks)))
        else:
            chosen = [self._stored[(self._at + i) % len(self._stored)] for i in range(blocks)]
            self._at += blocks
            question = self.jobs.ask(tag, chosen)
            if not self._ready(question):
                self._questions.append(question)
        return True

    def _ready(self, question: Question) -> bool:
        """Load it if all is answered; one whose slots are in use waits for them."""
        was_open = "retry" in question.verdicts
        if not self.jobs.answered(question):
            return False
        if was_open:
            self._answer_seconds = max(self._answer_seconds, time.monotonic() - question.asked_seconds)
        if not self.jobs.room(len(question.blocks)):
            return False
        self.jobs.load(question)
        return True


def drive(worker: Worker, stored_blocks: int) -> None:
    """Store `stored_blocks`, then carry out one phase per order ({"do": {...}}), until told to stop."""
    flood = Flood(worker, stored_blocks)
    try:
        if worker.parent.receive("go") is None:
            return
        flood.prepare()
        for probe in DIRECTIONS:
            flood.unloaded(probe, UNLOADED_PROBES, UNLOADED_SECONDS_MAX)
        while (order := _next(worker)) is not None:
            flood.phase(**order)
            worker.counts["carried_out"] = order["number"]
            worker.parent.send("progress", counts=worker.counts, gauges={})
    finally:
        flood.jobs.end()


def _next(worker: Worker) -> dict[str, Any] | None:
    order: dict[str, Any] | None = worker.parent.receive("do")
    return order
