"""Tiers that keep a root's limit wrongly: kvtier with another `Capacity`. Workers load them; they import kvtier, since
what they break lies inside it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from harness.adapters.kvtier import KvtierAdapter
from harness.mutants.base import detected_by
from kvtier.ops.catalog import BlockFile
from kvtier.ops.evictor import Capacity, Measured


class _OverCapacity(KvtierAdapter):
    """kvtier with another `Capacity`."""

    capacity: ClassVar[type[Capacity]]

    def _parts(self) -> Mapping[str, Any]:
        return {"quota": self.capacity}


class _LatestFirst(Capacity):
    def _old_blocks(self, measured: Measured, cutoff: float) -> Iterator[BlockFile]:
        yield from sorted(measured.sample, key=lambda block: block.used_seconds, reverse=True)


@detected_by("capacity", r"block \d+ was lost, though only \d+% of the limit was used since", scenario="capacity")
class EvictsTheLatestUsed(_OverCapacity):
    """What was used last is evicted first."""

    capacity = _LatestFirst


class _Unlimited(Capacity):
    def reserve(self, blocks: int, file_bytes: int) -> int:
        super().reserve(blocks, file_bytes)
        return blocks


@detected_by("capacity", r"above the limit of", scenario="capacity", max_bytes=2 << 20, slack=0.0, kept=8)
class StoresWhateverComes(_OverCapacity):
    """Stores are never refused, however far the root is over its limit: eviction may catch up or not."""

    capacity = _Unlimited


class _NoLease(Capacity):
    @contextlib.contextmanager
    def _lease(self) -> Iterator[int | None]:
        descriptor = os.open(self._lease_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _ought_to_lead(self) -> bool:
        super()._ought_to_lead()
        return True


@detected_by("capacity", r"evicted at the same time for", scenario="capacity")
class IgnoresTheLease(_OverCapacity):
    """Whoever wants to evict does so, whoever else is at it."""

    capacity = _NoLease


class _Idle(Capacity):
    def _evict(self, *_: object) -> None:
        time.sleep(0.01)


@detected_by("capacity", r"process \d+ stored nothing for", scenario="capacity", seconds=12.0)
class NeverEvicts(_OverCapacity):
    """The limit is kept by refusing stores alone, for ever."""

    capacity = _Idle
