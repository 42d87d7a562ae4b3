"""kvtier's file-system tier inside a vLLM engine, which imports this module by its name (`module_path`) and makes one
`KvtierFileSystemTier`. The only importer of vLLM: it translates calls and holds no logic of its own.

vLLM's tier interface is experimental, so what is known to work is listed, and what does not fit (`vllm_interface`) is
refused in one sentence when the engine starts.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from kvtier import __version__
from kvtier.base import LookupResult, OffloadPolicy, ReqContext, ScheduleEndContext, TransferJob
from kvtier.config import HASH_ALGORITHMS, ConfigError, FsTierConfig, KVCacheGroup, KvtierError, RunConfig, parse_size
from kvtier.events import FanOut
from kvtier.factory import open_folders, open_fs_tier
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.manager import FileSystemTierManager
from kvtier.hashing import BlockHash, none_hash
from kvtier.telemetry.prometheus import (
    BUILD_INFO,
    DEPRECATED_NAMES,
    GAUGE_LABELS,
    GAUGES,
    INFO_LABELS,
    INFO_TEXT,
    MetricsObserver,
    Patient,
)
from kvtier.vllm_interface import missing

PROVEN_VERSIONS = ("0.32.0", "0.33.0")
_PROVEN = f"kvtier.vllm_plugin was proven with vLLM {' and '.join(PROVEN_VERSIONS)}"

try:
    from vllm import __version__ as VLLM_VERSION
except ImportError as error:
    raise ImportError(f"kvtier.vllm_plugin is for vLLM engines, and vLLM cannot be imported here ({error})") from error
try:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import canonical_format_id
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.kv_offload import base as vllm_base
    from vllm.v1.kv_offload import config as vllm_config
    from vllm.v1.kv_offload.tiering import base as vllm_tiering
except ImportError as error:
    raise ImportError(
        f"{_PROVEN}, and vLLM {VLLM_VERSION} has no tier interface of that form ({error}); install one of these, or a "
        "newer kvtier"
    ) from error

logger = logging.getLogger(__name__)

SPACE_SECONDS = 10.0
"""The free space of the root's file system is read at most this often: the engine collects gauges at every step."""
_TRACE_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# Of MetricsObserver's metrics, these count what in an engine vLLM's own manager does, and counts.
_ENGINES_OWN = {
    f"kvtier_{name}"
    for name in (
        *("lookup_blocks", "promoted_blocks", "refused_promotion_blocks", "cascaded_blocks", "evicted_blocks"),
        *("copies", "copy_blocks", "copy_bytes", "copy_seconds"),
    )
}
_GAUGES = {
    f"kvtier_{name}": text
    for word, (name, text) in GAUGES.items()
    if word != "requests" and not word.startswith(("slots_", "pending_"))  # of the manager and the CPU tier
}
_GAUGES |= {
    f"kvtier_{old}": _GAUGES[name] for new, old in DEPRECATED_NAMES.items() if (name := f"kvtier_{new}") in _GAUGES
}


def run_config(offloading_spec: Any) -> RunConfig:
    """Whose blocks an engine's are, field by field as vLLM's own fs tier decides it: equal folder names follow."""
    config = offloading_spec.config
    parallel = config.parallel
    return RunConfig(
        model_name=config.model.name,
        tokens_per_hash=config.cache.tokens_per_hash,
        blocks_per_file=offloading_spec.blocks_per_chunk,
        tp_size=parallel.tp_size,
        pp_size=parallel.pp_size,
        pcp_size=parallel.pcp_size,
        dcp_size=parallel.dcp_size,
        rank=parallel.rank,
        dtype=str(config.model.dtype),
        kv_cache_groups=tuple(
            KVCacheGroup(group.tokens_per_block, tuple(group.layer_names)) for group in config.groups
        ),
        parallel_agnostic=bool(parallel.is_parallelism_agnostic or config.replicated_layout),
        replicated_layout=bool(config.replicated_layout),
        canonical_format=canonical_format_id(config.kv_cache_layout) if config.canonical_layout else None,
    )


