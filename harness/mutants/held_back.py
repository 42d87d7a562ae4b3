"""Mutants that hold single jobs or classes of jobs back, over kvtier. Workers load them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from harness.adapters.base import Finished, TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.core.history import Task as TaskRecord
from harness.mutants.base import detected_by
from harness.mutants.schedule import _OverQueue
from kvtier.events import Direction
from kvtier.fs.thread_pool import DualQueue, Task

HELD_SECONDS = 0.5
SLOW_SECONDS = 0.1
HELD = r"job \d+ \({}, \d+ blocks\) had no result for .* after a {} submitted later had ended"


class _HoldsBack(KvtierAdapter):
    """kvtier that gets some jobs later, and does not show its schedule."""

    exposes_schedule = False

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._held: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()
        self._jobs = 0

    def held_back(self, direction: Direction, keys: Sequence[bytes], req_id: str) -> bool:
        """Whether this job must wait."""
        raise NotImplementedError

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._submit("store", super().submit_store, job_id, keys, slots, req_id)

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._submit("load", super().submit_load, job_id, keys, slots, req_id)

    def _submit(self, direction: Direction, submit: Callable[..., None], *job: Any) -> None:
        self._jobs += 1
        if self.held_back(direction, job[1], job[3]):
            self._held.append((time.monotonic() + HELD_SECONDS, submit, job))
        else:
            submit(*job)

    def _release(self, all_of_them: bool = False) -> None:
        while self._held and (all_of_them or self._held[0][0] <= time.monotonic()):
            _, submit, job = self._held.popleft()
            submit(*job)

    def poll(self) -> list[Finished]:
        self._release()
        return super().poll()

    def drain(self) -> None:
        self._release(all_of_them=True)
        super().drain()

    def tasks(self) -> list[TaskRecord]:
        super().tasks()
        return []


@detected_by("starvation/job-held-back", HELD.format("store", "store"), scenario="starvation")
class HoldsBackOneStoreOfMany(_HoldsBack):
    """One store of several hundred waits for half a second."""

    stores = 0

    def held_back(self, direction: Direction, keys: Sequence[bytes], req_id: str) -> bool:
        self.stores += direction == "store"
        return direction == "store" and self.stores % 150 == 149


@detected_by("starvation/job-held-back", HELD.format("load", "load"), scenario="starvation")
class DefersOneRequest(_HoldsBack):
    """The jobs of one request of some hundreds wait for half a second."""

    def held_back(self, direction: Direction, keys: Sequence[bytes], req_id: str) -> bool:
        return req_id.endswith("77")


@detected_by("starvation/job-held-back", HELD.format("store", "store"), scenario="starvation")
class LargeStoresGoFirst(_HoldsBack):
    """A store of one block waits while larger stores come."""

    large_seconds = 0.0

    def held_back(self, direction: Direction, keys: Sequence[bytes], req_id: str) -> bool:
        if direction == "store" and len(keys) > 1:
            self.large_seconds = time.monotonic()
        return direction == "store" and len(keys) == 1 and time.monotonic() < self.large_seconds + 0.1


class _WaitsForTheOther(_HoldsBack):
    """Jobs of one direction are held while one of the other is in flight."""

    waits: Direction

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._others: set[int] = set()

    def _submit(self, direction: Direction, submit: Callable[..., None], *job: Any) -> None:
        if direction == self.waits:
            self._held.append((time.monotonic(), submit, job))
        else:
            self._others.add(job[0])
            submit(*job)

    def poll(self) -> list[Finished]:
        finished = KvtierAdapter.poll(self)
        self._others.difference_update(result.job_id for result in finished)
        if not self._others:
            self._release(all_of_them=True)
        return finished


@detected_by("floods/starved", r"stores through a flood of load jobs .*: starved", scenario="starvation")
class StoresWaitForLoads(_WaitsForTheOther):
    """Stores run only while no load is in flight."""

    waits = "store"


@detected_by(
    "starvation/class-held-back", r"no load finished for .* while \d+ blocks of store jobs", scenario="starvation"
)
class LoadsWaitForStores(_WaitsForTheOther):
    """Loads run only while no store is in flight."""

    waits = "load"


class _SlowUnderLoads(DualQueue):
    def pop(self, group: Direction) -> Task | None:
        task = super().pop(group)
        if task and task.direction == "store" and self.tasks["load"]:
            run = task.run

            def slowly() -> Any:
                time.sleep(SLOW_SECONDS)
                return run()

            return task._replace(run=slowly)
        return task


@detected_by(
    "floods/loaded-service", r"stores through a flood of load jobs of 1 blocks: one took", scenario="starvation"
)
class StoresAreSlowUnderLoads(_OverQueue):
    """A store's own service takes 100 ms longer while loads wait."""

    queue = _SlowUnderLoads


@detected_by("floods/model-held-back", r"of model 'harness/model-\d' takes", scenario="starvation")
class DefersOneModel(_HoldsBack):
    """Jobs of one model wait for half a second, those of another do not."""

    def held_back(self, direction: Direction, keys: Sequence[bytes], req_id: str) -> bool:
        return self.setup.model_name.endswith("1")
