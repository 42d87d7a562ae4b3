"""One process below a root that is always full: it writes new blocks, loads the same few, or only evicts.

A writer stores new blocks, and loads some that it stored recently, so that loads and eviction meet. A reader stores its
few blocks once, and loads them until the end. An evictor makes a tier and steps it. A refused store is not repeated;
the process then pauses for a moment, as an engine does that computes instead.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque

from harness.core import notes
from harness.core.history import Job
from harness.core.seeds import stream
from harness.drivers.jobs import IDLE_SECONDS_MAX, Jobs, Question
from harness.runtime.worker import Worker

REFUSED_PAUSE_SECONDS = 0.02
LOAD_EVERY = 4
"""Stores of a writer per load."""
READ_PAUSE_SECONDS = 0.05
BLOCKS_PER_PROCESS = 1 << 24
"""The block ids of process p begin at p times this."""


class _Role(ABC):
    """What a process does in each pass, and when a job has ended."""

    def __init__(self, jobs: Jobs, job_blocks: int, blocks: int, seed: int) -> None:
        self.jobs, self.job_blocks = jobs, job_blocks
        self.first = jobs.worker.process * BLOCKS_PER_PROCESS
        self.random = stream(seed, "capacity", jobs.worker.process)
        self.question: Question | None = None
        self.resume_seconds = 0.0
        self.tag = 0

    @abstractmethod
    def go_on(self, now: float) -> None: ...

    @abstractmethod
    def ended(self, record: Job) -> None: ...

    def ask(self, blocks: list[int]) -> None:
        self.tag += 1
        self.question = self.jobs.ask(self.tag, blocks)

    def load_what_is_there(self) -> list[int] | None:
        """If the open question has its answers, load the hits and return the misses."""
        question = self.question
        if question is None or not self.jobs.answered(question) or not self.jobs.room(len(question.blocks)):
            return None
        self.question = None
        self.jobs.load(question)
        return [b for b, verdict in zip(question.blocks, question.verdicts, strict=True) if verdict == "miss"]

    def give_up(self) -> None:
        """The open question ends."""
        if self.question is not None:
            self.jobs.adapter.request_finished(self.question.req_id)


class _Writer(_Role):
    """`blocks`: it loads among the last so many that it stored."""

    def __init__(self, jobs: Jobs, job_blocks: int, blocks: int, seed: int) -> None:
        super().__init__(jobs, job_blocks, blocks, seed)
        self._next, self._stored = self.first, deque[int](maxlen=blocks)

    def go_on(self, now: float) -> None:
        self.load_what_is_there()
        if now < self.resume_seconds or not self.jobs.room(2 * self.job_blocks):
            return
        self.tag += 1
        self.jobs.store(self.tag, list(range(self._next, self._next + self.job_blocks)))
        self._next += self.job_blocks
        if self.question is None and self.tag % LOAD_EVERY == 0 and len(self._stored) > self.job_blocks:
            self.ask(self.random.sample(self._stored, self.job_blocks))

    def ended(self, record: Job) -> None:
        if record.direction == "store":
            self._stored += record.ok
            if record.failed:
                self.resume_seconds = time.monotonic() + REFUSED_PAUSE_SECONDS


class _Reader(_Role):
    """`blocks`: how many it loads again and again. One that is missed is noted, and stored again."""

    def __init__(self, jobs: Jobs, job_blocks: int, blocks: int, seed: int) -> None:
        super().__init__(jobs, job_blocks, blocks, seed)
        self._kept = deque(range(self.first, self.first + blocks))
        self._lacking = set(self._kept)

    def go_on(self, now: float) -> None:
        missed = self.load_what_is_there()
        if missed:
            self.jobs.worker.note(notes.Missed(blocks=missed))
            self._lacking.update(missed)
        if self.question is not None or self.jobs.flying or now < self.resume_seconds:
            return
        self.resume_seconds = now + READ_PAUSE_SECONDS
        if self._lacking:
            self.tag += 1
            self.jobs.store(self.tag, sorted(self._lacking)[: self.job_blocks])
        else:
            self._kept.rotate(-self.job_blocks)
            self.ask([self._kept[i] for i in range(min(self.job_blocks, len(self._kept)))])

    def ended(self, record: Job) -> None:
        if record.direction == "store":
            self._lacking.difference_update(record.ok)
        else:
            self._lacking.update(record.failed)


class _Evictor(_Role):
    def go_on(self, now: float) -> None: ...

    def ended(self, record: Job) -> None: ...


_ROLES: dict[str, type[_Role]] = {"write": _Writer, "read": _Reader, "evict": _Evictor}


def drive(worker: Worker, role: str, blocks: int, job_blocks: int, seconds: float, seed: int) -> None:
    """One role for `seconds`."""
    jobs = Jobs(worker, announce=False, name=role == "read")
    actor = _ROLES[role](jobs, job_blocks, blocks, seed)
    try:
        if worker.parent.receive("go") is None:
            return
        stop, deadline = worker.parent.stop, time.monotonic() + seconds
        while not stop.is_set() and (now := time.monotonic()) < deadline:
            actor.go_on(now)
            jobs.adapter.step()
            for _, record in jobs.collect():
                actor.ended(record)
            jobs.adapter.tasks()  # the schedule is not judged here, and would fill the disk
            worker.note_evictions()
            worker.tick()
            stop.wait(IDLE_SECONDS_MAX)
        actor.give_up()
    finally:
        jobs.end()
        worker.adapter.step()
        worker.note_evictions()
