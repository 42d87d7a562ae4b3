"""Mutants of the life of an instance and of what it says of itself, over the reference tier and kvtier. Workers load
them.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from typing import ClassVar

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.kvtier import KvtierAdapter
from harness.adapters.reference import MemoryAdapter
from harness.mutants.base import breaks
from kvtier.events import Event, JobFinished


@breaks("another_instance_finds_them", r"5 of 5 blocks that were reported stored are not found")
class FindsWhatWasThereAtItsStart(MemoryAdapter):
    """An instance finds its own blocks, and those that were in the root when it was opened."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._known = {path.name for path in self._folder.iterdir()}

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._known.update(self._path(key).name for key in keys)

    def _found(self, key: bytes) -> bool:
        return self._path(key).name in self._known and super()._found(key)


@breaks("others_come_and_go", r"are not found|failed while another instance opened")
class ClearsTheRootAtClose(MemoryAdapter):
    """An instance removes at its close the blocks that came after its start."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._before = set(self._folder.iterdir())

    def close(self) -> None:
        for path in set(self._folder.glob("*.bin")) - self._before:
            path.unlink(missing_ok=True)


@breaks("a_reopened_root_has_everything", r"blocks (of earlier instances|that were reported stored) are not found")
class KeepsTheIndexOfOneInstance(MemoryAdapter):
    """The index in the root names the blocks of the last instance alone."""

    bookkeeping: ClassVar[tuple[str, ...]] = ("config.json", "index.json")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._index = self._folder / "index.json"
        self._old = set(json.loads(self._index.read_text())) if self._index.exists() else set[str]()
        self._new: set[str] = set()

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._new.update(key.hex() for key in keys)
        self._index.write_text(json.dumps(sorted(self._new)))

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" if key.hex() in self._old | self._new else "miss" for key in keys]


@breaks("drain_waits_for_all", r"wrong bytes: (short|stale)")
class DrainReportsLoadsUnread(MemoryAdapter):
    """A drain reports the loads in flight as ok and reads none."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._loads: list[tuple[int, Sequence[bytes], Sequence[int], str]] = []

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._loads.append((job_id, keys, slots, req_id))

    def step(self) -> None:
        for load in self._loads:
            super().submit_load(*load)
        self._loads.clear()

    def drain(self) -> None:
        self._finished += [Finished(job_id, keys, ()) for job_id, keys, _, _ in self._loads]
        self._loads.clear()

    def close(self) -> None:
        self.step()


@breaks("close_answers_for_all", r"4 of 8 jobs have no result")
class CloseForgetsLoads(DrainReportsLoadsUnread):
    """A close drops the loads in flight without a result."""

    def drain(self) -> None:
        self.step()

    def close(self) -> None:
        self._loads.clear()


@breaks("counts_are_of_what_happened", r"counts other blocks than its results")
class CountsJobsTwice(KvtierAdapter):
    """The blocks of each job are counted twice."""

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, JobFinished):
            self._counts["stored" if event.direction == "store" else "loaded"] += event.blocks_ok


@breaks("events_are_reported_once", r"a block is reported twice")
class ReportsEventsTwice(KvtierAdapter):
    """Events are reported again by the next call."""

    _told: ClassVar[list[tuple[bytes, bool]]] = []

    def events(self) -> list[tuple[bytes, bool]]:
        before, type(self)._told = self._told, super().events()
        return before + self._told


@breaks("instances_have_their_own_ids", r"instances have 1 ids")
class CallsAllInstancesAlike(KvtierAdapter):
    """All instances of a root have the same id."""

    def instance_id(self) -> str:
        return "instance"


@breaks("surroundings_stay", r"an open instance has changed its process: working directory")
class EntersItsRoot(MemoryAdapter):
    """Opening an instance changes the working directory of the process."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        os.chdir(self._folder)


@breaks("surroundings_stay", r"an open instance has changed its process: random generator")
class SeedsTheGenerator(MemoryAdapter):
    """A store seeds the random generator that the application uses too."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        random.seed(job_id)


@breaks("surroundings_stay", r"lookup changed a list that it was given")
class TakesKeysFromTheCaller(MemoryAdapter):
    """A lookup turns the list of keys around that it was given."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        if isinstance(keys, list):
            keys.reverse()
        return verdicts
