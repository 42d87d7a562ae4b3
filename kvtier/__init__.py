"""kvtier: a tiered KV-cache offload manager. Names below load their module on first use; nothing heavy is imported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvtier.base import JobResult, LookupResult, ReqContext, SecondaryTierManager, TransferJob
    from kvtier.config import ConfigError, CpuTierConfig, FsTierConfig, KvtierError, RootError, RunConfig
    from kvtier.cpu_tier import CPUOffloadingManager
    from kvtier.events import FanOut, Observer
    from kvtier.fs_tier import FileSystemTierManager
    from kvtier.manager import TieringOffloadingManager

__version__ = "0.1.0"

_MODULE_OF = {
    name: module
    for module, names in {
        "base": ("JobResult", "LookupResult", "ReqContext", "SecondaryTierManager", "TransferJob"),
        "config": ("ConfigError", "CpuTierConfig", "FsTierConfig", "KvtierError", "RootError", "RunConfig"),
        "cpu_tier": ("CPUOffloadingManager",),
        "events": ("FanOut", "Observer"),
        "fs_tier": ("FileSystemTierManager",),
        "manager": ("TieringOffloadingManager",),
    }.items()
    for name in names
}

__all__ = [
    "CPUOffloadingManager",
    "ConfigError",
    "CpuTierConfig",
    "FanOut",
    "FileSystemTierManager",
    "FsTierConfig",
    "JobResult",
    "KvtierError",
    "LookupResult",
    "Observer",
    "ReqContext",
    "RootError",
    "RunConfig",
    "SecondaryTierManager",
    "TieringOffloadingManager",
    "TransferJob",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kvtier' has no attribute {name!r}; it has {', '.join(sorted(_MODULE_OF))}")
    return getattr(import_module(f"kvtier.{_MODULE_OF[name]}"), name)
