"""Tiers that keep a root's limit wrongly: kvtier with another `Evictor`, or with another part in it. Workers load them;
they import kvtier, since their defects lie inside it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

from harness.adapters.base import Eviction, Finished
from harness.adapters.kvtier import KvtierAdapter
from harness.mutants.base import detected_by
from kvtier.ops.catalog import BlockFile
from kvtier.ops.evictor import Evictor
from kvtier.ops.lease import EvictorLease, Root
from kvtier.ops.victims import FolderExcess, Victims


class _OtherEvictor(KvtierAdapter):
    """kvtier with the evictor that `evictor` makes."""

    evictor: ClassVar[Any]

    def _parts(self) -> Mapping[str, Any]:
        return {"quota": self.evictor}


class _LatestFirst(Victims):
    def of(self, excess: FolderExcess) -> Iterator[BlockFile]:
        yield from sorted(excess.sample.blocks, key=lambda block: block.used_seconds, reverse=True)


@detected_by(
    "capacity/recency", r"block \d+ was lost, though only \d+% of the limit was used since", scenario="capacity"
)
class EvictsTheLatestUsed(_OtherEvictor):
    """The most recently used blocks are evicted first."""

    evictor = partial(Evictor, victims=_LatestFirst)


class _Unlimited(Evictor):
    def reserve(self, blocks: int, file_bytes: int) -> int:
        super().reserve(blocks, file_bytes)
        return blocks


@detected_by("capacity/limit", r"above the limit of", scenario="capacity", max_bytes=2 << 20, slack=0.0, kept=8)
class StoresWhateverComes(_OtherEvictor):
    """Stores are never refused, however far the root exceeds its limit."""

    evictor = _Unlimited


class _NoLock(EvictorLease):
    """Each process is the leader, and holds the lease whenever it wants to."""

    @contextlib.contextmanager
    def acquire(self) -> Iterator[int | None]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self.is_leader = True
            yield descriptor
        finally:
            os.close(descriptor)

    def poll(self) -> Root | None:
        self.is_leader = True
        return None


@detected_by("capacity/one-evictor", r"evicted at the same time for", scenario="capacity")
class IgnoresTheLease(_OtherEvictor):
    """Each process evicts when it wants to, although another one is evicting."""

    evictor = partial(Evictor, lease=_NoLock)


class _Idle(Evictor):
    def evict(self, *_: object) -> None:
        time.sleep(0.01)


@detected_by("capacity/goes-on", r"process \d+ stored nothing for", scenario="capacity", seconds=12.0)
class NeverEvicts(_OtherEvictor):
    """The limit is kept by refusing stores alone, for ever."""

    evictor = _Idle


@detected_by(
    "capacity/evictions-reported-once", r"\d+ blocks are reported evicted; \d+ were stored", scenario="capacity"
)
class ReportsEvictionsAgain(KvtierAdapter):
    """Each call reports all evictions again."""

    def evictions(self) -> list[Eviction]:
        return list(self._evictions)


@detected_by("capacity/refused-only", r"blocks failed, 0 of them refused", scenario="capacity", max_bytes=2 << 20)
class FailsAtTheLimit(KvtierAdapter):
    """Stores that exceed the limit fail without being reported as refused."""

    def poll(self) -> list[Finished]:
        return [result._replace(refused=0) for result in super().poll()]
