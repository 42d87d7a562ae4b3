"""`FileSystemTierManager`: blocks in files under one root that any number of processes and hosts share.

Layout, block I/O, the thread pool and the lookups put together, and little else. The scheduler's thread calls
it; no call but `drain_jobs` and `shutdown` waits for a device.

Processes share blocks exactly when they derive the same `NONE_HASH` (the seed of the hash chain) and the same hash
algorithm: the root remembers both, and a process that would not share is told at start.
"""

from __future__ import annotations

import ctypes
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
from kvtier.config import PAGE_BYTES, ConfigError, FsTierConfig, RunConfig, SlotError
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
from kvtier.fs import posix as file_system
from kvtier.fs.async_lookup import AsyncLookupManager
from kvtier.fs.block_io import BlockIO, BlockOutcome
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.root import check_trust, open_root
from kvtier.fs.thread_pool import Cancelled, Completion, DualQueueThreadPool, Work
from kvtier.hashing import BlockHash, OffloadKey, none_hash_digest
from kvtier.hashing import none_hash as derive_none_hash
from kvtier.ops.evictor import EVICTED_KEYS_MAX, Capacity, Evicted

logger = logging.getLogger(__name__)

LINKS_MAX = 8
FILE_BYTES = 64 << 10
"""What a file costs beside its bytes, in bytes: a task of many tiny blocks takes as long as one of few large ones."""
TASK_BLOCKS_MIN = 4
"""A thread is not woken for fewer blocks, where `task_bytes_max` allows as many: on two cores the wake-ups of many
processes' small tasks would leave little time to their stores."""
_ANSWER = {True: LookupResult.HIT, False: LookupResult.MISS, None: LookupResult.RETRY}
NO_SPACE = ("ENOSPC", "EDQUOT")
STORE_PAUSE_SECONDS_MAX = 30.0


class _Submitted(NamedTuple):
    job: TransferJob
    blocks_per_task: int
    submitted_seconds: float
    own_traceparent: str | None
    admitted: int  # the first so many blocks were enqueued
    refusal: str  # why the others were not


def open_folders(
    config: FsTierConfig, mapper: FileMapper, hash_algorithm: str | None, none_hash: BlockHash | None = None
) -> None:
    """Make the mapper's folders, and compare what stands there with what this process has. Without `none_hash` as much
    as is known without it, for engines that derive it after their tiers. Raises RootError; logs what "warn" allows."""
    check_trust(mapper, config.on_untrusted_root)
    open_root(
        mapper,
        hash_algorithm=hash_algorithm,
        none_digest=None if none_hash is None else none_hash_digest(none_hash),
        block_bytes=config.block_bytes,
        on_mismatch=config.on_mismatch,
        dir_mode=config.dir_mode,
        file_mode=config.file_mode,
    )


