"""The CPU tier against a dict model, and each finding of its accounts seen once."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvtier.base import LookupResult, OffloadingEvent, PrepareStoreOutput, ReqContext
from kvtier.config import CACHE_POLICIES, PAGE_BYTES, CpuTierConfig
from kvtier.cpu.manager import EVENTS_MAX, WRITING, CPUOffloadingManager
from kvtier.events import Event, Eviction
from kvtier.hashing import OffloadKey
from kvtier.manager import TieringOffloadingManager

REQ = ReqContext("r")
HIT, HIT_PENDING, MISS = LookupResult.HIT, LookupResult.HIT_PENDING, LookupResult.MISS


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event, /) -> None:
        self.events.append(event)


def keys(*numbers: int) -> list[OffloadKey]:
    return [OffloadKey(number.to_bytes(8, "big")) for number in numbers]


def make(num_chunks: int = 4, policy: str = "lru", recorder: Recorder | None = None) -> CPUOffloadingManager:
    return CPUOffloadingManager(CpuTierConfig(num_chunks, PAGE_BYTES, policy), recorder)


def stored(tier: CPUOffloadingManager, *numbers: int) -> PrepareStoreOutput:
    output = tier.prepare_store(keys(*numbers), REQ)
    assert output is not None
    tier.complete_store(output.keys_to_store, REQ)
    return output


class CPUTierMachine(RuleBasedStateMachine):
    """Every block's bytes are its key; a slot handed out twice, or evicted while in use, shows as wrong bytes."""

    policy = "lru"
    num_chunks = 5
    universe = st.integers(0, 9)

    def __init__(self) -> None:
        super().__init__()
        self.recorder = Recorder()
        self.tier = make(self.num_chunks, self.policy, self.recorder)
        self.refs: dict[OffloadKey, int] = {}
        self.writing: dict[OffloadKey, int] = {}  # -> slot
        self.announced: set[OffloadKey] = set()
        self.lost = 0

    @rule(numbers=st.lists(universe, max_size=7))
    def prepare_store(self, numbers: list[int]) -> None:
        wanted = keys(*numbers)
        before = self.tier.chunks()
        new = [k for k in dict.fromkeys(wanted) if k not in self.refs]
        room = self.num_chunks - len(self.refs) + sum(n == 0 and k not in wanted for k, n in self.refs.items())
        output = self.tier.prepare_store(wanted, REQ)
        if len(new) > room:
            assert output is None
            assert self.tier.chunks() == before
            return
        assert output is not None
        assert list(output.keys_to_store) == new
        assert len(output.chunk_ids) == len(new)
        assert len(output.evicted_keys) == max(0, len(new) - self.num_chunks + len(self.refs))
        for k in output.evicted_keys:
            assert self.refs.pop(k) == 0
            assert k not in wanted
        self.lost += len(output.evicted_keys)
        self.refs.update(dict.fromkeys(new, WRITING))
        self.writing.update(zip(new, output.chunk_ids, strict=True))

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), success=st.booleans())
    def complete_store(self, data: st.DataObject, success: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.writing)), unique=True))
        for k in chosen:
            self.tier.slot_view(self.writing.pop(k))[:8] = k
            if success:
                self.refs[k] = 0
            else:
                del self.refs[k]
                self.lost += 1
        self.tier.complete_store(chosen, REQ, success)

    @precondition(lambda self: any(n >= 0 for n in self.refs.values()))
    @rule(data=st.data(), cascade=st.booleans())
    def prepare_read(self, data: st.DataObject, cascade: bool) -> None:
        ready = sorted(k for k, n in self.refs.items() if n >= 0)
        chosen = data.draw(st.lists(st.sampled_from(ready)))
        slots = (self.tier.prepare_read if cascade else self.tier.prepare_load)(chosen, REQ)
        assert [bytes(self.tier.slot_view(slot)[:8]) for slot in slots] == chosen
        for k in chosen:
            self.refs[k] += 1

    @precondition(lambda self: any(n > 0 for n in self.refs.values()))
    @rule(data=st.data(), cascade=st.booleans())
    def complete_read(self, data: st.DataObject, cascade: bool) -> None:
        pinned = sorted(k for k, n in self.refs.items() if n > 0)
        chosen = data.draw(st.lists(st.sampled_from(pinned), unique=True))
        (self.tier.complete_read if cascade else self.tier.complete_load)(chosen, REQ)
        for k in chosen:
            self.refs[k] -= 1

    @rule(numbers=st.lists(universe, unique=True))
    def touch(self, numbers: list[int]) -> None:
        self.tier.touch(keys(*numbers), REQ)

    @rule()
    def reset_cache(self) -> None:
        self.lost += len(self.refs)
        self.refs.clear()
        self.writing.clear()
        self.tier.reset_cache()

    @invariant()
    def accounts(self) -> None:
        assert self.tier.check_integrity() == []
        chunks = self.tier.chunks()
        assert {k: status.ref_count for k, status in chunks.items()} == self.refs
        for k in keys(*range(10)):
            n = self.refs.get(k)
            assert self.tier.lookup(k, REQ) is (MISS if n is None else HIT_PENDING if n == WRITING else HIT)
            if n is not None and n != WRITING:
                assert bytes(self.tier.slot_view(chunks[k].slot)[:8]) == k
        counts = list(self.refs.values())
        slots = {name: value for name, value in self.tier.gauges().items() if name.startswith("slots_")}
        assert slots == {
            "slots_free": self.num_chunks - len(counts),
            "slots_writing": counts.count(WRITING),
            "slots_evictable": counts.count(0),
            "slots_pinned": sum(n > 0 for n in counts),
        }

    @invariant()
    def whoever_follows_the_events_knows_what_is_ready(self) -> None:
        for event in self.tier.take_events():
            assert event.medium == "CPU"
            assert event.keys
            if event.removed:
                assert self.announced >= set(event.keys)
                self.announced.difference_update(event.keys)
            else:
                assert self.announced.isdisjoint(event.keys)
                self.announced.update(event.keys)
        assert self.announced == {k for k, n in self.refs.items() if n != WRITING}
        assert sum(e.blocks for e in self.recorder.events if isinstance(e, Eviction)) == self.lost


