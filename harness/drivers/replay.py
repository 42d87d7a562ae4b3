"""Drives a tier as an engine would: per request look up its blocks, load the leading hits, compute and store the rest.

One thread, many requests in flight, nothing blocks. Computing a block is filling its slot with the bytes of its
identity; every loaded block is compared with them. It retries no job and repairs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.core import notes
from harness.core.history import Direction, Job, Name, Outcome, Request
from harness.core.patience import Patience
from harness.core.request_traces import tokens_of
from harness.drivers.jobs_in_flight import Flights
from harness.runtime.worker import Worker

IDLE_SECONDS_MIN = 0.0002
IDLE_SECONDS_MAX = 0.004
"""With nothing to do the loop waits this long at most: an adapter has no way to wake it."""
PASS_SECONDS_MAX = 0.02
"""A pass fills and judges blocks for about so long before it polls again, as an engine's step would."""
STOP_SECONDS_MAX = 3.0
"""Requests in flight when told to stop may end within this time; then they are given up as "info"."""


class Plan(NamedTuple):
    """One request to replay: intended start in seconds after the common start, its number in the trace, its blocks."""

    start_seconds: float
    request: int
    blocks: list[int]


@dataclass
class Active:
    """A request in flight. `hits` is None until the verdicts decide it; then [0, hits) is loaded, the rest stored."""

    plan: Plan
    req_id: str
    keys: list[bytes]
    intended_seconds: float
    started_seconds: float
    verdicts: list[str]
    hits: int | None = None
    to_load: list[int] = field(default_factory=list)  # positions, in order
    to_store: list[int] = field(default_factory=list)
    verified: set[int] = field(default_factory=set)
    jobs: set[int] = field(default_factory=set)

    @property
    def done(self) -> bool:
        return self.hits is not None and not (self.to_load or self.to_store or self.jobs)

    def decide(self) -> None:
        """Fix the hit prefix as soon as it is known; the first miss makes every later verdict irrelevant."""
        known = next((i for i, verdict in enumerate(self.verdicts) if verdict != "hit"), len(self.verdicts))
        if known == len(self.verdicts) or self.verdicts[known] == "miss":
            self.hits = known
            self.to_load = list(range(known))
            self.to_store = list(range(known, len(self.verdicts)))

    def hit_blocks(self) -> int:
        """Leading blocks that came out of the cache with the right bytes."""
        return next((i for i in range(len(self.keys)) if i not in self.verified), len(self.keys))


