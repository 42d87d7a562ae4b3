"""Checkers: pure functions from a history to a verdict. Each module here that has a function `check` is one, under its
name; scenarios name those that judge them. Its `RULES` say what it judges."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType

from harness.checkers.base import Verdict
from harness.core.findings import Rule
from harness.core.history import History

Checker = Callable[[History], Verdict]


def _modules() -> dict[str, ModuleType]:
    named = {one.name: importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in named.items() if hasattr(module, "check")}


def found() -> dict[str, Checker]:
    """The checkers that this package's modules declare, by name."""
    return {name: module.check for name, module in _modules().items()}


def declared() -> dict[str, Rule]:
    """The rules that they declare, by id."""
    return {rule.id: rule for module in _modules().values() for rule in getattr(module, "RULES", ())}


CHECKERS: Mapping[str, Checker] = found()
RULES: Mapping[str, Rule] = declared()
