"""Tiers over the reference tier that run out of space or descriptors, or report so without cause."""

from __future__ import annotations

import os
from collections.abc import Sequence

from harness.adapters.base import Finished, TierSetup
from harness.adapters.reference import MemoryAdapter


class MakesUpEnospc(MemoryAdapter):
    """Every fifth store fails with ENOSPC, whatever the free space."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        if job_id % 5 == 4:
            self._finished.append(Finished(job_id, (), keys, reasons="ENOSPC"))
        else:
            super().submit_store(job_id, keys, slots, req_id)


class LeaksUntilTheLimit(MemoryAdapter):
    """Each store leaves a descriptor open, up to the limit of the process."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        if not self._finished[-1].failed:
            os.open("/dev/null", os.O_RDONLY)


class NeedsManyDescriptors(MemoryAdapter):
    """Keeps eight descriptors open for each stored block until close."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._held: list[int] = []

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        try:
            self._held += [os.open("/dev/null", os.O_RDONLY) for _ in range(8 * len(keys))]
        except OSError:
            self._finished[-1] = Finished(job_id, (), keys, reasons="EMFILE")

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)
