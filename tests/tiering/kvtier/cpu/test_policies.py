"""LRU against a list, ARC against the paper's pseudocode, both against their pins."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvtier.cpu.policies import POLICIES, ARCPolicy, CachePolicy, LRUPolicy
from kvtier.hashing import OffloadKey


def key(number: int) -> OffloadKey:
    return OffloadKey(number.to_bytes(4, "big"))


def keys(*numbers: int) -> list[OffloadKey]:
    return [key(number) for number in numbers]


def store(policy: CachePolicy, capacity: int, *numbers: int) -> list[OffloadKey] | None:
    """What the CPU tier does for a store that succeeds: make room, insert, unpin."""
    wanted = keys(*numbers)
    new = [k for k in wanted if k not in policy]
    victims = policy.evict(max(0, len(policy) + len(new) - capacity), wanted)
    if victims is not None:
        policy.insert(new)
        for k in new:
            policy.unpin(k)
    return victims


class PolicyMachine(RuleBasedStateMachine):
    """Any policy: residents, pins and all-or-nothing eviction, against sets; order only in subclasses."""

    name = "lru"
    capacity = 6
    universe = st.integers(0, 14)

    def __init__(self) -> None:
        super().__init__()
        self.policy = POLICIES[self.name](self.capacity)
        self.order: list[OffloadKey] = []  # residents, least recently used first
        self.pinned: set[OffloadKey] = set()

    @rule(numbers=st.lists(universe, max_size=5, unique=True), written=st.booleans())
    def store(self, numbers: list[int], written: bool) -> None:
        wanted = keys(*numbers)
        new = [k for k in wanted if k not in self.order]
        n = max(0, len(self.order) + len(new) - self.capacity)
        candidates = [k for k in self.order if k not in self.pinned and k not in wanted]
        victims = self.policy.evict(n, wanted)
        if len(candidates) < n:
            assert victims is None
            return
        assert victims is not None
        assert len(victims) == len(set(victims)) == n
        assert set(victims) <= set(candidates)
        self.check_order(victims, candidates)
        self.policy.insert(new)
        self.order = [k for k in self.order if k not in victims] + new[::-1]
        self.pinned |= set(new)
        if written:
            for k in new:
                self.policy.unpin(k)
            self.pinned -= set(new)

    def check_order(self, victims: list[OffloadKey], candidates: list[OffloadKey]) -> None:
        assert victims == candidates[: len(victims)]

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        used = data.draw(st.lists(st.sampled_from(self.order), unique=True))
        self.policy.touch(used)
        self.order = [k for k in self.order if k not in used] + used[::-1]

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        k = data.draw(st.sampled_from(self.order))
        if k in self.pinned:
            self.policy.unpin(k)
        else:
            self.policy.pin(k)
        self.pinned ^= {k}

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        k = data.draw(st.sampled_from(sorted(self.pinned)))
        self.policy.remove(k)
        self.order.remove(k)
        self.pinned.remove(k)

    @invariant()
    def accounts(self) -> None:
        assert self.policy.check_integrity() == []
        assert self.policy.evictable() == set(self.order) - self.pinned
        assert len(self.policy) == len(self.order)
        assert all(k in self.policy for k in self.order)


class ARCMachine(PolicyMachine):
    """ARC chooses otherwise; `check_integrity` holds the paper's bounds after every step."""

    name = "arc"

    def check_order(self, victims: list[OffloadKey], candidates: list[OffloadKey]) -> None:
        return


TestLRUMachine = PolicyMachine.TestCase
TestARCMachine = ARCMachine.TestCase


