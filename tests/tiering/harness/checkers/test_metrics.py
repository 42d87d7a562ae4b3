"""Figures of a tier's own endpoint at the end of an incarnation, against the results of its jobs."""

from __future__ import annotations

from harness.checkers import CHECKERS
from harness.core.findings import Finding
from harness.core.history import History, Job
from tests.tiering.harness.checkers import records

BLOCK_BYTES = 4096


def check(values: dict[str, float], *jobs: Job) -> list[tuple[str, str]]:
    """Findings (rule, text) of a process whose second incarnation began at 50 and was scraped at 90."""
    history = History(
        starts=[records.start(0), records.start(0, 1, at=50.0)],
        stops=[records.stop(0, at=40.0, exit_code=-9), records.stop(0, 1)],
        jobs=list(jobs),
        notes=[records.note("scraped", 90.0, 0, values=values)],
        options={"block_bytes": BLOCK_BYTES},
    )
    found = CHECKERS["results"](history).findings
    return [(one.rule, str(one)) for one in found if isinstance(one, Finding)]


STORES = (
    records.job(0, 1, "store", [1, 2, 3], 10.0, 11.0),  # of the first incarnation
    records.job(0, 1, "store", [4, 5], 60.0, 61.0),
    records.job(0, 2, "load", [4, 5], 70.0, 71.0),
)
RIGHT = {"jobs (store)": 1.0, "blocks ok (both)": 4.0, "bytes (load)": 2.0 * BLOCK_BYTES, "jobs in flight (both)": 0.0}


def test_figures_of_the_incarnation_itself_pass() -> None:
    assert check(RIGHT, *STORES) == []


def test_figures_of_an_earlier_incarnation_are_a_finding() -> None:
    ((rule, text),) = check({**RIGHT, "jobs (store)": 2.0}, *STORES)
    assert rule == "results/metrics"
    assert text == "0: the tier's endpoint has other figures than the results of its jobs: 2 jobs (store) for 1"


def test_a_gauge_of_jobs_that_all_ended_is_a_finding() -> None:
    ((rule, text),) = check({**RIGHT, "jobs in flight (both)": 1.0}, *STORES)
    assert (rule, text.rpartition(": ")[2]) == ("results/metrics", "1 jobs in flight (both) for 0")


def test_an_incarnation_with_a_job_without_a_result_is_not_compared() -> None:
    open_job = STORES[1]._replace(results=0)
    found = check({**RIGHT, "jobs (store)": 7.0}, STORES[0], open_job, STORES[2])
    assert "results/metrics" not in [rule for rule, _ in found]
