"""Figures from samples: medians, spread, bootstrap intervals of paired ratios. Pure functions, no clock, no I/O."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

RESAMPLES = 2000
CONFIDENCE = 0.95
MAD_TO_SIGMA = 1.4826


class Interval(NamedTuple):
    """A value with its bootstrap interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, interpolated; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def bootstrap(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float] = median, seed: int = 0
) -> Interval:
    """The statistic of `values` and its percentile-bootstrap interval; of one value the interval is the value."""
    value = statistic(values)
    if len(values) < 2:
        return Interval(value, value, value)
    draw = random.Random(seed)
    resampled = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return Interval(value, percentile(resampled, tail), percentile(resampled, 1 - tail))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The median of the ratios of neighbours in time, `ours[i] / theirs[i]`, with its interval."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b > 0 and not math.isnan(a)]
    return bootstrap(pairs) if pairs else Interval(math.nan, math.nan, math.nan)


def spread(values: Sequence[float]) -> float:
    """Robust relative scatter: 1.4826 * median absolute deviation / median; 0 of fewer than two."""
    if len(values) < 2 or not median(values):
        return 0.0
    middle = median(values)
    return MAD_TO_SIGMA * median(abs(v - middle) for v in values) / abs(middle)
