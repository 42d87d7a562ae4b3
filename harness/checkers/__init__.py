"""Checkers: pure functions from a history to a verdict. Each module here that has a function `check` is one, under its
name; scenarios name those that judge them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping

from harness.checkers.base import Verdict
from harness.core.history import History

Checker = Callable[[History], Verdict]


def found() -> dict[str, Checker]:
    """The checkers that this package's modules declare, by name."""
    modules = {one.name: importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)}
    return {name: module.check for name, module in modules.items() if hasattr(module, "check")}


CHECKERS: Mapping[str, Checker] = found()