@pytest.fixture(params=POLICIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_nothing_is_evicted_when_too_little_can_be(name: str) -> None:
    policy = POLICIES[name](4)
    store(policy, 4, 1, 2, 3, 4)
    policy.pin(key(1))
    assert policy.evict(3, keys(2, 5, 6, 7)) is None
    assert policy.evictable() == set(keys(2, 3, 4))
    assert policy.evict(2, keys(2, 5, 6)) is not None
    assert policy.evictable() == set(keys(2))


def test_a_cascade_is_not_a_reuse(name: str) -> None:
    policy = POLICIES[name](3)
    for number in (1, 2, 3):
        store(policy, 3, number)
    policy.pin(key(1))
    assert policy.evict(1, keys(4)) == keys(2)  # 1 is older but pinned
    policy.unpin(key(1))
    policy.insert(keys(4))
    assert policy.evict(1, keys(5)) == keys(1)


def test_the_tail_of_a_prefix_goes_before_its_head(name: str) -> None:
    policy = POLICIES[name](4)
    store(policy, 4, 1, 2, 3, 4)
    assert policy.evict(2, keys(5, 6)) == keys(4, 3)
    policy = POLICIES[name](4)
    store(policy, 4, 4, 3, 2, 1)
    policy.touch(keys(1, 2, 3, 4))
    assert policy.evict(2, keys(5, 6)) == keys(4, 3)


def test_the_eviction_order_is_bounded(name: str) -> None:
    """Keys that left or moved to another list leave no entries behind for ever."""
    policy = POLICIES[name](4)
    store(policy, 4, 1, 2, 3, 4)
    queues = [vars(policy)[field] for field in vars(policy) if field in ("_queue", "_t1", "_t2")]
    for number in range(5, 5000):
        victims = store(policy, 4, number)
        assert victims
        policy.touch(keys(number))
        policy.pin(key(number))
        policy.unpin(key(number))
    assert sum(len(queue._heap) for queue in queues) < 300


def hits(policy: CachePolicy, capacity: int, trace: Iterable[int]) -> list[bool]:
    """One key at a time: a resident is touched, anything else is stored."""
    result = []
    for number in trace:
        result.append(key(number) in policy)
        if result[-1]:
            policy.touch(keys(number))
        else:
            store(policy, capacity, number)
    assert policy.check_integrity() == []
    return result


def arc_of_the_paper(capacity: int, trace: Iterable[int]) -> list[bool]:
    """Figure 4 of Megiddo & Modha, line by line, on lists (least recently used first)."""
    c, p = capacity, 0.0
    t1: list[int] = []
    t2: list[int] = []
    b1: list[int] = []
    b2: list[int] = []
    result = []

    def replace(x: int) -> None:
        if t1 and ((x in b2 and len(t1) == p) or len(t1) > p):
            b1.append(t1.pop(0))
        else:
            b2.append(t2.pop(0))

    for x in trace:
        result.append(x in t1 or x in t2)
        if x in t1 or x in t2:
            (t1 if x in t1 else t2).remove(x)
            t2.append(x)
        elif x in b1:
            p = min(c, p + max(1.0, len(b2) / len(b1)))
            replace(x)
            b1.remove(x)
            t2.append(x)
        elif x in b2:
            p = max(0.0, p - max(1.0, len(b1) / len(b2)))
            replace(x)
            b2.remove(x)
            t2.append(x)
        else:
            if len(t1) + len(b1) == c:
                if len(t1) < c:
                    b1.pop(0)
                    replace(x)
                else:
                    t1.pop(0)
            elif len(t1) + len(t2) + len(b1) + len(b2) >= c:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * c:
                    b2.pop(0)
                replace(x)
            t1.append(x)
    return result


@given(capacity=st.integers(1, 6), trace=st.lists(st.integers(0, 12), max_size=120))
def test_arc_is_the_papers(capacity: int, trace: list[int]) -> None:
    assert hits(ARCPolicy(capacity), capacity, trace) == arc_of_the_paper(capacity, trace)


@pytest.mark.parametrize("seed", range(40))
def test_arc_is_the_papers_on_random_traces(seed: int) -> None:
    rng = random.Random(seed)
    capacity = rng.randint(2, 8)
    trace = [rng.randrange(2 * capacity) for _ in range(200)]
    assert hits(ARCPolicy(capacity), capacity, trace) == arc_of_the_paper(capacity, trace)


@pytest.mark.parametrize("seed", range(3))
def test_arc_is_the_papers_on_long_traces(seed: int) -> None:
    rng = random.Random(seed)
    trace = [int(rng.paretovariate(0.6)) % 200 if rng.random() < 0.7 else 200 + i % 50 for i in range(4000)]
    assert hits(ARCPolicy(40), 40, trace) == arc_of_the_paper(40, trace)


def test_arc_takes_the_same_for_a_batch_as_for_its_keys_one_by_one() -> None:
    def after(*stores: tuple[int, ...]) -> set[OffloadKey]:
        policy = ARCPolicy(20)
        hits(policy, 20, [*range(10), *range(10), *range(20, 40), *range(26, 30)])  # T2, then ghosts in B1 that return
        for numbers in stores:
            store(policy, 20, *numbers)
        return set(policy.evictable())

    batch = tuple(range(50, 54))
    assert after(batch) == after(*((number,) for number in batch))


@pytest.mark.parametrize("batch", [1, 5, 20])
def test_arc_resists_a_scan_and_lru_does_not(batch: int) -> None:
    """A working set that fits is used between pieces of an endless scan, which comes in batches."""
    working, capacity = range(20), 40

    def run(policy: CachePolicy) -> int:
        store(policy, capacity, *working)
        policy.touch(keys(*working))
        found = 0
        for scan in range(1000, 4000, 60):
            for start in range(scan, scan + 60, batch):
                assert store(policy, capacity, *range(start, start + batch)) is not None
            present = [number for number in working if key(number) in policy]
            found += len(present)
            policy.touch(keys(*present))
            store(policy, capacity, *(number for number in working if number not in present))
        return found

    assert run(LRUPolicy(capacity)) == 0
    assert run(ARCPolicy(capacity)) == 20 * 50
