"""Every observable fact, declared once as a typed tuple; mechanisms return facts, tiers and the manager emit them.

Metrics, traces, the harness's history and the tests are four consumers of this one stream. Events are emitted on the
caller's (scheduler's) thread, one per job or per lookup batch, never one per key. State that can be read at any time
(queue depth, free slots) is not an event: `gauges()` of its owner answers it.
"""

from __future__ import annotations

import logging
import os
from typing import Literal, NamedTuple, Protocol

logger = logging.getLogger(__name__)

Direction = Literal["load", "store"]
CorruptReason = Literal["kind", "size", "trailer", "key", "checksum", "unverified"]
"""Why a file is not the block it should be: no regular file, of a wrong size, its trailer is damaged, another block's,
its bytes are not those that were written, or it has no trailer where one must be."""
EvictionReason = Literal["capacity", "failed", "reset"]
FileEvictionReason = Literal["max_bytes", "min_free_bytes"]
ThreadRole = Literal["lookup", "load", "store", "watchdog", "capacity"]
"""What a background thread of a tier is for; "load" and "store" as the thread prefers."""


def child_traceparent(parent: str | None) -> str | None:
    """A W3C trace context of its own below `parent`, for a span that is named before it is written; None without one
    of version 00's form."""
    if parent is None or len(parent) != 55:
        return None
    return f"{parent[:36]}{os.urandom(8).hex()}{parent[52:]}"


class TaskFact(NamedTuple):
    """One bounded piece of a job as it ran. Clock: `time.monotonic()`, seconds; shared by all processes of a host."""

    direction: Direction
    thread_direction: Direction  # what its thread prefers: "load" = read-priority, "store" = write-priority
    thread: int  # index of the thread within the pool
    bytes: int
    depth: int  # tasks of the same direction ahead of it in its queue when it was enqueued
    enqueued_seconds: float
    started_seconds: float
    finished_seconds: float


class JobFinished(NamedTuple):
    """A store or load job of a secondary tier ended. Emitted exactly once per submitted job."""

    tier: str
    direction: Direction
    job_id: int
    req_id: str
    blocks_ok: int
    blocks_skipped: int  # stores whose block another writer had already published
    blocks_cross_process: int  # loads of blocks that another process instance wrote
    failures: tuple[tuple[str, int], ...]  # (reason, blocks): errno name, `CorruptReason`, `Refusal`, "shutdown"
    bytes_ok: int
    submitted_seconds: float
    finished_seconds: float
    tasks: tuple[TaskFact, ...]
    traceparent: str | None  # the request's context
    links: tuple[str, ...]  # traceparents of the stores that wrote the loaded blocks, distinct, at most 8
    blocks_unverified: int = 0  # loads of files without a trailer (vLLM's), taken as they are
    own_traceparent: str | None = None  # the job's own, below the request's: what the blocks it stored carry


class LookupBatch(NamedTuple):
    """One batch of existence probes ran on a lookup thread. Clock: `time.monotonic()`, seconds."""

    tier: str
    keys: int
    hits: int
    sent_seconds: float
    started_seconds: float
    finished_seconds: float
    traceparent: str | None = None  # of one of the requests that asked


class TierAnswers(NamedTuple):
    """A secondary tier answered lookups, from memory or after a probe, since its last such event; a block that is asked
    for in several steps counts in each. Emitted at the end of a step in which some answer was final."""

    tier: str
    hits: int
    misses: int
    retries: int
    evicted: int = 0  # of the misses: blocks that this process had evicted not long ago, each counted once


class BlockQuarantined(NamedTuple):
    """A file that was not the block it should be was moved to quarantine (or could not be, `path` empty)."""

    tier: str
    reason: str
    path: str


class FilesEvicted(NamedTuple):
    """This process evicted blocks from a root that had grown over a limit. Clock: `time.monotonic()`, seconds; it alone
    evicted in between. Emitted at the end of a step, one per round and folder."""

    tier: str
    reason: FileEvictionReason
    blocks: int
    bytes: int
    ages_seconds: tuple[float, ...]  # of some of them: for how long they had not been used
    started_seconds: float
    finished_seconds: float


class ThreadDied(NamedTuple):
    """A background thread ended by an exception, which is a bug. Emitted once for each, at the end of a step or before
    the tier raises."""

    tier: str
    thread: ThreadRole
    error: str  # type and text of the exception


class Lookup(NamedTuple):
    """The manager answered lookups of one request in one step: blocks by outcome."""

    req_id: str
    hits: int
    hits_pending: int
    misses: int
    retries: int


class Promotion(NamedTuple):
    """Blocks of one request were sent from a secondary tier towards the CPU tier; `refused`: no slot was free."""

    tier: str
    req_id: str
    blocks: int
    refused: int


class Cascade(NamedTuple):
    """Blocks that reached the CPU tier were handed to a secondary tier."""

    tier: str
    req_id: str
    blocks: int


class Eviction(NamedTuple):
    """Blocks left the CPU tier."""

    blocks: int
    reason: EvictionReason
    traceparent: str | None = None  # of the request that needed their slots


class CopyFinished(NamedTuple):
    """A copy between GPU blocks and CPU slots ended; direction as seen from the CPU tier ("store" = GPU -> CPU)."""

    direction: Direction
    job_id: int
    blocks: int
    bytes: int
    seconds: float
    ok: bool
    finished_seconds: float = 0.0  # `time.monotonic()` when it was seen to have ended


class RequestFinished(NamedTuple):
    """The manager has nothing left to do for a request. Clock: `time.monotonic()`, seconds."""

    req_id: str
    started_seconds: float
    finished_seconds: float
    traceparent: str | None  # the caller's context
    own_traceparent: str | None = None  # the request's own, where it has been promised to somebody


Event = (
    JobFinished
    | LookupBatch
    | TierAnswers
    | BlockQuarantined
    | FilesEvicted
    | ThreadDied
    | Lookup
    | Promotion
    | Cascade
    | Eviction
    | CopyFinished
    | RequestFinished
)


class Observer(Protocol):
    """Receives events on the scheduler's thread; must return quickly and never call back into its source."""

    def on_event(self, event: Event, /) -> None: ...


class NullObserver:
    """The default: nobody watches."""

    def on_event(self, event: Event, /) -> None:
        return


class FanOut:
    """Hands each event to several observers; one that raises is logged once and dropped, the others go on."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """From now on `observer` receives events too."""
        self._observers.append(observer)

    def on_event(self, event: Event, /) -> None:
        for observer in tuple(self._observers):
            try:
                observer.on_event(event)
            except Exception:
                logger.exception("observer %r raised and is dropped", observer)
                self._observers.remove(observer)
