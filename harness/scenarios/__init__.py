"""The scenarios by name; a new one is a module here and a line in `_MODULES`."""

from __future__ import annotations

import importlib

from harness.scenarios.base import Scenario

_MODULES = (
    *("contract", "load", "sharing", "determinism", "starvation"),
    *("crash", "faults", "soak", "capacity", "outage", "power_loss"),
)


def scenario(name: str) -> Scenario:
    """The scenario of that name; an unknown name is the caller's mistake."""
    assert name in _MODULES, f"no scenario {name!r}; there are {', '.join(_MODULES)}"
    found: Scenario = importlib.import_module(f"harness.scenarios.{name}").SCENARIO
    return found


def scenarios() -> list[Scenario]:
    """All of them, in the order in which they are listed."""
    return [scenario(name) for name in _MODULES]
