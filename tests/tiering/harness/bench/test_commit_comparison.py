"""The comparison with an earlier commit reaches each of its outcomes, and is seldom wrong, on drawn figures."""

from __future__ import annotations

import math
import random

import pytest

from harness.bench.commit_comparison import CHUNKS, CHUNKS_MIN, judge
from harness.bench.plan import Sample
from harness.bench.targets import targets


def chunks(draw: random.Random, scatter: float, shift: float = 0.0) -> list[float]:
    return [shift + draw.gauss(0, scatter) for _ in range(CHUNKS)]


def outcomes(shift: float, scatter: float = 0.05, trials: int = 120) -> dict[str, int]:
    draw = random.Random(5)
    counts: dict[str, int] = {}
    for _ in range(trials):
        answer = judge("store", chunks(draw, scatter, shift)).outcome
        counts[answer] = counts.get(answer, 0) + 1
    return counts


def test_unchanged_code_raises_an_alarm_in_less_than_one_of_twenty_runs() -> None:
    assert outcomes(0.0).get("slower", 0) <= 120 / 20


@pytest.mark.parametrize("slower", [1.15, 1.5, 3.0])
def test_fifteen_percent_are_found_in_nineteen_of_twenty_runs(slower: float) -> None:
    assert outcomes(math.log(slower)).get("slower", 0) >= 120 * 19 / 20


def test_faster_code_is_no_alarm() -> None:
    assert set(outcomes(-math.log(1.3))) == {"faster"}


def test_too_much_scatter_is_unknown_with_a_reason() -> None:
    assert outcomes(0.0, scatter=0.5).get("unknown", 0) > 108
    judged = judge("load", chunks(random.Random(1), 0.5))
    assert judged.outcome == "unknown"
    assert f"the run's {CHUNKS} chunks differ too much" in judged.reason


def test_a_gross_slowdown_is_an_alarm_however_noisy_the_run() -> None:
    assert outcomes(math.log(3), scatter=0.3).get("slower", 0) > 116


def test_too_few_figures_are_unknown() -> None:
    judged = judge("store", [0.1] * (CHUNKS_MIN - 1))
    assert (judged.outcome, judged.reason) == ("unknown", "there are 4 figures, fewer than 5")
    assert judge("store", [0.1] * CHUNKS_MIN).outcome == "slower"


def flood(who: str, metric: str, values: list[float]) -> list[Sample]:
    row = "one-block load under 512-block stores, 256 KiB"
    return [Sample("floods", row, metric, "ms", who, number, value) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [([1.0, 1.1, 1.2], "met"), ([50.0, 60.0, 70.0], "missed"), ([1.0, 60.0, 1.0], "unclear"), ([], "unmeasured")],
)
def test_a_target_is_met_only_if_its_whole_interval_is(ours: list[float], outcome: str) -> None:
    samples = flood("kvtier", "p99", ours) + flood("vllm", "p99", [1000.0, 1000.0, 1000.0])
    (target,) = targets(samples)
    assert (target.number, target.wanted, target.outcome) == (1, "<= 0.02", outcome)


@pytest.mark.parametrize(
    ("shares", "outcome"),
    [([0.6, 0.4, 0.5], "met"), ([0.1, 0.0, 0.2], "missed"), ([0.6, 0.0, 0.6], "unclear"), ([0.0] * 3, "missed")],
)
def test_a_class_starves_where_a_process_gets_next_to_nothing_of_it(shares: list[float], outcome: str) -> None:
    """Also where no process gets anything."""
    row = "16 processes"
    (target,) = targets([Sample("scale", row, "least store", "", "kvtier", n, share) for n, share in enumerate(shares)])
    assert (target.number, target.outcome) == (9, outcome)