class Replay:
    """The loop's state: requests waiting and in flight, and which of their blocks each job in flight is for."""

    def __init__(
        self, worker: Worker, requests: Sequence[Sequence[object]], window: int, stall_seconds_max: float
    ) -> None:
        setup = worker.setup
        self.worker, self.adapter, self.process = worker, worker.adapter, worker.process
        self.plans = [Plan(*plan) for plan in requests]  # type: ignore[arg-type]  # crossed a pipe as JSON
        self.window, self.stall_seconds_max = window, stall_seconds_max
        self.next = 0
        self.stalled = False
        self.active: list[Active] = []
        self.flights = Flights(worker)
        self.jobs: dict[int, tuple[Active, list[int]]] = {}  # by job id: the request, and positions of its blocks
        self.keys: dict[int, bytes] = {}
        self.job_blocks_max = max(1, setup.slots // 2)
        worker.counts.update(dict.fromkeys(("requests", "refs", "hits"), 0))

    def run(self, go_seconds: float, start_seconds_max: float | None) -> None:
        """Replay until every request is done, none may start any more, or the worker must stop."""
        stop = self.worker.parent.stop
        last_start = None if start_seconds_max is None else go_seconds + start_seconds_max
        idle_seconds = IDLE_SECONDS_MIN
        patience = Patience(self.stall_seconds_max)
        stopping_since: float | None = None
        while True:
            now = time.monotonic()
            if stop.is_set() and stopping_since is None:
                stopping_since = now
            may_start = stopping_since is None and (last_start is None or now < last_start)
            if not self.active and (not may_start or self.next == len(self.plans)):
                break
            if stopping_since is not None and now - stopping_since > STOP_SECONDS_MAX:
                break
            if patience.is_over() and self.active:
                self.worker.note(notes.Error(), f"nothing moved for {self.stall_seconds_max:g} s with jobs in flight")
                self.stalled = True
                break
            moved = may_start and self._start_due(now, go_seconds)
            moved |= self._look_up()
            moved |= self._submit(now + PASS_SECONDS_MAX)
            self.adapter.step()
            moved |= self._collect()
            moved |= self._finish()
            self.worker.tick()
            if moved:
                idle_seconds = IDLE_SECONDS_MIN
                patience.renew()
                continue
            if not self.active:
                patience.renew()
                next_start = go_seconds + self.plans[self.next].start_seconds
                stop.wait(min(0.05, max(0.0, next_start - now)))
            else:
                time.sleep(idle_seconds)
                idle_seconds = min(2 * idle_seconds, IDLE_SECONDS_MAX)
        if left := len(self.plans) - self.next:
            self.worker.note(notes.Phase(requests=left), f"{left} of {len(self.plans)} requests were never started")

    def _start_due(self, now: float, go_seconds: float) -> bool:
        before = self.next
        while self.next < len(self.plans) and len(self.active) < self.window:
            plan = self.plans[self.next]
            if go_seconds + plan.start_seconds > now:
                break
            self.next += 1
            req_id = f"{self.process}-{plan.request}"
            keys = self._keys(plan.blocks)
            self.adapter.request_started(req_id)
            verdicts = ["retry"] * len(keys)
            self.active.append(Active(plan, req_id, keys, go_seconds + plan.start_seconds, now, verdicts))
        return self.next > before

    def _keys(self, blocks: Sequence[int]) -> list[bytes]:
        """Keys in order. An id names its whole prefix, so a block's key is derived once, from its first request."""
        keys: list[bytes] = []
        names: list[Name] = []
        for block in blocks:
            key = self.keys.get(block)
            if key is None:
                tokens = tokens_of(block, self.worker.setup.tokens_per_block)
                (key,) = self.adapter.keys(tokens, keys[-1] if keys else None)
                self.keys[block] = key
                self.flights.know(block)
                other = self.adapter.other_group(key)
                for number, named in ((block, key), (-1 - block, other)):
                    if named is not None and (name := self.adapter.file_name(named)) is not None:
                        names.append(Name(self.process, number, name))
            keys.append(key)
        self.worker.write(*names)
        return keys

    def _look_up(self) -> bool:
        moved = False
        for active in self.active:
            if active.hits is not None:
                continue
            open_positions = [i for i, verdict in enumerate(active.verdicts) if verdict == "retry"]
            verdicts = self.adapter.lookup([active.keys[i] for i in open_positions], active.req_id)
            for position, verdict in zip(open_positions, verdicts, strict=True):
                active.verdicts[position] = verdict
            active.decide()
            moved |= active.hits is not None
        return moved

    def _submit(self, until_seconds: float) -> bool:
        """Jobs in order of arrival; a request that waits for slots is not overtaken, so long ones get their turn."""
        moved = False
        for active in self.active:
            while active.to_load or active.to_store:
                direction: Direction = "load" if active.to_load else "store"
                if direction == "store" and active.jobs:
                    break  # the engine computes what a load did not bring, once the load has ended
                if time.monotonic() > until_seconds:
                    return moved
                waiting = active.to_load or active.to_store
                positions = waiting[: self.job_blocks_max]
                if not self.flights.room(len(positions)):
                    return moved
                del waiting[: len(positions)]
                self._submit_job(active, direction, positions)
                moved = True
        return moved

    def _submit_job(self, active: Active, direction: Direction, positions: list[int]) -> None:
        blocks, keys = [active.plan.blocks[i] for i in positions], [active.keys[i] for i in positions]
        job_id = self.flights.submit(active.plan.request, direction, blocks, keys, active.req_id)
        self.jobs[job_id] = active, positions
        active.jobs.add(job_id)

    def _collect(self) -> bool:
        ended = self.flights.collect()
        for _, job in ended:
            self._end_job(job)
        return bool(ended)

    def _end_job(self, job: Job) -> None:
        active, positions = self.jobs.pop(job.job_id)
        active.jobs.discard(job.job_id)
        if job.direction == "load":
            right = set(job.ok).difference(block for block, _ in job.wrong)
            came = {i for i in positions if active.plan.blocks[i] in right}
            active.verified |= came
            # The engine recomputes what did not come.
            active.to_store = sorted([*active.to_store, *(i for i in positions if i not in came)])

    def _finish(self) -> bool:
        done = [active for active in self.active if active.done]
        for active in done:
            self._write_request(active, "ok")
            self.adapter.request_finished(active.req_id)
        if done:
            self.active = [active for active in self.active if not active.done]
        return bool(done)

    def _write_request(self, active: Active, outcome: Outcome) -> None:
        plan, hit_blocks = active.plan, active.hit_blocks()
        times = (active.intended_seconds, active.started_seconds, time.monotonic(), time.time())
        short = self.adapter.short_of_room(active.req_id)
        record = Request(self.process, plan.request, plan.blocks, hit_blocks, *times, outcome, short)
        self.worker.write(record._replace(looked_up=bool(active.verdicts)))
        counts = self.worker.counts
        counts["requests"] += 1
        counts["refs"] += len(plan.blocks)
        counts["hits"] += hit_blocks

    def end(self) -> None:
        """Drain, collect what is left, and account for what never came."""
        if not self.stalled:  # a tier that stands still would not drain either
            self.adapter.drain()
        self._collect()
        self._finish()
        self.flights.end()
        for active in self.active:
            self._write_request(active, "info")


def drive(
    worker: Worker,
    requests: Sequence[Sequence[object]],
    window: int,
    start_seconds_max: float | None = None,
    stall_seconds_max: float = 30.0,
) -> None:
    """Replay `requests` ([start seconds, number, blocks] each), at most `window` at a time, none started later than
    `start_seconds_max` after the common start (None: no limit)."""
    replay = Replay(worker, requests, window, stall_seconds_max)
    go_seconds = worker.parent.receive("go")
    if go_seconds is None:
        return
    worker.parent.stop.wait(max(0.0, go_seconds - time.monotonic()))
    try:
        replay.run(go_seconds, start_seconds_max)
    finally:
        replay.end()
