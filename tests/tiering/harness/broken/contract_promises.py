"""Tiers over the reference tier, each with a defect that breaks one promise of `harness.drivers.contract_promises`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.reference import MemoryAdapter


class ReadOnlySlots(MemoryAdapter):
    """Its slots cannot be written."""

    @property
    def view(self) -> memoryview:
        return super().view.toreadonly()


class KeysOfTheBlockAlone(MemoryAdapter):
    """A key does not depend on the blocks before its own."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        size = self.setup.tokens_per_block
        starts = range(0, len(tokens) - size + 1, size)
        return [MemoryAdapter.keys(self, tokens[start : start + size])[0] for start in starts]


class HitsAlways(MemoryAdapter):
    """Every lookup is a hit."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" for _ in keys]


class LoadsReversed(MemoryAdapter):
    """The blocks of a load go to the slots of the job in reverse order."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots[::-1], req_id)


class MissesForEver(MemoryAdapter):
    """A block that was once a miss stays one."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._missed: set[bytes] = set()

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        self._missed.update(key for key, verdict in zip(keys, verdicts, strict=True) if verdict == "miss")
        return ["miss" if key in self._missed else "hit" for key in keys]


class ScribblesBehind(MemoryAdapter):
    """A store writes to a slot behind its own."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._slot((slots[-1] + 2) % self.setup.slots)[:4] = b"oops"


class LosesTheLast(MemoryAdapter):
    """A store of more than 40 blocks stores 40 and reports all."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys[:40], slots[:40], req_id)
        self._finished[-1] = Finished(job_id, keys, ())


class ForgetsJobs(MemoryAdapter):
    """Of many results at once only 20 come out."""

    def poll(self) -> list[Finished]:
        return super().poll()[:20]


class SecondStoreFails(MemoryAdapter):
    """A store of a present block fails."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        there = [key for key in keys if self._path(key).exists()]
        super().submit_store(job_id, keys, slots, req_id)
        self._finished[-1] = Finished(job_id, [key for key in keys if key not in there], there)


class ReportsAgain(MemoryAdapter):
    """A drain adds a result of no job."""

    def drain(self) -> None:
        self._finished.append(Finished(1, (), ()))


class Late(MemoryAdapter):
    """Results come two steps after their job; a drain waits for nothing."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._steps = 0

    def step(self) -> None:
        self._steps += 1

    def poll(self) -> list[Finished]:
        return super().poll() if self._steps and self._steps % 2 == 0 else []


class SilentAtTheEnd(MemoryAdapter):
    """Close drops the results of jobs in flight."""

    def close(self) -> None:
        self._finished.clear()


class EndsWithItsRequest(MemoryAdapter):
    """The end of a request drops the results of its jobs."""

    def request_finished(self, req_id: str) -> None:
        self._finished.clear()


class LoadsAreAlwaysOk(MemoryAdapter):
    """Every load is reported ok, also of a block that has vanished."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._finished[-1] = Finished(job_id, keys, ())


class OwnChecksFail(MemoryAdapter):
    """Its own checks find something."""

    def findings(self) -> list[str]:
        return ["a slot is pinned"]


class KeepsAThread(MemoryAdapter):
    """Each instance leaves a thread and a descriptor."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._fd = os.open("/dev/null", os.O_RDONLY)
        LEFT.append((threading.Event(), self._fd))
        threading.Thread(target=LEFT[-1][0].wait, daemon=True).start()


LEFT: list[tuple[threading.Event, int]] = []


class Mortal(MemoryAdapter):
    """A drain ends its process; a load of 64 blocks never returns."""

    def drain(self) -> None:
        os._exit(9)

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        if len(keys) == 64:
            time.sleep(3600)  # its defect: it hangs until the harness ends it
