"""`FileSystemTierManager`: blocks in files under one root that any number of processes and hosts share.

File names, block I/O, the thread pool, lookups and admission put together, and little else; `kvtier.factory` builds
them. The scheduler's thread calls it; no call but `drain_jobs` and `shutdown` waits for a device.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kvtier.background import BackgroundThreads
from kvtier.base import (
    JobId,
    JobResult,
    LookupResult,
    OffloadingEvent,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    SecondaryTierManager,
    TransferJob,
)
from kvtier.config import FsTierConfig, SlotError
from kvtier.events import (
    BlockQuarantined,
    Direction,
    FilesEvicted,
    JobFinished,
    LookupBatch,
    NullObserver,
    Observer,
    ThreadDied,
    ThreadRole,
    TierAnswers,
    child_traceparent,
)
from kvtier.fs.admission import EVICTED_KEYS_MAX, Admission, Evicted, Refusal
from kvtier.fs.async_lookup import AsyncLookupManager
from kvtier.fs.block_io import BlockIO, BlockOutcome
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.thread_pool import Cancelled, Completion, DualQueueThreadPool, Work
from kvtier.hashing import BlockHash, OffloadKey, none_hash_digest

logger = logging.getLogger(__name__)

LINKS_MAX = 8
FILE_BYTES = 64 << 10
"""The cost of a file beside its bytes, in bytes: a task of many tiny blocks takes as long as one of few large ones."""
TASK_BLOCKS_MIN = 4
"""A thread is not woken for fewer blocks, where `task_bytes_max` allows as many: on two cores the wake-ups of many
processes' small tasks would leave little time to their stores."""
_ANSWER = {True: LookupResult.HIT, False: LookupResult.MISS, None: LookupResult.RETRY}


_Outcomes = Sequence[BlockOutcome]


class _Submitted(NamedTuple):
    job: TransferJob
    tasks: list[tuple[OffloadKey, ...]]  # the keys of each
    submitted_seconds: float
    own_traceparent: str | None
    refusal: str  # why the blocks of no task were not enqueued