class ARCTierMachine(CPUTierMachine):
    policy = "arc"


TestCPUTierMachine = CPUTierMachine.TestCase
TestARCTierMachine = ARCTierMachine.TestCase


def test_the_view_is_the_slots() -> None:
    tier = make(3)
    assert (tier.view.shape, tier.view.format, tier.view.readonly) == ((3, PAGE_BYTES), "B", False)
    tier.slot_view(1)[:] = b"x" * PAGE_BYTES
    assert tier.view.tobytes() == bytes(PAGE_BYTES) + b"x" * PAGE_BYTES + bytes(PAGE_BYTES)
    tier.view[2, 5] = 7
    assert tier.slot_view(2)[5] == 7


def test_slots_are_page_aligned() -> None:
    tier = make(3)
    address = ctypes.addressof(ctypes.c_char.from_buffer(tier.slot_view(1)))
    assert address % mmap.PAGESIZE == 0


def test_the_callers_memory_is_used() -> None:
    memory = bytearray(2 * PAGE_BYTES)
    tier = CPUOffloadingManager(CpuTierConfig(2, PAGE_BYTES), buffer=memoryview(memory))
    tier.slot_view(1)[0] = 9
    assert memory[PAGE_BYTES] == 9


@pytest.mark.parametrize(
    "buffer",
    [
        memoryview(bytearray(2 * PAGE_BYTES - 1)),
        memoryview(bytearray(3 * PAGE_BYTES)),
        memoryview(bytes(2 * PAGE_BYTES)),
        memoryview(bytearray(4 * PAGE_BYTES))[::2],
    ],
    ids=["short", "long", "readonly", "strided"],
)
def test_wrong_memory_is_refused(buffer: memoryview) -> None:
    with pytest.raises(AssertionError, match="buffer"):
        CPUOffloadingManager(CpuTierConfig(2, PAGE_BYTES), buffer=buffer)


