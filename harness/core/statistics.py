"""Percentiles, bootstrap intervals, paired ratios and scatter of samples.

numpy is imported by the first call, so that commands start fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")

RESAMPLES = 2000
CONFIDENCE = 0.95
MAD_TO_SIGMA = 1.4826


class Interval(NamedTuple):
    """A value with its bootstrap interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


def percentile(
    values: Sequence[float], share: float, method: Literal["linear", "inverted_cdf", "higher"] = "linear"
) -> float:
    """The `share`-quantile by one of numpy's methods; NaN of nothing.

    "linear" interpolates between neighbours in rank. "inverted_cdf" is the smallest value that at least `share` of them
    do not exceed. "higher" is the neighbour above the place between ranks.
    """
    import numpy as np

    return float(np.quantile(values, share, method=method)) if len(values) else math.nan


def bounds(resampled: Sequence[float]) -> tuple[float, float]:
    """The percentile-bootstrap interval at `CONFIDENCE` of a statistic's values over resamples."""
    tail = (1 - CONFIDENCE) / 2
    return percentile(resampled, tail), percentile(resampled, 1 - tail)


def bootstrap(values: Sequence[T], statistic: Callable[[Sequence[T]], float] = median, seed: int = 0) -> Interval:  # type: ignore[assignment]
    """The statistic of `values` and its interval; of one value the interval is the value."""
    import numpy as np

    value, size = statistic(values), len(values)
    if size < 2:
        return Interval(value, value, value)
    # Seeded by a list, this generator draws what `random.Random(seed).choices` draws.
    places = (np.random.RandomState([seed]).random_sample((RESAMPLES, size)) * size).astype(int)
    return Interval(value, *bounds([statistic([values[place] for place in row]) for row in places.tolist()]))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The median of the ratios of neighbours in time, `ours[i] / theirs[i]`, with its interval."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b > 0 and not math.isnan(a)]
    return bootstrap(pairs) if pairs else Interval(math.nan, math.nan, math.nan)


def relative_spread(values: Sequence[float]) -> float:
    """Robust relative scatter: 1.4826 * median absolute deviation / median; 0 of fewer than two."""
    if len(values) < 2 or not median(values):
        return 0.0
    middle = median(values)
    return MAD_TO_SIGMA * median(abs(v - middle) for v in values) / abs(middle)


def upper_bound(events: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided upper bound of a probability after `events` in `trials` (Clopper and Pearson); 1 without trials.

    Without events it is about 3 / trials, the rule of three.
    """
    if events >= trials:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        at_most = sum(math.comb(trials, k) * middle**k * (1 - middle) ** (trials - k) for k in range(events + 1))
        low, high = (low, middle) if at_most < 1 - confidence else (middle, high)
    return high
