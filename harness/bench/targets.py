"""The targets, one function: samples -> lines with the target, the measured ratio and the outcome.

A ratio pairs figures of the same round. It is "met" or "missed" only if its whole bootstrap interval lies on one side
of the target, else "unclear"; "unmeasured" when one side has no figure. Of five rounds or fewer that interval is about
their range, so its confidence is below 95 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from harness.bench.plan import FLOOR, Sample
from harness.core.statistics import Interval, paired_ratio

Outcome = Literal["met", "missed", "unclear", "unmeasured"]
LARGE_KIB = 1024
SMALL_KIB = (64, 256)
MANY_PROCESSES = "16 processes"
STARVED = 0.25
"""Share of the mean of all processes. A process below it starves, as do all where the direction gets nothing."""


class Target(NamedTuple):
    """`number` is that of the list of targets; `ratio` is kvtier's figure over the other's."""

    number: int
    what: str
    wanted: str
    ratio: Interval
    outcome: Outcome


Values = dict[tuple[str, str, str], dict[str, list[float]]]


def by_line(samples: Iterable[Sample]) -> Values:
    """(section, row, metric) -> contestant -> values in the order of rounds."""
    values: Values = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        values[sample.section, sample.row, sample.metric][sample.contestant].append(sample.value)
    return values


def targets(samples: Sequence[Sample]) -> list[Target]:
    """Every target that the samples cover, in order."""
    values = by_line(samples)
    found: list[Target] = []

    def add(number: int, what: str, ours: Sequence[float], theirs: Sequence[float], sign: str, limit: float) -> None:
        if ours or theirs:
            interval = paired_ratio(ours, theirs)
            found.append(Target(number, what, f"{sign} {limit:.3g}", interval, _outcome(interval, sign, limit)))

    def against(
        number: int, line: tuple[str, str, str], sign: str, limit: float, them: str = "vllm", us: str = "kvtier"
    ) -> None:
        if line in values:
            what = f"{line[1]}: {line[2]}" + (f" ({us})" if us != "kvtier" else "")
            add(number, f"{what}, against {them}", values[line].get(us, []), values[line].get(them, []), sign, limit)

    for section, row, metric in sorted(values, key=lambda line: _order(line)):
        line = section, row, metric
        match section:
            case "floods":
                _flood_targets(against, line)
            case "single":
                against(3, line, "<=", 0.6)
            case "throughput":
                _throughput_targets(against, line, values)
            case "lookups" if metric == "lookups" and not row.startswith("known"):
                against(6, line, ">=", 1.5 if _batch(row) >= 128 else 1.0)
            case "bursts":
                against(10, line, ">=", 1.0)
            case "stalled" if metric == "p99" and row.startswith("submit"):
                against(7, line, "<=", 1.0)
    _scale_targets(values, add)
    _root_targets(values, add)
    return sorted(found, key=lambda target: target.number)


def _flood_targets(against: Callable[..., None], line: tuple[str, str, str]) -> None:
    _, row, metric = line
    large, of_loads = "512-block" in row, row.startswith("one-block store")
    if of_loads:
        if metric == "p99":
            against(2, line, "<=", 0.25 if large else 1.0)
    elif metric in ("p50", "p99") and large:
        against(1, line, "<=", 0.02)
    elif metric == "p99":
        against(1, line, "<=", 0.5)
    elif metric == "flood" and large:
        against(1, line, ">=", 0.95)


def _throughput_targets(against: Callable[..., None], line: tuple[str, str, str], values: Values) -> None:
    _, row, metric = line
    kib = int(row.split()[0])
    if metric == "store":
        if kib >= LARGE_KIB:
            ceiling = "device, fio" if "device, fio" in values[line] else "device, 16 threads"
            against(4, line, ">=", 0.95, ceiling)
        elif kib in SMALL_KIB:
            against(4, line, ">=", 0.97, FLOOR)
    elif metric == "cold":
        against(4, line, ">=", 0.97)
    elif metric == "warm":
        for us in ("kvtier", "kvtier-buffered"):
            if us in values[line]:
                against(5, line, ">=", 2.0 if kib in SMALL_KIB[:1] else 3.0, us=us)
    elif metric == "cold CPU":
        against(8, line, "<=", 1.5)
    elif metric.endswith("CPU"):
        against(8, line, "<=", 1.0)


def _scale_targets(values: Values, add: Callable[..., None]) -> None:
    totals = {line[1]: by["kvtier"] for line, by in values.items() if line[0] == "scale" and line[2] == "total"}
    if totals:
        best = max(totals.values(), key=lambda figures: sum(figures) / max(1, len(figures)))
        for row, figures in totals.items():
            add(9, f"{row} on one root: total, against the best of them", figures, best, ">=", 0.9)
    for metric, least in (("store", 0.9), ("load", 2.0)):
        if by := values.get(("scale", MANY_PROCESSES, metric)):
            what = f"{MANY_PROCESSES} on one root: {metric}, against vllm"
            add(9, what, by["kvtier"], by["vllm"], ">=", least)
    for (section, row, metric), by in values.items():
        if section == "scale" and metric.startswith("least "):
            what, figures = f"{row} on one root: {metric} of a process, of their mean", by["kvtier"]
            add(9, what, figures, [1.0] * len(figures), ">=", STARVED)


def _root_targets(values: Values, add: Callable[..., None]) -> None:
    rows = sorted({row for section, row, _ in values if section == "root size"}, key=_blocks_in)
    if len(rows) < 2:
        return
    small, large = rows[0], rows[-1]
    for section, row, metric in list(values):
        if section == "root size" and row == large and metric != "memory per known block":
            ours = values[section, large, metric]["kvtier"]
            add(9, f"{large}: {metric}, against a {small}", ours, values[section, small, metric]["kvtier"], ">=", 0.9)


def _outcome(interval: Interval, sign: str, limit: float) -> Outcome:
    if math.isnan(interval.value):
        return "unmeasured"
    below, above = ("met", "missed") if sign == "<=" else ("missed", "met")
    if interval.high <= limit:
        return below if interval.high < limit or sign == "<=" else above  # type: ignore[return-value]
    return above if interval.low >= limit else "unclear"  # type: ignore[return-value]


def _order(line: tuple[str, str, str]) -> tuple[Any, ...]:
    section, row, metric = line
    return section, _kib(row), row, metric


def _kib(row: str) -> int:
    return int(row.split()[0]) if row.endswith("KiB") and row.split()[0].isdigit() else 0


def _batch(row: str) -> int:
    return int(row.rsplit(" ", 1)[1])


def _blocks_in(row: str) -> int:
    return int(row.split()[2].replace(",", ""))
