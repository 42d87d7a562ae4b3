"""What a rule of time may charge a tier with: lives between polls, hindered time, and findings that come again."""

from __future__ import annotations

import math

from harness.checkers.evidence import Hindrance, confirmed, least_life, most_life
from harness.core.history import History, Note
from tests.tiering.harness.checkers.records import job, note


def delayed(since: float, at: float, seconds: float, process: int = 0, stopped: bool = False) -> Note:
    return note("delayed", at, process, from_seconds=since, seconds=seconds, stopped=stopped)


def late(*wake_ups: tuple[float, float, float]) -> Note:
    return note("canary", 100.0, 0, late_seconds=max(w[1] for w in wake_ups), latest=[list(w) for w in wake_ups])


def test_a_job_is_charged_until_the_last_poll_that_did_not_return_it() -> None:
    one = job(0, 1, "load", [1], 10.0, 12.0, absent_seconds=10.5)
    assert (least_life(one), most_life(one)) == (0.5, 2.0)
    assert least_life(job(0, 1, "load", [1], 10.0, 12.0)) == 2.0, "a history without polls"


def test_time_without_a_cpu_or_the_lock_is_not_charged() -> None:
    history = History.of([delayed(1.0, 2.0, 0.3), delayed(1.5, 2.0, 0.4, process=1), late((3.0, 0.5, 0.125))])
    hindrance = Hindrance(history, 0)
    assert hindrance.free_seconds(0.0, 1.0) == 1.0
    assert math.isclose(hindrance.seconds(1.0, 2.0), 0.3)
    assert math.isclose(hindrance.seconds(1.9, 2.0), 0.1), "no more than the overlap"
    assert math.isclose(hindrance.seconds(2.0, 3.0), 0.375), "of the late wake-up what the thread could have run"
    assert hindrance.seconds(5.0, 6.0) == 0.0
    stolen = Hindrance(History.of([note("pressure", 2.0, from_seconds=1.0, steal_seconds=0.5)]), 0)
    assert stolen.seconds(1.0, 2.0) == 0.5


def test_a_process_stood_only_where_its_own_canary_says_so_too() -> None:
    stood = delayed(1.0, 2.0, 1.0, stopped=True)
    assert Hindrance(History.of([stood]), 0).seconds(1.0, 2.0) == 0.0, "another process was sampled"
    assert Hindrance(History.of([stood, late((2.0, 0.75, 0.0))]), 0).seconds(1.0, 2.0) == 1.0


def test_a_finding_comes_again() -> None:
    assert [confirmed(n, 3) for n in range(4)] == ["no", "no", "unsure", "yes"]
    assert [confirmed(0, 0), confirmed(1, 1)] == ["no", "yes"]
