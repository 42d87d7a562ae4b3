"""Correct tiers for control runs: each must pass, whatever the machine does beside it. Workers load the classes.

`CONTROLS` names them, and says in which scenarios a tier runs that keeps only a part of the guarantees.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from harness.adapters.base import Finished, TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.adapters.reference import ReferenceAdapter
from harness.core.history import Task


class Control(NamedTuple):
    """A correct tier: as `--tier` takes it, its `--tier-option`s, and its scenarios (none: all that can judge it).

    `breaks` are rules that it does not keep, by id with the reason; findings against them are no false alarm. `unfit`
    are conditions that it cannot run under, with the reason.
    """

    tier: str
    options: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    breaks: Mapping[str, str] = MappingProxyType({})
    unfit: Mapping[str, str] = MappingProxyType({})


CONTROLS: Mapping[str, Control] = {
    "kvtier": Control("kvtier"),
    "kvtier-hidden": Control(f"{__name__}:HidesItsSchedule"),
    "kvtier-stack": Control("kvtier-stack"),
    "reference": Control("reference"),
    "reference-queued": Control(f"{__name__}:QueuedReference"),
    # Its known defects show elsewhere, and with an equally seeded `random`: docs/findings-vllm-0.33.md.
    "vllm": Control(
        "vllm",
        ("seed_random=null",),
        ("load", "sharing", "starvation"),
        {"sharing/stored-is-found": "requests that overlap share one answer, also a miss from before the store"},
        {"memory": "its processes need more memory than the cgroup has"},
    ),
}


class HidesItsSchedule(KvtierAdapter):
    """kvtier behind an adapter that does not show how it schedules."""

    exposes_schedule = False

    def tasks(self) -> list[Task]:
        super().tasks()
        return []


_Job = tuple[int, Sequence[bytes], Sequence[int], str]
_Work = Callable[[int, Sequence[bytes], Sequence[int], str], None]


class QueuedReference(ReferenceAdapter):
    """The reference tier with a queue and threads for each direction: its submits return before the job is done."""

    name: ClassVar[str] = "queued reference"
    runs_in_submit: ClassVar[bool] = False

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._open = 0  # jobs whose result was not polled
        self._closed = False
        self._loads: queue.Queue[_Job | None] = queue.Queue()
        self._stores: queue.Queue[_Job | None] = queue.Queue()
        pairs = [(self._loads, super().submit_load)] * setup.n_read_threads
        pairs += [(self._stores, super().submit_store)] * setup.n_write_threads
        self._threads = [threading.Thread(target=self._serve, args=pair, daemon=True) for pair in pairs]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _serve(jobs: queue.Queue[_Job | None], work: _Work) -> None:
        while (job := jobs.get()) is not None:
            work(*job)
            jobs.task_done()
        jobs.task_done()

    def _submit(self, jobs: queue.Queue[_Job | None], job: _Job) -> None:
        if self._closed:
            raise ValueError("the tier is closed")
        self._open += 1
        jobs.put(job)

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._submit(self._stores, (job_id, keys, slots, req_id))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._submit(self._loads, (job_id, keys, slots, req_id))

    def poll(self) -> list[Finished]:
        ended = [self._finished.pop(0) for _ in range(len(self._finished))]  # threads append to this very list
        self._open -= len(ended)
        return ended

    def has_pending_work(self) -> bool:
        return self._open > 0

    def drain(self) -> None:
        self._loads.join()
        self._stores.join()

    def close(self) -> None:
        """Jobs in flight come to their end first."""
        if not self._closed:
            self._closed = True
            threads = [(self._loads, self.setup.n_read_threads), (self._stores, self.setup.n_write_threads)]
            for jobs, count in threads:
                for _ in range(count):
                    jobs.put(None)
        for thread in self._threads:
            thread.join()

    def gauges(self) -> Mapping[str, float]:
        return {"load_queue": self._loads.qsize(), "store_queue": self._stores.qsize()}
