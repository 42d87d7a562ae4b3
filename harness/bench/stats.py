"""Paired ratios and scatter of samples. Pure functions, no clock, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from harness.core.statistics import Interval, bootstrap, percentile

__all__ = ["Interval", "bootstrap", "percentile", "ratio", "spread"]

MAD_TO_SIGMA = 1.4826


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