def engine_hash() -> tuple[str, BlockHash]:
    """The engine's `prefix_caching_hash_algo` and its `NONE_HASH`; it has them before its first request, not earlier.

    vLLM passes the algorithm to no tier. But the engine keeps its seed, and only one algorithm makes `NONE_HASH` of it.
    """
    none: BlockHash | None = getattr(kv_cache_utils, "NONE_HASH", None)
    if none is None:
        raise KvtierError(f"vLLM {VLLM_VERSION} has no NONE_HASH at its first request; use one of {PROVEN_VERSIONS}")
    for algorithm in HASH_ALGORITHMS:
        try:
            if get_hash_fn_by_name(algorithm)(kv_cache_utils.get_none_hash_seed()) == none:
                return algorithm, none
        except ModuleNotFoundError:  # xxhash is not installed, so the engine does not use it
            continue
    raise KvtierError(
        f"the engine's prefix_caching_hash_algo is none that kvtier supports ({', '.join(HASH_ALGORITHMS)}), so blocks "
        "of different engines could not be matched; choose one of these"
    )


class KvtierFileSystemTier(vllm_tiering.SecondaryTierManager):  # type: ignore[misc, unused-ignore]
    """An entry of `secondary_tiers`: `{"type": "KvtierFileSystemTier", "module_path": "kvtier.vllm_plugin", ...}`.

    `options` are those of `FsTierConfig`: `root_dir`, and all others by their names; `block_bytes` is the engine's.
    `locality` is vLLM's, "LOCAL" or "REMOTE". `enable_kv_events` holds only where the engine publishes events.
    `hash_algorithm` is the engine's `prefix_caching_hash_algo`; naming it here demands that it be equal.

    Raises `ConfigError` and `RootError` when the engine starts, for all but one thing: whether the root's other users
    share with this engine is compared at its first request, since the engine derives its `NONE_HASH` after its tiers.

    Metrics have the label that vLLM's own have for the tier: its place in `secondary_tiers` and its type, "1:...".
    """

    medium: ClassVar[Any] = vllm_base.Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        locality: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self._label = _label(offloading_spec, tier_type, {"locality": locality, **options})
        self._algorithm_demanded = options.get("hash_algorithm")
        self._config = _tier_config(options, self._block_size_bytes)
        if self._config.enable_kv_events and not offloading_spec.kv_events_config.enable_kv_cache_events:
            logger.warning("enable_kv_events has no effect: the engine's kv_events_config does not enable events")
            self._config = dataclasses.replace(self._config, enable_kv_events=False)
        localities = [choice.value for choice in vllm_base.Locality]
        if locality is not None and locality not in localities:
            raise ConfigError(f"locality is {locality!r}; valid choices: {', '.join(localities)}, or none")
        self.locality = None if locality is None else vllm_base.Locality(locality)
        self._run = run_config(offloading_spec)
        open_folders(self._config, FileMapper(self._config.root_dir, self._run), self._algorithm_demanded)
        self._fs: FileSystemTierManager | None = None
        self._space: Patient | None = None
        self._contexts: dict[str, ReqContext] = {}
        self._metrics = _Metrics({self._label: self._gauges})
        self._observer = FanOut(self._metrics.observer)
        self._tracing: Any = None
        if any(map(os.environ.get, _TRACE_VARIABLES)):
            from kvtier.telemetry.otel import setup_tracing

            if (spans := setup_tracing({"kvtier.root_dir": self._config.root_dir})) is not None:
                self._tracing = spans
                self._observer.add(spans)

    # --- requests ---

    def on_new_request(self, req_context: Any) -> Any:
        context = self._contexts[req_context.req_id] = _translated(req_context)
        policy = self._opened().on_new_request(context).policy
        return vllm_base.RequestOffloadingContext(vllm_base.OffloadPolicy[policy.name])

    def on_request_finished(self, req_context: Any) -> None:
        context = self._contexts.pop(req_context.req_id, None)
        if self._fs is not None and context is not None:
            self._fs.on_request_finished(context)

    def lookup(self, key: Any, req_context: Any) -> Any:
        return _LOOKUP_RESULTS[self._opened().lookup(key, self._context(req_context))]

    def touch(self, keys: Iterable[Any], req_context: Any) -> None:
        if self._fs is not None:
            self._fs.touch(tuple(keys), self._context(req_context))

    def on_schedule_end(self, context: Any) -> None:
        if self._fs is not None:
            self._fs.on_schedule_end(ScheduleEndContext(tuple(context.new_req_ids), tuple(context.preempted_req_ids)))

    # --- jobs ---

    def submit_store(self, job_metadata: Any) -> None:
        self._opened().submit_store(self._job(job_metadata))

    def submit_load(self, job_metadata: Any) -> None:
        self._opened().submit_load(self._job(job_metadata))

    def get_finished_jobs(self) -> Iterable[Any]:
        return [
            vllm_tiering.JobResult(
                job_id=result.job_id,
                success=result.success,
                successful_keys=result.successful_keys,
                transfer_time=result.transfer_seconds,
                transfer_bytes=result.transfer_bytes,
            )
            for result in (self._fs.get_finished_jobs() if self._fs else ())
        ]

    def has_pending_work(self) -> bool:
        return self._fs is not None and self._fs.has_pending_work()

    def drain_jobs(self) -> None:
        if self._fs is not None:
            self._fs.drain_jobs()

    def shutdown(self) -> None:
        if self._fs is not None:
            self._fs.shutdown()
        if self._tracing is not None:
            self._tracing.shutdown()

    # --- what others see ---

    def take_events(self) -> Iterable[Any]:
        return [
            vllm_base.OffloadingEvent(
                keys=list(event.keys), medium=self.medium, removed=event.removed, locality=self.locality
            )
            for event in (self._fs.take_events() if self._fs else ())
        ]

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        return _Metrics({}).definitions

    def get_stats(self) -> Any:
        return self._metrics.take({"version": __version__, **self._fs.info()} if self._fs is not None else None)

    # --- the root ---

    def _opened(self) -> FileSystemTierManager:
        if self._fs is None:
            algorithm, none = engine_hash()
            if self._algorithm_demanded not in (None, algorithm):
                raise ConfigError(
                    f"hash_algorithm is {self._algorithm_demanded!r} and the engine's prefix_caching_hash_algo is "
                    f"{algorithm!r}; make them equal, or leave hash_algorithm out"
                )
            config = dataclasses.replace(self._config, hash_algorithm=algorithm)
            self._fs = open_fs_tier(config, self._run, self._primary_kv_view, self._observer, self._label, none)
            self._space = Patient(self._fs.space, seconds_max=0.0, keep_seconds=SPACE_SECONDS)
        return self._fs

    def _job(self, job: Any) -> TransferJob:
        chunk_ids = tuple(map(int, job.chunk_ids))
        return TransferJob(job.job_id, tuple(job.keys), chunk_ids, job.is_promotion, self._context(job.req_context))

    def _context(self, req_context: Any) -> ReqContext:
        """kvtier's context of a request, made once: an engine looks up each of its blocks, at each step."""
        return self._contexts.get(req_context.req_id) or _translated(req_context)

    def _gauges(self) -> Mapping[str, float]:
        return {**self._fs.gauges(), **self._space()} if self._fs is not None and self._space is not None else {}