class FileSystemTierManager(SecondaryTierManager):
    """A secondary tier over `config.root_dir` for the blocks of `config.block_bytes` in `slots`, one after the other.

    It owns its collaborators, which `kvtier.factory.open_fs_tier` makes: `shutdown` ends their threads and releases
    `slots`. All of them start their threads with `background`.
    """

    def __init__(
        self,
        config: FsTierConfig,
        none_hash: BlockHash,
        slots: memoryview,
        file_mapper: FileMapper,
        blockio: BlockIO,
        lookup: AsyncLookupManager,
        pool: DualQueueThreadPool,
        admission: Admission,
        background: BackgroundThreads,
        observer: Observer | None = None,
        tier_type: str = "fs",
    ) -> None:
        self.tier_type = tier_type
        self.config = config
        self.none_hash = none_hash
        self.file_mapper = file_mapper
        self.blockio = blockio
        self._slots, self._slot_count = slots, len(slots) // config.block_bytes
        self._lookup, self._pool = lookup, pool
        self._admission, self._quota = admission, admission.quota
        self._background = background
        self._observer = observer or NullObserver()
        self._submitted: dict[JobId, _Submitted] = {}
        self._answers: dict[bool | None, int] = dict.fromkeys(_ANSWER, 0)  # of this step
        self._blocks_requested = 0  # by the loads of this step
        self._evicted: dict[OffloadKey, None] = {}  # by this process, the latest
        self._missed_evicted = 0
        self._events: list[OffloadingEvent] = []
        if self._quota:
            self._quota.start(background)

    def __repr__(self) -> str:
        """A status line."""
        jobs = len(self._submitted)
        parts = self._lookup, self._pool, self._admission
        return f"<FileSystemTierManager {self.tier_type!r} at {self.config.root_dir}: {jobs} jobs in flight; {parts!r}>"

    # --- requests ---

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookup.cleanup(req_context.req_id)

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self._background.deaths:
            self._need("lookup")
        present = self._lookup.lookup(key, req_context.req_id, req_context.traceparent)
        self._answers[present] += 1
        if present is False and key in self._evicted:
            del self._evicted[key]
            self._missed_evicted += 1
        return _ANSWER[present]

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        for fact in self._lookup.take_facts():
            self._observer.on_event(LookupBatch(self.tier_type, *fact))
        if self._quota:
            for evicted in self._quota.take_facts():
                self._on_evicted(evicted)
            self.blockio.recency_seconds = self._quota.recency_seconds
        hits, misses, retries = self._answers.values()
        if hits > self._blocks_requested:  # a hit that no load followed found no slot: stores give some back
            self._pool.cancel_newest("store", self._admission.backlog_bytes, Refusal.BACKLOG)
        self._blocks_requested = 0
        if hits or misses:  # a waiting request repeats its lookup in every step; that is no news
            self._observer.on_event(TierAnswers(self.tier_type, hits, misses, retries, self._missed_evicted))
            self._answers, self._missed_evicted = dict.fromkeys(_ANSWER, 0), 0
        self._need()
        self._lookup.flush()  # last: the threads that it wakes need Python's lock

    # --- jobs ---

    def submit_store(self, job: TransferJob) -> None:
        self._need("load", "store", "capacity")
        self._submit(job, "store")

    def submit_load(self, job: TransferJob) -> None:
        self._need("load", "store")
        self._blocks_requested += len(job.keys)
        self._submit(job, "load")

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results = [self._complete(completion) for completion in self._pool.get_finished()]
        if not results:
            self._need("load", "store")
        return results

    def has_pending_work(self) -> bool:
        return bool(self._submitted)

    def drain_jobs(self) -> None:
        if not self._pool.wait_idle():
            self._need("load", "store")

    def take_events(self) -> Iterable[OffloadingEvent]:
        events, self._events = self._events, []
        return events

    def gauges(self) -> Mapping[str, float]:
        own = {"jobs_in_flight": len(self._submitted), "lookup_oldest_seconds": self._lookup.oldest_seconds()}
        root = dict(self._quota.gauges()) if self._quota else {}
        if self.config.capacity is not None and (limit := self.config.capacity.max_bytes) is not None:
            root["root_limit_bytes"] = limit
        return {**self._pool.gauges(), **own, **root}

    def space(self) -> Mapping[str, float]:
        """Free and all bytes of the root's file system, which may hang: for a thread that can wait, never the
        scheduler's. Raises OSError."""
        status = os.statvfs(self.file_mapper.base_path)
        free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        return {"file_system_free_bytes": free, "file_system_size_bytes": size}

    def info(self) -> Mapping[str, str]:
        """What processes must have in common to share blocks, and how this one does its I/O, for people."""
        return {
            "folder": os.path.basename(self.file_mapper.base_path),
            "hash_algorithm": self.config.hash_algorithm,
            "none_hash": none_hash_digest(self.none_hash)[:8],
            "block_bytes": str(self.config.block_bytes),
            "integrity": self.config.integrity,
            "io": self.config.io if self.blockio.direct else "buffered",
        }

    def shutdown(self) -> None:
        if self._quota:
            self._quota.stop()
        self._lookup.shutdown()
        self._pool.shutdown()
        self._slots.release()  # the owner of the slots may now give their memory back

    def _need(self, *roles: ThreadRole) -> None:
        """Emit an event for each thread that died. Raises KvtierError when one of `roles` did: the call needs it."""
        for death in self._background.take_deaths():
            self._observer.on_event(ThreadDied(self.tier_type, *death))
        self._background.check(*roles)

    # --- how a job becomes tasks, and outcomes become a result ---

    def _submit(self, job: TransferJob, direction: Direction) -> None:
        assert job.job_id not in self._submitted, f"job {job.job_id} is already in flight"
        count, block_bytes = self._slot_count, self.config.block_bytes
        for slot in job.chunk_ids:
            if not 0 <= slot < count:
                raise SlotError(f"slot {slot} is out of range; the CPU tier has {count} slots, numbered from 0")
        # Small enough that nothing waits long behind a task, and that a job spreads over the threads that are idle, as
        # far as that is worth their wake-ups.
        idle = max(1, self._pool.idle_threads())
        most = self.config.task_bytes_max // max(FILE_BYTES, block_bytes)
        per_task = max(1, min(most, max(TASK_BLOCKS_MIN, -(-len(job.keys) // idle))))
        run = self._load_blocks if direction == "load" else self._store_blocks
        own_traceparent = child_traceparent(job.req_context.traceparent)
        if self._quota:
            self._quota.note_traffic()
        admitted, refusal = len(job.keys), ""
        if direction == "store":
            queued = self._pool.queued_bytes("store"), self._pool.oldest_seconds("store")
            admitted, refusal = self._admission.reserve(admitted, *queued)
        tasks: list[tuple[OffloadKey, ...]] = []
        works: list[Work] = []
        for start in range(0, admitted, per_task):
            end = min(start + per_task, admitted)
            keys, slots = job.keys[start:end], job.chunk_ids[start:end]
            tasks.append(keys)
            works.append((functools.partial(run, keys, slots, own_traceparent), (end - start) * block_bytes))
        self._submitted[job.job_id] = _Submitted(job, tasks, time.monotonic(), own_traceparent, refusal)
        self._pool.submit(job.job_id, direction, works)

    def _complete(self, completion: Completion) -> JobResult:
        """Turn what the tasks returned into the one result of the job, the presence cache's knowledge, and events."""
        submitted = self._submitted.pop(completion.job_id)
        job, outcomes = submitted.job, list[BlockOutcome]()
        for keys, result in zip(submitted.tasks, completion.results, strict=True):
            outcomes += [BlockOutcome(_reason(result))] * len(keys) if isinstance(result, BaseException) else result
        if completion.direction == "store":
            self._admission.release(outcomes)
        outcomes += [BlockOutcome(submitted.refusal)] * (len(job.keys) - len(outcomes))
        failures, ok = Counter([outcome.reason for outcome in outcomes if outcome.reason]), job.keys
        if failures:
            ok = tuple(key for key, outcome in zip(job.keys, outcomes, strict=True) if outcome.ok)
        self._lookup.mark_present(ok)
        if failures and completion.direction == "load":
            failed = [key for key, outcome in zip(job.keys, outcomes, strict=True) if not outcome.ok]
            self._lookup.mark_absent(failed, job.req_context.req_id)
        self._emit(submitted, completion, outcomes, failures)
        facts = completion.facts
        return JobResult(
            completion.job_id,
            not failures,
            ok,
            max((fact.finished_seconds for fact in facts), default=0.0)
            - min((fact.started_seconds for fact in facts), default=0.0),
            len(ok) * self.config.block_bytes,
        )

    def _emit(self, submitted: _Submitted, done: Completion, outcomes: _Outcomes, failures: Counter[str]) -> None:
        job, _, submitted_seconds, own_traceparent, _ = submitted
        loading = done.direction == "load"
        ok = [outcome for outcome in outcomes if outcome.reason is None]
        loaded, own = ok if loading else [], self.blockio.instance_id
        for outcome in outcomes:
            if outcome.quarantined is not None:
                self._observer.on_event(
                    BlockQuarantined(self.tier_type, outcome.reason or "replaced", outcome.quarantined)
                )
        self._observer.on_event(
            JobFinished(
                tier=self.tier_type,
                direction=done.direction,
                job_id=done.job_id,
                req_id=job.req_context.req_id,
                blocks_ok=len(ok),
                blocks_skipped=len([outcome for outcome in ok if outcome.skipped]),
                blocks_cross_process=len([o for o in loaded if o.writer not in (None, own)]),
                failures=tuple(failures.items()),
                bytes_ok=len(ok) * self.config.block_bytes,
                submitted_seconds=submitted_seconds,
                finished_seconds=max((fact.finished_seconds for fact in done.facts), default=submitted_seconds),
                tasks=done.facts,
                traceparent=job.req_context.traceparent,
                links=tuple(dict.fromkeys([o.traceparent for o in loaded if o.traceparent]))[:LINKS_MAX],
                blocks_unverified=len([outcome for outcome in loaded if outcome.writer is None]),
                own_traceparent=own_traceparent,
            )
        )
        if self.config.enable_kv_events:
            pairs = list(zip(job.keys, outcomes, strict=True))
            # Blocks that were present before count too: these events alone show a router that this engine has them.
            stored = tuple(key for key, o in pairs if not loading and o.ok)
            removed = tuple(key for key, o in pairs if loading and o.quarantined)
            self._events += [
                OffloadingEvent(keys, "STORAGE", gone) for keys, gone in ((stored, False), (removed, True)) if keys
            ]

    def _on_evicted(self, evicted: Evicted) -> None:
        self._lookup.mark_absent(evicted.keys)
        self._evicted |= dict.fromkeys(evicted.keys)
        while len(self._evicted) > EVICTED_KEYS_MAX:
            del self._evicted[next(iter(self._evicted))]
        self._observer.on_event(FilesEvicted(self.tier_type, evicted.reason, *evicted[2:]))
        if self.config.enable_kv_events:
            self._events.append(OffloadingEvent(evicted.keys, "STORAGE", True))

    # --- on the pool's threads ---

    def _load_blocks(self, keys: Sequence[OffloadKey], slots: Sequence[int], _: str | None) -> list[BlockOutcome]:
        return self.blockio.read_blocks(*self._places(keys, slots))

    def _store_blocks(self, keys: Sequence[OffloadKey], slots: Sequence[int], trace: str | None) -> list[BlockOutcome]:
        return self.blockio.write_blocks(*self._places(keys, slots), trace or "")

    def _places(
        self, keys: Sequence[OffloadKey], slots: Sequence[int]
    ) -> tuple[list[str], Sequence[OffloadKey], list[memoryview]]:
        """Paths, keys and memory of blocks."""
        size = self.config.block_bytes
        views = [self._slots[slot * size : (slot + 1) * size] for slot in slots]
        return [self.file_mapper.get_file_name(key) for key in keys], keys, views


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, Cancelled) else type(error).__name__
