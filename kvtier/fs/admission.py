"""`Admission`: the one place that decides how many blocks of a store are enqueued, and why the others are refused.

A cache may drop blocks. It must not fail loads, hold all slots of the CPU tier, or fill the log. The scheduler's thread
calls this module; nothing in it does I/O.

`Quota` is the protocol of a limit of the root. The core uses this protocol alone; `kvtier.ops.evictor`
implements it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from kvtier.background import BackgroundThreads
from kvtier.config import PAGE_BYTES, FsTierConfig
from kvtier.events import FileEvictionReason
from kvtier.fs.block_io import BlockOutcome
from kvtier.hashing import OffloadKey

logger = logging.getLogger(__name__)

EVICTED_KEYS_MAX = 100_000
BACKLOG_SECONDS = 1.0
"""Once a store has waited for so long, a queue that holds more than half of the slots is a backlog, no burst."""
STORE_PAUSE_SECONDS_MIN = 0.1
STORE_PAUSE_SECONDS_MAX = 30.0


class Refusal(StrEnum):
    """Why a store was refused, which is no failure. The values are those of the label `reason` in metrics."""

    QUEUE_FULL = "refused"  # the queue of stores holds `store_queue_bytes_max`
    BACKLOG = "backlog"  # stores in the queue hold half of the CPU tier's slots, for long or while loads lack slots
    QUOTA = "full"  # the root is at its limit
    NO_SPACE = "ENOSPC"  # the volume was full a moment ago; the errno's own name, as of the store that found it


REFUSAL_REASONS: tuple[str, ...] = tuple(reason.value for reason in Refusal if reason is not Refusal.NO_SPACE)
"""Reasons that only a refusal has."""

_NO_SPACE_ERRNOS = frozenset(("ENOSPC", "EDQUOT"))


class Evicted(NamedTuple):
    """What one round took from one folder; `ages_seconds` of some of the files, `keys` of up to `EVICTED_KEYS_MAX`.
    Times: `time.monotonic()`; the lease was held from start to finish."""

    reason: FileEvictionReason
    keys: tuple[OffloadKey, ...]
    files: int
    bytes: int
    ages_seconds: tuple[float, ...]
    started_seconds: float
    finished_seconds: float


class Quota(Protocol):
    """Keeps a root below its limits and grants stores the headroom that is left. One thread calls it."""

    def start(self, background: BackgroundThreads) -> None:
        """Evict on a thread of its own until `stop`."""

    def stop(self) -> None:
        """Blocks until the thread has ended."""

    def reserve(self, blocks: int, file_bytes: int) -> int:
        """How many of `blocks` files may be stored now; `release` of that many must follow. Never blocks."""

    def release(self, blocks: int, file_bytes: int) -> None:
        """That many reserved blocks are written, or never will be."""

    def note_traffic(self) -> None:
        """A job was submitted: this process is busy."""

    def take_facts(self) -> Iterable[Evicted]:
        """Evictions since the last call."""

    def gauges(self) -> Mapping[str, float]:
        """Plain numbers of the root's present state; any thread may call it."""

    @property
    def recency_seconds(self) -> float:
        """How old a block's mark of use may become before a load renews it."""


class Grant(NamedTuple):
    """The first `blocks` of a store may be enqueued; the others are refused for `refusal`, "" where there are none."""

    blocks: int
    refusal: str


class Admission:
    """Admits stores for a queue of `config.store_queue_bytes_max`, a CPU tier of `slots_bytes`, a volume that may be
    full, and a `quota`. Loads need no admission: the slots of their caller bound them."""

    def __init__(self, config: FsTierConfig, slots_bytes: int, quota: Quota | None = None) -> None:
        self.quota = quota
        self._config = config
        self._file_bytes = config.block_bytes + PAGE_BYTES
        self._slots_bytes = slots_bytes
        self._pause_seconds = 0.0  # 0: stores go on; else how long they are refused before one is tried again
        self._resume_seconds = 0.0

    def __repr__(self) -> str:
        paused = f"no space, stores pause for {self._pause_seconds:g} s" if self._pause_seconds else "stores go on"
        return f"<Admission: {paused}, quota {'set' if self.quota else 'not set'}>"

    @property
    def backlog_bytes(self) -> int:
        """What the queue of stores may hold while loads lack slots: half of them."""
        return self._slots_bytes // 2

    def reserve(self, blocks: int, queued_bytes: int, oldest_seconds: float) -> Grant:
        """How many of a store's first blocks may be enqueued while `queued_bytes` of stores wait, the oldest for
        `oldest_seconds`. `release` with the outcomes of that many must follow."""
        granted, refusal = 0, Refusal.QUEUE_FULL
        if 2 * queued_bytes > self._slots_bytes and oldest_seconds > BACKLOG_SECONDS:
            refusal = Refusal.BACKLOG
        elif self._pause_seconds and time.monotonic() < self._resume_seconds:
            refusal = Refusal.NO_SPACE
        else:
            headroom = max(0, self._config.store_queue_bytes_max - queued_bytes)
            fitting = min(blocks, headroom // self._config.block_bytes)
            granted = self.quota.reserve(fitting, self._file_bytes) if self.quota else fitting
            if granted == blocks:
                return Grant(granted, "")
            if granted < fitting:
                refusal = Refusal.QUOTA
        logger.debug("%d of %d blocks refused: %s; %d bytes queued", blocks - granted, blocks, refusal, queued_bytes)
        return Grant(granted, refusal)

    def release(self, outcomes: Sequence[BlockOutcome]) -> None:
        """The reserved blocks of one store ended like this.

        Stores pause when the volume has no space, twice as long each time, and go on when one has worked again.
        """
        if self.quota:
            self.quota.release(len(outcomes), self._file_bytes)
        reasons = {outcome.reason for outcome in outcomes}
        if not _NO_SPACE_ERRNOS.isdisjoint(reasons):
            if not self._pause_seconds:
                logger.warning("%s has no space: stores pause, loads go on", self._config.root_dir)
            self._pause_seconds = min(STORE_PAUSE_SECONDS_MAX, 2 * self._pause_seconds or STORE_PAUSE_SECONDS_MIN)
            self._resume_seconds = time.monotonic() + self._pause_seconds
        elif self._pause_seconds and any(outcome.ok and not outcome.skipped for outcome in outcomes):
            logger.warning("%s has space again: stores go on", self._config.root_dir)
            self._pause_seconds = 0.0
