"""The orchestrating manager over tiers in memory, whose jobs end when, in what order and how the test says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kvtier.base import (
    JobResult,
    LookupResult,
    OffloadingEvent,
    OffloadPolicy,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    SecondaryTierManager,
    TransferJob,
)
from kvtier.config import CACHE_POLICIES, PAGE_BYTES, CpuTierConfig
from kvtier.cpu.manager import CPUOffloadingManager
from kvtier.events import Cascade, Event, Eviction, Lookup, Promotion
from kvtier.hashing import OffloadKey
from kvtier.manager import TieringOffloadingManager
from tests.tiering.kvtier.contract import TierContract

HIT, HIT_PENDING, MISS, RETRY = LookupResult.HIT, LookupResult.HIT_PENDING, LookupResult.MISS, LookupResult.RETRY
END = ScheduleEndContext()
RUBBISH = b"\xff" * 8
T = TypeVar("T")


class MemoryTier(SecondaryTierManager):
    """Blocks in a dict. A job waits in `queue` until `run` ends it, with the failures that the caller wants.

    It holds the manager to its side of the contract: no call for a request before its beginning or after its end.
    """

    def __init__(self, view: memoryview, tier_type: str = "memory", *, stubborn: bool = False) -> None:
        self.tier_type = tier_type
        self.blocks: dict[OffloadKey, bytes] = {}
        self.queue: list[TransferJob] = []
        self.slow: set[OffloadKey] = set()  # lookups answer RETRY
        self.distrusted: set[OffloadKey] = set()  # loads failed
        self.stubborn = stubborn  # breaks the contract: a failed load stays a HIT
        self.eager: set[str] = set()  # requests to be had on request level
        self.alive: set[str] = set()
        self.ended: list[str] = []
        self.touched: list[OffloadKey] = []
        self.steps = 0
        self.polls = 0
        self.broken = False
        self._results: list[JobResult] = []
        self._view = view.cast("B")
        self._block_bytes = view.shape[1] if view.shape else 0

    def _slot(self, slot: int) -> memoryview:
        return self._view[slot * self._block_bytes : (slot + 1) * self._block_bytes]

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        assert req_context.req_id not in self.alive
        self.alive.add(req_context.req_id)
        eager = req_context.req_id in self.eager
        return RequestOffloadingContext(OffloadPolicy.REQUEST_LEVEL if eager else OffloadPolicy.CHUNK_LEVEL)

    def on_request_finished(self, req_context: ReqContext) -> None:
        self.alive.remove(req_context.req_id)
        self.ended.append(req_context.req_id)

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        assert req_context.req_id in self.alive
        if key in self.slow:
            return RETRY
        return HIT if key in self.blocks and key not in self.distrusted else MISS

    def _submit(self, job: TransferJob) -> None:
        assert job.req_context.req_id in self.alive
        self.queue.append(job)

    submit_store = _submit
    submit_load = _submit

    def run(self, index: int = 0, fail: Collection[OffloadKey] = ()) -> TransferJob:
        """Carry out the job at `index` of the queue; blocks in `fail` and absent ones fail."""
        job = self.queue.pop(index)
        ok = []
        for key, slot in zip(job.keys, job.chunk_ids, strict=True):
            if key in fail or (job.is_promotion and key not in self.blocks):
                if job.is_promotion:
                    self._slot(slot)[:8] = RUBBISH
                    if key in self.blocks and not self.stubborn:
                        self.distrusted.add(key)
                continue
            ok.append(key)
            self.distrusted.discard(key)
            if job.is_promotion:
                self._slot(slot)[:] = self.blocks[key]
            else:
                self.blocks[key] = bytes(self._slot(slot))
        self._results.append(
            JobResult(job.job_id, len(ok) == len(job.keys), tuple(ok), 0.0, len(ok) * self._block_bytes)
        )
        return job

    def get_finished_jobs(self) -> Iterable[JobResult]:
        self.polls += 1
        results, self._results = self._results, []
        return results

    def drain_jobs(self) -> None:
        while self.queue:
            self.run()

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self.steps += 1

    def touch(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        self.touched += keys

    def has_pending_work(self) -> bool:
        return bool(self.queue)

    def take_events(self) -> Iterable[OffloadingEvent]:
        return [OffloadingEvent(tuple(self.blocks), "STORAGE", removed=False)] if self.blocks else []

    def shutdown(self) -> None:
        while self.queue:
            self.run(fail=self.queue[0].keys)
        if self.broken:
            raise OSError(f"{self.tier_type} is broken")


class PromptTier(MemoryTier):
    """Ends each job when it is polled, as the contract suite (and a device) would have it.

    It keeps no record of requests that have ended: the contract's promises about growth count them.
    """

    def on_request_finished(self, req_context: ReqContext) -> None:
        self.alive.remove(req_context.req_id)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        self.drain_jobs()
        return super().get_finished_jobs()


class TestMemoryTier(TierContract):
    """The contract's tests, on the simplest tier that keeps the contract."""

    @pytest.fixture(autouse=True)
    def medium(self) -> None:
        self.blocks: dict[OffloadKey, bytes] = {}

    def make_tier(self, view: memoryview) -> SecondaryTierManager:
        tier = PromptTier(view)
        tier.blocks = self.blocks
        return tier

    def raw_write(self, tier: SecondaryTierManager, k: OffloadKey, data: bytes) -> None:
        self.blocks[k] = data

    def raw_read(self, tier: SecondaryTierManager, k: OffloadKey) -> bytes | None:
        return self.blocks.get(k)

    def raw_delete(self, tier: SecondaryTierManager, k: OffloadKey) -> None:
        del self.blocks[k]


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event, /) -> None:
        self.events.append(event)

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


