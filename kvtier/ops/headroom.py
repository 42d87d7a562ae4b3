"""How many bytes may still come to a measured root, and this process's grant of them. Does no I/O but one `statvfs`.

Each measurement grants each process the same: an eighth of the headroom, or of the band above the low water mark if
that is less. Bytes that the process reserved and has not released count against it.
"""

from __future__ import annotations

import enum
import math
import os
import threading
from typing import NamedTuple

from kvtier.config import CapacityConfig
from kvtier.events import FileEvictionReason
from kvtier.ops.lease import Root

WRITERS = 8  # a grant is one part of so many


class Headroom(NamedTuple):
    """Bytes until a root is at its low and high water marks (negative: beyond them), and those that stores may add: up
    to the limit, but not more than lie between it and the low water mark. `reason`: the narrower limit."""

    low: float
    high: float
    stores: float
    reason: FileEvictionReason


class Level(NamedTuple):
    """What a measurement means. `excess_bytes` have to be evicted; the root grew by `growth` bytes a second."""

    root: Root
    headroom: Headroom
    excess_bytes: float
    growth: float
    measured_seconds: float  # time.monotonic()


def headroom_of(root: Root, root_dir: str, config: CapacityConfig) -> Headroom:
    """The least headroom of the limits in `config`. Raises OSError."""
    used, low, high = root.bytes, config.low_water, config.high_water
    rooms = []
    if (limit := config.max_bytes) is not None:
        stores = limit - max(used, limit * low)
        rooms.append(Headroom(limit * low - used, limit * high - used, stores, "max_bytes"))
    if (least := config.min_free_bytes) is not None:
        status = os.statvfs(root_dir)
        free = status.f_bavail * status.f_frsize
        stores = min(free, least / low) - least
        rooms.append(Headroom(free - least / low, free - least / high, stores, "min_free_bytes"))
    lows, highs, stores_of, _ = zip(*rooms, strict=True)
    return Headroom(min(lows), min(highs), min(stores_of), min(rooms, key=lambda room: room.low).reason)


class Demand(enum.IntEnum):
    """What stores need since the last measurement; anything but NONE requests urgent eviction."""

    NONE = 0
    HALF_USED = 1  # of the grant
    REFUSED = 2  # a store


class ProcessGrant:
    """What this process may store until the next measurement. `reserve` and `release` belong to one thread; the thread
    that evicts reads `demand` and `is_too_small`, and resets `demand`."""

    def __init__(self, due: threading.Event) -> None:
        self.demand = Demand.NONE
        self.is_too_small = False  # for one store
        self._due = due  # set: the next round of eviction is due at once
        self._level: Level | None = None  # the measurement that the grant comes from
        self._share = self._budget = 0.0  # what it granted, and what is left of that
        self._reserved_bytes = 0

    def reserve(self, level: Level | None, blocks: int, file_bytes: int) -> int:
        """How many of `blocks` files may be stored now, none before the first measurement. The last one may exceed the
        budget, so that any limit admits something."""
        if level is not None and level is not self._level:
            self._level = level
            self._share = level.headroom.stores / WRITERS
            self.is_too_small, self._budget = self._share < file_bytes, self._share - self._reserved_bytes
        reserved = max(0, min(blocks, math.ceil(self._budget / file_bytes)))
        self._budget -= reserved * file_bytes
        self._reserved_bytes += reserved * file_bytes
        half_used = Demand.HALF_USED if self._budget < self._share / 2 else Demand.NONE
        demand = Demand.REFUSED if reserved < blocks else half_used
        if demand > self.demand or demand is Demand.REFUSED:
            self.demand = demand
            self._due.set()
        return reserved

    def release(self, blocks: int, file_bytes: int) -> None:
        """So many reserved files are written, or never will be."""
        self._reserved_bytes -= blocks * file_bytes
