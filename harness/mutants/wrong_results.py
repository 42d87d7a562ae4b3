"""Mutants of jobs, over the reference tier: wrong results, blocks lost or exchanged. Workers load them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.reference import MemoryAdapter, _publish
from harness.mutants.base import detected_by

MANY_JOBS = 1000
LONG: dict[str, Any] = {"requests": 700, "seconds": 0.0, "processes": 1, "window": 8, "block_bytes": 4096}


@detected_by("results/one-result", r"job \d+ reported 2 results")
class ReportsTwice(MemoryAdapter):
    """Each result is reported twice."""

    def poll(self) -> list[Finished]:
        return [result for result in super().poll() for _ in range(2)]


@detected_by("results/one-result", r"got 0 results; each job gets exactly one", stall_seconds=1.0)
class NeverReports(MemoryAdapter):
    """Every fifth job is accepted and never reported."""

    def poll(self) -> list[Finished]:
        return [result for result in super().poll() if result.job_id % 5 != 4]


@detected_by("results/accounts", r"does not account for its blocks: no outcome for \d+")
class ForgetsTheLastBlock(MemoryAdapter):
    """The result of a job omits its last block."""

    def poll(self) -> list[Finished]:
        return [result._replace(ok=result.ok[:-1]) for result in super().poll()]


@detected_by("determinism/on-disk", r"is missing on disk, though a store of block \d+ was reported ok")
class LosesTheLastBlock(MemoryAdapter):
    """The last block of a batch is reported as stored and is not stored."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys[:-1], slots[:-1], req_id)
        self._finished[-1] = Finished(job_id, keys, ())


@detected_by("integrity/bytes", r"other key: the content of block \d+, whole")
class MixesUpABatch(MemoryAdapter):
    """Blocks of a batch are stored under each other's names."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, [*slots[1:], slots[0]], req_id)


@detected_by("integrity/bytes", r"stale: the block that the slot held before|short: .* untouched")
class ReturnsStaleSlots(MemoryAdapter):
    """Loads are reported ok and do not change the slots."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._finished.append(Finished(job_id, keys, ()))


@detected_by("integrity/bytes", r"process \d+ in job \d+: (stale|short|hole|other key|garbage)")
class ReportsBeforeTheWork(MemoryAdapter):
    """A job is reported done at its submit; its bytes move one step later."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._due: list[tuple[bool, int, Sequence[bytes], Sequence[int], str]] = []

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._due.append((True, job_id, keys, slots, req_id))
        self._finished.append(Finished(job_id, keys, ()))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._due.append((False, job_id, keys, slots, req_id))
        self._finished.append(Finished(job_id, keys, ()))

    def poll(self) -> list[Finished]:
        reported = super().poll()
        if not reported:
            self._work()
        return reported

    def _work(self) -> None:
        for storing, job_id, keys, slots, req_id in self._due:
            (super().submit_store if storing else super().submit_load)(job_id, keys, slots, req_id)
        self._due, self._finished = [], []

    def close(self) -> None:
        self._work()


@detected_by("integrity/bytes", r"process \d+ in job \d+: (stale|short)")
class CallsFailureSuccess(MemoryAdapter):
    """Every lookup is a hit and every job is ok, also where the file cannot be read."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit"] * len(keys)

    def poll(self) -> list[Finished]:
        return [Finished(r.job_id, [*r.ok, *r.failed], ()) for r in super().poll()]


@detected_by("results/no-failure", r"failed for block .* although no fault was", **LONG)
class FailsAfterAThousandJobs(MemoryAdapter):
    """All jobs fail from the thousandth on."""

    def poll(self) -> list[Finished]:
        return [r if r.job_id < MANY_JOBS else Finished(r.job_id, (), [*r.ok, *r.failed]) for r in super().poll()]


@detected_by("leftovers/descriptors", r"more descriptors than it began with")
class LeaksDescriptors(MemoryAdapter):
    """Each load leaves one descriptor open."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        os.open(self._path(keys[0]), os.O_RDONLY)


@detected_by("leftovers/files", r"tmp was left under the root")
class LeaksTempFiles(MemoryAdapter):
    """Each store leaves its temp files."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            self._path(key).with_suffix(f".{os.urandom(8).hex()}.tmp").write_bytes(self._slot(slot))
        super().submit_store(job_id, keys, slots, req_id)


@detected_by("sharing/stored-is-found", r"process \d+ missed block \d+, stored .* s before")
class SeesItsOwnStoresOnly(MemoryAdapter):
    """A block is a hit only in the process that stored it."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._mine: set[bytes] = set()

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._mine.update(keys)

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" if key in self._mine else "miss" for key in keys]


@detected_by("sharing/stored-is-found", r"process \d+ missed block \d+, stored .* s before")
class CachesMissesForEver(MemoryAdapter):
    """A block that was once a miss stays a miss in this process."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._missing: set[bytes] = set()

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        self._missing.update(key for key, verdict in zip(keys, verdicts, strict=True) if verdict == "miss")
        return ["miss" if key in self._missing else "hit" for key in keys]


@detected_by("integrity/bytes", r"process \d+ in job \d+: other key")
class WorksAlone(MemoryAdapter):
    """Blocks are appended to one file whose end each process tracks alone: correct with one process only."""

    bookkeeping = ("config.json", "pack.json")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._pack = os.open(self._folder / "pack.json", os.O_CREAT | os.O_RDWR)
        self._end = 0

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            os.pwrite(self._pack, self._slot(slot), self._end)
            _publish(self._path(key), self._end.to_bytes(8, "little"))
            self._end += self.setup.block_bytes
        self._finished.append(Finished(job_id, keys, ()))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            place = int.from_bytes(self._path(key).read_bytes(), "little")
            os.preadv(self._pack, [self._slot(slot)], place)
        self._finished.append(Finished(job_id, keys, ()))

    def _found(self, key: bytes) -> bool:
        return self._path(key).exists()

    def close(self) -> None:
        os.close(self._pack)
