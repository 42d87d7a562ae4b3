"""LRU and ARC: which idle block leaves when a slot is needed; called by the CPU tier, never sees a slot or a byte.

A *resident* key is pinned (being written or read) or evictable. Pinning takes a key out of the running and gives it
back at its old age: only `touch` is a reuse, so a cascade that pins and unpins a block does not make it look popular.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Protocol

from kvtier.hashing import OffloadKey

_HEAP_SLACK = 64
"""A heap with more entries than twice its keys and this many is rebuilt."""


class CachePolicy(Protocol):
    """The CPU tier calls `evict` then `insert` for every store, also when no slot has to be freed.

    Sequences of keys run from the head of a prefix to its tail; the head is taken as used last, since without it the
    tail is of no use.
    """

    def __init__(self, capacity: int) -> None: ...

    def __contains__(self, key: object) -> bool:
        """Whether `key` is resident."""

    def __len__(self) -> int:
        """Resident keys."""

    def insert(self, keys: Sequence[OffloadKey]) -> None:
        """New residents, pinned."""

    def remove(self, key: OffloadKey) -> None:
        """A resident goes without having been evicted: its write failed."""

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """Residents, pinned or not, were used again."""

    def pin(self, key: OffloadKey) -> None:
        """An evictable key must stay for now."""

    def unpin(self, key: OffloadKey) -> None:
        """A pinned key may be evicted."""

    def evict(self, n: int, protected: Collection[OffloadKey]) -> list[OffloadKey] | None:
        """Remove `n` evictable keys outside `protected`, or change nothing and return None. Zero is always possible.

        `protected` is the whole store: its residents are kept, the others (at least `n`) are the arrivals to come.
        """

    def evictable(self) -> AbstractSet[OffloadKey]:
        """The keys that are resident and not pinned."""

    def check_integrity(self) -> list[str]:
        """What the accounts find wrong with themselves; empty is well. O(keys)."""


class _Queue:
    """Keys by age. `take` removes the oldest evictable one in O(log n), amortised over touches since.

    A key has at most one heap entry. Ages only grow, so an entry that a touch has outdated is a lower bound, and is
    corrected only when it surfaces; that of a pinned key is dropped then and comes back with `unpin`.
    """

    def __init__(self) -> None:
        self._age: dict[OffloadKey, int] = {}
        self._heap: list[tuple[int, OffloadKey]] = []
        self._queued: set[OffloadKey] = set()
        self._clock = count()
        self.evictable: set[OffloadKey] = set()

    def __contains__(self, key: object) -> bool:
        return key in self._age

    def __len__(self) -> int:
        return len(self._age)

    def touch(self, key: OffloadKey) -> None:
        """Make `key` the youngest; a new key enters pinned."""
        self._age[key] = next(self._clock)

    def remove(self, key: OffloadKey) -> None:
        del self._age[key]
        self.evictable.discard(key)

    def pin(self, key: OffloadKey) -> None:
        self.evictable.remove(key)

    def unpin(self, key: OffloadKey) -> None:
        assert key in self._age, f"{key.hex()} is not resident"
        assert key not in self.evictable, f"{key.hex()} is not pinned"
        self.evictable.add(key)
        if key not in self._queued:
            self._queued.add(key)
            heappush(self._heap, (self._age[key], key))
            if len(self._heap) > 2 * len(self._age) + _HEAP_SLACK:
                self._heap = [(self._age[k], k) for k in self.evictable]
                heapify(self._heap)
                self._queued = set(self.evictable)

    def take(self) -> OffloadKey:
        """The oldest evictable key; there must be one."""
        while True:
            age, key = self._heap[0]
            if key not in self.evictable:
                heappop(self._heap)
                self._queued.remove(key)
            elif age != self._age[key]:
                heapreplace(self._heap, (self._age[key], key))
            else:
                heappop(self._heap)
                self._queued.remove(key)
                self.remove(key)
                return key

    def check_integrity(self) -> list[str]:
        findings = []
        if strays := len(self.evictable - self._age.keys()):
            findings.append(f"policy: {strays} evictable keys are not resident")
        if hidden := len(self.evictable - self._queued):
            findings.append(f"policy: {hidden} evictable keys are not in the eviction order")
        if sorted(key for _, key in self._heap) != sorted(self._queued):
            findings.append(f"policy: {len(self._heap)} entries in the eviction order, {len(self._queued)} counted")
        return findings


class LRUPolicy:
    """The key that was not used for longest goes first."""

    def __init__(self, capacity: int) -> None:
        self._queue = queue = _Queue()
        self.remove, self.pin, self.unpin = queue.remove, queue.pin, queue.unpin
        self.check_integrity = queue.check_integrity

    def __contains__(self, key: object) -> bool:
        return key in self._queue

    def __len__(self) -> int:
        return len(self._queue)

    def insert(self, keys: Sequence[OffloadKey]) -> None:
        for key in reversed(keys):
            self._queue.touch(key)

    touch = insert

    def evict(self, n: int, protected: Collection[OffloadKey]) -> list[OffloadKey] | None:
        kept = [key for key in protected if key in self._queue.evictable]
        if n > len(self._queue.evictable) - len(kept):
            return None
        for key in kept:
            self.pin(key)
        victims = [self._queue.take() for _ in range(n)]
        for key in kept:
            self.unpin(key)
        return victims

    def evictable(self) -> AbstractSet[OffloadKey]:
        return self._queue.evictable


class ARCPolicy:
    """Adaptive replacement (Megiddo & Modha, FAST'03): a scan of blocks used once cannot push out those used twice.

    T1 holds residents used once, T2 those used again; B1 and B2 hold keys that left T1 and T2. A store of a key in
    B1 shows that T1 was too small, of one in B2 that T2 was: `p`, T1's target size, follows. Without pins and with one
    key at a time this is the paper's algorithm exactly; its bounds |T1|+|B1| <= c and |T1|+|T2|+|B1|+|B2| <= 2c always
    hold. When the list to take from has only pinned keys, the other one gives.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._p = 0.0
        self._t1, self._t2 = _Queue(), _Queue()
        self._b1: dict[OffloadKey, None] = {}
        self._b2: dict[OffloadKey, None] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._t1 or key in self._t2

    def __len__(self) -> int:
        return len(self._t1) + len(self._t2)

    def _home(self, key: OffloadKey) -> _Queue:
        return self._t1 if key in self._t1 else self._t2

    def insert(self, keys: Sequence[OffloadKey]) -> None:
        for key in reversed(keys):
            ghost = key in self._b1 or key in self._b2
            self._b1.pop(key, None)
            self._b2.pop(key, None)
            (self._t2 if ghost else self._t1).touch(key)
        while len(self._t1) + len(self._b1) > self._capacity:
            del self._b1[next(iter(self._b1))]
        while len(self) + len(self._b1) + len(self._b2) > 2 * self._capacity:
            del self._b2[next(iter(self._b2))]

    def remove(self, key: OffloadKey) -> None:
        self._home(key).remove(key)

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        for key in reversed(keys):
            idle = key in self._t1.evictable
            if key in self._t1:
                self._t1.remove(key)
            self._t2.touch(key)
            if idle:
                self._t2.unpin(key)

    def pin(self, key: OffloadKey) -> None:
        self._home(key).pin(key)

    def unpin(self, key: OffloadKey) -> None:
        self._home(key).unpin(key)

    def evict(self, n: int, protected: Collection[OffloadKey]) -> list[OffloadKey] | None:
        kept = [key for key in protected if key in self._t1.evictable or key in self._t2.evictable]
        if n > len(self._t1.evictable) + len(self._t2.evictable) - len(kept):
            return None
        arrivals = [key for key in protected if key not in self]
        assert n <= len(arrivals), f"{n} evictions for {len(arrivals)} arrivals"
        for key in kept:
            self.pin(key)
        victims: list[OffloadKey] = []
        arrived_t1 = 0  # the paper inserts between two evictions; a batch only counts, since arrivals stay anyway
        for index, key in enumerate(arrivals):
            self._learn(key)
            if index >= len(arrivals) - n:  # those before find free slots
                surplus = len(self._t1) + arrived_t1 - self._p
                from_t1 = bool(self._t1.evictable) and (surplus > 0 or (surplus == 0 and key in self._b2))
                if from_t1 or not self._t2.evictable:
                    victims.append(self._t1.take())
                    self._b1[victims[-1]] = None
                else:
                    victims.append(self._t2.take())
                    self._b2[victims[-1]] = None
            arrived_t1 += key not in self._b1 and key not in self._b2
        for key in kept:
            self.unpin(key)
        return victims

    def _learn(self, key: OffloadKey) -> None:
        b1, b2 = len(self._b1), len(self._b2)
        if key in self._b1:
            self._p = min(self._p + max(1.0, b2 / b1), self._capacity)
        elif key in self._b2:
            self._p = max(self._p - max(1.0, b1 / b2), 0.0)

    def evictable(self) -> AbstractSet[OffloadKey]:
        return self._t1.evictable | self._t2.evictable

    def check_integrity(self) -> list[str]:
        findings = self._t1.check_integrity() + self._t2.check_integrity()
        c, t1, t2, b1, b2 = self._capacity, len(self._t1), len(self._t2), len(self._b1), len(self._b2)
        if t1 + t2 > c or t1 + b1 > c or t1 + t2 + b1 + b2 > 2 * c or not 0 <= self._p <= c:
            findings.append(f"arc: out of bounds: c={c} t1={t1} t2={t2} b1={b1} b2={b2} p={self._p}")
        ghosts = self._b1.keys() | self._b2.keys()
        if double := sum(key in self for key in ghosts) + b1 + b2 - len(ghosts):
            findings.append(f"arc: {double} keys are in more than one list")
        return findings


POLICIES: dict[str, type[CachePolicy]] = {"lru": LRUPolicy, "arc": ARCPolicy}
