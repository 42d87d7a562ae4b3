"""kvtier: a tiered KV-cache offload manager. Names below load their module on first use; nothing heavy is imported.

These names are the package's interface: the harness's adapters and benches use no others, so that a module may move
without breaking a comparison with an earlier commit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvtier.base import JobResult, LookupResult, ReqContext, ScheduleEndContext, SecondaryTierManager, TransferJob
    from kvtier.config import (
        CapacityConfig,
        ConfigError,
        CpuTierConfig,
        FsTierConfig,
        KVCacheGroup,
        KvtierError,
        RootError,
        RunConfig,
        parse_size,
    )
    from kvtier.cpu.manager import CPUOffloadingManager
    from kvtier.events import (
        BlockQuarantined,
        Event,
        FanOut,
        FilesEvicted,
        JobFinished,
        Observer,
        Promotion,
        RequestFinished,
    )
    from kvtier.factory import open_fs_tier
    from kvtier.fs.admission import REFUSAL_REASONS
    from kvtier.fs.block_io import BlockIO
    from kvtier.fs.file_mapper import FileMapper
    from kvtier.fs.manager import FileSystemTierManager
    from kvtier.fs.thread_pool import DualQueue
    from kvtier.fs.trailer import read_trailer
    from kvtier.hashing import (
        BlockHash,
        OffloadKey,
        get_offload_block_hash,
        hash_function,
        hash_tokens,
        make_offload_key,
        none_hash,
        none_hash_digest,
    )
    from kvtier.manager import TieringOffloadingManager
    from kvtier.ops.catalog import BlockFile, Folder, folders
    from kvtier.ops.evictor import Evictor
    from kvtier.telemetry.otel import setup_tracing
    from kvtier.telemetry.prometheus import Gauges, MetricsObserver, Patient, serve_metrics

__version__ = "0.1.0"

_MODULE_OF = {
    name: module
    for module, names in {
        "base": "JobResult LookupResult ReqContext ScheduleEndContext SecondaryTierManager TransferJob",
        "factory": "open_fs_tier",
        "fs.admission": "REFUSAL_REASONS",
        "fs.block_io": "BlockIO",
        "config": "CapacityConfig ConfigError CpuTierConfig FsTierConfig "
        "KVCacheGroup KvtierError RootError RunConfig parse_size",
        "cpu.manager": "CPUOffloadingManager",
        "events": "BlockQuarantined Event FanOut FilesEvicted JobFinished Observer Promotion RequestFinished",
        "fs.manager": "FileSystemTierManager",
        "fs.thread_pool": "DualQueue",
        "hashing": "BlockHash OffloadKey get_offload_block_hash hash_function "
        "hash_tokens make_offload_key none_hash none_hash_digest",
        "fs.file_mapper": "FileMapper",
        "manager": "TieringOffloadingManager",
        "telemetry.prometheus": "Gauges MetricsObserver Patient serve_metrics",
        "ops.catalog": "BlockFile Folder folders",
        "ops.evictor": "Evictor",
        "telemetry.otel": "setup_tracing",
        "fs.trailer": "read_trailer",
    }.items()
    for name in names.split()
}

__all__ = [
    "REFUSAL_REASONS",
    "BlockFile",
    "BlockHash",
    "BlockIO",
    "BlockQuarantined",
    "CPUOffloadingManager",
    "CapacityConfig",
    "ConfigError",
    "CpuTierConfig",
    "DualQueue",
    "Event",
    "Evictor",
    "FanOut",
    "FileMapper",
    "FileSystemTierManager",
    "FilesEvicted",
    "Folder",
    "FsTierConfig",
    "Gauges",
    "JobFinished",
    "JobResult",
    "KVCacheGroup",
    "KvtierError",
    "LookupResult",
    "MetricsObserver",
    "Observer",
    "OffloadKey",
    "Patient",
    "Promotion",
    "ReqContext",
    "RequestFinished",
    "RootError",
    "RunConfig",
    "ScheduleEndContext",
    "SecondaryTierManager",
    "TieringOffloadingManager",
    "TransferJob",
    "__version__",
    "folders",
    "get_offload_block_hash",
    "hash_function",
    "hash_tokens",
    "make_offload_key",
    "none_hash",
    "none_hash_digest",
    "open_fs_tier",
    "parse_size",
    "read_trailer",
    "serve_metrics",
    "setup_tracing",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kvtier' has no attribute {name!r}; it has {', '.join(sorted(_MODULE_OF))}")
    return getattr(import_module(f"kvtier.{_MODULE_OF[name]}"), name)
