"""Does what the scenario orders, one order at a time: store chains of blocks, find chains, both at once, at one moment.

A chain is a list of block ids, each the prefix of the next, as a request has them. Finding is asking for every block of
a chain, loading what is said to be there, and comparing every byte; an order says how often to ask. What was asked and
answered is written down as a Note "asked". It judges nothing, retries no job, and stores only what its orders name.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.core import notes
from harness.core.patience import Patience
from harness.drivers.replay import IDLE_SECONDS_MAX, IDLE_SECONDS_MIN, PASS_SECONDS_MAX, Active, Plan, Replay
from harness.runtime.worker import Worker

ANSWER_SECONDS_MAX = 10.0
"""A lookup that says "retry" for so long is written down as never answered."""
STALL_SECONDS_MAX = 30.0
ASK_PAUSE_SECONDS = 0.002
"""The next lookup of a block that was a miss follows after so many seconds."""
_LETTERS = {"hit": "h", "miss": "m", "retry": "r"}


def seed_application(seed: int) -> None:
    """What engines do at start: every generator of the process begins at the same number in all processes. One that
    nobody has imported names nothing."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def before_tier(application_seed: int | None = None) -> None:
    """The worker calls it before it makes the tier."""
    if application_seed is not None:
        seed_application(application_seed)


@dataclass
class Find(Active):
    """Looks up all blocks of a chain, as often as ordered; loads each hit once."""

    asks_left: int = 1
    until_seconds: float = 0.0
    asked_seconds: float = 0.0
    answered: bool = True
    over: bool = False  # the last answer is in

    def ask(self, now: float, req_id: str) -> None:
        self.req_id, self.asked_seconds, self.started_seconds, self.answered = req_id, now, now, False
        self.asks_left -= 1
        self.hits = None
        self.verdicts = ["hit" if i in self.verified else "retry" for i in range(len(self.keys))]

    def decide(self) -> None:
        """Unlike an engine it wants to know of every block, also behind the first miss."""
        if "retry" in self.verdicts and time.monotonic() - self.asked_seconds < ANSWER_SECONDS_MAX:
            return
        self.to_load = [i for i, verdict in enumerate(self.verdicts) if verdict == "hit" and i not in self.verified]
        self.hits = len(self.to_load)

    def again(self, now: float) -> bool:
        """Whether to ask once more: a block is missing, and the order allows it."""
        return len(self.verified) < len(self.keys) and (self.asks_left > 0 or now < self.until_seconds)


