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
    samples = [delayed(1.0, 2.0, 0.3), delayed(1.5, 2.0, 0.4, process=1), delayed(2.5, 3.0, 0.125)]
    history = History.of([*samples, late((3.0, 0.5, 0.125))])
    hindrance = Hindrance(history, 0)
    assert hindrance.free_seconds(0.0, 1.0) == 1.0
    assert math.isclose(hindrance.seconds(1.0, 2.0), 0.3)
    assert math.isclose(hindrance.seconds(1.9, 2.0), 0.1), "no more than the overlap"
    assert math.isclose(hindrance.seconds(2.0, 3.0), 0.5), "without a CPU, then without the lock"
    assert hindrance.seconds(5.0, 6.0) == 0.0
    stolen = Hindrance(History.of([note("pressure", 2.0, from_seconds=1.0, steal_seconds=0.5)]), 0)
    assert stolen.seconds(1.0, 2.0) == 0.5


def test_a_late_canary_is_evidence_where_no_sample_was_taken() -> None:
    hindrance = Hindrance(History.of([late((3.0, 0.5, 0.5))]), 0)
    assert hindrance.seconds(2.5, 3.0) == 0.5, "it was runnable without a CPU, and nobody sampled the process"
    both = Hindrance(History.of([late((3.0, 0.5, 0.5)), delayed(2.5, 3.0, 0.5)]), 0)
    assert both.seconds(2.0, 3.0) == 0.5, "it counts once"


def test_an_idle_thread_was_hindered_as_one_thread_not_as_all_of_them_together() -> None:
    def sample(at: float, **threads: tuple[float, float]) -> Note:
        longest = max(delay for delay, _ in threads.values())
        return note("delayed", at, 0, from_seconds=at - 0.01 - longest, seconds=longest, threads=threads)

    in_turn = [sample(1.0 + i / 100, **{f"{i % 4}": (0.01, 0.0)}) for i in range(1, 101)]
    hindrance = Hindrance(History.of(in_turn), 0)
    assert hindrance.free_seconds(1.0, 2.0) < 0.05, "one of four threads was always without a CPU"
    assert 0.7 < hindrance.idle_seconds(1.0, 2.0) < 0.8, "none of them for more than a quarter of the time"
    busy = [sample(1.0 + i / 100, a=(0.008, 0.002)) for i in range(1, 101)]
    assert Hindrance(History.of(busy), 0).idle_seconds(1.0, 2.0) > 0.99, "it had tasks, as its CPU time shows"
    woken = Hindrance(History.of([sample(1.15, a=(0.148, 0.0001)), *busy[20:]]), 0)
    assert woken.idle_seconds(1.0, 1.148) < 0.01, "it was woken, and got no CPU"
    loaded = [sample(1.0 + i / 100, a=(0.0085, 0.0003)) for i in range(1, 101)]
    assert Hindrance(History.of(loaded), 0).idle_seconds(1.0, 2.0) > 0.99, (
        "it had tasks, on a machine with many threads"
    )
    looks = [sample(1.0 + i / 100, a=(0.0085, 0.00003)) for i in range(1, 101)]
    assert Hindrance(History.of(looks), 0).idle_seconds(1.0, 2.0) < 0.2, "it only looked whether there was a task"
    short = Hindrance(History.of([sample(1.01, a=(0.008, 0.00015), b=(0.009, 0.002))]), 0)
    assert math.isclose(short.idle_seconds(0.999, 1.012), 0.005), "one wake-up is more than 1 % of a short time"
    before = Hindrance(History.of([delayed(1.0, 2.0, 0.3)]), 0)
    assert math.isclose(before.idle_seconds(1.0, 2.0), 0.7), "a history that does not tell threads apart"


def test_a_process_stood_only_where_its_own_canary_says_so_too() -> None:
    stood = delayed(1.0, 2.0, 1.0, stopped=True)
    assert Hindrance(History.of([stood]), 0).seconds(1.0, 2.0) == 0.0, "another process was sampled"
    assert Hindrance(History.of([stood, late((2.0, 0.75, 0.0))]), 0).seconds(1.0, 2.0) == 1.0


def test_a_finding_comes_again() -> None:
    assert [confirmed(n, 3) for n in range(4)] == ["no", "no", "unsure", "yes"]
    assert [confirmed(0, 0), confirmed(1, 1)] == ["no", "yes"]
