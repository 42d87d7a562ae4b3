"""Mutants of single calls, over the reference tier: each breaks one promise of `harness.drivers.promises` about jobs,
lookups, requests, or the end of an instance. Workers load them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.reference import MemoryAdapter
from harness.mutants.base import breaks


@breaks("slots_are_memory", r"read-only")
class ReadOnlySlots(MemoryAdapter):
    """Its slots cannot be written."""

    @property
    def view(self) -> memoryview:
        return super().view.toreadonly()


@breaks("absent_blocks_are_misses", r"8 are hits")
class FindsEverything(MemoryAdapter):
    """Every lookup is a hit."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" for _ in keys]


@breaks("stored_blocks_load", r"wrong bytes: other key")
class LoadsInReverse(MemoryAdapter):
    """The blocks of a load go to the slots of the job in reverse order."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots[::-1], req_id)


@breaks("jobs_touch_only_their_slots", r"belongs to no job|has wrong bytes")
class WritesBehindItsSlots(MemoryAdapter):
    """A store writes to a slot behind its own."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._slot((slots[-1] + 2) % self.setup.slots)[:4] = b"oops"


@breaks("large_jobs_lose_nothing", r"24 of 64 blocks")
class StoresFortyBlocksAtMost(MemoryAdapter):
    """A store of more than 40 blocks stores 40 and reports all."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys[:40], slots[:40], req_id)
        self._finished[-1] = Finished(job_id, keys, ())


@breaks("many_jobs_at_once", r"no result of 12 jobs")
class ReportsTwentyAtMost(MemoryAdapter):
    """Of many results at once only 20 come out."""

    def poll(self) -> list[Finished]:
        return super().poll()[:20]


@breaks("storing_twice_is_harmless", r"3 of 6 blocks were not stored")
class FailsToStoreTwice(MemoryAdapter):
    """A store of a present block fails."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        there = [key for key in keys if self._path(key).exists()]
        super().submit_store(job_id, keys, slots, req_id)
        self._finished[-1] = Finished(job_id, [key for key in keys if key not in there], there)


@breaks("nothing_comes_without_a_job", r"no job was submitted")
class DrainInventsAResult(MemoryAdapter):
    """A drain adds a result of no job."""

    def drain(self) -> None:
        self._finished.append(Finished(1, (), ()))


@breaks("drain_waits_for_all", r"8 of 8 jobs have no result")
class DrainWaitsForNothing(MemoryAdapter):
    """Results come two steps after their job; a drain waits for nothing."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._steps = 0

    def step(self) -> None:
        self._steps += 1

    def poll(self) -> list[Finished]:
        return super().poll() if self._steps and self._steps % 2 == 0 else []


@breaks("close_answers_for_all", r"8 of 8 jobs have no result")
class CloseDropsResults(MemoryAdapter):
    """Close drops the results of jobs in flight."""

    def close(self) -> None:
        self._finished.clear()


@breaks("requests_may_end_before_their_jobs", r"no result of 1 jobs")
class DropsJobsOfEndedRequests(MemoryAdapter):
    """The end of a request drops the results of its jobs."""

    def request_finished(self, req_id: str) -> None:
        self._finished.clear()


@breaks("a_vanished_block_is_no_data", r"wrong bytes")
class LoadsAreAlwaysOk(MemoryAdapter):
    """Every load is reported ok, also of a block that has vanished."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._finished[-1] = Finished(job_id, keys, ())


@breaks("accounts_are_in_order", r"a slot is pinned")
class FailsItsOwnChecks(MemoryAdapter):
    """Its own checks find something."""

    def findings(self) -> list[str]:
        return ["a slot is pinned"]


@breaks("close_gives_everything_back", r"2 descriptors open")
class LeaksThreads(MemoryAdapter):
    """Each instance leaves a thread and a descriptor."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._fd = os.open("/dev/null", os.O_RDONLY)
        LEFT.append((threading.Event(), self._fd))
        threading.Thread(target=LEFT[-1][0].wait, daemon=True).start()


LEFT: list[tuple[threading.Event, int]] = []


@breaks("slots_are_free_after_the_result", r"written after the result of its job")
class WritesLoadedSlotsAgain(MemoryAdapter):
    """The slots of a load are written once more in the step after its result."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._again: list[tuple[bytes, int]] = []

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._again = list(zip(keys, slots, strict=True))

    def drain(self) -> None:
        for key, slot in self._again:
            self._slot(slot)[:] = self._read(key)


@breaks("absent_blocks_fail_to_load", r"wrong bytes: short|reported loaded")
class LoadsZerosForAbsentBlocks(MemoryAdapter):
    """A load of a block that was never stored gives zeros and is reported ok."""

    def _read(self, key: bytes) -> bytes:
        return super()._read(key) if self._path(key).exists() else bytes(self.setup.block_bytes)

    def _found(self, key: bytes) -> bool:
        return self._path(key).exists()