@pytest.mark.parametrize("slot", [-1, 4, 1000])
def test_a_slot_that_does_not_exist(slot: int) -> None:
    with pytest.raises(AssertionError, match=f"slot {slot} of 4"):
        make(4).slot_view(slot)


def test_calls_out_of_order_name_the_block() -> None:
    tier = make()
    (a, b) = keys(1, 2)
    tier.prepare_store([a], REQ)
    for wrong, message in [
        (lambda: tier.complete_store([b], REQ), f"{b.hex()} is not here: complete_store without prepare_store"),
        (lambda: tier.prepare_load([a], REQ), f"{a.hex()} in slot 0 with -1 references: not ready"),
        (lambda: tier.prepare_read([b], REQ), f"{b.hex()} is not here: not ready"),
        (lambda: tier.complete_load([a], REQ), f"{a.hex()} in slot 0 with -1 references: completed without prepare"),
    ]:
        with pytest.raises(AssertionError, match=message):
            wrong()
    tier.complete_store([a], REQ)
    for wrong, message in [
        (lambda: tier.complete_store([a], REQ), f"{a.hex()} in slot 0 with 0 references: complete_store without"),
        (lambda: tier.complete_read([a], REQ), f"{a.hex()} in slot 0 with 0 references: completed without prepare"),
    ]:
        with pytest.raises(AssertionError, match=message):
            wrong()
    assert tier.check_integrity() == []


@pytest.mark.parametrize("policy", CACHE_POLICIES)
def test_blocks_of_the_store_itself_are_not_evicted_for_it(policy: str) -> None:
    tier = make(4, policy)
    stored(tier, 1, 2, 3, 4)
    output = tier.prepare_store(keys(4, 3, 5, 5, 6), REQ)
    assert output is not None
    assert output.keys_to_store == tuple(keys(5, 6))
    assert set(output.evicted_keys) == set(keys(1, 2))


def test_a_load_is_a_reuse_and_a_read_is_not() -> None:
    for pin, unpin, victim in [("prepare_load", "complete_load", 2), ("prepare_read", "complete_read", 1)]:
        tier = make(2)
        stored(tier, 1)
        stored(tier, 2)
        getattr(tier, pin)(keys(1), REQ)
        getattr(tier, unpin)(keys(1), REQ)
        assert stored(tier, 3).evicted_keys == tuple(keys(victim))


def test_why_blocks_left() -> None:
    recorder = Recorder()
    tier = make(2, recorder=recorder)
    stored(tier, 1, 2)
    tier.prepare_store(keys(3), REQ)
    tier.complete_store(keys(3), REQ, success=False)
    tier.reset_cache()
    tier.reset_cache()
    assert recorder.events == [Eviction(1, "capacity"), Eviction(1, "failed"), Eviction(1, "reset")]


