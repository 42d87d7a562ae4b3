"""The primary tier: slots in host memory and their users, in prepare/complete pairs. It moves no byte.

A slot is free, being written (-1), idle (0) or pinned by n readers (n). Only idle blocks are evicted; only the caller
between `prepare_*` and `complete_*` may touch a slot's bytes.
"""

from __future__ import annotations

import mmap
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from kvtier.base import LookupResult, OffloadingEvent, PrepareStoreOutput, ReqContext
from kvtier.config import CpuTierConfig
from kvtier.cpu.policies import POLICIES, CachePolicy
from kvtier.events import Eviction, EvictionReason, NullObserver, Observer
from kvtier.hashing import OffloadKey

WRITING: Final = -1
_ABSENT: Final = -2
EVENTS_MAX: Final = 1 << 16
"""Events kept for `take_events`; beyond that the oldest are dropped."""


class ChunkStatus(NamedTuple):
    """A block's slot and its users: `ref_count` is -1 while it is written, else its number of readers."""

    slot: int
    ref_count: int


@dataclass(slots=True)
class _Chunk:
    slot: int
    refs: int = WRITING


_NOWHERE = _Chunk(-1, _ABSENT)


class CPUOffloadingManager:
    """`config.num_chunks` slots of `config.block_bytes`, page-aligned, in anonymous memory or in the caller's `buffer`.

    `buffer` (such as pinned memory) must be writable, contiguous and of exactly that size. The CPU tier keeps no thread
    and never blocks. Calling out of order (completing what was not prepared, loading what is not ready) is a bug of
    the caller and asserts.
    """

    def __init__(
        self, config: CpuTierConfig, observer: Observer | None = None, buffer: memoryview | None = None
    ) -> None:
        size = config.num_chunks * config.block_bytes
        if buffer is None:
            buffer = memoryview(mmap.mmap(-1, size))
        given = (buffer.nbytes, buffer.c_contiguous, buffer.readonly)
        assert given == (size, True, False), f"buffer (bytes, contiguous, readonly) is {given}, slots need {size} bytes"
        self.config = config
        self._flat = buffer.cast("B")
        self._observer = observer or NullObserver()
        self._events: deque[OffloadingEvent] = deque(maxlen=EVENTS_MAX)
        self._clear()

    def __repr__(self) -> str:
        """A status line."""
        names = ("free", "writing", "pinned", "evictable")
        states = ", ".join(f"{count:g} {name}" for name, count in zip(names, self.gauges().values(), strict=False))
        return f"<CPUOffloadingManager: {self.config.num_chunks} slots of {self.config.block_bytes} bytes: {states}>"

    def _clear(self) -> None:
        self._chunks: dict[OffloadKey, _Chunk] = {}
        self._free = list(range(self.config.num_chunks - 1, -1, -1))
        self._policy: CachePolicy = POLICIES[self.config.cache_policy](self.config.num_chunks)
        self._writing: dict[OffloadKey, float] = {}  # since when, the oldest first
        self._pinned = 0

    @property
    def view(self) -> memoryview:
        """All slots: writable, C-contiguous, format "B", shape (num_chunks, block_bytes)."""
        return self._flat.cast("B", (self.config.num_chunks, self.config.block_bytes))

    def slot_view(self, slot: int) -> memoryview:
        """One slot: writable, `block_bytes` long."""
        assert 0 <= slot < self.config.num_chunks, f"slot {slot} of {self.config.num_chunks}"
        return self._flat[slot * self.config.block_bytes : (slot + 1) * self.config.block_bytes]

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """HIT: ready. HIT_PENDING: being written. MISS: not here."""
        refs = self._chunks.get(key, _NOWHERE).refs
        if refs == _ABSENT:
            return LookupResult.MISS
        return LookupResult.HIT_PENDING if refs == WRITING else LookupResult.HIT

    def touch(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        """Blocks were used again, head of the prefix first; those absent or still being written are passed over."""
        self._policy.touch([key for key in keys if self._chunks.get(key, _NOWHERE).refs >= 0])

    def prepare_store(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """Reserve a slot for each key that is not here; the caller fills them, then calls `complete_store`.

        Keys already here, ready or not, are left out and not evicted. None: too few slots can be freed, nothing
        changed. No key at all gives an empty output.
        """
        wanted = dict.fromkeys(keys)
        new = tuple(key for key in wanted if key not in self._chunks)
        victims = self._policy.evict(max(0, len(new) - len(self._free)), wanted)
        if victims is None:
            return None
        self._forget(victims, "capacity", req_context.traceparent)
        slots = tuple(self._free.pop() for _ in new)
        self._chunks.update((key, _Chunk(slot)) for key, slot in zip(new, slots, strict=True))
        self._policy.insert(new)
        self._writing.update(dict.fromkeys(new, time.monotonic()))
        return PrepareStoreOutput(new, slots, tuple(victims))

    def complete_store(self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True) -> None:
        """The slots of prepared keys were filled, or (`success` false) hold undefined bytes and are freed."""
        for key in keys:
            chunk = self._chunks.get(key, _NOWHERE)
            assert chunk.refs == WRITING, f"{_describe(key, chunk)}: complete_store without prepare_store"
            del self._writing[key]
            if success:
                chunk.refs = 0
                self._policy.unpin(key)
            else:
                self._policy.remove(key)
        if success and keys:
            self._events.append(OffloadingEvent(tuple(keys), "CPU", removed=False))
        elif keys:
            self._forget(keys, "failed", req_context.traceparent)

    def _forget(self, keys: Collection[OffloadKey], reason: EvictionReason, traceparent: str | None) -> None:
        """Free the slots of keys that have left the policy."""
        if keys:
            self._free.extend(self._chunks.pop(key).slot for key in keys)
            if reason != "failed":  # those were never announced
                self._events.append(OffloadingEvent(tuple(keys), "CPU", removed=True))
            self._observer.on_event(Eviction(len(keys), reason, traceparent))

    def prepare_load(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> tuple[int, ...]:
        """Pin ready blocks for a request that uses them; the slots, in order. A key given twice is pinned twice."""
        slots = self.prepare_read(keys, req_context)
        self._policy.touch(keys)
        return slots

    def complete_load(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        """Unpin what `prepare_load` pinned."""
        self.complete_read(keys, req_context)

    def prepare_read(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> tuple[int, ...]:
        """Pin ready blocks without counting it as a use: a cascade copies them to another tier."""
        slots = []
        for key in keys:
            chunk = self._chunks.get(key, _NOWHERE)
            assert chunk.refs >= 0, f"{_describe(key, chunk)}: not ready to be read"
            if chunk.refs == 0:
                self._policy.pin(key)
                self._pinned += 1
            chunk.refs += 1
            slots.append(chunk.slot)
        return tuple(slots)

    def complete_read(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        """Unpin what `prepare_read` pinned."""
        for key in keys:
            chunk = self._chunks.get(key, _NOWHERE)
            assert chunk.refs > 0, f"{_describe(key, chunk)}: completed without prepare"
            chunk.refs -= 1
            if chunk.refs == 0:
                self._policy.unpin(key)
                self._pinned -= 1

    def reset_cache(self) -> None:
        """Forget every block, used or not; nothing prepared before may be completed after."""
        ready = tuple(key for key, chunk in self._chunks.items() if chunk.refs != WRITING)
        if ready:
            self._events.append(OffloadingEvent(ready, "CPU", removed=True))
        if self._chunks:
            self._observer.on_event(Eviction(len(self._chunks), "reset"))
        self._clear()

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Events since the last call, at most `EVENTS_MAX`."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def gauges(self) -> Mapping[str, float]:
        """Slots by state, which add up to `num_chunks`, and for how long a block has been HIT_PENDING at most."""
        free, pinned = len(self._free), self._pinned
        since = tuple(self._writing.values())  # one step, since another thread may call this
        return {
            "slots_free": free,
            "slots_writing": len(since),
            "slots_pinned": pinned,
            "slots_evictable": self.config.num_chunks - free - len(since) - pinned,
            "pending_oldest_seconds": time.monotonic() - since[0] if since else 0.0,
        }

    def chunks(self) -> dict[OffloadKey, ChunkStatus]:
        """A copy of the whole account, for checks. O(blocks)."""
        return {key: ChunkStatus(chunk.slot, chunk.refs) for key, chunk in self._chunks.items()}

    def check_integrity(self) -> list[str]:
        """What the accounts find wrong with themselves; empty is well. O(slots)."""
        findings = []
        uses = Counter(self._free)
        uses.update(chunk.slot for chunk in self._chunks.values())
        for slot in sorted(uses.keys() | range(self.config.num_chunks)):
            if not 0 <= slot < self.config.num_chunks:
                findings.append(f"slot {slot} does not exist, there are {self.config.num_chunks}")
            elif uses[slot] != 1:
                findings.append(f"slot {slot} is accounted for {uses[slot]} times")
        for key, chunk in self._chunks.items():
            if chunk.refs < WRITING:
                findings.append(f"{_describe(key, chunk)}: impossible reference count")
        idle = {key for key, chunk in self._chunks.items() if chunk.refs == 0}
        writing = sum(chunk.refs == WRITING for chunk in self._chunks.values())
        pinned = len(self._chunks) - len(idle) - writing
        if (writing, pinned) != (len(self._writing), self._pinned):
            findings.append(f"writing, pinned are {writing}, {pinned}; counted {len(self._writing)}, {self._pinned}")
        if wrong := idle ^ self._policy.evictable():
            findings.append(f"{len(wrong)} keys are idle or evictable in the policy, not both")
        if len(self._policy) != len(self._chunks) or any(key not in self._policy for key in self._chunks):
            findings.append(f"the policy knows {len(self._policy)} keys, there are {len(self._chunks)} blocks")
        return findings + self._policy.check_integrity()


def _describe(key: OffloadKey, chunk: _Chunk) -> str:
    where = "is not here" if chunk is _NOWHERE else f"in slot {chunk.slot} with {chunk.refs} references"
    return f"{key.hex()} {where}"
