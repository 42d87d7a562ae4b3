"""Intervals of time as pairs of seconds; no clock, no files."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals covering the same; the input is sorted by its starts."""
    merged: list[Interval] = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        elif end > start:
            merged.append((start, end))
    return merged


def inside(seconds: float, intervals: list[Interval]) -> bool:
    place = bisect_right(intervals, (seconds, math.inf)) - 1
    return place >= 0 and intervals[place][0] < seconds < intervals[place][1]


def longest_overlap(left: list[Interval], right: list[Interval]) -> Interval:
    """The longest stretch that lies in one interval of each; both are disjoint and in order. (0, 0) if there is
    none."""
    best = (0.0, 0.0)
    place = 0
    for start, end in left:
        while place < len(right) and right[place][1] <= start:
            place += 1
        at = place
        while at < len(right) and right[at][0] < end:
            stretch = (max(start, right[at][0]), min(end, right[at][1]))
            if stretch[1] - stretch[0] > best[1] - best[0]:
                best = stretch
            at += 1
        place = max(place, at - 1)
    return best
