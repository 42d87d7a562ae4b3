"""A pause of the process uses up a small part of a limit of time; waiting and calls that block use it up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.core import patience
from harness.core.patience import Patience


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says."""
    now = [0.0]
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(("seconds", "counted"), [(10.0, 2.5), (1.0, 0.5)])
def test_a_pause_counts_as_one_look(now: list[float], seconds: float, counted: float) -> None:
    one = Patience(seconds)
    now[0] += 3600.0
    assert not one.is_over(), "the process was stopped for an hour"
    looks = 0
    while not one.is_over():
        now[0] += 0.25
        looks += 1
    assert 0.25 * looks == pytest.approx(seconds - counted)
    one.renew()
    assert not one.is_over()


def test_calls_that_each_block_for_seconds_use_up_the_limit(now: list[float]) -> None:
    """A tier each of whose steps takes 5 s has 20 s for a result that is due in 10 s, not 100 s."""
    one = Patience(10.0)
    while not one.is_over():
        now[0] += 5.0
    assert now[0] == 20.0
