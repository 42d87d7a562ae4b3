"""Mutants that keep something of each operation of one kind, over the reference tier. Workers load them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.reference import ReferenceAdapter
from harness.mutants.base import breaks


class _Keeps(ReferenceAdapter):
    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self.kept: list[object] = []


@breaks("hits_leave_nothing", r"each lookup that hits leaves .* objects of Python behind")
class LogsEachHit(_Keeps):
    """Each hit adds an entry to a log in memory."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        self.kept += [(key, req_id) for key, verdict in zip(keys, verdicts, strict=True) if verdict == "hit"]
        return verdicts


@breaks("misses_leave_nothing", r"each lookup that misses leaves .* behind")
class RemembersEachMiss(_Keeps):
    """The key of each miss is remembered for ever."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        self.kept += [bytearray(key) for key, verdict in zip(keys, verdicts, strict=True) if verdict == "miss"]
        return verdicts


@breaks("stores_leave_nothing", r"each store leaves .* behind")
class KeepsACopyOfEachStore(_Keeps):
    """A copy of one page of each stored job is kept."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self.kept.append(bytearray(self._slot(slots[0])))


@breaks("loads_leave_nothing", r"each load leaves .* behind")
class LeavesAThreadForLoads(_Keeps):
    """Every fourth load starts a thread that waits for the end of the tier."""

    _loads = 0

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._over = threading.Event()

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._loads += 1
        if self._loads % 4 == 0:
            threading.Thread(target=self._over.wait, daemon=True).start()

    def close(self) -> None:
        self._over.set()


@breaks("failures_leave_nothing", r"each load that fails leaves .* behind")
class KeepsBuffersOfFailures(_Keeps):
    """A load that fails keeps the buffer that it would have filled."""

    def poll(self) -> list[Finished]:
        finished = super().poll()
        self.kept += [bytearray(self.setup.block_bytes) for result in finished for _ in result.failed]
        return finished


@breaks("requests_leave_nothing", r"each request leaves .* behind")
class ForgetsNoRequest(_Keeps):
    """The state of a request stays when the request has ended."""

    def request_started(self, req_id: str) -> None:
        self.kept.append([req_id, {}])
