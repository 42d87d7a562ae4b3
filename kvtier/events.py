"""Every observable fact, declared once as a typed tuple: mechanisms return facts, tiers and the manager emit them.

Metrics, traces, the harness's history and the tests consume this one stream. Events are emitted on the caller's
(scheduler's) thread, one per job or per lookup batch, never one per key. State that can be read at any time (queue
depth, free slots) is not an event: `gauges()` of its owner returns it.
"""

from __future__ import annotations

import logging
import os
from typing import Literal, NamedTuple, Protocol

logger = logging.getLogger(__name__)

Direction = Literal["load", "store"]
CorruptReason = Literal["kind", "size", "trailer", "key", "checksum", "unverified"]
"""Why a file is not the block of its name: it is no regular file, has the wrong size, a damaged trailer, the key of
another block, or bytes that do not match the checksum, or lacks a trailer that is required."""
EvictionReason = Literal["capacity", "failed", "reset"]
FileEvictionReason = Literal["max_bytes", "min_free_bytes"]
ThreadRole = Literal["lookup", "load", "store", "watchdog", "capacity"]
"""The purpose of a background thread of a tier; "load" and "store" are the direction that the thread prefers."""


def child_traceparent(parent: str | None) -> str | None:
    """A new W3C trace context below `parent`, for a span whose id is needed before it is written; None if `parent` has
    not version 00's form."""
    if parent is None or len(parent) != 55:
        return None
    return f"{parent[:36]}{os.urandom(8).hex()}{parent[52:]}"


class TaskFact(NamedTuple):
    """One task of a job as it ran. Clock: `time.monotonic()`, seconds; shared by all processes of a host."""

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
    blocks_unverified: int = 0  # loads of files without a trailer (vLLM's), which nothing verifies
    own_traceparent: str | None = None  # the job's own, below the request's: the blocks that it stored carry it


class LookupBatch(NamedTuple):
    """One batch of existence probes ran on a lookup thread. Clock: `time.monotonic()`, seconds."""

    tier: str
    keys: int
    hits: int
    sent_seconds: float
    started_seconds: float
    finished_seconds: float
    traceparent: str | None = None  # of one of the requests in the batch


class TierAnswers(NamedTuple):
    """Answers of a secondary tier since its last such event, from memory or after a probe.

    A block that is looked up in several steps counts in each. Emitted at the end of a step with a final answer.
    """

    tier: str
    hits: int
    misses: int
    retries: int
    evicted: int = 0  # of the misses: blocks that this process had evicted shortly before, each counted once


class BlockQuarantined(NamedTuple):
    """A damaged file was moved to quarantine, or could not be moved (`path` empty)."""

    tier: str
    reason: str
    path: str


class FilesEvicted(NamedTuple):
    """This process evicted blocks from a root above its limit, alone. Clock: `time.monotonic()`, seconds.

    Emitted at the end of a step, one per round and folder.
    """

    tier: str
    reason: FileEvictionReason
    blocks: int
    bytes: int
    ages_seconds: tuple[float, ...]  # of some of them: the time since their last use
    started_seconds: float
    finished_seconds: float


class ThreadDied(NamedTuple):
    """A background thread ended by an exception, which is a bug.

    Emitted once for each, at the end of a step or before the tier raises.
    """

    tier: str
    thread: ThreadRole
    error: str  # type and text of the exception


class Lookup(NamedTuple):
    """Lookups of one request that the manager answered in one step: blocks by outcome."""

    req_id: str
    hits: int
    hits_pending: int
    misses: int
    retries: int


class Promotion(NamedTuple):
    """Blocks of one request were sent from a secondary tier to the CPU tier; `refused`: no slot was free."""

    tier: str
    req_id: str
    blocks: int
    refused: int


class Cascade(NamedTuple):
    """Blocks of the CPU tier were sent to a secondary tier."""

    tier: str
    req_id: str
    blocks: int


class Eviction(NamedTuple):
    """Blocks left the CPU tier."""

    blocks: int
    reason: EvictionReason
    traceparent: str | None = None  # of the request that needed their slots


class CopyFinished(NamedTuple):
    """A copy between GPU blocks and CPU slots ended; "store" is GPU to CPU."""

    direction: Direction
    job_id: int
    blocks: int
    bytes: int
    seconds: float
    ok: bool
    finished_seconds: float = 0.0  # `time.monotonic()` when its end was observed


class RequestFinished(NamedTuple):
    """The manager has no work left for a request. Clock: `time.monotonic()`, seconds."""

    req_id: str
    started_seconds: float
    finished_seconds: float
    traceparent: str | None  # the caller's context
    own_traceparent: str | None = None  # the request's own, if other spans refer to it already


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
    """The default: ignores events."""

    def on_event(self, event: Event, /) -> None:
        return


class FanOut:
    """Passes each event to several observers. An observer that raises is logged and dropped; the others continue."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """Pass later events to `observer` too."""
        self._observers.append(observer)

    def on_event(self, event: Event, /) -> None:
        for observer in tuple(self._observers):
            try:
                observer.on_event(event)
            except Exception:
                logger.exception("observer %r raised and is dropped", observer)
                self._observers.remove(observer)