def keys(*numbers: int) -> list[OffloadKey]:
    return [OffloadKey(number.to_bytes(8, "big")) for number in numbers]


def block(key: OffloadKey) -> bytes:
    return key * (PAGE_BYTES // 8)


class World:
    """A manager with its tiers, and an engine that fills slots with their keys."""

    def __init__(self, num_chunks: int = 8, tiers: int = 2, policy: str = "lru", stubborn: bool = False) -> None:
        self.recorder = Recorder()
        self.primary = CPUOffloadingManager(CpuTierConfig(num_chunks, PAGE_BYTES, policy), self.recorder)
        self.tiers = [MemoryTier(self.primary.view, f"tier{i}", stubborn=stubborn) for i in range(tiers)]
        self.manager = TieringOffloadingManager(self.primary, self.tiers, self.recorder)

    def request(self, req_id: str = "r") -> ReqContext:
        request = ReqContext(req_id)
        self.manager.on_new_request(request)
        return request

    def lookup(self, request: ReqContext, *numbers: int) -> list[LookupResult]:
        return [self.manager.lookup(key, request) for key in keys(*numbers)]

    def fill(self, wanted: Iterable[OffloadKey], slots: Iterable[int]) -> None:
        for key, slot in zip(wanted, slots, strict=True):
            self.primary.slot_view(slot)[:] = block(key)

    def prepare(self, request: ReqContext, *numbers: int) -> PrepareStoreOutput:
        output = self.manager.prepare_store(keys(*numbers), request)
        assert output is not None
        self.fill(output.keys_to_store, output.chunk_ids)
        return output

    def store(self, request: ReqContext, *numbers: int) -> None:
        self.manager.complete_store(self.prepare(request, *numbers).keys_to_store, request)

    def put(self, tier: int, *numbers: int) -> None:
        self.tiers[tier].blocks.update((key, block(key)) for key in keys(*numbers))

    def bytes_of(self, number: int) -> bytes:
        return bytes(self.primary.slot_view(self.primary.chunks()[keys(number)[0]].slot))

    def settle(self) -> None:
        """Steps until nothing is pending, all jobs succeeding if they can."""
        for _ in range(10):
            self.manager.on_schedule_end(END)
            for tier in self.tiers:
                tier.drain_jobs()
            if not self.manager.has_pending_work():
                return
        raise AssertionError("still pending after ten steps")

    def check(self) -> None:
        assert self.manager.check_integrity() == []
        assert self.primary.check_integrity() == []


@pytest.fixture
def world() -> Iterable[World]:
    """Two tiers; whatever the test did, the accounts are right after it."""
    world = World()
    yield world
    world.check()


# ---- lookup and promotion


def test_a_block_in_a_secondary_tier_comes_back(world: World) -> None:
    world.put(1, 1, 2)
    request = world.request()
    assert world.lookup(request, 1, 2, 3) == [HIT_PENDING, HIT_PENDING, MISS]
    assert world.tiers[1].queue == []  # nothing is sent before the step is over
    world.manager.on_schedule_end(END)
    (job,) = world.tiers[1].queue
    assert (job.keys, job.is_promotion, job.req_context) == (tuple(keys(1, 2)), True, request)
    assert world.lookup(request, 1, 2) == [HIT_PENDING, HIT_PENDING]
    world.tiers[1].run()
    world.manager.on_schedule_end(END)
    assert world.lookup(request, 1, 2) == [HIT, HIT]
    slots = world.manager.prepare_load(keys(2, 1), request)
    assert [bytes(world.primary.slot_view(slot)) for slot in slots] == [block(key) for key in keys(2, 1)]
    world.manager.complete_load(keys(2, 1), request)


def test_one_job_for_each_tier_and_request(world: World) -> None:
    world.put(0, 1, 2)
    world.put(1, 3, 4)
    a, b = world.request("a"), world.request("b")
    world.lookup(a, 1, 3)
    world.lookup(b, 2, 4)
    world.lookup(a, 2)  # b's already
    world.manager.on_schedule_end(END)
    sent = [[(job.req_context.req_id, list(job.keys)) for job in tier.queue] for tier in world.tiers]
    assert sent == [[("a", keys(1)), ("b", keys(2))], [("a", keys(3)), ("b", keys(4))]]
    promotions = [Promotion(tier, req, 1, 0) for req in "ab" for tier in ("tier0", "tier1")]
    assert sorted(world.recorder.of(Promotion)) == sorted(promotions)


def test_two_requests_that_want_the_same_block_share_one_promotion(world: World) -> None:
    world.put(0, 1)
    a, b = world.request("a"), world.request("b")
    assert world.lookup(a, 1) == world.lookup(b, 1) == [HIT_PENDING]
    world.settle()
    assert world.lookup(a, 1) == world.lookup(b, 1) == [HIT]
    assert sum(event.blocks for event in world.recorder.of(Promotion)) == 1


def test_tiers_are_looked_up_in_order(world: World) -> None:
    world.put(0, 1)
    world.put(1, 1)
    world.lookup(world.request(), 1)
    world.manager.on_schedule_end(END)
    assert [len(tier.queue) for tier in world.tiers] == [1, 0]


def test_retry_is_the_answer_unless_another_tier_has_the_block(world: World) -> None:
    request = world.request()
    world.tiers[0].slow.update(keys(1, 2))
    world.put(1, 2)
    assert world.lookup(request, 1, 2, 3) == [RETRY, HIT_PENDING, MISS]
    world.tiers[0].slow.clear()
    assert world.lookup(request, 1) == [MISS]


def test_without_a_slot_it_is_a_miss(world: World) -> None:
    request = world.request()
    world.put(0, *range(9))
    world.prepare(request, 20, 21)
    assert world.lookup(request, *range(9)) == [HIT_PENDING] * 6 + [MISS] * 3
    world.manager.on_schedule_end(END)
    assert world.recorder.of(Promotion) == [Promotion("tier0", "r", 6, 3)]


def test_only_the_blocks_that_failed_are_dropped(world: World) -> None:
    request = world.request()
    world.put(0, 1, 2, 3)
    world.lookup(request, 1, 2, 3)
    world.manager.on_schedule_end(END)
    world.tiers[0].run(fail=keys(2))
    assert world.lookup(request, 1, 2, 3) == [HIT, MISS, HIT]
    assert Eviction(1, "failed") in world.recorder.events
    assert world.primary.gauges()["slots_free"] == 6


def test_a_promotion_that_fails_again_and_again_ends() -> None:
    """Even a tier that insists on a HIT costs each request one wait; another tier may still have the block."""
    world = World(stubborn=True)
    world.put(0, 1)
    request = world.request()
    for _ in range(2):
        assert world.lookup(request, 1) == [HIT_PENDING]
        world.manager.on_schedule_end(END)
        for tier in world.tiers:
            if tier.queue:
                tier.run(fail=keys(1))
        world.put(1, 1)
        world.manager.on_schedule_end(END)
    assert world.lookup(request, 1) == [MISS]
    world.tiers[0].blocks.clear()
    assert world.lookup(world.request("other"), 1) == [HIT_PENDING]
    world.check()


def test_a_request_longer_than_the_cpu_tier_gets_what_fits(world: World) -> None:
    """Blocks answered HIT stay for the step, so a promotion for the tail cannot take the head's slot."""
    request = world.request()
    world.put(0, *range(12))
    world.lookup(request, *range(12))
    world.settle()
    assert world.lookup(request, *range(12)) == [HIT] * 8 + [MISS] * 4
    world.manager.prepare_load(keys(*range(8)), request)
    world.manager.complete_load(keys(*range(8)), request)
    world.manager.on_schedule_end(END)
    assert world.primary.gauges()["slots_evictable"] == 8  # after it they are like others


def test_finished_jobs_are_polled_once_a_step_by_lookups_and_before_every_store(world: World) -> None:
    request = world.request()
    world.put(0, 1)
    world.lookup(request, 1)
    world.manager.on_schedule_end(END)
    before = world.tiers[0].polls
    world.lookup(request, 1, 2, 3)
    assert world.tiers[0].polls == before + 1
    world.tiers[0].run()
    assert world.lookup(request, 1) == [HIT_PENDING]  # from the next step on
    world.prepare(request, 5)
    assert world.tiers[0].polls == before + 2
    assert world.lookup(request, 1) == [HIT]


def test_lookups_are_counted_by_request_and_step(world: World) -> None:
    a, b = world.request("a"), world.request("b")
    world.put(0, 1)
    world.tiers[1].slow.update(keys(9))
    world.store(b, 2, 3)
    world.lookup(a, 1, 2, 3, 4, 5, 6, 9)
    world.lookup(b, 1)
    world.manager.on_schedule_end(END)
    assert world.recorder.of(Lookup) == [Lookup("a", 2, 1, 3, 1), Lookup("b", 0, 1, 0, 0)]
    world.lookup(b, 2)
    world.manager.on_request_finished(b)
    world.manager.on_schedule_end(END)
    assert world.recorder.of(Lookup)[2:] == [Lookup("b", 1, 0, 0, 0)]


# ---- store and cascade


def test_a_stored_block_goes_to_every_tier(world: World) -> None:
    request = world.request()
    world.store(request, 1, 2)
    assert world.primary.gauges()["slots_pinned"] == 2
    assert world.recorder.of(Cascade) == [Cascade("tier0", "r", 2), Cascade("tier1", "r", 2)]
    world.tiers[0].run()
    world.manager.on_schedule_end(END)
    assert world.primary.gauges()["slots_pinned"] == 2  # the other tier still reads
    world.tiers[1].run()
    world.manager.on_schedule_end(END)
    assert world.primary.gauges()["slots_evictable"] == 2
    assert [tier.blocks for tier in world.tiers] == [{key: block(key) for key in keys(1, 2)}] * 2


def test_a_failed_cascade_only_unpins(world: World) -> None:
    request = world.request()
    world.store(request, 1, 2)
    for tier in world.tiers:
        tier.run(fail=keys(1, 2))
    world.manager.on_schedule_end(END)
    assert world.lookup(request, 1, 2) == [HIT, HIT]
    world.manager.on_schedule_end(END)
    assert world.primary.gauges()["slots_evictable"] == 2


def test_a_failed_store_goes_nowhere(world: World) -> None:
    request = world.request()
    world.manager.complete_store(world.prepare(request, 1).keys_to_store, request, success=False)
    assert [tier.queue for tier in world.tiers] == [[], []]
    assert world.lookup(request, 1) == [MISS]


def test_a_store_may_complete_in_parts(world: World) -> None:
    request = world.request()
    world.prepare(request, 1, 2, 3)
    world.manager.complete_store(keys(2), request)
    world.manager.complete_store(keys(1, 3), request, success=False)
    assert world.lookup(request, 1, 2, 3) == [MISS, HIT, MISS]


def test_a_store_leaves_out_what_is_being_promoted(world: World) -> None:
    request = world.request()
    world.put(0, 1)
    world.lookup(request, 1)
    assert world.prepare(request, 1, 2).keys_to_store == tuple(keys(2))
    with pytest.raises(AssertionError, match="complete_store without prepare_store"):
        world.manager.complete_store(keys(1), request)
    world.settle()
    assert world.lookup(request, 1, 2) == [HIT, HIT_PENDING]


def test_a_store_without_room_changes_nothing(world: World) -> None:
    request = world.request()
    world.prepare(request, *range(6))
    before = world.primary.chunks()
    assert world.manager.prepare_store(keys(10, 11, 12), request) is None
    assert world.primary.chunks() == before


def test_chunk_level_tiers_get_only_what_is_new(world: World) -> None:
    a, b = world.request("a"), world.request("b")
    world.store(a, 1)
    world.settle()
    world.store(b, 1, 2)
    assert [[job.keys for job in tier.queue] for tier in world.tiers] == [[tuple(keys(2))]] * 2


def test_request_level_tiers_get_present_blocks_too(world: World) -> None:
    world.tiers[1].eager.add("b")
    a = world.request("a")
    b = ReqContext("b")
    assert world.manager.on_new_request(b).policy is OffloadPolicy.REQUEST_LEVEL
    world.store(a, 1, 2)
    world.settle()
    output = world.prepare(b, 1, 2, 3)
    assert output.keys_to_store == tuple(keys(3))
    assert [[job.keys for job in tier.queue] for tier in world.tiers] == [[], [tuple(keys(1, 2))]]
    world.manager.complete_store(keys(3), b)
    assert [[job.keys for job in tier.queue] for tier in world.tiers] == [
        [tuple(keys(3))],
        [tuple(keys(1, 2)), tuple(keys(3))],
    ]
    world.settle()
    assert sum(event.blocks for event in world.recorder.of(Cascade)) == 2 * 2 + 2 + 2  # none of them again


@pytest.mark.parametrize("written", [True, False])
def test_request_level_blocks_that_another_writes_are_parked(world: World, written: bool) -> None:
    world.tiers[1].eager.add("b")
    a, b = world.request("a"), world.request("b")
    world.prepare(a, 1)
    world.store(b, 1, 2)
    world.manager.on_request_finished(b)
    world.manager.on_schedule_end(END)
    assert world.tiers[1].ended == []  # 1 may still have to go there for b
    assert world.manager.has_pending_work()
    world.manager.complete_store(keys(1), a, success=written)
    world.manager.on_schedule_end(END)
    assert world.tiers[1].ended == ["b"]
    by_b = [job.keys for job in world.tiers[1].queue if job.req_context == b]
    assert by_b == [tuple(keys(2))] + ([tuple(keys(1))] if written else [])


# ---- the end of a request


def test_tiers_hear_of_the_end_when_no_cascade_can_follow(world: World) -> None:
    request = world.request()
    world.prepare(request, 1, 2)
    world.manager.on_request_finished(request)
    world.manager.complete_store(keys(1), request)
    world.manager.on_schedule_end(END)
    assert [tier.ended for tier in world.tiers] == [[], []]
    world.manager.complete_store(keys(2), request)
    assert [tier.ended for tier in world.tiers] == [["r"], ["r"]]
    assert world.manager.gauges()["requests"] == 0


def test_a_request_may_finish_before_its_promotion_is_sent(world: World) -> None:
    """Another request may wait for the same block, so it goes out; then the tiers hear of the end."""
    world.put(0, 1)
    a, b = world.request("a"), world.request("b")
    world.lookup(a, 1)
    assert world.lookup(b, 1) == [HIT_PENDING]
    world.manager.on_request_finished(a)
    assert world.tiers[0].ended == []
    world.manager.on_schedule_end(END)
    assert world.tiers[0].ended == ["a"]
    world.settle()
    assert world.lookup(b, 1) == [HIT]


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_may_finish_while_its_promotion_is_in_flight(world: World, fails: bool) -> None:
    world.put(0, 1)
    request = world.request()
    world.lookup(request, 1)
    world.manager.on_schedule_end(END)
    world.manager.on_request_finished(request)
    assert world.tiers[0].ended == ["r"]
    world.tiers[0].run(fail=keys(1) if fails else ())
    world.manager.on_schedule_end(END)
    assert world.lookup(world.request("s"), 1) == [MISS if fails else HIT]
    assert not world.manager.has_pending_work()


def test_a_load_may_complete_after_the_request_has_finished(world: World) -> None:
    request = world.request()
    world.store(request, 1)
    world.settle()
    world.lookup(request, 1)
    world.manager.prepare_load(keys(1), request)
    world.manager.on_request_finished(request)
    world.manager.on_schedule_end(END)
    assert world.primary.gauges()["slots_pinned"] == 1
    world.manager.complete_load(keys(1), request)
    assert world.primary.gauges()["slots_pinned"] == 0


def test_calls_out_of_order_name_the_request(world: World) -> None:
    stranger, request = ReqContext("stranger"), world.request()
    world.store(request, 1)
    for wrong in (
        lambda: world.manager.lookup(keys(1)[0], stranger),
        lambda: world.manager.prepare_store(keys(1), stranger),
        lambda: world.manager.complete_store(keys(1), stranger),
        lambda: world.manager.on_request_finished(stranger),
    ):
        with pytest.raises(AssertionError, match="request stranger is unknown"):
            wrong()
    with pytest.raises(AssertionError, match="request r is already known"):
        world.request()
    with pytest.raises(AssertionError, match=f"{keys(1)[0].hex()}: complete_load without prepare_load"):
        world.manager.complete_load(keys(1), request)  # the cascade's pin is not its own
    world.prepare(request, 2)
    world.manager.on_request_finished(request)
    with pytest.raises(AssertionError, match="request r finished twice"):
        world.manager.on_request_finished(request)


# ---- reset and shutdown


def test_a_reset_forgets_the_cpu_tier_and_nothing_else(world: World) -> None:
    request = world.request()
    world.store(request, 1, 2)
    world.manager.reset_cache()
    world.check()
    assert world.primary.gauges()["slots_free"] == 8
    assert all(set(tier.blocks) == set(keys(1, 2)) for tier in world.tiers)  # drained, not dropped
    assert world.lookup(request, 1) == [MISS]  # and no promotion into a slot that a copy may still write
    assert world.manager.prepare_store(keys(5), request) is None
    world.manager.on_reset_flushed()
    assert world.lookup(request, 1) == [HIT_PENDING]


def test_a_reset_with_everything_in_flight(world: World) -> None:
    world.tiers[1].eager.add("b")
    world.put(0, 1, 2)
    a, b = world.request("a"), world.request("b")
    world.lookup(a, 1)
    world.manager.on_schedule_end(END)  # 1: promotion in flight
    world.lookup(a, 2)  # 2: queued
    world.prepare(a, 3)  # 3: being written
    world.store(b, 1, 3, 4)  # 4: cascade in flight; 1, 3: parked
    world.manager.prepare_load(keys(4), b)
    world.manager.on_request_finished(b)
    world.manager.reset_cache()
    world.check()
    assert not world.manager.has_pending_work()
    assert world.tiers[0].ended == ["b"]  # held until now
    world.manager.complete_store(keys(3), a)  # copies from before: ignored
    world.manager.complete_load(keys(4), b)
    world.check()
    world.manager.on_schedule_end(END)
    world.manager.on_reset_flushed()
    assert world.lookup(a, 1, 2, 3) == [HIT_PENDING, HIT_PENDING, MISS]
    world.settle()
    world.store(a, 3)
    assert world.lookup(a, 1, 2, 3, 4) == [HIT, HIT, HIT, HIT_PENDING]


def test_shutdown_leaves_no_pin(world: World) -> None:
    request = world.request()
    world.put(0, 3, 4)
    world.lookup(request, 3)
    world.manager.on_schedule_end(END)
    world.store(request, 1, 2)
    world.lookup(request, 1, 4)
    world.manager.shutdown()
    gauges = world.manager.gauges()
    assert (gauges["slots_pinned"], gauges["slots_writing"], gauges["jobs_in_flight"]) == (0, 0, 0)


def test_shutdown_reaches_every_tier(world: World) -> None:
    world.tiers[0].broken = True
    request = world.request()
    world.store(request, 1)
    with pytest.raises(ExceptionGroup) as raised:
        world.manager.shutdown()
    assert [str(error) for error in raised.value.exceptions] == ["tier0 is broken"]
    assert world.tiers[1].queue == []
    assert world.primary.gauges()["slots_pinned"] == 0


# ---- the rest


def test_without_secondary_tiers_it_is_the_cpu_tier() -> None:
    world = World(tiers=0)
    request = world.request()
    world.store(request, 1)
    assert world.lookup(request, 1, 2) == [HIT, MISS]
    world.manager.on_schedule_end(END)
    world.manager.on_request_finished(request)
    assert not world.manager.has_pending_work()
    world.manager.reset_cache()
    world.manager.shutdown()
    world.check()


def test_touch_steps_and_events_reach_all_tiers(world: World) -> None:
    request = world.request()
    world.store(request, 1, 2)
    world.manager.touch(keys(1), request)
    world.settle()
    assert [tier.touched for tier in world.tiers] == [keys(1)] * 2
    assert [tier.steps for tier in world.tiers] == [world.tiers[0].steps] * 2
    assert {event.medium: event.keys for event in world.manager.take_events()} == {
        "CPU": tuple(keys(1, 2)),
        "STORAGE": tuple(keys(1, 2)),
    }


def test_the_engine_steps_on_while_something_is_queued(world: World) -> None:
    world.put(0, 1)
    request = world.request()
    assert not world.manager.has_pending_work()
    world.lookup(request, 2)
    assert not world.manager.has_pending_work()
    world.lookup(request, 1)
    assert world.manager.has_pending_work()
    world.manager.on_schedule_end(END)
    world.tiers[0].drain_jobs()
    assert world.manager.has_pending_work()  # the result is still to be taken
    world.manager.on_schedule_end(END)
    assert not world.manager.has_pending_work()


@pytest.mark.parametrize("wrong", ["unknown", "twice", "other tier's", "stranger's key"])
def test_a_tier_that_lies_about_its_jobs_is_caught(wrong: str) -> None:
    world = World()
    world.put(0, 1)
    request = world.request()
    world.lookup(request, 1)
    world.manager.on_schedule_end(END)
    (job,) = world.tiers[0].queue
    result = JobResult(job.job_id, True, job.keys, 0.0, PAGE_BYTES)
    match wrong:
        case "unknown":
            world.tiers[0]._results.append(result._replace(job_id=77))
        case "twice":
            world.tiers[0]._results += [result, result]
        case "other tier's":
            world.tiers[1]._results.append(result)
        case _:
            world.tiers[0]._results.append(result._replace(successful_keys=tuple(keys(1, 9))))
    with pytest.raises(AssertionError, match=r"job \d+"):
        world.manager.on_schedule_end(END)


BREAKAGES = {
    "pin without owner": (lambda w: w.primary.prepare_read(keys(1), ReqContext("x")), "2 references, 1 readers"),
    "owner without pin": (lambda w: w.manager._loading.update(keys(1)), "1 references, 2 readers"),
    "slot without writer": (lambda w: w.primary.prepare_store(keys(7), ReqContext("x")), "-1 references, 0 readers"),
    "writer without slot": (lambda w: w.manager._requests["r"].writing.update(keys(8)), "None references, 0 readers"),
    "two writers": (
        lambda w: w.manager._requests["r"].promotions[0].blocks.append((keys(2)[0], 1)),
        "and 2 writers known",
    ),
    "job on another's slot": (
        lambda w: w.manager._requests["r"].promotions[0].blocks.__setitem__(0, (keys(3)[0], 7)),
        "a job says 7",
    ),
    "request never finalised": (
        lambda w: setattr(w.manager._requests["over"], "finished", True),
        "request over is over but was not finalised",
    ),
    "step's work for nobody": (
        lambda w: w.manager._active.__setitem__("gone", w.manager._requests["r"]),
        "1 requests are active but unknown",
    ),
    "the CPU tier's own": (lambda w: w.primary._free.pop(), "is accounted for 0 times"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_accounts_are_found(name: str) -> None:
    world = World(tiers=1)
    request = world.request()
    world.request("over")
    world.put(0, 3)
    world.store(request, 1)  # cascade in flight
    world.prepare(request, 2)
    world.lookup(request, 3)  # promotion queued
    world.check()
    breakage, finding = BREAKAGES[name]
    breakage(world)
    assert any(finding in line for line in world.manager.check_integrity()), world.manager.check_integrity()


# ---- all of it at random


class ManagerMachine(RuleBasedStateMachine):
    """An engine, two tiers whose jobs end in any order with any failures, and a dict of what has to be where.

    Slots hold rubbish from `prepare_store` to `complete_store`, and a failed promotion leaves rubbish too, so a slot
    that is handed out early, twice or to another's block shows. There is one rule, which draws what happens next:
    Hypothesis leaves out rules at random, and of many rules that need each other little would come.
    """

    num_chunks = 5
    keys_max = 8

    def __init__(self, policy: str, reached: Counter[str]) -> None:
        super().__init__()
        self.policy = policy
        self.reached = reached  # what happened at all, over all examples: a vacuous pass is not a pass
        self.world: World | None = None

    @initialize(stubborn=st.booleans(), present=st.sets(st.integers(0, keys_max), min_size=2))
    def begin(self, stubborn: bool, present: set[int]) -> None:
        self.world = world = World(self.num_chunks, 2, self.policy, stubborn)
        world.put(1, *present)
        self.manager, self.primary, self.tiers = world.manager, world.primary, world.tiers
        self.count = 0
        self.live: dict[str, ReqContext] = {}
        self.finished: set[str] = set()
        self.writing: list[tuple[ReqContext, OffloadKey, int]] = []
        self.loading: list[tuple[ReqContext, OffloadKey, int]] = []
        self.stale_writing: list[tuple[ReqContext, OffloadKey, int]] = []
        self.stale_loading: list[tuple[ReqContext, OffloadKey, int]] = []
        self.step_hits: set[OffloadKey] = set()
        self.waited_in_vain: set[tuple[str, int, OffloadKey]] = set()
        self.resetting = False
        self.polled = False  # in this step

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        often = (self.serve, self.lookup, self.end_a_job, self.step, self.a_quiet_step)
        sometimes = (self.prepare_store, self.complete_store, self.prepare_load, self.finish_request, self.a_slow_probe)
        seldom = (self.complete_load, self.touch, self.somebody_else_stores, self.a_block_vanishes, self.reset_or_flush)
        what = data.draw(st.sampled_from(3 * often + 2 * sometimes + seldom))
        note(f"-- {what.__name__}")
        what(data)

    def numbers(self, data: st.DataObject, most: int = 6) -> list[OffloadKey]:
        return keys(*data.draw(st.lists(st.integers(0, self.keys_max), max_size=most)))

    def request(self, data: st.DataObject) -> ReqContext:
        """One of up to four that live at once."""
        if not self.live or (len(self.live) < 4 and data.draw(st.integers(0, 4)) == 0):
            self.new_request(data)
        return self.live[data.draw(st.sampled_from(sorted(self.live)))]

    # -- the engine

    def new_request(self, data: st.DataObject) -> None:
        self.count += 1
        request = ReqContext(f"r{self.count}")
        eager = data.draw(st.booleans())
        if eager:
            self.tiers[1].eager.add(request.req_id)
        self.live[request.req_id] = request
        wish = self.manager.on_new_request(request)
        assert wish.policy is (OffloadPolicy.REQUEST_LEVEL if eager else OffloadPolicy.CHUNK_LEVEL)

    def finish_request(self, data: st.DataObject) -> None:
        request = self.request(data)
        del self.live[request.req_id]
        self.finished.add(request.req_id)
        self.manager.on_request_finished(request)
        self.reached["end held back"] += request.req_id in self.tiers[0].alive

    def lookup(self, data: st.DataObject) -> None:
        request = self.request(data)
        for key in self.numbers(data):
            self.look(key, request)

    def look(self, key: OffloadKey, request: ReqContext) -> LookupResult:
        if not self.polled:  # so that the prediction sees what the lookup will see
            self.manager._poll_once()
            self.polled = True
        expected = self.predict(key, request)
        assert self.manager.lookup(key, request) is expected
        if expected is HIT:
            self.step_hits.add(key)
        self.reached[f"lookup {expected.value}"] += 1
        return expected

    def predict(self, key: OffloadKey, request: ReqContext) -> LookupResult:
        chunk = self.primary.chunks().get(key)
        if chunk:
            return HIT_PENDING if chunk.ref_count < 0 else HIT
        retry = False
        for index, tier in enumerate(self.tiers):
            if self.resetting or (request.req_id, index, key) in self.waited_in_vain:
                continue
            if key in tier.slow:
                retry = True
            elif key in tier.blocks.keys() - tier.distrusted:
                room = self.primary.gauges()["slots_free"] + self.primary.gauges()["slots_evictable"]
                self.reached["promotion refused"] += not room
                return HIT_PENDING if room else MISS
        return RETRY if retry else MISS

    def prepare_store(self, data: st.DataObject) -> None:
        self.offer(self.numbers(data), self.request(data))

    def offer(self, wanted: Sequence[OffloadKey], request: ReqContext) -> list[tuple[ReqContext, OffloadKey, int]]:
        output = self.manager.prepare_store(wanted, request)
        self.polled = self.polled or not self.resetting
        if output is None:
            assert self.resetting or len(set(wanted)) > self.primary.gauges()["slots_free"]
            self.reached["store refused"] += 1
            return []
        assert not self.resetting
        assert self.step_hits.isdisjoint(output.evicted_keys)
        for slot in output.chunk_ids:
            self.primary.slot_view(slot)[:8] = RUBBISH
        prepared = [(request, key, slot) for key, slot in zip(output.keys_to_store, output.chunk_ids, strict=True)]
        self.writing += prepared
        return prepared

    def complete_store(self, data: st.DataObject) -> None:
        if self.writing:
            request = data.draw(st.sampled_from(self.writing))[0]
            mine = [entry for entry in self.writing if entry[0] == request]
            self.complete(data.draw(st.lists(st.sampled_from(mine), unique=True)), request, data.draw(st.booleans()))

    def complete(self, entries: Sequence[tuple[ReqContext, OffloadKey, int]], request: ReqContext, ok: bool) -> None:
        before = [len(tier.queue) for tier in self.tiers]
        for entry in entries:
            self.writing.remove(entry)
            if ok:
                self.primary.slot_view(entry[2])[:] = block(entry[1])
        self.manager.complete_store([key for _, key, _ in entries], request, ok)
        assert [len(tier.queue) for tier in self.tiers] == [n + bool(entries and ok) for n in before]

    def prepare_load(self, data: st.DataObject) -> None:
        request = self.request(data)
        if self.step_hits:
            chosen = data.draw(st.lists(st.sampled_from(sorted(self.step_hits)), unique=True))
            slots = self.manager.prepare_load(chosen, request)
            self.loading += [(request, key, slot) for key, slot in zip(chosen, slots, strict=True)]

    def complete_load(self, data: st.DataObject) -> None:
        if self.loading:
            entry = data.draw(st.sampled_from(self.loading))
            self.loading.remove(entry)
            self.manager.complete_load([entry[1]], entry[0])

    def serve(self, data: st.DataObject) -> None:
        """What an engine does for one prompt in one step: load what is a hit, store the rest."""
        request = self.request(data)
        head = data.draw(st.integers(0, self.keys_max))
        prompt = keys(*range(head, min(head + data.draw(st.integers(1, 4)), self.keys_max + 1)))
        hits = [key for key in prompt if self.look(key, request) is HIT]
        slots = self.manager.prepare_load(hits, request)
        assert [bytes(self.primary.slot_view(slot)) for slot in slots] == [block(key) for key in hits]
        self.complete(self.offer(prompt, request), request, True)
        self.manager.complete_load(hits, request)

    def touch(self, data: st.DataObject) -> None:
        self.manager.touch(list(dict.fromkeys(self.numbers(data))), ReqContext("any"))

    def step(self, data: st.DataObject | None = None) -> None:
        self.reached["parked"] += any(request.parked for request in self.manager._requests.values())
        self.manager.on_schedule_end(END)
        self.step_hits.clear()
        self.polled = False

    # -- the tiers

    def end_a_job(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, 1))
        index = index if self.tiers[index].queue else 1 - index
        if queue := self.tiers[index].queue:
            position = data.draw(st.integers(0, len(queue) - 1))
            self.run(index, position, data.draw(st.sets(st.sampled_from(queue[position].keys))))

    def a_quiet_step(self, data: st.DataObject) -> None:
        self.end_all_jobs()
        self.step()
        self.step()

    def end_all_jobs(self) -> None:
        for index, tier in enumerate(self.tiers):
            while tier.queue:
                self.run(index, 0, ())

    def run(self, index: int, position: int, fail: Collection[OffloadKey]) -> None:
        tier = self.tiers[index]
        job = tier.queue[position]
        for key, slot in zip(job.keys, job.chunk_ids, strict=True):
            if not job.is_promotion:
                assert bytes(self.primary.slot_view(slot)) == block(key), "a cascade reads its block"
            elif key in fail or key not in tier.blocks:
                self.waited_in_vain.add((job.req_context.req_id, index, key))
                self.reached["promotion failed"] += 1
            else:
                self.reached["promotion made it"] += 1
            self.reached["request over before its job"] += job.req_context.req_id not in self.live
        tier.run(position, fail)

    def somebody_else_stores(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, 1))
        for key in self.numbers(data, 3):
            self.tiers[index].blocks[key] = block(key)
            self.tiers[index].distrusted.discard(key)

    def a_block_vanishes(self, data: st.DataObject) -> None:
        for tier in self.tiers:
            for key in self.numbers(data, 2):
                tier.blocks.pop(key, None)

    def a_slow_probe(self, data: st.DataObject) -> None:
        self.tiers[data.draw(st.integers(0, 1))].slow = set(self.numbers(data, 2))

    # -- the reset

    def reset_or_flush(self, data: st.DataObject) -> None:
        if self.resetting:
            for request, key, slot in self.stale_writing if data.draw(st.booleans()) else ():
                self.primary.slot_view(slot)[:] = block(key)
                self.manager.complete_store([key], request, data.draw(st.booleans()))
            for request, key, _ in self.stale_loading if data.draw(st.booleans()) else ():
                self.manager.complete_load([key], request)
            self.manager.on_reset_flushed()
            self.resetting = False
            return
        self.end_all_jobs()
        self.reached["reset while in use"] += bool(self.writing or self.loading)
        self.manager.reset_cache()
        self.stale_writing, self.writing = self.writing, []
        self.stale_loading, self.loading = self.loading, []
        self.step_hits.clear()
        self.resetting = self.polled = True
        assert self.primary.gauges()["slots_free"] == self.num_chunks
        assert not self.manager.has_pending_work()

    # -- what holds always

    @invariant()
    def accounts(self) -> None:
        if self.world:
            self.world.check()

    @invariant()
    def bytes_are_right(self) -> None:
        if self.world:
            for key, chunk in self.primary.chunks().items():
                assert chunk.ref_count < 0 or bytes(self.primary.slot_view(chunk.slot)) == block(key)
            for tier in self.tiers:
                assert all(data == block(key) for key, data in tier.blocks.items())

    @invariant()
    def what_is_in_use_stays(self) -> None:
        if self.world:
            chunks = self.primary.chunks()
            assert all(chunks[key].slot == slot and chunks[key].ref_count > 0 for _, key, slot in self.loading)
            assert all(chunks[key] == (slot, -1) for _, key, slot in self.writing)
            assert all(chunks[key].ref_count > 0 for key in self.step_hits)

    @invariant()
    def each_tier_hears_of_each_end_once(self) -> None:
        for tier in self.tiers if self.world else ():
            assert len(tier.ended) == len(set(tier.ended))
            assert set(tier.ended) <= self.finished
            assert tier.alive >= self.live.keys()

    def teardown(self) -> None:
        """Faults stop; then everything has to come to rest."""
        if not self.world:
            return
        if self.resetting:
            self.manager.on_reset_flushed()
        for request in [*self.live.values()]:
            self.manager.on_request_finished(request)
            self.finished.add(request.req_id)
        self.live.clear()
        for entry in [*self.writing]:
            self.complete([entry], entry[0], True)
        for request, key, _ in self.loading:
            self.manager.complete_load([key], request)
        self.world.settle()
        gauges = self.manager.gauges()
        assert (gauges["slots_writing"], gauges["slots_pinned"]) == (0, 0)
        assert (gauges["requests"], gauges["jobs_in_flight"]) == (0, 0)
        assert all(set(tier.ended) == self.finished for tier in self.tiers)
        self.accounts()
        self.bytes_are_right()
        self.reached.update(event.reason for event in self.world.recorder.of(Eviction))


@pytest.mark.parametrize("policy", CACHE_POLICIES)
def test_any_history(policy: str) -> None:
    reached: Counter[str] = Counter()
    run_state_machine_as_test(lambda: ManagerMachine(policy, reached))  # type: ignore[no-untyped-call]
    lookups = {f"lookup {answer.value}" for answer in LookupResult}
    others = {"promotion made it", "promotion failed", "promotion refused", "store refused", "parked", "end held back"}
    others |= {"request over before its job", "reset while in use", "capacity", "failed", "reset"}
    assert [what for what in sorted(lookups | others) if not reached[what]] == []
