"""Mutants of the schedule: kvtier with another queue, or another way to submit. Workers load them.

They inject another `DualQueue` into kvtier.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from harness.adapters.base import TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.core.history import Task as TaskRecord
from harness.mutants.base import detected_by
from kvtier.config import FsTierConfig, RunConfig
from kvtier.events import Direction
from kvtier.fs.manager import FileSystemTierManager
from kvtier.fs.thread_pool import OTHER, DualQueue, Task

FLOOD: dict[str, Any] = {"read_threads": 2, "write_threads": 2, "window": 8}


class _OverQueue(KvtierAdapter):
    """kvtier with another `DualQueue`."""

    queue: ClassVar[type[DualQueue]]

    def _parts(self) -> Mapping[str, Any]:
        return {"queue": self.queue}


def _take(queue: DualQueue, direction: Direction, place: int = 0) -> Task:
    task = queue.tasks[direction][place]
    del queue.tasks[direction][place]
    queue.bytes[direction] -= task.bytes
    return task


class _Lifo(DualQueue):
    def pop(self, group: Direction) -> Task | None:
        return next((_take(self, d, -1) for d in (group, OTHER[group]) if self.tasks[d]), None)


@detected_by("starvation/fifo", r"which had come earlier: not FIFO", **FLOOD)
class TakesTheLatestFirst(_OverQueue):
    """The queues are stacks: last in, first out."""

    queue = _Lifo


class _LoadsFirst(DualQueue):
    def pop(self, group: Direction) -> Task | None:
        return next((_take(self, d) for d in OTHER if self.tasks[d]), None)


@detected_by("starvation/own-first", r"taken by a thread of the store group while \d+ store tasks waited", **FLOOD)
class BothGroupsPreferLoads(_OverQueue):
    """No thread takes a store while a load waits."""

    queue = _LoadsFirst


_STORES_FIRST: tuple[Direction, Direction] = ("store", "load")


class _StoresFirst(DualQueue):
    def pop(self, group: Direction) -> Task | None:
        return next((_take(self, d) for d in _STORES_FIRST if self.tasks[d]), None)


@detected_by("starvation/own-first", r"taken by a thread of the load group while \d+ load tasks waited", **FLOOD)
class BothGroupsPreferStores(_OverQueue):
    """No thread takes a load while a store waits."""

    queue = _StoresFirst


@detected_by(
    "starvation/wait-bound", r"a load task of job \d+ waited .* behind \d+ others; the bound is", scenario="starvation"
)
class LoadsWaitForAllStores(_OverQueue):
    """Through a flood of stores no load is taken until no store waits."""

    queue = _StoresFirst


def _sticky(which: Direction) -> type[DualQueue]:
    class Sticky(DualQueue):
        """After the first task of a direction, all threads take that direction until its queue is empty."""

        last: Direction = OTHER[which]

        def pop(self, group: Direction) -> Task | None:
            first = which if self.last == which else group
            task = next((_take(self, d) for d in (first, OTHER[first]) if self.tasks[d]), None)
            self.last = task.direction if task else OTHER[which]
            return task

    return Sticky


@detected_by("starvation/own-first", r"taken by a thread of the load group while \d+ load tasks waited", **FLOOD)
class WritersNeverYield(_OverQueue):
    """After the first store, all threads take stores until none is left."""

    queue = _sticky("store")


@detected_by("starvation/own-first", r"taken by a thread of the store group while \d+ store tasks waited", **FLOOD)
class ReadersNeverYield(_OverQueue):
    """After the first load, all threads take loads until none is left."""

    queue = _sticky("load")


class _NeverHelps(DualQueue):
    def pop(self, group: Direction) -> Task | None:
        return _take(self, group) if self.tasks[group] else None


@detected_by("starvation/idle-thread", r"waited while thread \d+ of the (load|store) group was free for", **FLOOD)
class IdlesWhileOthersWait(_OverQueue):
    """Threads serve only their own direction, and idle while the other waits."""

    queue = _NeverHelps


class _Forgetful(DualQueue):
    pushed = 0

    def push(self, task: Task) -> Direction | None:
        self.pushed += 1
        if self.pushed % 3:
            return super().push(task)
        self.tasks[task.direction].append(task)
        self.bytes[task.direction] += task.bytes
        return None


@detected_by(
    "starvation/idle-thread",
    r"waited while thread \d+ of the (load|store) group was free for",
    window=1,
    stall_seconds=3.0,
)
class LosesWakeUps(_OverQueue):
    """Every third task wakes no thread; it waits until a thread wakes for another task."""

    queue = _Forgetful


class _Hoarding(DualQueue):
    taken: Counter[Direction] | None = None

    def pop(self, group: Direction) -> Task | None:
        self.taken = self.taken or Counter()
        for direction in (group, OTHER[group]):
            if self.taken[direction] < len(self.tasks[direction]):
                task = self.tasks[direction][self.taken[direction]]
                self.taken[direction] += 1
                self.bytes[direction] -= task.bytes
                return task
        return None


@detected_by("soak/growth", r"(load|store)_queue", scenario="soak", processes=1)
class NeverShrinksItsQueue(_OverQueue):
    """Tasks stay in the queue behind a cursor after they are taken, so the queue grows without bound."""

    queue = _Hoarding


@detected_by("nonblocking/all-ended", r"all tasks had ended when the submit returned; it waits for the I/O")
class BlocksInSubmit(KvtierAdapter):
    """A submit returns only after the job is done."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self.drain()

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self.drain()


