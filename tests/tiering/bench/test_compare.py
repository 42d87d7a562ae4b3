"""The comparison with a baseline can say each of its answers, and errs as seldom as it claims, on drawn figures."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest

from harness.bench.compare import CHUNKS, CHUNKS_MORE, judge, too_noisy
from harness.bench.plan import Sample
from harness.bench.stats import bootstrap, percentile, ratio, spread
from harness.bench.targets import targets

BASE = 0.5


def runs(draw: random.Random, count: int, scatter: float, drift: float, shift: float = 0.0) -> list[list[float]]:
    """Chunks that scatter within a run; runs that drift from each other; all slower by `shift` (ln)."""
    return [
        [BASE + shift + offset + draw.gauss(0, scatter) for _ in range(CHUNKS)]
        for offset in (draw.gauss(0, drift) for _ in range(count))
    ]


def outcomes(shift: float, scatter: float = 0.05, drift: float = 0.01, trials: int = 120) -> dict[str, int]:
    draw = random.Random(5)
    counts: dict[str, int] = {}
    for _ in range(trials):
        baseline = runs(draw, 10, scatter, drift)
        (run,) = runs(draw, 1, scatter, drift, shift)
        answer = judge("store", run, baseline).outcome
        counts[answer] = counts.get(answer, 0) + 1
    return counts


def test_unchanged_code_raises_an_alarm_in_less_than_one_of_twenty_runs() -> None:
    assert outcomes(0.0).get("slower", 0) <= 120 / 20


@pytest.mark.parametrize("slower", [1.15, 1.5, 3.0])
def test_fifteen_percent_are_found_in_nineteen_of_twenty_runs(slower: float) -> None:
    assert outcomes(math.log(slower)).get("slower", 0) >= 120 * 19 / 20


def test_faster_code_is_no_alarm() -> None:
    assert set(outcomes(-math.log(1.3))) == {"faster"}


def test_what_scatters_too_much_is_unknown_and_says_why() -> None:
    assert outcomes(0.0, scatter=0.5).get("unknown", 0) > 108
    draw = random.Random(1)
    judged = judge("load", runs(draw, 1, 0.5, 0)[0], runs(draw, 5, 0.5, 0))
    assert judged.outcome == "unknown"
    assert "standard error" in judged.reason


def test_a_gross_slowdown_is_an_alarm_however_noisy_the_run() -> None:
    assert outcomes(math.log(3), scatter=0.3).get("slower", 0) > 116


def test_a_baseline_that_could_judge_nothing_says_so() -> None:
    draw = random.Random(1)
    found = {"runs": {"store": runs(draw, 10, 0.05, 0.01), "load": runs(draw, 10, 0.05, 0.2)}}
    (why,) = too_noisy(found)
    assert "10 runs of load differ by" in why


def test_too_few_figures_are_unknown() -> None:
    assert judge("store", [0.1] * CHUNKS, [[0.1] * CHUNKS]).outcome == "unknown"
    assert judge("store", [0.1, 0.1], [[0.1] * CHUNKS] * 4).outcome == "unknown"
    assert CHUNKS_MORE > CHUNKS


def test_percentiles_interpolate_and_know_nothing_of_nothing() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([0, 10], 0.99) == pytest.approx(9.9)
    assert math.isnan(percentile([], 0.5))


def test_an_interval_holds_its_value_and_shrinks_with_more_figures() -> None:
    draw = random.Random(3)
    few, many = ([draw.gauss(10, 1) for _ in range(count)] for count in (5, 500))
    for values in (few, many):
        value, low, high = bootstrap(values)
        assert low <= value == median(values) <= high
    assert bootstrap(many).high - bootstrap(many).low < bootstrap(few).high - bootstrap(few).low
    assert spread([5.0]) == 0 < spread(few)


def test_a_ratio_pairs_neighbours_in_time() -> None:
    ours, theirs = [1.0, 10.0, 100.0], [2.0, 20.0, 200.0]  # the machine slowed down tenfold from round to round
    assert ratio(ours, theirs) == (0.5, 0.5, 0.5)


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
