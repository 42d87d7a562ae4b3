"""`TierContract`: the tests that every `SecondaryTierManager` passes. A subclass makes the tier and bypasses it.

The harness's promises are checked on the tier behind an adapter. The other tests need the manager itself, or a block in
its medium that the tier did not write, read or delete.
"""

from __future__ import annotations

import hashlib
import mmap
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import pytest

from harness.adapters.base import Adapter, Finished, TierSetup, Verdict
from harness.drivers.promises import OF_ADAPTERS, PROMISES, Promise, Subject, growth, promises
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

SLOTS = 1024  # twice what a test has in flight: a tier may refuse stores when most slots wait for it
PROMISE_SLOTS = 128
OF_TIERS = [promise for promise in PROMISES if promise not in OF_ADAPTERS]
OF_GROWTH = [promise for promise in OF_TIERS if promise.__module__ == growth.__name__]
STEPS_MAX = 10_000
STEP_SECONDS = 0.001
"""A lookup may return RETRY for `STEPS_MAX` steps of at least this length."""


def key(name: object) -> OffloadKey:
    """A key as the engine makes them: a hash and the group's number."""
    return OffloadKey(hashlib.sha256(str(name).encode()).digest() + (0).to_bytes(4, "big"))


def content(k: OffloadKey, block_bytes: int) -> bytes:
    """The bytes of a block follow from its key."""
    return random.Random(bytes(k)).randbytes(block_bytes)


class Driver:
    """One tier and its slots, driven as the manager drives it. It checks every result against its job."""

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
        """Drain, and return the results by job, checked."""
        self.tier.drain_jobs()
        return self.results()

    def close(self) -> dict[int, JobResult]:
        """Shut down, and return the results by job, checked."""
        self.tier.shutdown()
        self.open = False
        return self.results()

    def results(self) -> dict[int, JobResult]:
        """Each job in flight has one result: blocks of its own, whose bytes are in the slots of a load."""
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
        """Finish the request and start another."""
        self.tier.on_request_finished(self.request)
        self.request = ReqContext(f"{self.request.req_id}'")
        self.tier.on_new_request(self.request)

    def lookup(self, k: OffloadKey) -> LookupResult:
        """Step until the result is not RETRY."""
        for _ in range(STEPS_MAX):
            answer = self.tier.lookup(k, self.request)
            if answer is not LookupResult.RETRY:
                return answer
            self.tier.on_schedule_end(ScheduleEndContext())
            time.sleep(STEP_SECONDS)  # an engine's step; no verdict depends on it
        raise AssertionError(f"RETRY for {STEPS_MAX} steps")


