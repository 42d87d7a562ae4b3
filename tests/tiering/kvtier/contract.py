"""`TierContract`: the suite every `SecondaryTierManager` passes; a subclass says how to make one and to bypass it."""

from __future__ import annotations

import hashlib
import mmap
import random
import time
from collections.abc import Iterator, Sequence
from itertools import count

import pytest

from kvtier.base import (
    JobResult,
    LookupResult,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    SecondaryTierManager,
    TransferJob,
)
from kvtier.hashing import OffloadKey

SLOTS = 1024  # twice what a test keeps in flight: a tier may shed stores when most slots wait for it
LARGE_JOB_BLOCKS = 400
"""More than ten blocks for each thread of any tier made here."""
STEPS_MAX = 10_000
STEP_SECONDS = 0.001
"""A lookup may answer RETRY for this many steps of at least this length."""


def key(name: object) -> OffloadKey:
    """A key as the engine makes them: a hash and the group's number."""
    return OffloadKey(hashlib.sha256(str(name).encode()).digest() + (0).to_bytes(4, "big"))


def content(k: OffloadKey, block_bytes: int) -> bytes:
    """The bytes of a block follow from its key."""
    return random.Random(bytes(k)).randbytes(block_bytes)


class Driver:
    """One tier and its slots, driven like the manager does; checks on the way what holds for every job."""

    def __init__(self, tier: SecondaryTierManager, view: memoryview) -> None:
        self.tier = tier
        self.block_bytes = view.shape[1] if view.shape else 0
        self.request = ReqContext("contract")
        self.jobs: dict[int, TransferJob] = {}
        self.open = True
        self._bytes = view.cast("B")
        self._ids = count(7)
        tier.on_new_request(self.request)

    def slot(self, slot: int) -> memoryview:
        return self._bytes[slot * self.block_bytes : (slot + 1) * self.block_bytes]

    def content(self, k: OffloadKey) -> bytes:
        return content(k, self.block_bytes)

    def store(self, keys: Sequence[OffloadKey], first_slot: int = 0) -> int:
        """Fill slots from `first_slot` on with the blocks' bytes and submit; the job's number."""
        for slot, k in enumerate(keys, first_slot):
            self.slot(slot)[:] = self.content(k)
        job = self._job(keys, first_slot, is_promotion=False)
        self.tier.submit_store(job)
        return job.job_id

    def load(self, keys: Sequence[OffloadKey], first_slot: int = 0) -> int:
        """Submit a load into slots from `first_slot` on; the job's number."""
        job = self._job(keys, first_slot, is_promotion=True)
        self.tier.submit_load(job)
        return job.job_id

    def _job(self, keys: Sequence[OffloadKey], first_slot: int, is_promotion: bool) -> TransferJob:
        slots = tuple(range(first_slot, first_slot + len(keys)))
        job = TransferJob(next(self._ids), tuple(keys), slots, is_promotion, self.request)
        self.jobs[job.job_id] = job
        return job

    def finish(self) -> dict[int, JobResult]:
        """Drain; every job in flight has exactly one result, which says about its own blocks what is so."""
        self.tier.drain_jobs()
        return self.results()

    def close(self) -> dict[int, JobResult]:
        """Shut down; the same holds."""
        self.tier.shutdown()
        self.open = False
        return self.results()

    def results(self) -> dict[int, JobResult]:
        results = list(self.tier.get_finished_jobs())
        assert sorted(result.job_id for result in results) == sorted(self.jobs), "exactly one result for each job"
        for result in results:
            job = self.jobs[result.job_id]
            ok = set(result.successful_keys)
            assert len(ok) == len(result.successful_keys)
            assert ok <= set(job.keys)
            assert result.success == (ok == set(job.keys))
            assert result.transfer_bytes >= 0
            assert result.transfer_seconds >= 0
            if job.is_promotion:
                for k, slot in zip(job.keys, job.chunk_ids, strict=True):
                    assert k not in ok or self.slot(slot) == self.content(k), "a block reported loaded has its bytes"
        self.jobs.clear()
        assert list(self.tier.get_finished_jobs()) == []
        return {result.job_id: result for result in results}

    def next_request(self) -> None:
        """The request ends, another begins."""
        self.tier.on_request_finished(self.request)
        self.request = ReqContext(f"{self.request.req_id}'")
        self.tier.on_new_request(self.request)

    def lookup(self, k: OffloadKey) -> LookupResult:
        """Step until the answer is not RETRY."""
        for _ in range(STEPS_MAX):
            answer = self.tier.lookup(k, self.request)
            if answer is not LookupResult.RETRY:
                return answer
            self.tier.on_schedule_end(ScheduleEndContext())
            time.sleep(STEP_SECONDS)  # an engine's step; nothing is judged by it
        raise AssertionError(f"RETRY for {STEPS_MAX} steps")


