"""A pause of the process uses up next to nothing of a limit of time; waiting does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.core import patience
from harness.core.patience import LOOK_SECONDS_MAX, Patience


def test_a_pause_counts_as_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = Patience(10.0)
    now[0] += 3600.0
    assert not one.is_over(), "the process was stopped for an hour"
    looks = 0
    while not one.is_over():
        now[0] += 0.25
        looks += 1
    assert 0.25 * looks == pytest.approx(10.0 - LOOK_SECONDS_MAX)
    one.renew()
    assert not one.is_over()
