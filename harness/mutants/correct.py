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
    """The reference tier with a queue and a thread for each direction: its submits return before the job is done."""

    name: ClassVar[str] = "queued reference"
    runs_in_submit: ClassVar[bool] = False

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._loads: queue.Queue[_Job] = queue.Queue()
        self._stores: queue.Queue[_Job] = queue.Queue()
        for jobs, work in ((self._loads, super().submit_load), (self._stores, super().submit_store)):
            threading.Thread(target=self._serve, args=(jobs, work), daemon=True).start()

    @staticmethod
    def _serve(jobs: queue.Queue[_Job], work: _Work) -> None:
        while True:
            work(*jobs.get())
            jobs.task_done()

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._stores.put((job_id, keys, slots, req_id))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._loads.put((job_id, keys, slots, req_id))

    def poll(self) -> list[Finished]:
        return [self._finished.pop(0) for _ in range(len(self._finished))]  # threads append to this very list

    def drain(self) -> None:
        self._loads.join()
        self._stores.join()

    def gauges(self) -> Mapping[str, float]:
        return {"load_queue": self._loads.qsize(), "store_queue": self._stores.qsize()}