@breaks("empty_calls_are_harmless", r"a result, although no job")
class StepsReportTheLastJob(MemoryAdapter):
    """A step without work reports the last job once more."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._last: list[Finished] = []
        self._idle = 0

    def step(self) -> None:
        self._idle += 1
        if self._idle == 4:
            self._finished += self._last

    def poll(self) -> list[Finished]:
        if finished := super().poll():
            self._last, self._idle = finished[-1:], 0
        return finished


@breaks("job_numbers_may_come_again", r"no result of 1 jobs")
class RemembersJobNumbers(MemoryAdapter):
    """A job whose number was used before has no result."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._used: set[int] = set()

    def poll(self) -> list[Finished]:
        finished = [result for result in super().poll() if result.job_id not in self._used]
        self._used.update(result.job_id for result in finished)
        return finished


@breaks("results_come_once_whenever_polled", r"a second result for job|a result came twice")
class ReportsEachSixthResultLater(MemoryAdapter):
    """Each sixth result comes once more, three steps later."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._later: list[tuple[int, Finished]] = []
        self._steps = self._count = 0

    def step(self) -> None:
        self._steps += 1

    def poll(self) -> list[Finished]:
        finished = super().poll()
        again = [result for due, result in self._later if due <= self._steps]
        self._later = [one for one in self._later if one[0] > self._steps]
        for result in finished:
            self._count += 1
            if self._count % 6 == 0:
                self._later.append((self._steps + 3, result))
        return finished + again


@breaks("a_job_may_name_a_block_twice", r"wrong bytes: short")
class FillsOneSlotForEachBlock(MemoryAdapter):
    """Of the slots that a load names for one block only the first is filled."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        first = dict(reversed(list(zip(keys, slots, strict=True))))
        super().submit_load(job_id, list(first), list(first.values()), req_id)
        self._finished[-1] = self._finished[-1]._replace(ok=[k for k in keys if k in self._finished[-1].ok])


@breaks("lookups_answer_each_key", r"verdicts of a lookup of present and absent blocks are wrong")
class AnswersHitsFirst(MemoryAdapter):
    """The verdicts of a lookup come hits first, not in the order of the keys."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return sorted(super().lookup(keys, req_id))


@breaks("requests_do_not_disturb_each_other", r"no result of 1 jobs|a load failed when another request ended")
class EndOfARequestFailsOtherJobs(MemoryAdapter):
    """The end of a request fails the jobs of other requests that have no result yet."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._requests: dict[int, str] = {}

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._requests[job_id] = req_id

    def request_finished(self, req_id: str) -> None:
        self._finished = [
            result
            if self._requests.get(result.job_id, req_id) == req_id
            else Finished(result.job_id, (), [*result.ok, *result.failed])
            for result in self._finished
        ]


@breaks("pending_work_is_reported", r"no work is pending, though")
class ReportsNoPendingWork(MemoryAdapter):
    """No work is ever said to be pending, so that an idle engine stops stepping with jobs in flight."""

    def has_pending_work(self) -> bool:
        return False


@breaks("slots_of_failed_loads_are_given_back", r"wrong bytes: (short|hole)")
class ClearsSlotsOfFailedLoadsLate(MemoryAdapter):
    """The slots of a failed load are cleared when the next load ends."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._unclean: list[int] = []

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        for slot in self._unclean:
            self._slot(slot)[:] = bytes(self.setup.block_bytes)
        self._unclean = list(slots) if self._finished[-1].failed else []


@breaks("calls_after_close_are_harmless", r"raised RuntimeError: closed twice")
class ClosesOnlyOnce(MemoryAdapter):
    """A second close raises."""

    _closed = False

    def close(self) -> None:
        if self._closed:
            raise RuntimeError("closed twice")
        self._closed = True


@breaks("a_failed_load_becomes_a_miss", r"a lookup said retry for")
class RetriesAfterAFailedLoad(MemoryAdapter):
    """The lookup of a block that could not be loaded says retry from then on."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._lost: set[bytes] = set()

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._lost.update(self._finished[-1].failed)

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        answers = zip(keys, super().lookup(keys, req_id), strict=True)
        return ["retry" if key in self._lost else verdict for key, verdict in answers]


@breaks("hits_in_flight_load", r"4 of 4 hits could not be loaded at once")
class FindsWhatItWillStore(MemoryAdapter):
    """A block is a hit from its submit on, and is in the root from the next poll on."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._waiting: list[tuple[int, Sequence[bytes], Sequence[int], str]] = []

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._waiting.append((job_id, keys, slots, req_id))

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        waiting = {key for _, keys, _, _ in self._waiting for key in keys}
        found = super().lookup(keys, req_id)
        return ["hit" if key in waiting else verdict for key, verdict in zip(keys, found, strict=True)]

    def drain(self) -> None:
        for job in self._waiting:
            super().submit_store(*job)
        self._waiting.clear()

    def poll(self) -> list[Finished]:
        self.drain()
        return super().poll()

    def close(self) -> None:
        self.drain()


@breaks("jobs_touch_only_their_slots", r"was written by a load of 8 blocks")
class WritesBehindLargeLoads(MemoryAdapter):
    """A load of 8 blocks or more writes to the slot behind its last."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        if len(keys) >= 8:
            self._slot((slots[-1] + 1) % self.setup.slots)[:4] = b"oops"


@breaks("keys_name_prefixes", r"a key in a chain of \d+ does not depend on its first token")
class RestartsLongChains(MemoryAdapter):
    """After 20 blocks the chain of keys begins again."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        size = 20 * self.setup.tokens_per_block
        parts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        return [key for i, part in enumerate(parts) for key in MemoryAdapter.keys(self, part, None if i else parent)]