def _tier_config(options: dict[str, Any], block_bytes: int) -> FsTierConfig:
    if parse_size("block_bytes", options.setdefault("block_bytes", block_bytes)) != block_bytes:
        raise ConfigError(f"block_bytes is {options['block_bytes']!r}; the engine has {block_bytes}, leave it out")
    config = FsTierConfig.from_mapping(options)
    if config.seed_policy == "random":
        raise ConfigError("seed_policy is 'random', but NONE_HASH is the engine's; valid choices here: fixed, env")
    none_hash("sha256", config.seed_policy)  # for "env", says whether the variable is set
    return config


def _label(offloading_spec: Any, tier_type: str, options: Mapping[str, Any]) -> str:
    """How vLLM's own metrics call the entry with these options, so that two entries of one type stay apart."""
    for number, entry in enumerate(getattr(offloading_spec, "secondary_tier_configs", ()), 1):
        given = {"locality": None, **entry}
        if given["type"] == tier_type and all(given.get(name) == value for name, value in options.items()):
            return f"{number}:{tier_type}"
    return tier_type


def _translated(req_context: Any) -> ReqContext:
    params = req_context.kv_transfer_params or {}
    trace = params.get("traceparent")
    return ReqContext(req_context.req_id, params, trace if isinstance(trace, str) else None)


class _Metrics:
    """kvtier's own metrics, counted into what vLLM sends to the process that serves its /metrics.

    Stands where `MetricsObserver` expects a prometheus registry. `definitions` are all metrics that `take` may yield.
    """

    def __init__(self, sources: Mapping[str, Callable[[], Mapping[str, float]]]) -> None:
        self.definitions: dict[str, Any] = {
            name: vllm_base.OffloadingGaugeMetadata(text, GAUGE_LABELS) for name, text in _GAUGES.items()
        }
        self.definitions[BUILD_INFO] = vllm_base.OffloadingGaugeMetadata(INFO_TEXT, INFO_LABELS)
        self.stats = OffloadingConnectorStats()
        self._collectors: list[Any] = []
        registry: Any = self
        self.observer = MetricsObserver(registry, sources, counter_type=_Counter, histogram_type=_Instrument)

    def register(self, collector: Any) -> None:
        self._collectors.append(collector)

    def take(self, info: Mapping[str, str] | None) -> Any:
        """What was counted since the last call, the gauges as they are, and `info` once the root is open."""
        if info is not None:
            self.stats.set_gauge(BUILD_INFO, 1, tuple(info[label] for label in INFO_LABELS))
        for family in (family for collector in self._collectors for family in collector.collect()):
            for sample in family.samples if family.name in _GAUGES else ():
                self.stats.set_gauge(family.name, sample.value, tuple(map(sample.labels.__getitem__, GAUGE_LABELS)))
        stats, self.stats = self.stats, OffloadingConnectorStats()
        return stats