def test_events_that_are_not_taken_are_bounded() -> None:
    tier = make(1)
    for number in range(EVENTS_MAX // 2 + 2):
        stored(tier, number)
    events = list(tier.take_events())
    assert len(events) == EVENTS_MAX
    assert events[-1] == OffloadingEvent(tuple(keys(EVENTS_MAX // 2 + 1)), "CPU", removed=False)
    assert list(tier.take_events()) == []


def _swap_slots(tier: CPUOffloadingManager) -> None:
    tier._chunks[keys(1)[0]].slot = tier._chunks[keys(2)[0]].slot


BREAKAGES: dict[str, tuple[Callable[[CPUOffloadingManager], object], str]] = {
    "slot lost": (lambda t: t._free.pop(), "slot 5 is accounted for 0 times"),
    "slot free twice": (lambda t: t._free.append(t._free[0]), "slot 5 is accounted for 2 times"),
    "slot free and owned": (lambda t: t._free.append(0), "slot 0 is accounted for 2 times"),
    "two owners": (_swap_slots, "slot 1 is accounted for 2 times"),
    "slot out of range": (lambda t: t._free.append(6), "slot 6 does not exist, there are 6"),
    "impossible references": (lambda t: setattr(t._chunks[keys(1)[0]], "refs", -2), "impossible reference count"),
    "writing miscounted": (lambda t: t._writing.update({keys(9)[0]: 0.0}), "writing, pinned are 1, 1; counted 2, 1"),
    "pinned miscounted": (lambda t: setattr(t, "_pinned", 0), "writing, pinned are 1, 1; counted 1, 0"),
    "pin unknown to policy": (lambda t: setattr(t._chunks[keys(1)[0]], "refs", 1), "1 keys are idle or evictable"),
    "idle but pinned in policy": (lambda t: t._policy.pin(keys(1)[0]), "1 keys are idle or evictable"),
    "evictable while written": (lambda t: t._policy.unpin(keys(4)[0]), "1 keys are idle or evictable"),
    "unknown to policy": (lambda t: t._policy.remove(keys(4)[0]), "the policy knows 4 keys, there are 5 blocks"),
    "policy's stranger": (lambda t: t._policy.insert(keys(9)), "the policy knows 6 keys, there are 5 blocks"),
    "another key in policy": (
        lambda t: (t._policy.remove(keys(4)[0]), t._policy.insert(keys(9))),
        "the policy knows 5 keys, there are 5 blocks",
    ),
    "lru order lost a key": (
        lambda t: t._policy._queue._queued.clear(),
        "evictable keys are not in the eviction order",
    ),
    "lru order has a stray": (lambda t: t._policy._queue._heap.pop(), "entries in the eviction order"),
    "lru evictable stranger": (
        lambda t: t._policy._queue.evictable.add(keys(9)[0]),
        "1 evictable keys are not resident",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_accounts_are_found(name: str) -> None:
    tier = make(6)
    stored(tier, 1, 2, 3, 5)
    tier.prepare_store(keys(4), REQ)
    tier.prepare_load(keys(2), REQ)
    assert tier.check_integrity() == []
    breakage, finding = BREAKAGES[name]
    breakage(tier)
    assert any(finding in line for line in tier.check_integrity()), tier.check_integrity()


ARC_BREAKAGES: dict[str, tuple[Callable[[CPUOffloadingManager], object], str]] = {
    "p out of bounds": (lambda t: setattr(t._policy, "_p", 7.0), "p=7.0"),
    "too many ghosts": (lambda t: t._policy._b1.update(dict.fromkeys(keys(*range(20, 27)))), "b1=7"),
    "ghost of a resident": (lambda t: t._policy._b2.update(dict.fromkeys(keys(1))), "1 keys are in more than one list"),
    "ghost twice": (
        lambda t: (t._policy._b1.update(dict.fromkeys(keys(9))), t._policy._b2.update(dict.fromkeys(keys(9)))),
        "1 keys are in more than one list",
    ),
}


@pytest.mark.parametrize("name", ARC_BREAKAGES)
def test_broken_arc_accounts_are_found(name: str) -> None:
    tier = make(6, "arc")
    stored(tier, 1, 2)
    assert tier.check_integrity() == []
    breakage, finding = ARC_BREAKAGES[name]
    breakage(tier)
    assert any(finding in line for line in tier.check_integrity()), tier.check_integrity()


def test_the_status_line_has_the_slots_by_state() -> None:
    tier = CPUOffloadingManager(CpuTierConfig(4, 4096))
    request = ReqContext("r")
    tier.prepare_store([OffloadKey(b"a"), OffloadKey(b"b"), OffloadKey(b"c")], request)
    tier.complete_store([OffloadKey(b"a"), OffloadKey(b"b")], request)
    tier.prepare_load([OffloadKey(b"a")], request)
    slots = "4 slots of 4096 bytes: 1 free, 1 writing, 1 pinned, 1 evictable"
    assert repr(tier) == f"<CPUOffloadingManager: {slots}>"
    manager = TieringOffloadingManager(tier)
    manager.on_new_request(request)
    assert repr(manager) == f"<TieringOffloadingManager: 1 requests, 0 jobs in flight; {tier!r}, ()>"