@detected_by("nonblocking/habit", r"the submit took over half of the job's life")
class BlocksInSubmitUnseen(BlocksInSubmit):
    """A submit returns only after the job is done, and the schedule is not shown."""

    exposes_schedule = False

    def tasks(self) -> list[TaskRecord]:
        super().tasks()
        return []


@detected_by("nonblocking/now-and-then", r"the submit of job \d+ \((load|store), \d+ blocks\) took")
class BlocksNowAndThen(KvtierAdapter):
    """Every eighth submit of a store waits for half a second."""

    stores = 0

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self.stores += 1
        if self.stores % 8 == 0:
            time.sleep(0.5)
        super().submit_store(job_id, keys, slots, req_id)


@detected_by("starvation/idle-thread", r"waited while a thread that never ran anything of", **FLOOD)
class StartsFewerThreads(KvtierAdapter):
    """One thread of each group serves, whatever the options ask for."""

    @classmethod
    def _config(cls, setup: TierSetup) -> FsTierConfig:
        return dataclasses.replace(super()._config(setup), n_read_threads=1, n_write_threads=1)


class _OneStoreAtATime(DualQueue):
    storing = False

    def pop(self, group: Direction) -> Task | None:
        for direction in (group, OTHER[group]):
            if self.tasks[direction] and not (direction == "store" and self.storing):
                task = _take(self, direction)
                return task if direction == "load" else self._alone(task)
        return None

    def _alone(self, task: Task) -> Task:
        self.storing = True

        def run() -> Any:
            try:
                return task.run()
            finally:
                self.storing = False

        return task._replace(run=run)


@detected_by("floods/hang", r"no store submitted during the hang ended", scenario="starvation")
class OneStoreAtATime(_OverQueue):
    """Only one store runs at a time, so one call that hangs stops all stores."""

    queue = _OneStoreAtATime


@detected_by("starvation/stamps", r"claims to have come .* after the job's submit had returned", **FLOOD)
class LiesAboutItsSchedule(BothGroupsPreferLoads):
    """Stores starve, and the schedule hides it: each task reports its start as its arrival."""

    def tasks(self) -> list[TaskRecord]:
        return [task._replace(enqueued_seconds=task.started_seconds) for task in super().tasks()]


@detected_by(
    "floods/head-of-line",
    r"it waits for whole jobs",
    scenario="starvation",
    seconds=8.0,
    block_bytes=65536,
    job_blocks="16,512",
    read_threads=4,
    write_threads=4,
)
class RunsAJobAsOneTask(KvtierAdapter):
    """A job of any size is one task, so one thread is busy for all of its blocks."""

    def _build(self, config: FsTierConfig, run: RunConfig) -> FileSystemTierManager:
        return super()._build(dataclasses.replace(config, task_bytes_max=1 << 40), run)


class SameQueue(_OverQueue):
    """The correct base of the mutants above."""

    queue = DualQueue