class ManagerAdapter(Adapter):
    """A `SecondaryTierManager` behind the interface that the harness's promises use. Keys come from `tokens` alone."""

    name = "contract"

    def __init__(self, setup: TierSetup, suite: TierContract) -> None:
        super().__init__(setup)
        self._view = memoryview(mmap.mmap(-1, setup.slots * setup.block_bytes)).cast(
            "B", (setup.slots, setup.block_bytes)
        )
        self._suite = suite
        self._tier = suite.make_tier(self._view)
        self._requests: dict[str, ReqContext] = {}
        self._jobs: dict[int, tuple[OffloadKey, ...]] = {}

    @property
    def view(self) -> memoryview:
        return self._view

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        size = self.setup.tokens_per_block
        return [key(tuple(tokens[: end + size])) for end in range(0, len(tokens) - size + 1, size)]

    def none_hash_digest(self) -> str:
        return ""

    def file_name(self, key: bytes) -> str | None:
        path = self._suite.block_file(self._tier, OffloadKey(key))
        return str(path) if path else None

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        request = self._requests[req_id]
        names: dict[LookupResult, Verdict] = {LookupResult.HIT: "hit", LookupResult.MISS: "miss"}
        return [names.get(self._tier.lookup(OffloadKey(k), request), "retry") for k in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._tier.submit_store(self._job(job_id, keys, slots, req_id, is_promotion=False))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._tier.submit_load(self._job(job_id, keys, slots, req_id, is_promotion=True))

    def _job(
        self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str, is_promotion: bool
    ) -> TransferJob:
        self._jobs[job_id] = tuple(map(OffloadKey, keys))
        return TransferJob(job_id, self._jobs[job_id], tuple(slots), is_promotion, self._requests[req_id])

    def poll(self) -> list[Finished]:
        found = []
        for result in self._tier.get_finished_jobs():
            ok = set(result.successful_keys)
            failed = [k for k in self._jobs.pop(result.job_id) if k not in ok]
            found.append(Finished(result.job_id, result.successful_keys, failed))
        return found

    def step(self) -> None:
        self._tier.on_schedule_end(ScheduleEndContext())

    def request_started(self, req_id: str) -> None:
        self._requests[req_id] = ReqContext(req_id)
        self._tier.on_new_request(self._requests[req_id])

    def request_finished(self, req_id: str) -> None:
        self._tier.on_request_finished(self._requests.pop(req_id))

    def drain(self) -> None:
        self._tier.drain_jobs()

    def close(self) -> None:
        self._tier.shutdown()

    def gauges(self) -> Mapping[str, float]:
        return self._tier.gauges()


class TierContract:
    """Inherit, implement `make_tier` and the three `raw_` methods, and let pytest collect the subclass."""

    exposes_files = False

    def make_tier(self, view: memoryview) -> SecondaryTierManager:
        """A new tier over the slots in `view`, shape (slots, block_bytes). Tiers of one test share one medium."""
        raise NotImplementedError

    def raw_write(self, tier: SecondaryTierManager, k: OffloadKey, data: bytes) -> None:
        """Write a block into the medium without the tier, as another process would."""
        raise NotImplementedError

    def raw_read(self, tier: SecondaryTierManager, k: OffloadKey) -> bytes | None:
        """The block in the medium, or None, read without the tier."""
        raise NotImplementedError

    def raw_delete(self, tier: SecondaryTierManager, k: OffloadKey) -> None:
        """Delete a block from the medium without the tier."""
        raise NotImplementedError

    def block_file(self, tier: SecondaryTierManager, k: OffloadKey) -> Path | None:
        """The file of a block, where `exposes_files`."""
        return None

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

    # ---- the promises of the harness

    @pytest.mark.parametrize("promise", [p for p in OF_TIERS if p not in OF_GROWTH], ids=lambda p: p.__name__)
    def test_promise(self, promise: Promise, block_bytes: int, tmp_path: Path) -> None:
        self.check_promise(promise, block_bytes, tmp_path)

    @pytest.mark.parametrize("promise", OF_GROWTH, ids=lambda p: p.__name__)
    @pytest.mark.parametrize("block_bytes", [4096, pytest.param(65536, marks=pytest.mark.slow)])
    def test_promise_about_growth(self, promise: Promise, block_bytes: int, tmp_path: Path) -> None:
        """What an operation leaves behind does not follow from the size of its blocks: one size by default."""
        self.check_promise(promise, block_bytes, tmp_path)

    def check_promise(self, promise: Promise, block_bytes: int, tmp_path: Path) -> None:
        suite = self

        class Bound(ManagerAdapter):
            exposes_files = suite.exposes_files

            def __init__(self, setup: TierSetup) -> None:
                super().__init__(setup, suite)

        if promise not in promises(Bound):
            pytest.skip("this tier has no file for each block")
        subject = Subject(Bound, TierSetup(str(tmp_path), block_bytes, PROMISE_SLOTS, tokens_per_block=4))
        try:
            promise(subject)
        finally:
            subject.close()

    # ---- blocks that the tier did not write, and the bytes of those that it did

    @pytest.mark.parametrize("blocks", [1, 7])
    def test_a_stored_block_is_in_the_medium(self, driver: Driver, blocks: int) -> None:
        keys = [key(i) for i in range(blocks)]
        job = driver.store(keys)
        result = driver.finish()[job]
        assert result.success
        assert result.transfer_bytes == blocks * driver.block_bytes
        assert all(self.has(driver, k) for k in keys)

    @pytest.mark.parametrize("blocks", [1, 7])
    def test_a_block_of_another_writer_loads(self, driver: Driver, blocks: int) -> None:
        keys = [key(i) for i in range(blocks)]
        assert driver.lookup(keys[0]) is LookupResult.MISS
        driver.next_request()  # a later request sees what was written since
        self.put(driver, *keys)
        assert all(driver.lookup(k) is LookupResult.HIT for k in keys)
        job = driver.load(keys)
        result = driver.finish()[job]
        assert result.success
        assert result.transfer_bytes == blocks * driver.block_bytes

    def test_a_store_of_a_block_of_another_writer_succeeds(self, driver: Driver) -> None:
        self.put(driver, key(1))
        job = driver.store([key(0), key(1), key(2)])
        assert driver.finish()[job].success
        assert all(self.has(driver, key(i)) for i in range(3))

    def test_simultaneous_stores_of_one_block_succeed(self, driver: Driver) -> None:
        for start in range(0, 400, 20):
            driver.store([key(i) for i in range(20)], start)
        assert all(result.success for result in driver.finish().values())
        assert all(self.has(driver, key(i)) for i in range(20))

    # ---- absent blocks

    @pytest.mark.parametrize("absent", [[0], [4], [1, 3], [0, 1, 2, 3, 4]], ids=str)
    def test_an_absent_block_fails_only_itself(self, driver: Driver, absent: list[int]) -> None:
        keys = [key(i) for i in range(5)]
        present = [k for i, k in enumerate(keys) if i not in absent]
        self.put(driver, *present)
        job = driver.load(keys)
        result = driver.finish()[job]
        assert not result.success
        assert set(result.successful_keys) == set(present)
        assert result.transfer_bytes == len(present) * driver.block_bytes

    def test_a_vanished_block_is_a_miss_until_it_is_stored_again(self, driver: Driver) -> None:
        """After a failed load HIT turns to MISS in the same instance; else a request would wait for ever."""
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

    # ---- jobs and calls that adapters do not have

    def test_a_job_without_blocks_succeeds(self, driver: Driver) -> None:
        jobs = [driver.store([]), driver.load([])]
        results = driver.finish()
        assert [results[job][1:] for job in jobs] == [(True, (), 0.0, 0)] * 2

    def test_no_work_is_pending_without_jobs(self, driver: Driver) -> None:
        assert not driver.tier.has_pending_work()
        driver.store([key(i) for i in range(10)])
        driver.finish()
        assert not driver.tier.has_pending_work()

    def test_loads_and_stores_in_flight_at_shutdown_have_results(self, driver: Driver) -> None:
        present = [key(("present", i)) for i in range(100)]
        self.put(driver, *present)
        for i in range(20):
            driver.store([key((i, n)) for n in range(10)], 20 * i)
            driver.load(present[5 * i : 5 * i + 5], 20 * i + 10)
        jobs = dict(driver.jobs)
        for job_id, result in driver.close().items():
            if not jobs[job_id].is_promotion:
                assert all(self.has(driver, k) for k in result.successful_keys)

    def test_requests_with_parameters_and_a_trace_start_and_end(self, driver: Driver) -> None:
        for i in range(5):
            request = ReqContext(f"r{i}", {"some": "parameter"}, "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
            assert isinstance(driver.tier.on_new_request(request), RequestOffloadingContext)
            driver.tier.lookup(key(i), request)
            driver.tier.touch([key(i)], request)
            driver.tier.on_schedule_end(ScheduleEndContext([request.req_id], []))
            driver.tier.on_request_finished(request)
        assert all(event.keys for event in driver.tier.take_events())