class TierContract:
    """Inherit, implement the four methods, and collect the subclass."""

    def make_tier(self, view: memoryview) -> SecondaryTierManager:
        """A new, empty tier over the slots in `view`, shape (slots, block_bytes)."""
        raise NotImplementedError

    def raw_write(self, tier: SecondaryTierManager, k: OffloadKey, data: bytes) -> None:
        """Put a block where the tier keeps it, as another process would, without calling the tier."""
        raise NotImplementedError

    def raw_read(self, tier: SecondaryTierManager, k: OffloadKey) -> bytes | None:
        """The block as the tier keeps it, or None, without calling the tier."""
        raise NotImplementedError

    def raw_delete(self, tier: SecondaryTierManager, k: OffloadKey) -> None:
        """Remove a block from where the tier keeps it, without calling the tier."""
        raise NotImplementedError

    @pytest.fixture(params=[4096, 65536])
    def block_bytes(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    @pytest.fixture
    def driver(self, block_bytes: int) -> Iterator[Driver]:
        view = memoryview(mmap.mmap(-1, SLOTS * block_bytes)).cast("B", (SLOTS, block_bytes))
        driver = Driver(self.make_tier(view), view)
        yield driver
        if driver.open:
            driver.close()

    def has(self, driver: Driver, k: OffloadKey) -> bool:
        return self.raw_read(driver.tier, k) == driver.content(k)

    def put(self, driver: Driver, *keys: OffloadKey) -> None:
        for k in keys:
            self.raw_write(driver.tier, k, driver.content(k))

    # ---- stores and loads

    @pytest.mark.parametrize("blocks", [1, 7])
    def test_stored_blocks_are_there(self, driver: Driver, blocks: int) -> None:
        keys = [key(i) for i in range(blocks)]
        job = driver.store(keys)
        result = driver.finish()[job]
        assert result.success
        assert result.transfer_bytes == blocks * driver.block_bytes
        assert all(self.has(driver, k) for k in keys)
        assert all(driver.lookup(k) is LookupResult.HIT for k in keys)

    @pytest.mark.parametrize("blocks", [1, 7])
    def test_present_blocks_load(self, driver: Driver, blocks: int) -> None:
        keys = [key(i) for i in range(blocks)]
        self.put(driver, *keys)
        assert all(driver.lookup(k) is LookupResult.HIT for k in keys)
        job = driver.load(keys)
        result = driver.finish()[job]
        assert result.success
        assert result.transfer_bytes == blocks * driver.block_bytes

    def test_another_tiers_block_is_found_after_a_miss(self, driver: Driver) -> None:
        """A request that came later sees what others stored since."""
        assert driver.lookup(key("late")) is LookupResult.MISS
        driver.tier.on_request_finished(driver.request)
        driver.request = ReqContext("later")
        driver.tier.on_new_request(driver.request)
        self.put(driver, key("late"))
        assert driver.lookup(key("late")) is LookupResult.HIT

    def test_loads_and_stores_touch_only_their_slots(self, driver: Driver) -> None:
        rng = random.Random(5)
        present = [key(("present", i)) for i in range(60)]
        self.put(driver, *present)
        for slot in range(SLOTS):
            driver.slot(slot)[:] = bytes([slot % 251]) * driver.block_bytes
        starts = list(range(0, 400, 20))
        rng.shuffle(starts)
        used: set[int] = set()
        for number, start in enumerate(starts):
            blocks = rng.randint(1, 15)
            used.update(range(start, start + blocks))
            if number % 2:
                driver.store([key((number, i)) for i in range(blocks)], start)
            else:
                driver.load(rng.sample(present, blocks), start)
        stores = [job for job in driver.jobs.values() if not job.is_promotion]
        stored = {slot: k for job in stores for k, slot in zip(job.keys, job.chunk_ids, strict=True)}
        assert all(result.success for result in driver.finish().values())
        for slot in range(SLOTS):
            if slot in stored:
                assert driver.slot(slot) == driver.content(stored[slot]), "a store leaves its slot as it was"
                assert self.has(driver, stored[slot])
            elif slot not in used:
                assert driver.slot(slot) == bytes([slot % 251]) * driver.block_bytes, "nobody's slot stays as it was"

    def test_a_large_job(self, driver: Driver) -> None:
        keys = [key(i) for i in range(LARGE_JOB_BLOCKS)]
        job = driver.store(keys)
        assert set(driver.finish()[job].successful_keys) == set(keys)
        for slot in range(LARGE_JOB_BLOCKS):
            driver.slot(slot)[:] = bytes(driver.block_bytes)
        job = driver.load(keys[::-1])
        assert set(driver.finish()[job].successful_keys) == set(keys)

    def test_a_job_of_nothing_succeeds(self, driver: Driver) -> None:
        jobs = [driver.store([]), driver.load([])]
        results = driver.finish()
        assert [results[job][1:] for job in jobs] == [(True, (), 0.0, 0)] * 2

    def test_storing_what_is_present_succeeds_without_harm(self, driver: Driver) -> None:
        self.put(driver, key(1))
        job = driver.store([key(0), key(1), key(2)])
        assert driver.finish()[job].success
        job = driver.store([key(2), key(1), key(0)])
        assert driver.finish()[job].success
        assert all(self.has(driver, key(i)) for i in range(3))

    def test_two_stores_of_one_block_at_once(self, driver: Driver) -> None:
        for start in range(0, 400, 20):
            driver.store([key(i) for i in range(20)], start)
        assert all(result.success for result in driver.finish().values())
        assert all(self.has(driver, key(i)) for i in range(20))

    # ---- what is not there

    def test_an_absent_block_is_a_miss(self, driver: Driver) -> None:
        assert driver.lookup(key("absent")) is LookupResult.MISS

    @pytest.mark.parametrize("absent", [[0], [4], [1, 3], [0, 1, 2, 3, 4]], ids=str)
    def test_an_absent_block_fails_only_itself(self, driver: Driver, absent: list[int]) -> None:
        keys = [key(i) for i in range(5)]
        good = [k for i, k in enumerate(keys) if i not in absent]
        self.put(driver, *good)
        job = driver.load(keys)
        result = driver.finish()[job]
        assert not result.success
        assert set(result.successful_keys) == set(good)
        assert result.transfer_bytes == len(good) * driver.block_bytes

    def test_a_vanished_block_is_a_miss_and_comes_back_with_a_store(self, driver: Driver) -> None:
        """After a failed load HIT turns to MISS, else a request would wait for it for ever."""
        stored, written = key("stored"), key("written")
        driver.store([stored])
        self.put(driver, written)
        driver.finish()
        assert [driver.lookup(k) for k in (stored, written)] == [LookupResult.HIT] * 2
        self.raw_delete(driver.tier, stored)
        self.raw_delete(driver.tier, written)
        job = driver.load([stored, written])
        assert driver.finish()[job].successful_keys == ()
        assert [driver.lookup(k) for k in (stored, written)] == [LookupResult.MISS] * 2
        driver.store([stored, written])
        driver.finish()
        driver.next_request()
        assert [driver.lookup(k) for k in (stored, written)] == [LookupResult.HIT] * 2
        job = driver.load([written, stored], 10)
        assert driver.finish()[job].success

    # ---- jobs and results

    def test_no_result_without_a_job(self, driver: Driver) -> None:
        driver.tier.drain_jobs()
        driver.tier.on_schedule_end(ScheduleEndContext())
        assert list(driver.tier.get_finished_jobs()) == []
        assert not driver.tier.has_pending_work()

    def test_results_come_without_draining(self, driver: Driver) -> None:
        ids = {driver.store([key(i)], i) for i in range(10)}
        seen: list[int] = []
        for _ in range(STEPS_MAX):
            seen += [result.job_id for result in driver.tier.get_finished_jobs()]
            if len(seen) >= len(ids):
                break
            driver.tier.on_schedule_end(ScheduleEndContext())
            time.sleep(STEP_SECONDS)  # an engine's step; nothing is judged by it
        driver.jobs.clear()
        assert sorted(seen) == sorted(ids)
        assert driver.finish() == {}
        assert not driver.tier.has_pending_work()

    def test_jobs_of_a_finished_request_report(self, driver: Driver) -> None:
        self.put(driver, key("present"))
        driver.load([key("present")])
        driver.store([key(i) for i in range(20)], 1)
        driver.tier.on_request_finished(driver.request)
        assert all(result.success for result in driver.finish().values())

    @pytest.mark.parametrize("drained", [False, True])
    def test_every_job_has_one_result_after_shutdown(self, driver: Driver, drained: bool) -> None:
        present = [key(("present", i)) for i in range(100)]
        self.put(driver, *present)
        for i in range(20):
            driver.store([key((i, n)) for n in range(10)], 20 * i)
            driver.load(present[5 * i : 5 * i + 5], 20 * i + 10)
        jobs = dict(driver.jobs)
        if drained:
            driver.tier.drain_jobs()
        results = driver.close()
        for job_id, result in results.items():
            assert result.success or not drained
            if not jobs[job_id].is_promotion:
                assert all(self.has(driver, k) for k in result.successful_keys)

    def test_requests_come_and_go(self, driver: Driver) -> None:
        for i in range(5):
            request = ReqContext(f"r{i}", {"some": "parameter"}, "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
            assert isinstance(driver.tier.on_new_request(request), RequestOffloadingContext)
            driver.tier.lookup(key(i), request)
            driver.tier.touch([key(i)], request)
            driver.tier.on_schedule_end(ScheduleEndContext([request.req_id], []))
            driver.tier.on_request_finished(request)
        assert all(isinstance(value, float | int) for value in driver.tier.gauges().values())
        assert all(event.keys for event in driver.tier.take_events())
