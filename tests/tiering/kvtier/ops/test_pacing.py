"""The duty cycle: background eviction pauses nine times as long as it works, urgent eviction does not pause."""

from __future__ import annotations

import pytest

from kvtier.ops import pacing
from kvtier.ops.pacing import PAUSE_PER_WORK, SLICE_PAUSE_SECONDS_MAX, SLICE_SECONDS, DutyCycle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def test_background_work_has_a_duty_cycle_of_a_tenth(clock: Clock) -> None:
    duty = DutyCycle(lambda: False)
    duty.begin()
    began = clock.now
    for _ in range(1000):
        clock.now += SLICE_SECONDS / 3
        duty.pause()
    worked = 1000 * SLICE_SECONDS / 3
    assert worked / (clock.now - began) == pytest.approx(1 / (1 + PAUSE_PER_WORK), rel=0.01)


def test_urgent_work_has_no_pauses(clock: Clock) -> None:
    duty = DutyCycle(lambda: True)
    duty.begin()
    clock.now += 1
    duty.pause()
    assert clock.pauses == []


def test_a_pause_after_a_call_that_hung_has_a_limit(clock: Clock) -> None:
    duty = DutyCycle(lambda: False)
    duty.begin()
    clock.now += 60
    duty.pause()
    assert clock.pauses == [SLICE_PAUSE_SECONDS_MAX]