class CommandDriver(Replay):
    """The loop of `Replay` without a plan: requests come from orders."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker, (), window=0, stall_seconds_max=STALL_SECONDS_MAX)
        self._request_next = worker.instruction.incarnation << 32

    def carry_out(
        self,
        number: int,
        at: float | None = None,
        store: Sequence[list[int]] = (),
        find: Sequence[list[int]] = (),
        asks: int = 1,
        chase_seconds: float = 0.0,
        window: int = 1 << 30,
        application_seed: int | None = None,
    ) -> bool:
        """From the moment `at` store the chains of `store`, `window` of them at a time, and find those of `find` beside
        them: with at most `asks` lookups, or for `chase_seconds` if that is longer. Reports at once when the order's
        first job is in flight ("begun"). Returns False when the worker must stop, or when nothing moves."""
        if application_seed is not None:
            seed_application(application_seed)
        stores = [self._request(Active, blocks) for blocks in store]
        finds = [self._request(Find, blocks) for blocks in find]
        if at is not None:
            self.worker.parent.stop.wait(max(0.0, at - time.monotonic()))
        now = time.monotonic()
        for want in finds:
            want.asks_left, want.until_seconds = asks, now + chase_seconds
        self.active, waiting = [], finds
        stores.reverse()
        patience, idle_seconds, begun = Patience(self.stall_seconds_max), IDLE_SECONDS_MIN, False
        while self.active or waiting or stores:
            now = time.monotonic()
            if self.worker.parent.stop.is_set():
                return False
            if patience.is_over():
                self.worker.note(notes.Error(), f"nothing moved for {self.stall_seconds_max:g} s in order {number}")
                self.stalled = True
                return False
            while stores and sum(not isinstance(active, Find) for active in self.active) < window:
                self._begin_store(stores.pop(), now)
            waiting = self._ask(waiting, now)
            moved = self._look_up()
            moved |= self._submit(now + PASS_SECONDS_MAX)
            if self.jobs and not begun:
                begun = True
                self.worker.counts["begun"] = number
                self.worker.parent.send("progress", counts=self.worker.counts, gauges={})
            self.adapter.step()
            self._write_answers()  # after the step, in which a tier may tell why a block was a miss
            moved |= self._collect()
            for active in self.active:
                if isinstance(active, Find):
                    active.to_store.clear()  # nobody computes what did not come
            ended = [active for active in self.active if isinstance(active, Find) and active.done]
            for want in ended:
                want.over = not want.again(now)
            moved |= self._finish()
            waiting += [want for want in ended if not want.over]
            self.worker.tick()
            if moved:
                idle_seconds = IDLE_SECONDS_MIN
                patience.renew()
            else:
                time.sleep(idle_seconds)
                idle_seconds = min(2 * idle_seconds, IDLE_SECONDS_MAX)
        return True

    def _request(self, kind: type[Any], blocks: list[int]) -> Any:
        number = self._request_next
        self._request_next += 1
        now = time.monotonic()
        return kind(Plan(now, number, blocks), f"{self.process}-{number}", self._keys(blocks), now, now, [])

    def _begin_store(self, active: Active, now: float) -> None:
        active.intended_seconds = active.started_seconds = now
        active.hits, active.to_store = 0, list(range(len(active.keys)))
        self.adapter.request_started(active.req_id)
        self.active.append(active)

    def _ask(self, waiting: list[Find], now: float) -> list[Find]:
        """Each question is a request of its own, as that of a later user would be. Returns those not yet due."""
        later = []
        for want in waiting:
            if want.asked_seconds and now - want.asked_seconds < ASK_PAUSE_SECONDS:
                later.append(want)
                continue
            number = self._request_next
            self._request_next += 1
            want.plan = want.plan._replace(request=number)
            want.intended_seconds = now
            want.ask(now, f"{self.process}-{number}")
            self.adapter.request_started(want.req_id)
            self.active.append(want)
        return later

    def _write_answers(self) -> None:
        for active in self.active:
            if isinstance(active, Find) and active.hits is not None and not active.answered:
                active.answered = True
                asked = [i for i in range(len(active.keys)) if i not in active.verified]
                about = notes.Asked(
                    blocks=[active.plan.blocks[i] for i in asked],
                    verdicts="".join(_LETTERS[active.verdicts[i]] for i in asked),
                    asked_seconds=active.asked_seconds,
                    request=active.plan.request,
                    no_room=self.adapter.short_of_room(active.req_id) or None,
                )
                self.worker.note(about)

    def _write_request(self, active: Active, outcome: Any) -> None:
        """A question that is put again is no request of its own: the last one counts."""
        if not (isinstance(active, Find) and outcome == "ok" and not active.over):
            super()._write_request(active, outcome)


def drive(worker: Worker, application_seed: int | None = None) -> None:
    """CommandDriver until told to stop. `application_seed`: what the application seeds its generators with at start."""
    group = CommandDriver(worker)
    if (name := worker.adapter.instance_id()) is not None:
        worker.note(notes.Instance(id=name), name)
    try:
        while (order := worker.parent.receive("do", worker.alive)) is not None:
            if not group.carry_out(**order):
                break
            worker.counts["carried_out"] = order["number"]
            worker.parent.send("progress", counts=worker.counts, gauges={})
    finally:
        group.end()
