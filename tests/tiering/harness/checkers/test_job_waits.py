"""Jobs and classes that are held back, by jobs alone: for longer than the device explains, and again."""

from __future__ import annotations

from typing import Any

from harness.checkers import Verdict
from harness.checkers.starvation import check
from harness.core.history import History, Job, Note, Start
from tests.tiering.harness.checkers.records import canary, job, note, stop

THREADS = {"read_threads": 1, "write_threads": 1}
DEVICE = 0.005
"""The longest call of the device: waits below 20 ms show nothing."""


def judge(jobs: list[Job], *more: Note, device: float | None = DEVICE, **detail: Any) -> Verdict:
    measured = (
        []
        if device is None
        else [note("device", 1.0, from_seconds=0.0, longest_seconds=device, median_seconds=0.001, call="write")]
    )
    started = Start(0, 0, 1, "t", "d", 0.0, 0.0, {**THREADS, **detail})
    return check(History.of([started, canary(0, 0.0001), *measured, *more, *jobs, stop(0)]))


def stream(count: int = 600) -> list[Job]:
    """Loads and stores of one block, one of each in each 2 ms, each of which takes 4 ms."""
    jobs = []
    for i in range(count):
        at = i * 0.002
        jobs += [job(0, 2 * i, "load", [i], at, at + 0.004), job(0, 2 * i + 1, "store", [i], at + 0.001, at + 0.005)]
    return jobs


def held(jobs: list[Job], *numbers: int, seconds: float = 0.1) -> list[Job]:
    return [j._replace(finished_seconds=j.submitted_seconds + seconds) if j.job_id in numbers else j for j in jobs]


def test_a_stream_in_order_passes() -> None:
    assert judge(stream()).value == "true"


def test_single_jobs_of_a_thousand_that_are_held_back_are_found() -> None:
    verdict = judge(held(stream(), 301, 601, 901))
    assert verdict.value == "false"
    first = verdict.findings[0]
    assert first.rule == "starvation/job-held-back"
    assert "(store, 1 blocks) had no result for" in first
    assert "3 times in this process" in first
    assert first.about.job in (301, 601, 901)


def test_one_pause_of_one_job_is_no_finding() -> None:
    assert judge(held(stream(), 301, seconds=0.1)).value == "true"
    assert judge(held(stream(), 301, seconds=0.8)).value == "false", "40 times what the device explains"


def test_waits_that_the_device_as_it_was_then_explains_are_inconclusive() -> None:
    """A defect beside a noisy neighbour does not pass."""

    def measured(since: float, longest: float) -> Note:
        return note("device", since + 0.5, from_seconds=since, longest_seconds=longest, median_seconds=0.001, call="w")

    noisy, usual = [measured(at, 0.1) for at in (0.0, 0.5)], [measured(at, DEVICE) for at in (8.0, 9.0)]
    assert judge(held(stream(), 301, 601, 901), *noisy, *usual).value == "unknown"


def test_what_the_device_takes_by_itself_shows_nothing() -> None:
    assert judge(held(stream(), 301, 601, 901), device=0.05).value == "true"
    assert judge(held(stream(), 301, 601, 901), device=None).value == "true", "a tenth of a second, nothing measured"


def test_a_result_that_the_harness_was_late_to_poll_is_not_held_back() -> None:
    late = [j._replace(absent_seconds=j.submitted_seconds + 0.003) for j in held(stream(), 301, 601, 901)]
    assert judge(late).value == "true"


def test_a_hindered_process_holds_nothing_back() -> None:
    jobs = held(stream(), 301, 601, 901)
    pauses = [
        note("delayed", j.finished_seconds, 0, from_seconds=j.submitted_seconds, seconds=0.095)
        for j in jobs
        if j.job_id in (301, 601, 901)
    ]
    assert judge(jobs, *pauses).value == "unknown"


def test_a_job_behind_few_others_was_not_overtaken() -> None:
    jobs = [j for j in held(stream(), 301, 601, 901) if j.job_id in (301, 601, 901) or j.job_id % 60 == 0]
    assert judge(jobs).value == "true"


def test_jobs_inside_their_submit_are_not_held_back() -> None:
    assert judge(held(stream(), 301, 601, 901), runs_in_submit=True).value == "true"


def class_pauses(seconds: float) -> list[Job]:
    """Stores that come while loads run wait until the next pause of the loads, three times."""
    jobs = []
    for i in range(600):
        at = i * 0.002
        jobs.append(job(0, i, "load", [i], at, at + 0.004))
        if i % 200 == 0:
            jobs.append(job(0, 1000 + i, "store", [i], at + 0.001, at + seconds))
    return jobs


def test_a_class_that_waits_for_a_pause_of_the_other_is_found() -> None:
    verdict = judge(class_pauses(0.35))
    assert verdict.value == "false"
    assert verdict.findings[0].rule == "starvation/class-held-back"
    assert "no store finished for 349 ms with 1 blocks outstanding" in verdict.findings[0]


def test_many_small_jobs_beside_one_slow_call_are_no_starvation() -> None:
    """As a right tier with a hidden schedule was accused: 59 loads in the 5.6 ms of one store."""
    assert judge(class_pauses(0.0156)).value == "true"
