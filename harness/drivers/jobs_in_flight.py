"""Slots and jobs in flight of one worker: filling, submission, results, the verdict on every loaded byte, the records.

Drivers build on it and say what to store and load, under which request. It decides nothing, retries nothing, and never
blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness.adapters.base import Finished
from harness.core import content, notes
from harness.core.history import Direction, Job
from harness.runtime.worker import Worker


class Flight(NamedTuple):
    """A job in flight; `tag` is what the driver calls it by (it becomes the record's `request`)."""

    tag: int
    direction: Direction
    blocks: list[int]
    keys: list[bytes]
    slots: list[int]
    req_id: str
    submitted_seconds: float
    returned_seconds: float


class Flights:
    """Accounts of one adapter. `announce`: jobs are noted when submitted, so that a killed process's are known."""

    def __init__(self, worker: Worker, announce: bool = True) -> None:
        setup = worker.setup
        self.flying: dict[int, Flight] = {}
        self._worker, self._adapter, self._announce = worker, worker.adapter, announce
        self._results: dict[int, int] = {}  # by job id, of jobs that ended
        self._free = list(range(setup.slots))
        self._held: list[int | None] = [None] * setup.slots
        self._seeds: dict[int, int] = {}  # content seed -> block, so that a wrong block can be named
        self._identity = setup.identity
        self._next = worker.instruction.incarnation << 32  # unique over restarts of one process
        self._polled_seconds = 0.0  # when the last poll began
        flat, size = self._adapter.view.cast("B"), setup.block_bytes
        self._slots = [flat[i * size : (i + 1) * size] for i in range(setup.slots)]
        counts = ("stores", "loads", "failed", "wrong", "stored_bytes", "loaded_bytes")
        worker.counts.update(dict.fromkeys(counts, 0))

    def know(self, block: int) -> None:
        """From now on its bytes are known where another block's should be."""
        self._seeds[content.seed_of(self._identity(block))] = block

    def room(self, blocks: int) -> bool:
        return len(self._free) >= blocks

    def submit(self, tag: int, direction: Direction, blocks: list[int], keys: Sequence[bytes], req_id: str) -> int:
        """Start a job; returns its id. There must be room."""
        slots = [self._free.pop() for _ in blocks]
        for slot, block in zip(slots, blocks, strict=True):
            if direction == "store":
                content.fill(self._slots[slot], self._identity(block))
            elif self._held[slot] == block:
                content.poison(self._slots[slot])  # else a load that does nothing would look right
        job_id = self._next
        self._next += 1
        if self._announce:
            self._worker.note(notes.Submitted(job_id=job_id, request=tag, direction=direction, blocks=blocks))
        submit = self._adapter.submit_load if direction == "load" else self._adapter.submit_store
        submitted = time.monotonic()
        submit(job_id, keys, slots, req_id)
        self.flying[job_id] = Flight(tag, direction, blocks, list(keys), slots, req_id, submitted, time.monotonic())
        return job_id

    def collect(self, poll: Callable[..., list[Finished]] | None = None) -> list[tuple[Flight, Job]]:
        """Jobs that ended since the last call, judged and written down; `poll` makes the call of the tier.

        All are stamped when they arrive: to judge one takes time, which is not the next one's."""
        absent_seconds, self._polled_seconds = self._polled_seconds, time.monotonic()
        results = poll(self._adapter.poll) if poll else self._adapter.poll()
        now = time.monotonic()
        ended = [pair for result in results if (pair := self._end(result, absent_seconds, now))]
        self._worker.write(*(record for _, record in ended))
        return ended

    def _end(self, result: Finished, absent_seconds: float, now: float) -> tuple[Flight, Job] | None:
        count = self._results[result.job_id] = self._results.get(result.job_id, 0) + 1
        flight = self.flying.pop(result.job_id, None)
        if flight is None:
            text = f"job {result.job_id} reported {count} results"
            self._worker.note(notes.Error(job_id=result.job_id, rule="results/one-result"), text)
            return None
        ok_keys, failed_keys, memory_keys = set(result.ok), set(result.failed), set(result.in_memory)
        ok, failed, wrong = [], [], []
        for block, key, slot in zip(flight.blocks, flight.keys, flight.slots, strict=True):
            if key in failed_keys:
                failed.append(block)
            if key in ok_keys:  # a block may be in both lists or in neither: `results` finds that
                ok.append(block)
                if flight.direction == "load":
                    how = self._judge(slot, block)
                    if how is not None:
                        wrong.append((block, how))
            self._held[slot] = block
        self._free.extend(flight.slots)
        if strangers := len((ok_keys | failed_keys).difference(flight.keys)):
            text = f"job {result.job_id} reported {strangers} blocks that it was not given"
            self._worker.note(notes.Error(job_id=result.job_id, rule="results/accounts"), text)
        counts, size = self._worker.counts, self._worker.setup.block_bytes
        counts[f"{flight.direction}s"] += len(ok)
        counts["failed"] += len(failed)
        counts["wrong"] += len(wrong)
        counts["loaded_bytes" if flight.direction == "load" else "stored_bytes"] += len(ok) * size
        record = self._unknown(result.job_id, flight, now)._replace(
            outcome="fail" if failed else "ok",
            ok=ok,
            failed=failed,
            results=1,
            wrong=wrong,
            bytes_ok=len(ok) * size,
            refused=result.refused,
            reasons=result.reasons,
            in_memory=[b for b, key in zip(flight.blocks, flight.keys, strict=True) if key in memory_keys],
            # A poll before the submit's return says nothing about the job.
            absent_seconds=max(absent_seconds, flight.returned_seconds),
        )
        return flight, record

    def _judge(self, slot: int, block: int) -> str | None:
        held = self._held[slot]
        before = None if held is None else self._identity(held)
        return content.judge(self._slots[slot], self._identity(block), previous=before, candidates=self._seeds)

    def _unknown(self, job_id: int, flight: Flight, now: float) -> Job:
        """The record of a job of which nothing was heard until now."""
        what = (self._worker.process, job_id, flight.tag, flight.direction, flight.blocks)
        times = (flight.submitted_seconds, flight.returned_seconds, now, time.time())
        return Job(*what, *times, outcome="info", ok=[], failed=[], results=0, wrong=[], bytes_ok=0, slots=flight.slots)

    def end(self) -> None:
        """Account for what never came. Nothing can be submitted or collected after it."""
        now = time.monotonic()
        self._worker.write(*(self._unknown(job_id, flight, now) for job_id, flight in self.flying.items()))
        self._worker.pinned_slots = sum(len(flight.slots) for flight in self.flying.values())
        self._slots.clear()  # nothing may hold the view when the adapter closes
