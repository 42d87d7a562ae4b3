"""Tiers over the reference tier, each with one defect that only starvation, faults or soak can show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.reference import MemoryAdapter


class StoresWait(MemoryAdapter):
    """Stores run only in a poll that no load preceded: a flood of loads starves them. Its gauges stay 0."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._waiting: list[tuple[int, Sequence[bytes], Sequence[int], str]] = []
        self._loads = 0

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._waiting.append((job_id, keys, slots, req_id))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._loads += 1
        super().submit_load(job_id, keys, slots, req_id)

    def poll(self) -> list[Finished]:
        if not self._loads:
            self.drain()
        self._loads = 0
        return super().poll()

    def drain(self) -> None:
        waiting, self._waiting = self._waiting, []
        for store in waiting:
            super().submit_store(*store)


class LooksAtNames(MemoryAdapter):
    """The base of those below, without a defect: a lookup opens no file, so only a load finds a damaged one."""

    def _found(self, key: bytes) -> bool:
        return self._path(key).exists()


class KeepsNoChecksums(LooksAtNames):
    """Any file of the right size is loaded as the block."""

    def _read(self, key: bytes) -> bytes:
        content = self._path(key).read_bytes()
        if len(content) != self.setup.block_bytes + 32:
            raise OSError("too short, or too long")
        return content[: self.setup.block_bytes]


class AllOrNothing(LooksAtNames):
    """One failed block fails the whole load job."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        result = self._finished[-1]
        if result.failed:
            self._finished[-1] = Finished(job_id, (), keys)


class NeverForgives(LooksAtNames):
    """A block that once failed to load stays a miss."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._given_up: set[bytes] = set()

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._given_up.update(self._finished[-1].failed)

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        found = super().lookup(keys, req_id)
        return ["miss" if key in self._given_up else verdict for key, verdict in zip(keys, found, strict=True)]


class CountsNothingFailed(LooksAtNames):
    """Counts stored blocks, and no failure."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._stored = 0

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._stored += len(keys)

    def counts(self) -> Mapping[str, float]:
        return {"stored": self._stored}


class OpensForEver(MemoryAdapter):
    """Each load leaves a descriptor open until close."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._leak: list[int] = []

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._leak.append(os.open("/dev/null", os.O_RDONLY))

    def close(self) -> None:
        for descriptor in self._leak:
            os.close(descriptor)
