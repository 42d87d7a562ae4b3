"""Names of the tiers that can be tested, and the class of each. Adapters are imported only where used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from harness.adapters.base import Adapter, PeerMissing, TierSetup
from harness.core.inputs import near

TIERS = {
    "kvtier": "harness.adapters.kvtier:KvtierAdapter",
    "kvtier-stack": "harness.adapters.kvtier:KvtierStackAdapter",
    "reference": "harness.adapters.reference:ReferenceAdapter",
    "aibrix": "harness.adapters.aibrix:AibrixAdapter",
    "lmcache": "harness.adapters.lmcache:LmcacheAdapter",
    "sglang": "harness.adapters.sglang:SglangAdapter",
    "vllm": "harness.adapters.vllm:VllmAdapter",
}
"""Tier name -> "module:Class". A mutant's name and any other `module:Class` are accepted in its place."""

ALIASES = {"memory": "reference"}
"""Former names of tiers, accepted for one release."""

NAMES = dict.fromkeys(("kvtier", "kvtier-stack"), "harness.adapters.kvtier_names:KvtierNaming")
"""Tiers whose block names can be derived without the packages of the whole tier, and the class that does it."""


class UnknownTier(ValueError):
    """No tier has that name; the text is one sentence for a person."""


class OptionRefused(ValueError):
    """A tier refuses its options; the text is one sentence for a person."""


def canonical(tier: str) -> str:
    """The present name of a tier that was given by a former one; any other as it is."""
    return ALIASES.get(tier, tier)


def mutants() -> Mapping[str, Any]:
    """Tiers with a known defect by name, as docs/mutants.md lists them; imported by the first call."""
    return importlib.import_module("harness.mutants.registry").MUTANTS  # type: ignore[no-any-return]


def adapter_class(tier: str) -> type[Adapter]:
    """The class behind a tier's name, a mutant's name or a `module:Class`. Raises `UnknownTier`; `PeerMissing` where
    its package is not installed."""
    module_name, _, class_name = _place(tier).partition(":")
    try:
        found = getattr(_import(module_name), class_name, None)
    except ModuleNotFoundError as error:
        if canonical(tier) in TIERS:
            raise PeerMissing(f"tier {tier!r} cannot be used here: {error}") from error
        if f"{module_name}.".startswith(f"{error.name}."):
            where = "in the working directory or on PYTHONPATH; run the command from the folder that holds it"
            raise UnknownTier(f"tier is {tier!r}, but there is no module {error.name!r} {where}") from error
        raise UnknownTier(f"tier is {tier!r}, but {module_name} imports {error.name!r}, which is missing") from error
    except (Exception, SystemExit) as error:  # anything that a foreign module raises when it is imported
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnknownTier(f"tier is {tier!r}, but module {module_name!r} cannot be imported: {why}") from error
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise UnknownTier(f"tier is {tier!r}, but {module_name} has no Adapter class named {class_name!r}")
    if missing := sorted(found.__abstractmethods__):
        raise UnknownTier(f"tier is {tier!r}, but {class_name} lacks {', '.join(missing)}; an Adapter defines them all")
    return found


def _import(module_name: str) -> ModuleType:
    """Import a module, also from the working directory, which is searched last and so hides no other module."""
    with suppress(FileNotFoundError):  # a working directory that was removed
        if (folder := os.getcwd()) not in sys.path:
            sys.path.append(folder)
    importlib.invalidate_caches()
    return importlib.import_module(module_name)


def _place(tier: str) -> str:
    """The `module:Class` that a tier's name stands for."""
    tier = canonical(tier)
    if tier in TIERS:
        return TIERS[tier]
    module_name, colon, class_name = tier.partition(":")
    if colon and class_name.isidentifier() and all(part.isidentifier() for part in module_name.split(".")):
        return tier
    if colon:
        raise UnknownTier(f"tier is {tier!r}; module:Class takes a module's dotted name, a colon and a class's name")
    if tier in (known := mutants()):
        return str(known[tier].tier)
    valid = f"{', '.join(TIERS)}, a mutant's name (`kvtier-harness list` has all names), or module:Class"
    raise UnknownTier(f"tier is {tier!r}{near(tier, [*TIERS, *known])}; valid choices: {valid}")


def check_options(tier: str, setup: TierSetup) -> None:
    """Raises `OptionRefused` for an option that the tier's adapter refuses; `UnknownTier`, `PeerMissing`."""
    chosen = adapter_class(tier)
    try:
        chosen.check_options(setup)
    except ValueError as error:
        raise OptionRefused(str(error)) from error
    except Exception as error:
        raise OptionRefused(f"{tier} cannot use its options: {type(error).__name__}: {error}") from error


def tier_python(tier: str) -> str:
    """The interpreter whose packages a tier's workers need; `PeerMissing` where there is none."""
    return adapter_class(tier).python()
