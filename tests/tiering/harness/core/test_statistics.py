"""Percentiles and intervals are those of the definitions written out in plain Python, on the same data."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean, median

import pytest

from harness.core.statistics import CONFIDENCE, RESAMPLES, bootstrap, bounds, paired_ratio, percentile, relative_spread

SHARES = (0.025, 0.5, 0.9, 0.975, 0.99, 0.999, 1.0)
SIZES = (*range(1, 60), 99, 100, 101, 199, 200, 250, 300, 999, 1000, 1001, 2000)


def interpolated(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def samples(size: int) -> list[float]:
    draw = random.Random(size)
    return [draw.lognormvariate(0, 1) for _ in range(size)]


@pytest.mark.parametrize("share", SHARES)
def test_percentiles_are_those_of_the_definitions(share: float) -> None:
    for size in SIZES:
        values = samples(size)
        ordered = sorted(values)
        assert percentile(values, share) == pytest.approx(interpolated(ordered, share), rel=1e-12)
        ranks = [(i + 1) / size for i in range(size)]
        assert percentile(values, share, "inverted_cdf") == ordered[min(size - 1, bisect_left(ranks, share))]


def test_the_99th_by_its_upper_neighbour_is_the_one_that_nonblocking_reports() -> None:
    for size in SIZES:
        ordered = sorted(samples(size))
        assert percentile(ordered, 0.99, "higher") == ordered[min(size - 1, int(0.99 * size))], size


def test_the_medians_and_99ths_of_results_are_those_of_whole_numbers() -> None:
    for size in SIZES:
        ordered = sorted(samples(size))
        assert percentile(ordered, 0.5, "inverted_cdf") == ordered[(size - 1) // 2]
        assert percentile(ordered, 0.99, "inverted_cdf") == ordered[-(-99 * size // 100) - 1]


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("statistic", [median, fmean])
def test_a_bootstrap_draws_what_the_standard_generator_draws(seed: int, statistic: object) -> None:
    assert callable(statistic)
    for size in (2, 5, 48):
        values = samples(size)
        draw = random.Random(seed)
        resampled = sorted(statistic(draw.choices(values, k=size)) for _ in range(RESAMPLES))
        tail = (1 - CONFIDENCE) / 2
        wanted = (statistic(values), interpolated(resampled, tail), interpolated(resampled, 1 - tail))
        assert bootstrap(values, statistic, seed) == pytest.approx(wanted, rel=1e-12)
        assert bounds(resampled) == pytest.approx(wanted[1:], rel=1e-12)


def test_the_interval_of_one_value_is_the_value() -> None:
    assert bootstrap([3.0]) == (3.0, 3.0, 3.0)


def test_numpy_is_loaded_by_the_first_figure_and_not_before() -> None:
    script = "import sys, harness.core.statistics; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


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
    assert relative_spread([5.0]) == 0 < relative_spread(few)


def test_a_ratio_pairs_neighbours_in_time() -> None:
    ours, theirs = [1.0, 10.0, 100.0], [2.0, 20.0, 200.0]  # the machine slowed down tenfold from round to round
    assert paired_ratio(ours, theirs) == (0.5, 0.5, 0.5)