class _Instrument:
    """What `MetricsObserver` uses of prometheus_client's Counter and Histogram."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: _Metrics, buckets: Sequence[float] = ()
    ) -> None:
        self._name, self._registry = name, registry
        if name in _ENGINES_OWN:
            return
        if buckets:
            metadata = vllm_base.OffloadingHistogramMetadata(text, tuple(labels), tuple(buckets))
        else:
            metadata = vllm_base.OffloadingCounterMetadata(text, tuple(labels))
        registry.definitions[name] = metadata

    def labels(self, *values: str) -> _Series:
        return _Series(self._name, values, self._registry)


class _Counter(_Instrument):
    def labels(self, *values: str) -> _Series:
        series = super().labels(*values)
        series.inc(0)  # the engine's /metrics shows it from now on
        return series


class _Series:
    def __init__(self, name: str, values: tuple[str, ...], registry: _Metrics) -> None:
        self._name, self._values, self._registry = name, values, registry

    def inc(self, amount: float) -> None:
        if self._name in self._registry.definitions:
            self._registry.stats.increase_counter(self._name, amount, self._values)

    def observe(self, amount: float, exemplar: object = None) -> None:
        if self._name in self._registry.definitions:
            self._registry.stats.observe_histogram(self._name, amount, self._values)


_FIELDS: dict[type[Any], str] = {
    vllm_base.LookupResult: " ".join(result.name for result in LookupResult),
    vllm_base.OffloadPolicy: " ".join(policy.name for policy in OffloadPolicy),
    vllm_base.ReqContext: "req_id kv_transfer_params",
    vllm_base.ScheduleEndContext: "new_req_ids preempted_req_ids",
    vllm_tiering.TransferJob: "job_id keys chunk_ids is_promotion req_context",
    vllm_config.OffloadingConfig: "model cache parallel groups replicated_layout canonical_layout kv_cache_layout",
    vllm_config.OffloadingModelConfig: "name dtype",
    vllm_config.OffloadingCacheConfig: "tokens_per_hash",
    vllm_config.OffloadingParallelConfig: "tp_size pp_size pcp_size dcp_size rank is_parallelism_agnostic",
    vllm_config.OffloadingGroupConfig: "tokens_per_block layer_names",
}
_CALLS: dict[Any, tuple[int, str]] = {
    vllm_tiering.SecondaryTierManager.__init__: (5, ""),
    vllm_tiering.JobResult: (0, "job_id success successful_keys transfer_time transfer_bytes"),
    vllm_base.OffloadingEvent: (0, "keys medium removed locality"),
    vllm_base.RequestOffloadingContext: (1, ""),
    vllm_base.OffloadingCounterMetadata: (2, ""),
    vllm_base.OffloadingGaugeMetadata: (2, ""),
    vllm_base.OffloadingHistogramMetadata: (3, ""),
    OffloadingConnectorStats: (0, ""),
    OffloadingConnectorStats.increase_counter: (4, ""),
    OffloadingConnectorStats.set_gauge: (4, ""),
    OffloadingConnectorStats.observe_histogram: (4, ""),
    kv_cache_utils.get_none_hash_seed: (0, ""),
}
if _misfits := missing(KvtierFileSystemTier, _FIELDS, _CALLS):
    raise ImportError(
        f"{_PROVEN}, and the tier interface of vLLM {VLLM_VERSION} differs ({'; '.join(_misfits)}); install one of "
        "these, or a newer kvtier"
    )
if VLLM_VERSION.split("+")[0] not in PROVEN_VERSIONS:
    logger.warning("%s; vLLM %s has the same tier interface, but was not tried", _PROVEN, VLLM_VERSION)

_LOOKUP_RESULTS = {result: vllm_base.LookupResult[result.name] for result in LookupResult}
