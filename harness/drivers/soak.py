"""Looks up, loads and stores blocks of one working set, at an even rate, for a given time, while files are removed.

A request looks up some blocks, loads what is there, stores what is not, and stores one again that is. Where the tier
keeps a file per block, this process also removes files, as an operator's cleaner would; so a load may find nothing, and
there is always something to store. What it keeps itself does not grow.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from harness.core import content, notes
from harness.core.history import Job
from harness.core.seeds import stream
from harness.drivers.jobs import IDLE_SECONDS_MAX, Jobs, Question
from harness.runtime.worker import Worker

REQUEST_BLOCKS_MAX = 12


@dataclass
class _Active:
    """A request in flight: being answered (`question`), then loading and storing (`jobs`)."""

    number: int
    question: Question | None
    jobs: set[int] = field(default_factory=set)
    to_store: list[int] = field(default_factory=list)


class Soak:
    """The loop's state. The working set is the same in all processes; what is asked for is drawn by each."""

    def __init__(self, worker: Worker, blocks: int, window: int, removals_per_request: float, seed: int) -> None:
        self.worker, self.window = worker, window
        self.jobs = Jobs(worker, announce=False)
        self._blocks = list(range(1, blocks + 1))
        self._random: Random = stream(seed, "soak", worker.process)
        self._removals_per_request = removals_per_request
        self._active: list[_Active] = []
        self._number = 0
        # All that grows at first does so now: names, keys, and memory that is touched for the first time.
        self.jobs.keys(self._blocks)
        flat = worker.adapter.view.cast("B")
        content.poison(flat)
        flat.release()

    def run(self, seconds: float, requests_per_second: float) -> None:
        began = time.monotonic()
        due = began
        stop = self.worker.parent.stop
        while not stop.is_set() and (now := time.monotonic()) < began + seconds:
            if now >= due and len(self._active) < self.window and self._begin():
                due = max(due + 1 / requests_per_second, now - 1.0)  # what was missed for longer is not caught up
            self._pass()
        self.jobs.until(lambda: not self._active, seconds_max=30.0, on_pass=self._go_on)

    def _begin(self) -> bool:
        if not self.jobs.room(2 * REQUEST_BLOCKS_MAX):
            return False
        blocks = self._random.sample(self._blocks, self._random.randint(1, min(REQUEST_BLOCKS_MAX, len(self._blocks))))
        self._number += 1
        self._active.append(_Active(self._number, self.jobs.ask(self._number, blocks)))
        if self._random.random() < self._removals_per_request:
            self._remove(self._random.choice(self._blocks))
        return True

    def _remove(self, block: int) -> None:
        name = self.worker.adapter.file_name(self.jobs.keys([block])[0])
        if name is None:
            return
        before = time.monotonic()
        try:
            (Path(self.worker.setup.root_dir) / name).unlink()
        except FileNotFoundError:
            return
        self.worker.note(notes.Removed(block=block, from_seconds=before))

    def _pass(self) -> None:
        self._go_on()
        self.jobs.adapter.step()
        for job_id, record in self.jobs.collect():
            self._ended(job_id, record)
        self.worker.tick()
        self.worker.parent.stop.wait(IDLE_SECONDS_MAX)

    def _go_on(self) -> None:
        """Submit what has been answered, and drop requests that are done."""
        flying = self.jobs.flying
        for active in self._active:
            question = active.question
            if question is not None and self.jobs.answered(question) and self.jobs.room(2 * REQUEST_BLOCKS_MAX):
                active.question = None
                pairs = list(zip(question.blocks, question.verdicts, strict=True))
                active.to_store = [b for b, verdict in pairs if verdict != "hit"]
                active.to_store += [b for b, verdict in pairs if verdict == "hit"][:1]
                if (job_id := self.jobs.load(question)) is not None:
                    active.jobs.add(job_id)
            if active.question is None and active.to_store and self.jobs.room(len(active.to_store)):
                active.jobs.add(self.jobs.store(active.number, active.to_store))
                active.to_store = []
            active.jobs &= flying.keys()
        self._active = [a for a in self._active if a.question is not None or a.to_store or a.jobs]

    def _ended(self, job_id: int, record: Job) -> None:
        """A load that failed is computed and stored, as an engine would."""
        for active in self._active:
            if job_id in active.jobs and record.direction == "load":
                active.to_store += record.failed


def drive(
    worker: Worker,
    blocks: int,
    window: int,
    seconds: float,
    requests_per_second: float,
    removals_per_request: float,
    seed: int,
) -> None:
    """One request after the other at that pace, at most `window` at a time."""
    soak = Soak(worker, blocks, window, removals_per_request, seed)
    try:
        if worker.parent.receive("go") is not None:
            soak.run(seconds, requests_per_second)
    finally:
        soak.jobs.end()