class FileSystemTierManager(SecondaryTierManager):
    """A secondary tier over `config.root_dir` for the slots in `primary_kv_view`, shape (slots, config.block_bytes).

    `run` says whose blocks these are and so which folder they live in. `none_hash` is given by an engine that has
    derived it already; without it, it is derived as `config` says. Raises RootError when the root cannot be used,
    or was written by processes that would not share with this one (`config.on_mismatch`).
    """

    def __init__(
        self,
        config: FsTierConfig,
        run: RunConfig,
        primary_kv_view: memoryview,
        observer: Observer | None = None,
        tier_type: str = "fs",
        none_hash: BlockHash | None = None,
    ) -> None:
        shape = primary_kv_view.shape or (0, 0)
        if len(shape) != 2 or shape[1] != config.block_bytes or not primary_kv_view.c_contiguous:
            raise ConfigError(
                f"primary_kv_view has shape {shape}; it must be (slots, {config.block_bytes}), contiguous"
            )
        self.tier_type = tier_type
        self.config = config
        self.none_hash = none_hash or derive_none_hash(config.hash_algorithm, config.seed_policy)
        self.file_mapper = FileMapper(config.root_dir, run)
        self._slots = shape[0]
        self._bytes = primary_kv_view.cast("B")
        self._observer = observer or NullObserver()
        open_folders(config, self.file_mapper, config.hash_algorithm, self.none_hash)
        seed = bytes.fromhex(none_hash_digest(self.none_hash))[:8]
        self.blockio = BlockIO(config, self.file_mapper.quarantine_path, seed)
        self.blockio.probe(self.file_mapper.base_path, aligned=_address(self._bytes) % PAGE_BYTES == 0)
        self._misses_are_remembered = file_system.type_at(self.file_mapper.base_path) in ("nfs", "nfs4")
        self._submitted: dict[JobId, _Submitted] = {}
        self._answers: Counter[bool | None] = Counter()  # of this step
        self._evicted: dict[OffloadKey, None] = {}  # by this process, the latest
        self._missed_evicted = 0
        self._events: list[OffloadingEvent] = []
        self._background = BackgroundThreads()
        self._lookup = AsyncLookupManager(
            self._probe, config.known_keys_max, f"kvtier_{tier_type}_lookup", config.hung_seconds, self._background
        )
        self._pool = DualQueueThreadPool(
            config.n_read_threads,
            config.n_write_threads,
            config.store_queue_bytes_max,
            f"kvtier_{tier_type}",
            config.hung_seconds,
            config.thread_nice,
            self._background,
        )
        self._store_pause_seconds = 0.0  # the volume is full: how long stores are refused before one is tried again
        self._stores_resume_seconds = 0.0
        self._capacity = Capacity(config.root_dir, config.capacity) if config.capacity else None
        if self._capacity:
            self._capacity.start(self._background)

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
        self._lookup.flush()
        for fact in self._lookup.take_facts():
            self._observer.on_event(LookupBatch(self.tier_type, *fact))
        for evicted in self._capacity.take_facts() if self._capacity else ():
            self._on_evicted(evicted)
        if self._capacity:
            self.blockio.recency_seconds = self._capacity.recency_seconds
        hits, misses, retries = (self._answers[present] for present in _ANSWER)
        if hits or misses:  # who waits asks again in every step; that alone is no news
            self._observer.on_event(TierAnswers(self.tier_type, hits, misses, retries, self._missed_evicted))
            self._answers.clear()
            self._missed_evicted = 0
        self._need()

    # --- jobs ---

    def submit_store(self, job: TransferJob) -> None:
        self._need("load", "store", "capacity")
        self._submit(job, "store")

    def submit_load(self, job: TransferJob) -> None:
        self._need("load", "store")
        self._submit(job, "load")

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results = [self._settle(completion) for completion in self._pool.get_finished()]
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
        root = self._capacity.gauges() if self._capacity else {}
        return {**self._pool.gauges(), **own, **root}

    def space(self) -> Mapping[str, float]:
        """Free and all bytes of the root's file system. It asks that file system, so it may hang with it: for a thread
        that can wait, never the scheduler's. Raises OSError."""
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
        if self._capacity:
            self._capacity.stop()
        self._lookup.shutdown()
        self._pool.shutdown()
        self._bytes.release()  # the owner of the slots may now give their memory back

    def _need(self, *roles: ThreadRole) -> None:
        """Report threads that died. Raises KvtierError when one of `roles` did: without it this call has no effect."""
        for death in self._background.take_deaths():
            self._observer.on_event(ThreadDied(self.tier_type, *death))
        self._background.check(*roles)

    # --- how a job becomes tasks, and outcomes become a result ---

    def _submit(self, job: TransferJob, direction: Direction) -> None:
        assert job.job_id not in self._submitted, f"job {job.job_id} is already in flight"
        for slot in job.chunk_ids:
            if not 0 <= slot < self._slots:
                raise SlotError(f"slot {slot} is out of range; the CPU tier has {self._slots} slots, numbered from 0")
        # Small enough that nothing waits long behind a task, and that a job spreads over the threads that are idle, as
        # far as that is worth their wake-ups.
        idle = max(1, self._pool.idle_threads())
        most = self.config.task_bytes_max // max(FILE_BYTES, self.config.block_bytes)
        per_task = max(1, min(most, max(TASK_BLOCKS_MIN, -(-len(job.keys) // idle))))
        run = self._load_blocks if direction == "load" else self._store_blocks
        own_traceparent = child_traceparent(job.req_context.traceparent)
        if self._capacity:
            self._capacity.traffic_seconds = time.monotonic()
        admitted, refusal = self._admit(len(job.keys)) if direction == "store" else (len(job.keys), "")
        works: list[Work] = []
        for start in range(0, admitted, per_task):
            end = min(start + per_task, admitted)
            keys, slots = job.keys[start:end], job.chunk_ids[start:end]
            works.append((functools.partial(run, keys, slots, own_traceparent), len(keys) * self.config.block_bytes))
        self._submitted[job.job_id] = _Submitted(job, per_task, time.monotonic(), own_traceparent, admitted, refusal)
        self._pool.submit(job.job_id, direction, works)

    def _settle(self, completion: Completion) -> JobResult:
        """Turn what the tasks returned into the one result of the job, the lookup's knowledge, and events."""
        submitted = self._submitted.pop(completion.job_id)
        job, per_task = submitted.job, submitted.blocks_per_task
        outcomes: list[BlockOutcome] = []
        for index, result in enumerate(completion.results):
            if isinstance(result, BaseException):
                reason = str(result) if isinstance(result, Cancelled) else type(result).__name__
                outcomes += [BlockOutcome(reason)] * (
                    min((index + 1) * per_task, submitted.admitted) - index * per_task
                )
            else:
                outcomes += result
        outcomes += [BlockOutcome(submitted.refusal)] * (len(job.keys) - submitted.admitted)
        ok = tuple(key for key, outcome in zip(job.keys, outcomes, strict=True) if outcome.ok)
        failed = [key for key, outcome in zip(job.keys, outcomes, strict=True) if not outcome.ok]
        self._lookup.mark_present(ok)
        if completion.direction == "load":
            self._lookup.mark_absent(failed, job.req_context.req_id)
        else:
            if self._capacity:
                self._capacity.settle(submitted.admitted, self.config.block_bytes + PAGE_BYTES)
            if completion.facts:
                self._note_space(outcomes)
        self._tell(submitted, completion, outcomes)
        facts = completion.facts
        return JobResult(
            completion.job_id,
            not failed,
            ok,
            max((fact.finished_seconds for fact in facts), default=0.0)
            - min((fact.started_seconds for fact in facts), default=0.0),
            len(ok) * self.config.block_bytes,
        )

    def _tell(self, submitted: _Submitted, completion: Completion, outcomes: Sequence[BlockOutcome]) -> None:
        job, _, submitted_seconds, own_traceparent, *_ = submitted
        loading = completion.direction == "load"
        ok = [outcome for outcome in outcomes if outcome.ok]
        written_elsewhere = [o for o in ok if loading and o.writer not in (None, self.blockio.instance_id)]
        links = dict.fromkeys(outcome.traceparent for outcome in ok if loading and outcome.traceparent)
        for outcome in outcomes:
            if outcome.quarantined is not None:
                self._observer.on_event(
                    BlockQuarantined(self.tier_type, outcome.reason or "replaced", outcome.quarantined)
                )
        self._observer.on_event(
            JobFinished(
                tier=self.tier_type,
                direction=completion.direction,
                job_id=completion.job_id,
                req_id=job.req_context.req_id,
                blocks_ok=len(ok),
                blocks_skipped=sum(outcome.skipped for outcome in ok),
                blocks_cross_process=len(written_elsewhere),
                failures=tuple(Counter(outcome.reason for outcome in outcomes if outcome.reason).items()),
                bytes_ok=len(ok) * self.config.block_bytes,
                submitted_seconds=submitted_seconds,
                finished_seconds=max((fact.finished_seconds for fact in completion.facts), default=submitted_seconds),
                tasks=completion.facts,
                traceparent=job.req_context.traceparent,
                links=tuple(links)[:LINKS_MAX],
                blocks_unverified=sum(loading and outcome.writer is None for outcome in ok),
                own_traceparent=own_traceparent,
            )
        )
        if self.config.enable_kv_events:
            pairs = list(zip(job.keys, outcomes, strict=True))
            # Present before counts too: this engine has it from now on, which a router learns from its events alone.
            stored = tuple(key for key, o in pairs if not loading and o.ok)
            removed = tuple(key for key, o in pairs if loading and o.quarantined)
            self._events += [
                OffloadingEvent(keys, "STORAGE", gone) for keys, gone in ((stored, False), (removed, True)) if keys
            ]

    # --- a full volume: a cache may forget, but it must not fail loads or fill the log ---

    def _admit(self, blocks: int) -> tuple[int, str]:
        """How many of a store's first blocks may go on, and why the others may not."""
        if 2 * self._pool.queued_bytes("store") > len(self._bytes):
            return 0, "backlog"  # the volume is too slow: half of the slots are left for everything else
        if time.monotonic() < self._stores_resume_seconds:
            return 0, "ENOSPC"
        return self._capacity.admit(blocks, self.config.block_bytes + PAGE_BYTES) if self._capacity else blocks, "full"

    def _note_space(self, outcomes: Sequence[BlockOutcome]) -> None:
        """Stores pause when the volume has no room, twice as long each time, and go on when one has worked again."""
        if any(outcome.reason in NO_SPACE for outcome in outcomes):
            if not self._store_pause_seconds:
                logger.warning("%s has no room: stores pause, loads go on", self.config.root_dir)
            self._store_pause_seconds = min(STORE_PAUSE_SECONDS_MAX, 2 * self._store_pause_seconds or 0.1)
            self._stores_resume_seconds = time.monotonic() + self._store_pause_seconds
        elif self._store_pause_seconds and any(outcome.ok and not outcome.skipped for outcome in outcomes):
            logger.warning("%s has room again: stores go on", self.config.root_dir)
            self._store_pause_seconds = 0.0

    def _on_evicted(self, evicted: Evicted) -> None:
        self._lookup.mark_absent(evicted.keys)
        self._evicted |= dict.fromkeys(evicted.keys)
        while len(self._evicted) > EVICTED_KEYS_MAX:
            del self._evicted[next(iter(self._evicted))]
        self._observer.on_event(FilesEvicted(self.tier_type, evicted.reason, *evicted[2:]))
        if self.config.enable_kv_events:
            self._events.append(OffloadingEvent(evicted.keys, "STORAGE", True))

    # --- on the pool's and the lookup's threads ---

    def _slot(self, slot: int) -> memoryview:
        return self._bytes[slot * self.config.block_bytes : (slot + 1) * self.config.block_bytes]

    def _load_blocks(self, keys: Sequence[OffloadKey], slots: Sequence[int], _: str | None) -> list[BlockOutcome]:
        return self.blockio.read_blocks(*self._places(keys, slots))

    def _store_blocks(self, keys: Sequence[OffloadKey], slots: Sequence[int], trace: str | None) -> list[BlockOutcome]:
        return self.blockio.write_blocks(*self._places(keys, slots), trace or "")

    def _places(
        self, keys: Sequence[OffloadKey], slots: Sequence[int]
    ) -> tuple[list[str], Sequence[OffloadKey], list[memoryview]]:
        """Paths, keys and memory of blocks."""
        return [self.file_mapper.get_file_name(key) for key in keys], keys, [self._slot(slot) for slot in slots]

    def _probe(self, keys: Sequence[OffloadKey]) -> list[bool]:
        paths = [self.file_mapper.get_file_name(key) for key in keys]
        if not self._misses_are_remembered:
            return self.blockio.exist(paths)
        return [self.blockio.exists_everywhere(path, self.file_mapper.base_path) for path in paths]


def _address(view: memoryview) -> int:
    if view.readonly or not len(view):
        return 1  # cannot be told: treated as not aligned
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
