"""kvtier's `FileSystemTierManager` under the harness: the only file of the harness that imports kvtier."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence

from harness.adapters.base import Adapter, Finished, TierSetup, Verdict
from harness.history import Task
from kvtier.base import LookupResult, ReqContext, ScheduleEndContext, TransferJob
from kvtier.config import FsTierConfig, KVCacheGroup, RunConfig
from kvtier.events import Event, FanOut, JobFinished
from kvtier.fs_tier import FileSystemTierManager
from kvtier.hashing import (
    BlockHash,
    OffloadKey,
    get_offload_block_hash,
    hash_function,
    hash_tokens,
    make_offload_key,
    none_hash_digest,
)

_VERDICTS: dict[LookupResult, Verdict] = {
    LookupResult.HIT: "hit",
    LookupResult.MISS: "miss",
    LookupResult.RETRY: "retry",
}


class KvtierAdapter(Adapter):
    """`setup.options` are further keywords of `FsTierConfig`, plus `metrics`: serve /metrics on 127.0.0.1."""

    name = "kvtier"
    exposes_schedule = True
    exposes_files = True

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        options = dict(setup.options)
        serve_metrics = options.pop("metrics", False)
        config = FsTierConfig.from_mapping(
            {
                "root_dir": setup.root_dir,
                "block_bytes": setup.block_bytes,
                "n_read_threads": setup.n_read_threads,
                "n_write_threads": setup.n_write_threads,
                "hash_algorithm": setup.hash_algorithm,
                "seed_policy": setup.seed_policy,
                **options,
            }
        )
        group = KVCacheGroup(setup.tokens_per_block, ("harness.layer",))
        run = RunConfig(setup.model_name, tokens_per_hash=setup.tokens_per_block, kv_cache_groups=(group,))
        self._memory = mmap.mmap(-1, setup.slots * setup.block_bytes)
        self._view = memoryview(self._memory).cast("B", (setup.slots, setup.block_bytes))
        self._tasks: list[Task] = []
        self._events = FanOut(self)
        self._tier = FileSystemTierManager(config, run, self._view, self._events)
        self._hash = hash_function(setup.hash_algorithm)
        self._requests: dict[str, ReqContext] = {}
        self._submitted: dict[int, Sequence[bytes]] = {}
        self._address: str | None = None
        if serve_metrics:
            self._serve_metrics()

    def _serve_metrics(self) -> None:
        from prometheus_client import CollectorRegistry

        from kvtier.metrics import MetricsObserver, serve

        registry = CollectorRegistry()
        self._events.add(MetricsObserver(registry, {self._tier.tier_type: self._tier.gauges}))
        _, port = serve(registry)
        self._address = f"127.0.0.1:{port}"

    def on_event(self, event: Event) -> None:
        """Keeps the schedule of each job for the history."""
        if isinstance(event, JobFinished):
            self._tasks += [Task(self.setup.process, event.job_id, *fact) for fact in event.tasks]

    @property
    def view(self) -> memoryview:
        return self._view

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        start = self._tier.none_hash if parent is None else get_offload_block_hash(OffloadKey(parent))
        hashes = hash_tokens(tokens, self.setup.tokens_per_block, self._hash, BlockHash(start))
        return [make_offload_key(block_hash, 0) for block_hash in hashes]

    def none_hash_digest(self) -> str:
        return none_hash_digest(self._tier.none_hash)

    def file_name(self, key: bytes) -> str:
        return self._tier.file_mapper.get_file_name(OffloadKey(key)).removeprefix(self._tier.config.root_dir + "/")

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
        return self._requests.setdefault(req_id, ReqContext(req_id))

    def poll(self) -> list[Finished]:
        finished = []
        for result in self._tier.get_finished_jobs():
            ok = set(result.successful_keys)
            keys = self._submitted.pop(result.job_id)
            finished.append(Finished(result.job_id, result.successful_keys, [key for key in keys if key not in ok]))
        return finished

    def step(self) -> None:
        self._tier.on_schedule_end(ScheduleEndContext())

    def request_started(self, req_id: str) -> None:
        self._tier.on_new_request(self._request(req_id))

    def request_finished(self, req_id: str) -> None:
        self._tier.on_request_finished(self._requests.pop(req_id))

    def drain(self) -> None:
        self._tier.drain_jobs()

    def close(self) -> None:
        self._tier.shutdown()

    def gauges(self) -> Mapping[str, float]:
        return self._tier.gauges()

    def tasks(self) -> list[Task]:
        tasks, self._tasks = self._tasks, []
        return tasks

    def metrics_address(self) -> str | None:
        return self._address
