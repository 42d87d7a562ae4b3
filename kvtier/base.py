"""The contract between the orchestrating manager and a secondary tier, in vLLM's terms; nothing here does I/O.

One thread (the scheduler's) calls everything in this module. No call blocks on a device, except `drain_jobs` and
`shutdown`, which say so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

from kvtier.hashing import OffloadKey

JobId = int


class LookupResult(Enum):
    """HIT: readable now. HIT_PENDING: being written to the CPU tier. RETRY: repeat in the next step. MISS: compute."""

    MISS = "miss"
    HIT = "hit"
    HIT_PENDING = "hit_pending"
    RETRY = "retry"


@dataclass(frozen=True)
class ReqContext:
    """One request as tiers see it. `traceparent` is a W3C trace context, written into the blocks it stores."""

    req_id: str
    kv_transfer_params: Mapping[str, Any] | None = None
    traceparent: str | None = None


class OffloadPolicy(Enum):
    """CHUNK_LEVEL: only blocks new to the CPU tier are offered. REQUEST_LEVEL: all blocks of the request are."""

    CHUNK_LEVEL = "chunk_level"
    REQUEST_LEVEL = "request_level"


class RequestOffloadingContext(NamedTuple):
    """What a tier wants of one request."""

    policy: OffloadPolicy = OffloadPolicy.CHUNK_LEVEL


class ScheduleEndContext(NamedTuple):
    """The requests that a step began or preempted; the scheduler passes it at the end of each step."""

    new_req_ids: Sequence[str] = ()
    preempted_req_ids: Sequence[str] = ()


class OffloadingEvent(NamedTuple):
    """Blocks appeared in (`removed=False`) or left a medium; for routers that keep an index of blocks."""

    keys: tuple[OffloadKey, ...]
    medium: Literal["CPU", "STORAGE"]
    removed: bool


@dataclass(frozen=True)
class TransferJob:
    """A job for a secondary tier: `keys[i]` lives in (store) or goes to (load) slot `chunk_ids[i]` of the CPU tier."""

    job_id: JobId
    keys: tuple[OffloadKey, ...]
    chunk_ids: tuple[int, ...]
    is_promotion: bool
    req_context: ReqContext

    def __post_init__(self) -> None:
        assert len(self.keys) == len(self.chunk_ids), f"{len(self.keys)} keys for {len(self.chunk_ids)} slots"


class JobResult(NamedTuple):
    """How a job ended. `successful_keys` holds the blocks that made it, also when others of the job failed."""

    job_id: JobId
    success: bool  # every key succeeded
    successful_keys: tuple[OffloadKey, ...]
    transfer_seconds: float  # from the start of its first task to the end of its last, without the wait before
    transfer_bytes: int


class PrepareStoreOutput(NamedTuple):
    """Where to copy which blocks: `keys_to_store[i]` goes to slot `chunk_ids[i]`; `evicted_keys` left for them."""

    keys_to_store: tuple[OffloadKey, ...]
    chunk_ids: tuple[int, ...]
    evicted_keys: tuple[OffloadKey, ...]


class SecondaryTierManager(ABC):
    """A tier behind the CPU tier. It sees the CPU tier's memory as `primary_kv_view`, shape (slots, block_bytes).

    For every submitted job exactly one `JobResult` comes out of `get_finished_jobs`, also after an error and after
    `shutdown`. While an I/O call hangs, its job has none. Between submission and result the tier may touch the job's
    slots; never after the result.

    A call that depends on a background thread of the tier raises `KvtierError` once that thread has died of a bug; a
    job that such a thread had taken has no result.
    """

    tier_type: str

    @abstractmethod
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """HIT, MISS, or RETRY while a probe is under way. Never blocks. A failed load turns a HIT into a MISS."""

    @abstractmethod
    def submit_store(self, job: TransferJob) -> None:
        """Enqueue; slots are pinned by the caller until the result. Blocks already present count as successful."""

    @abstractmethod
    def submit_load(self, job: TransferJob) -> None:
        """Enqueue; slots are reserved by the caller. The slot of a block that fails holds undefined bytes, and its key
        is not among `successful_keys`."""

    @abstractmethod
    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Results since the last call; empty when there are none."""

    @abstractmethod
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """A request was first seen."""

    @abstractmethod
    def drain_jobs(self) -> None:
        """Block until no job is in flight. Results stay available from `get_finished_jobs`."""

    def on_request_finished(self, req_context: ReqContext) -> None:
        """No call for this request follows; jobs already submitted still report."""

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """The step is over: send what was batched."""

    def touch(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        """Blocks were used (for tiers that evict)."""

    def has_pending_work(self) -> bool:
        """Whether the engine should keep stepping although no request is scheduled."""
        return False

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Events since the last call."""
        return ()

    def gauges(self) -> Mapping[str, float]:
        """Plain numbers of the present state, for scrapes and progress lines; any thread may call it."""
        return {}

    def shutdown(self) -> None:
        """Running tasks end, queued ones are cancelled; each job still gets its result. Blocks until threads ended."""
