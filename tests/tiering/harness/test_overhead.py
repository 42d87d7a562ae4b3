"""harness.overhead: how a ratio and its spread come out of pairs of runs."""

from __future__ import annotations

import pytest

from harness.overhead import spread


def test_equal_pairs_cost_nothing_and_have_no_spread() -> None:
    assert spread([(5.0, 5.0)] * 4) == pytest.approx((1.0, 1.0, 1.0))


def test_the_ratio_is_the_geometric_mean_within_its_interval() -> None:
    found = spread([(50.0, 100.0), (200.0, 100.0), (98.0, 100.0), (96.0, 100.0)])
    assert found.ratio == pytest.approx((0.5 * 2.0 * 0.98 * 0.96) ** 0.25)
    assert found.low < found.ratio < found.high
    assert found.low >= 0.5
    assert found.high <= 2.0


def test_a_difference_larger_than_the_noise_is_told_from_none() -> None:
    noise = (0.99, 1.01, 1.0, 0.995, 1.005, 1.0)
    slower = spread([(0.9 * n, 1.0) for n in noise])
    assert slower.high < 0.95
    same = spread([(n, 1.0) for n in noise])
    assert same.low <= 1.0 <= same.high
