"""Checkers: pure functions from a history to a verdict; `run` calls them by the names registered here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.checkers import (
    capacity,
    contract,
    determinism,
    faults,
    floods,
    integrity,
    leftovers,
    matrix,
    nonblocking,
    outage,
    power_loss,
    recovery,
    results,
    sharing,
    soak,
    starvation,
    visibility,
)
from harness.checkers.base import Verdict
from harness.core.history import History

CHECKERS: Mapping[str, Callable[[History], Verdict]] = {
    "contract": contract.check,
    "sharing": sharing.check,
    "determinism": determinism.check,
    "starvation": starvation.check,
    "floods": floods.check,
    "faults": faults.check,
    "soak": soak.check,
    "capacity": capacity.check,
    "visibility": visibility.check,
    "recovery": recovery.check,
    "matrix": matrix.check,
    "outage": outage.check,
    "power_loss": power_loss.check,
    "integrity": integrity.check,
    "results": results.check,
    "leftovers": leftovers.check,
    "nonblocking": nonblocking.check,
}
