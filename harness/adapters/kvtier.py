"""kvtier under the harness, the file-system tier alone or the whole stack: with `kvtier_names` all that imports it."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import kvtier
from harness.adapters.base import Adapter, Eviction, Finished, TierSetup, Verdict
from harness.adapters.kvtier_names import KvtierNaming, run_config
from harness.adapters.kvtier_watch import Watch
from harness.adapters.metric_meanings import Meaning
from harness.adapters.none_refcount import NoneReferences
from harness.core.history import DIRECTIONS, Direction, Task
from kvtier import (
    REFUSAL_REASONS,
    BlockQuarantined,
    CapacityConfig,
    CPUOffloadingManager,
    CpuTierConfig,
    Event,
    FanOut,
    FilesEvicted,
    FileSystemTierManager,
    FsTierConfig,
    Gauges,
    JobFinished,
    JobResult,
    LookupResult,
    OffloadKey,
    Patient,
    Promotion,
    ReqContext,
    RunConfig,
    ScheduleEndContext,
    SecondaryTierManager,
    TieringOffloadingManager,
    TransferJob,
)

_VERDICTS: dict[LookupResult, Verdict] = {
    LookupResult.HIT: "hit",
    LookupResult.MISS: "miss",
    LookupResult.RETRY: "retry",
}


HARNESS_OPTIONS = {
    "root_dir": "--root-dir",
    "block_bytes": "--block-bytes",
    "n_read_threads": "--read-threads",
    "n_write_threads": "--write-threads",
}
"""What the harness chooses for the tier and must know: option of the tier -> option of the harness."""


TRAILER_PAGE_BYTES = 4096
GC_SECONDS = 60.0
"""How long `operate("collect")` may take."""

# `bench-compare` may drive a package up to d765911, which has no `open_fs_tier`: there the class itself opens the root.
_open_fs_tier: Callable[..., FileSystemTierManager] = getattr(kvtier, "open_fs_tier", kvtier.FileSystemTierManager)


class KvtierAdapter(Adapter):
    """kvtier's file-system tier by itself; `setup.options` are further keywords of `FsTierConfig`."""

    name = "kvtier"
    exposes_schedule = True
    exposes_files = True
    leaves_spans = True
    bookkeeping = ("config.json", "kvtier.json", "kvtier_r*.json", ".kvtier-evictor")
    separates = ("model_name", "dtype", "ranks", "rank")
    keeps_limit = True
    forgets = True
    ignores_folder_status = ("open", "open other", "lookup", "load", "store")  # eviction and gc look at times
    operations = ("evict", "collect")
    own_options: ClassVar[tuple[str, ...]] = ()  # that are no keywords of `FsTierConfig`

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        for name, own in HARNESS_OPTIONS.items():
            if name in setup.options:
                raise ValueError(f"{name} is not the tier's to choose here; give {own}")
        cls._config(setup)

    @classmethod
    def _config(cls, setup: TierSetup) -> FsTierConfig:
        options = {name: value for name, value in setup.options.items() if name not in cls.own_options}
        capacity = options.get("capacity", {})
        if setup.max_bytes and isinstance(capacity, Mapping):
            options["capacity"] = {"max_bytes": setup.max_bytes, **capacity}
        return FsTierConfig.from_mapping(
            {
                "root_dir": os.path.abspath(setup.root_dir),
                "block_bytes": setup.block_bytes,
                "n_read_threads": setup.n_read_threads,
                "n_write_threads": setup.n_write_threads,
                "hash_algorithm": setup.hash_algorithm,
                "seed_policy": setup.seed_policy,
                "enable_kv_events": setup.report_events,
                **options,
            }
        )

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        config = self._config(setup)
        self._references = NoneReferences()
        self._memory = mmap.mmap(-1, setup.slots * setup.block_bytes)
        self._view = memoryview(self._memory).cast("B", (setup.slots, setup.block_bytes))
        self._tasks: list[Task] = []
        self._evictions: list[Eviction] = []
        self._counts: Counter[str] = Counter()
        self._refused: dict[int, int] = {}
        self._reasons: dict[int, str] = {}
        self._events = FanOut(self)
        self._tier = self._build(config, run_config(setup))
        self._naming = KvtierNaming(setup, self._tier.none_hash)
        self._requests: dict[str, ReqContext] = {}
        self._started: dict[str, float] = {}
        self._submitted: dict[int, Sequence[bytes]] = {}
        self._watch = Watch(setup, self._events, self._sources(), self._tier.info()) if _watched(setup) else None

    def _build(self, config: FsTierConfig, run: RunConfig) -> FileSystemTierManager:
        return _open_fs_tier(config, run, self._view, self._events, **self._parts())

    def _parts(self) -> Mapping[str, Any]:
        """Keywords of `open_fs_tier`: what a mutant has in place of kvtier's own."""
        return {}

    def _sources(self) -> dict[str, Gauges]:
        space = Patient(self._tier.space)
        return {self._tier.tier_type: lambda: {**self._tier.gauges(), **space()}}

    def on_event(self, event: Event) -> None:
        """Keeps each job's schedule for the history, and what was refused for its result; adds up what the tier says
        of blocks."""
        if isinstance(event, JobFinished):
            self._tasks += [Task(self.setup.process, event.job_id, *fact) for fact in event.tasks]
            self._refused[event.job_id] = sum(n for reason, n in event.failures if reason in REFUSAL_REASONS)
            reasons = {reason for reason, _ in event.failures if reason not in REFUSAL_REASONS}
            self._reasons[event.job_id] = " ".join(sorted(reasons))
            self._counts["loaded" if event.direction == "load" else "stored"] += event.blocks_ok
            for reason, blocks in event.failures:
                self._counts[f"failed {reason}"] += blocks
        elif isinstance(event, BlockQuarantined):
            self._counts["quarantined"] += 1
        elif isinstance(event, FilesEvicted):
            self._evictions.append(Eviction(event.started_seconds, event.finished_seconds, event.blocks, event.bytes))

    @property
    def view(self) -> memoryview:
        return self._view

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return self._naming.keys(tokens, parent)

    def none_hash_digest(self) -> str:
        return self._naming.none_hash_digest()

    def file_name(self, key: bytes) -> str:
        return self._naming.file_name(key)

    def other_group(self, key: bytes) -> bytes:
        return self._naming.other_group(key)

    def salted_keys(self, tokens: Sequence[int], salt: str) -> list[bytes]:
        return self._naming.keys(tokens, salt=salt)

    def instance_id(self) -> str:
        return self._tier.blockio.instance_id.hex()

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        request = self._request(req_id)
        return [_VERDICTS[self._tier.lookup(OffloadKey(key), request)] for key in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._tier.submit_store(self._job(job_id, keys, slots, req_id, is_promotion=False))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._tier.submit_load(self._job(job_id, keys, slots, req_id, is_promotion=True))

    def _job(
        self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str, is_promotion: bool
    ) -> TransferJob:
        self._submitted[job_id] = keys
        return TransferJob(job_id, tuple(map(OffloadKey, keys)), tuple(slots), is_promotion, self._request(req_id))

    def _request(self, req_id: str) -> ReqContext:
        if req_id not in self._requests:
            trace = self._watch.traceparent(req_id) if self._watch else None
            self._requests[req_id] = ReqContext(req_id, traceparent=trace)
            self._started[req_id] = time.monotonic()
        return self._requests[req_id]

    def _forget(self, req_id: str) -> ReqContext:
        request, started_seconds = self._requests.pop(req_id), self._started.pop(req_id)
        if self._watch:
            self._watch.request_finished(req_id, request.traceparent, started_seconds)
        return request

    def poll(self) -> list[Finished]:
        finished = []
        for result in self._tier.get_finished_jobs():
            ok = set(result.successful_keys)
            keys = self._submitted.pop(result.job_id)
            failed = [key for key in keys if key not in ok]
            refused, reasons = self._refused.pop(result.job_id, 0), self._reasons.pop(result.job_id, "")
            finished.append(Finished(result.job_id, result.successful_keys, failed, refused, reasons))
        return finished

    def step(self) -> None:
        self._tier.on_schedule_end(ScheduleEndContext())

    def request_started(self, req_id: str) -> None:
        self._tier.on_new_request(self._request(req_id))

    def request_finished(self, req_id: str) -> None:
        self._tier.on_request_finished(self._forget(req_id))

    def drain(self) -> None:
        self._tier.drain_jobs()

    def close(self) -> None:
        if self._watch:
            self._watch.close()
        self._shut_down()

    def _shut_down(self) -> None:
        self._tier.shutdown()

    def has_pending_work(self) -> bool:
        return self._tier.has_pending_work()

    def events(self) -> list[tuple[bytes, bool]]:
        return [(key, e.removed) for e in self._tier.take_events() if e.medium == "STORAGE" for key in e.keys]

    def gauges(self) -> Mapping[str, float]:
        return {**self._tier.gauges(), "none_references_lost": self._references.lost()}

    def tasks(self) -> list[Task]:
        tasks, self._tasks = self._tasks, []
        return tasks

    def evictions(self) -> list[Eviction]:
        evictions, self._evictions = self._evictions, []
        return evictions

    def operate(self, operation: str, blocks: int = 0) -> None:
        from kvtier import Evictor  # earlier commits, which `bench compare` drives, have no such name

        file_bytes = self.setup.block_bytes + TRAILER_PAGE_BYTES
        limit = max(file_bytes, -(-blocks * file_bytes * 10 // 9))  # its low water mark is at 90 %
        chance = random.Random(0)  # each call makes the same choices
        evictor = Evictor(self.setup.root_dir, CapacityConfig(max_bytes=limit), chance=chance)
        evictor.pacing = "urgent"  # without pauses
        if operation == "evict":
            evictor.step()
        else:
            evictor.gc.collect_for(GC_SECONDS)

    def counts(self) -> Mapping[str, float]:
        return dict(self._counts)

    def metrics_address(self) -> str | None:
        return self._watch.address if self._watch else None

    def metric_meanings(self) -> Sequence[Meaning]:
        if self.setup.watch_windows:
            return ()  # it counts in every other window only
        tier = self._tier.tier_type
        found = [Meaning("jobs in flight", "kvtier_jobs_in_flight", {"tier": tier})]
        for direction in DIRECTIONS:
            of: dict[str, str] = {"tier": tier, "direction": direction}
            found += [
                Meaning("jobs", "kvtier_jobs_total", of, direction),
                Meaning("blocks ok", "kvtier_blocks_total", {**of, "outcome": "ok"}, direction),
                Meaning("blocks failed", "kvtier_block_failures_total", of, direction),
                Meaning("bytes", "kvtier_transferred_bytes_total", of, direction),
                Meaning("jobs timed", "kvtier_job_seconds_count", of, direction),
            ]
        return found


class _WatchedTier:
    """A tier as it is, which also remembers what the manager is cascading into its files, and what did not arrive."""

    def __init__(self, tier: SecondaryTierManager, refusals: dict[int, int]) -> None:
        self._tier = tier
        self.lookup = tier.lookup
        self.cascading: Counter[OffloadKey] = Counter()
        self.lost: set[OffloadKey] = set()
        self.refused: set[OffloadKey] = set()  # lost because the tier would not take them
        self._refusals = refusals  # job -> blocks; the adapter's, filled by events
        self.jobs_in_flight = 0
        self.submitted_blocks: Counter[Direction] = Counter()
        self._stores: dict[int, TransferJob] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tier, name)

    def submit_store(self, job: TransferJob) -> None:
        self._stores[job.job_id] = job
        self.cascading.update(job.keys)
        self._hand_over("store", job)
        self._tier.submit_store(job)

    def submit_load(self, job: TransferJob) -> None:
        self._hand_over("load", job)
        self._tier.submit_load(job)

    def _hand_over(self, direction: Direction, job: TransferJob) -> None:
        self.jobs_in_flight += 1
        self.submitted_blocks[direction] += len(job.keys)

    def get_finished_jobs(self) -> list[JobResult]:
        results = list(self._tier.get_finished_jobs())
        self.jobs_in_flight -= len(results)
        for result in results:
            if job := self._stores.pop(result.job_id, None):
                self.cascading.subtract(job.keys)
                failed = set(job.keys).difference(result.successful_keys)
                self.lost = self.lost.difference(result.successful_keys) | failed
                self.refused -= set(job.keys)
                if self._refusals.pop(job.job_id, 0) == len(failed):
                    self.refused |= failed
        return results


class KvtierStackAdapter(KvtierAdapter):
    """The whole of kvtier: `TieringOffloadingManager` over a CPU tier of `cpu_chunks` slots over the file-system tier.

    The worker's slots play the GPU. A store ends when its blocks are in files, except those that the CPU tier already
    held (`Finished.in_memory`): the manager cascades each block once, when it reaches the CPU tier. A load ends when
    its blocks are copied back. A HIT is pinned at once, as an engine does in the same step.

    `counts` are of the file tier's jobs, which are cascades and promotions, not of the worker's.
    """

    name = "kvtier-stack"
    keeps_in_memory = True
    forgets = False
    keeps_limit = False  # the root does; but blocks that stay in memory are not used in the root
    own_options = ("cpu_chunks",)

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        super().check_options(setup)
        cls._cpu_config(setup)

    @classmethod
    def _cpu_config(cls, setup: TierSetup) -> CpuTierConfig:
        return CpuTierConfig(setup.options.get("cpu_chunks", setup.slots), setup.block_bytes)

    def _build(self, config: FsTierConfig, run: RunConfig) -> FileSystemTierManager:
        primary = CPUOffloadingManager(self._cpu_config(self.setup), self._events)
        tier = _open_fs_tier(config, run, primary.view, self._events, **self._parts())
        self._cached = memoryview(primary.view)
        self._watched = _WatchedTier(tier, self._refused)
        watched = cast(SecondaryTierManager, self._watched)
        self._manager = TieringOffloadingManager(primary, [watched], self._events)
        self._pinned: dict[str, dict[bytes, int]] = {}
        self._short_of_room: set[str] = set()
        self._done: list[Finished] = []
        self._storing: dict[int, tuple[Sequence[bytes], frozenset[bytes]]] = {}  # keys, those that need no file
        self._accounted: Counter[Direction] = Counter()  # blocks of the file tier's finished jobs
        return tier

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, Promotion) and event.refused:
            self._short_of_room.add(event.req_id)
        elif isinstance(event, JobFinished):
            self._accounted[event.direction] += event.blocks_ok + sum(blocks for _, blocks in event.failures)

    def short_of_room(self, req_id: str) -> bool:
        return req_id in self._short_of_room

    def request_started(self, req_id: str) -> None:
        self._manager.on_new_request(self._request(req_id))
        self._pinned[req_id] = {}

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return [self._lookup(OffloadKey(key), req_id) for key in keys]

    def _lookup(self, key: OffloadKey, req_id: str) -> Verdict:
        pinned, request = self._pinned[req_id], self._request(req_id)
        if key not in pinned:
            match self._manager.lookup(key, request):
                case LookupResult.MISS:
                    return "miss"
                case LookupResult.HIT:
                    (pinned[key],) = self._manager.prepare_load((key,), request)
                case _:
                    return "retry"
        return "hit"

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        pinned = self._pinned[req_id]
        ok = [(key, slot) for key, slot in zip(keys, slots, strict=True) if key in pinned]
        for key, slot in ok:
            _row(self._view, slot)[:] = _row(self._cached, pinned[key])
        good = {key for key, _ in ok}
        self._manager.complete_load([OffloadKey(key) for key in good], self._request(req_id))
        for key in good:
            del pinned[key]
        self._done.append(Finished(job_id, list(good), [key for key in keys if key not in good]))

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        request = self._request(req_id)
        output = self._manager.prepare_store(tuple(map(OffloadKey, keys)), request)
        if output is None:
            self._done.append(Finished(job_id, [], keys, refused=len(keys)))  # no slot of the CPU tier can be freed
            return
        source = dict(zip(keys, slots, strict=True))
        for key, chunk in zip(output.keys_to_store, output.chunk_ids, strict=True):
            _row(self._cached, chunk)[:] = _row(self._view, source[key])
        if output.keys_to_store:
            self._manager.complete_store(output.keys_to_store, request)
        self._storing[job_id] = keys, frozenset(keys).difference(output.keys_to_store)

    def poll(self) -> list[Finished]:
        done, self._done = self._done, []
        for job_id, (keys, held) in list(self._storing.items()):
            if not any(self._watched.cascading[OffloadKey(key)] for key in keys):
                del self._storing[job_id]
                lost = self._watched.lost.intersection(map(OffloadKey, keys))
                refused = len(lost & self._watched.refused)
                ok, failed = [k for k in keys if k not in lost], [k for k in keys if k in lost]
                done.append(Finished(job_id, ok, failed, refused, in_memory=[k for k in ok if k in held]))
        return done

    def step(self) -> None:
        self._manager.on_schedule_end(ScheduleEndContext())

    def request_finished(self, req_id: str) -> None:
        request = self._forget(req_id)
        if unused := self._pinned.pop(req_id):
            self._manager.complete_load(tuple(map(OffloadKey, unused)), request)
        self._manager.on_request_finished(request)
        self._short_of_room.discard(req_id)

    def tasks(self) -> list[Task]:
        """The tier's jobs are the manager's, not those that the worker submitted: they are numbered apart."""
        return [task._replace(job_id=-1 - task.job_id) for task in super().tasks()]

    def drain(self) -> None:
        self.step()  # what was stored since the last step cascades now
        super().drain()
        self.step()

    def _shut_down(self) -> None:
        self._manager.shutdown()

    def has_pending_work(self) -> bool:
        return self._manager.has_pending_work()

    def metric_meanings(self) -> Sequence[Meaning]:
        return ()  # its endpoint counts the file tier's jobs

    def _sources(self) -> dict[str, Gauges]:
        return {**super()._sources(), "cpu": self._manager.gauges}

    def gauges(self) -> Mapping[str, float]:
        return {**super().gauges(), **self._manager.gauges()}

    def findings(self) -> list[str]:
        pinned = self._manager.gauges()["slots_pinned"] if not self._requests else 0
        idle = [f"{pinned:g} slots of the CPU tier are pinned although no request is left"] if pinned else []
        handed, counted = self._watched.submitted_blocks, self._accounted
        lost = [
            f"the manager gave the file tier {handed[d]} blocks to {d}, and its finished jobs count {counted[d]}"
            for d in DIRECTIONS
            if not self._watched.jobs_in_flight and handed[d] != counted[d]
        ]
        return idle + lost + self._manager.check_integrity()


def _watched(setup: TierSetup) -> bool:
    return setup.serve_metrics or setup.trace_every > 0


def _row(view: memoryview, row: int) -> memoryview:
    assert view.shape is not None
    return view.cast("B")[row * view.shape[1] : (row + 1) * view.shape[1]]
