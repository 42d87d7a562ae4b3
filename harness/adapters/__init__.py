"""Names of the tiers that can be judged, and how each class is found; adapters are imported only where used."""

from __future__ import annotations

import importlib

from harness.adapters.base import Adapter, PeerMissing

TIERS = {
    "kvtier": "harness.adapters.kvtier:KvtierAdapter",
    "kvtier-stack": "harness.adapters.kvtier:KvtierStackAdapter",
    "memory": "harness.adapters.memory:MemoryAdapter",
    "vllm": "harness.adapters.vllm:VllmAdapter",
}
"""Tier name -> "module:Class". Any other `module:Class` is accepted in its place."""

NAMES = dict.fromkeys(("kvtier", "kvtier-stack"), "harness.adapters.kvtier_names:KvtierNaming")
"""Tiers whose names can be derived without the packages of the whole tier, and by what."""


class UnknownTier(ValueError):
    """No tier answers to that name; the text is one sentence for a person."""


def adapter_class(tier: str) -> type[Adapter]:
    """The class behind a tier's name or a `module:Class`. Raises `UnknownTier`; `PeerMissing` where its package is not
    installed."""
    if tier not in TIERS and ":" not in tier:
        raise UnknownTier(f"tier is {tier!r}; valid choices: {', '.join(TIERS)}, or module:Class")
    module_name, _, class_name = TIERS.get(tier, tier).partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError as error:
        if tier in TIERS:
            raise PeerMissing(f"tier {tier!r} cannot be used here: {error}") from error
        raise UnknownTier(f"tier is {tier!r}, but there is no module {error.name!r}") from error
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise UnknownTier(f"tier is {tier!r}, but {module_name} has no Adapter class named {class_name!r}")
    return found


def tier_python(tier: str) -> str:
    """The interpreter whose packages a tier's workers need; `PeerMissing` where there is none."""
    return adapter_class(tier).python()
