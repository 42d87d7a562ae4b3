"""Jobs in flight of one worker: keys, slots, submission, results, and the verdict on every loaded byte.

Drivers that decide for themselves what to store and load build on it. Every block is the first of a chain, so an id
alone gives its key. It decides nothing, retries nothing, and never blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness import content
from harness.adapters.base import Finished
from harness.history import Direction, Job, Name, Outcome
from harness.traffic import tokens_of
from harness.worker import Worker

IDLE_SECONDS_MIN = 0.0002
IDLE_SECONDS_MAX = 0.002


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


class Question(NamedTuple):
    """Blocks being looked up for a load: the verdicts so far."""

    tag: int
    blocks: list[int]
    keys: list[bytes]
    req_id: str
    verdicts: list[str]


class Jobs:
    """Accounts of one adapter. `announce`: jobs are noted when submitted, so that a killed process's are known."""

    def __init__(self, worker: Worker, announce: bool = True) -> None:
        setup = worker.setup
        self.worker, self.adapter, self.announce = worker, worker.adapter, announce
        self.flying: dict[int, Flight] = {}
        self.quiet = False  # no look at this process, which takes descriptors
        self._ended: dict[int, int] = {}
        self._unstored: dict[int, set[int]] = {}
        self._free = list(range(setup.slots))
        self._held: list[bytes | None] = [None] * setup.slots
        self._keys: dict[int, bytes] = {}
        self._seeds: dict[int, int] = {}
        self._next = worker.instruction.incarnation << 32  # unique over restarts of one process
        flat, size = self.adapter.view.cast("B"), setup.block_bytes
        self._slots = [flat[i * size : (i + 1) * size] for i in range(setup.slots)]
        counts = ("stores", "loads", "failed", "wrong", "stored_bytes", "loaded_bytes")
        worker.counts.update(dict.fromkeys(counts, 0))

    def keys(self, blocks: Sequence[int]) -> list[bytes]:
        """The keys of these blocks; the first time each is asked for, its name is written down."""
        return [self._keys.get(block) or self._derive(block) for block in blocks]

    def _derive(self, block: int) -> bytes:
        (key,) = self.adapter.keys(tokens_of(block, self.worker.setup.tokens_per_block))
        self._keys[block] = key
        self._seeds[content.seed_of(key)] = block
        if (name := self.adapter.file_name(key)) is not None:
            self.worker.write(Name(self.worker.process, block, name))
        return key

    def room(self, blocks: int) -> bool:
        return len(self._free) >= blocks

    def store(self, tag: int, blocks: list[int]) -> int:
        """Submit a store of these blocks; returns the job's id. There must be room."""
        req_id = self._request(tag)
        return self._submit(tag, "store", blocks, self.keys(blocks), req_id)

    def ask(self, tag: int, blocks: list[int]) -> Question:
        """Begin to look these blocks up, as a new request; `answered` goes on with it."""
        keys, req_id = self.keys(blocks), self._request(tag)
        return Question(tag, blocks, keys, req_id, self.adapter.lookup(keys, req_id))  # type: ignore[arg-type]

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
        return self._submit(question.tag, "load", blocks, keys, question.req_id)

    def _request(self, tag: int) -> str:
        req_id = f"{self.worker.process}-{tag}-{self._next}"
        self._next += 1
        self.adapter.request_started(req_id)
        return req_id

    def _submit(self, tag: int, direction: Direction, blocks: list[int], keys: list[bytes], req_id: str) -> int:
        slots = [self._free.pop() for _ in blocks]
        for slot, key in zip(slots, keys, strict=True):
            if direction == "store":
                content.fill(self._slots[slot], key)
            elif self._held[slot] == key:
                content.poison(self._slots[slot])  # else a load that does nothing would look right
        job_id = self._next
        self._next += 1
        if self.announce:
            self.worker.note("submitted", "", job_id=job_id, request=tag, direction=direction, blocks=blocks)
        submit = self.adapter.submit_load if direction == "load" else self.adapter.submit_store
        submitted = time.monotonic()
        submit(job_id, keys, slots, req_id)
        self.flying[job_id] = Flight(tag, direction, blocks, keys, slots, req_id, submitted, time.monotonic())
        return job_id

    def collect(self) -> list[tuple[int, Job]]:
        """Results since the last call, judged and written down, by job id."""
        records = [record for result in self.adapter.poll() if (record := self._end(result))]
        self.worker.write(*records)
        return [(record.job_id, record) for record in records]

    def _end(self, result: Finished) -> Job | None:
        now = time.monotonic()
        job = self.flying.pop(result.job_id, None)
        if job is None:
            self._ended[result.job_id] = self._ended.get(result.job_id, 1) + 1
            text = f"job {result.job_id} reported {self._ended[result.job_id]} results"
            self.worker.note("error", text, job_id=result.job_id)
            return None
        ok_keys, failed_keys = set(result.ok), set(result.failed)
        ok, failed, wrong = [], [], []
        for block, key, slot in zip(job.blocks, job.keys, job.slots, strict=True):
            if key in failed_keys:
                failed.append(block)
            if key in ok_keys:  # a block may be in both lists or in neither: `results` finds that
                ok.append(block)
                if job.direction == "load":
                    how = content.judge(self._slots[slot], key, previous=self._held[slot], candidates=self._seeds)
                    if how is not None:
                        wrong.append((block, how))
            self._held[slot] = key
        self._free.extend(job.slots)
        self.adapter.request_finished(job.req_id)
        if job.direction == "store" and (failed or job.tag in self._unstored):
            self._unstored.setdefault(job.tag, set()).update(failed)
            self._unstored[job.tag].difference_update(ok)
        counts, size = self.worker.counts, self.worker.setup.block_bytes
        counts[f"{job.direction}s"] += len(ok)
        counts["failed"] += len(failed)
        counts["wrong"] += len(wrong)
        counts["loaded_bytes" if job.direction == "load" else "stored_bytes"] += len(ok) * size
        outcome: Outcome = "fail" if failed else "ok"
        return self._record(result.job_id, job, now, outcome, ok, failed, 1, wrong)._replace(refused=result.refused)

    def _record(
        self,
        job_id: int,
        job: Flight,
        now: float,
        outcome: Outcome,
        ok: list[int],
        failed: list[int],
        results: int,
        wrong: list[tuple[int, str]],
    ) -> Job:
        what = (self.worker.process, job_id, job.tag, job.direction, job.blocks)
        times = (job.submitted_seconds, job.returned_seconds, now, time.time())
        return Job(*what, *times, outcome, ok, failed, results, wrong, len(ok) * self.worker.setup.block_bytes)

    def failed_stores(self, tag: int) -> list[int]:
        """Blocks of stores with this tag that ended and have not succeeded since."""
        return sorted(self._unstored.get(tag, ()))

    def until(
        self, satisfied: Callable[[], bool], seconds_max: float, on_pass: Callable[[], None] = lambda: None
    ) -> bool:
        """Step, collect and tick until `satisfied()`, told to stop, or time is up; returns whether it was satisfied."""
        deadline, idle_seconds = time.monotonic() + seconds_max, IDLE_SECONDS_MIN
        while not satisfied():
            if time.monotonic() >= deadline or self.worker.parent.stop.is_set():
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
        now = time.monotonic()
        self.worker.write(
            *(self._record(job_id, job, now, "info", [], [], 0, []) for job_id, job in self.flying.items())
        )
        self.worker.pinned_slots = sum(len(job.slots) for job in self.flying.values())
        self._slots.clear()  # nothing may hold the view when the adapter closes
