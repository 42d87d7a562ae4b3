"""Jobs of blocks that a driver chooses for itself, each under a request of its own: keys, lookups, stores, loads.

Drivers that decide for themselves what to store and load build on it. Every block is the first of a chain, so an id
alone gives its key. It decides nothing, retries nothing, and never blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from harness.adapters.base import Finished
from harness.core.history import Job, Name
from harness.core.patience import Patience
from harness.core.request_traces import tokens_of
from harness.drivers.jobs_in_flight import Flight, Flights
from harness.runtime.worker import Worker

IDLE_SECONDS_MIN = 0.0002
IDLE_SECONDS_MAX = 0.002


class Question(NamedTuple):
    """Blocks being looked up for a load: the verdicts so far. Clock: `time.monotonic()`."""

    tag: int
    blocks: list[int]
    keys: list[bytes]
    req_id: str
    verdicts: list[str]
    asked_seconds: float


class Jobs:
    """One adapter's jobs, and the requests that they are for. `announce` is `Flights`'; `name`: names go on record."""

    def __init__(self, worker: Worker, announce: bool = True, name: bool = True) -> None:
        self.worker, self.adapter, self._name = worker, worker.adapter, name
        self.quiet = False  # no look at this process, which takes descriptors
        self._flights = Flights(worker, announce)
        self._unstored: dict[int, set[int]] = {}
        self._keys: dict[int, bytes] = {}
        self._requests = worker.instruction.incarnation << 32  # unique over restarts of one process

    @property
    def flying(self) -> Mapping[int, Flight]:
        """Jobs in flight by id."""
        return self._flights.flying

    def keys(self, blocks: Sequence[int]) -> list[bytes]:
        """The keys of these blocks; the first time each is asked for, its name is written down."""
        return [self._keys.get(block) or self._derive(block) for block in blocks]

    def _derive(self, block: int) -> bytes:
        (key,) = self.adapter.keys(tokens_of(block, self.worker.setup.tokens_per_block))
        self._keys[block] = key
        self._flights.know(block)
        if self._name and (name := self.adapter.file_name(key)) is not None:
            self.worker.write(Name(self.worker.process, block, name))
        return key

    def room(self, blocks: int) -> bool:
        return self._flights.room(blocks)

    def store(self, tag: int, blocks: list[int]) -> int:
        """Submit a store of these blocks; returns the job's id. There must be room."""
        req_id = self._request(tag)
        return self._flights.submit(tag, "store", blocks, self.keys(blocks), req_id)

    def ask(self, tag: int, blocks: list[int]) -> Question:
        """Begin to look these blocks up, as a new request; `answered` goes on with it."""
        keys, req_id = self.keys(blocks), self._request(tag)
        now = time.monotonic()
        return Question(tag, blocks, keys, req_id, [*self.adapter.lookup(keys, req_id)], now)

    def answered(self, question: Question) -> bool:
        """Ask again for what was not answered; whether nothing is open any more. After each a `step` is due."""
        open_places = [i for i, verdict in enumerate(question.verdicts) if verdict == "retry"]
        if open_places:
            found = self.adapter.lookup([question.keys[i] for i in open_places], question.req_id)
            for place, verdict in zip(open_places, found, strict=True):
                question.verdicts[place] = verdict
        return "retry" not in question.verdicts

    def load(self, question: Question) -> int | None:
        """Submit a load of what hit; None, and the request is over, when nothing did. There must be room."""
        hits = [i for i, verdict in enumerate(question.verdicts) if verdict == "hit"]
        if not hits:
            self.adapter.request_finished(question.req_id)
            return None
        blocks, keys = [question.blocks[i] for i in hits], [question.keys[i] for i in hits]
        return self._flights.submit(question.tag, "load", blocks, keys, question.req_id)

    def _request(self, tag: int) -> str:
        req_id = f"{self.worker.process}-{tag}-{self._requests}"
        self._requests += 1
        self.adapter.request_started(req_id)
        return req_id

    def collect(self, poll: Callable[..., list[Finished]] | None = None) -> list[tuple[int, Job]]:
        """Jobs that ended since the last call, by their ids; each ends its request."""
        ended = self._flights.collect(poll)
        for flight, record in ended:
            self.adapter.request_finished(flight.req_id)
            if flight.direction == "store" and (record.failed or flight.tag in self._unstored):
                self._unstored.setdefault(flight.tag, set()).update(record.failed)
                self._unstored[flight.tag].difference_update(record.ok)
        return [(record.job_id, record) for _, record in ended]

    def failed_stores(self, tag: int) -> list[int]:
        """Blocks of stores with this tag that ended and have not succeeded since."""
        return sorted(self._unstored.get(tag, ()))

    def until(
        self, satisfied: Callable[[], bool], seconds_max: float, on_pass: Callable[[], None] = lambda: None
    ) -> bool:
        """Step, collect and tick until `satisfied()`, told to stop, or time is up; returns whether it was satisfied."""
        patience, idle_seconds = Patience(seconds_max), IDLE_SECONDS_MIN
        while not satisfied():
            if patience.is_over() or self.worker.parent.stop.is_set():
                return False
            on_pass()
            self.adapter.step()
            if self.collect():
                idle_seconds = IDLE_SECONDS_MIN
            else:
                self.worker.parent.stop.wait(idle_seconds)
                idle_seconds = min(2 * idle_seconds, IDLE_SECONDS_MAX)
            if self.quiet:
                self.worker.write(*self.adapter.tasks())
            else:
                self.worker.tick()
        return True

    def end(self) -> None:
        """Drain, collect what is left, and account for what never came."""
        self.adapter.drain()
        self.collect()
        self._flights.end()
