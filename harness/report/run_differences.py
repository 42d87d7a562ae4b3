"""Two recorded runs: which figures differ, by how much, with confidence intervals. `comparison_page` shows them.

The traffic of each run is cut into slices of time, which are resampled with replacement (block bootstrap). Jobs of one
slice are correlated, so resampling single jobs would give intervals that are too narrow. The intervals cover variation
within these two runs only, not between days or machines: repeat both runs, in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.core.history import History
from harness.core.statistics import bounds
from harness.recorded_run import read_results
from harness.report.figures import (
    MIB,
    Table,
)
from harness.report.run_page import read_environment

SLICES_MAX = 60
SLICES_MIN = 8
"""A run with fewer slices of time gets no intervals."""
SLICE_SECONDS = 1.0
"""Jobs that are correlated for longer than a slice make the intervals too narrow."""
DRAWS = 1000
SEED = 0
"""Seed of the draws: the same two runs give the same page."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One figure of both runs. `ratio` is B / A; its interval has `CONFIDENCE`, and is NaN for a run too short."""

    name: str
    unit: str
    more_is_better: bool
    a: float
    b: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def word(self) -> str:
        """The interval in a word: "better", "worse", "no difference seen", or "not known"."""
        if math.isnan(self.ratio_low) or math.isnan(self.ratio_high):
            return "not known"
        if self.ratio_low <= 1 <= self.ratio_high:
            return "no difference seen"
        return "better" if (self.ratio_low > 1) == self.more_is_better else "worse"

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"name": self.name, "unit": self.unit, "word": self.word}
        for name in ("a", "b", "ratio", "ratio_low", "ratio_high"):
            value = getattr(self, name)
            values[name] = value if math.isfinite(value) else None
        return values


class Samples(NamedTuple):
    """The traffic of each slice: sums, and values in seconds with the slice of each."""

    slices: int
    slice_seconds: float
    sums: Mapping[str, Floats]
    values: Mapping[str, Floats]
    at: Mapping[str, npt.NDArray[np.int64]]


class Side(NamedTuple):
    """One of the two runs."""

    run_dir: Path
    results: dict[str, Any]
    environment: dict[str, Any]
    history: History

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def scenario(self) -> str:
        return str(self.results["scenario"])


def read_side(run_dir: Path) -> Side:
    run_dir = run_dir.resolve()
    return Side(run_dir, read_results(run_dir), read_environment(run_dir), History.read(run_dir))


def compare(a: Side, b: Side) -> list[Difference]:
    """Every figure that both runs have."""
    draws = np.random.default_rng(SEED)
    samples = sample(a.history), sample(b.history)
    if not all(s.slices for s in samples):
        return []
    weights = [_draw(draws, s.slices) for s in samples]
    found = []
    for name, unit, more_is_better, of in _FIGURES:
        (mine, mine_drawn), (other, other_drawn) = (
            (float(of(s, np.ones((1, s.slices)))[0]), of(s, w)) for s, w in zip(samples, weights, strict=True)
        )
        if math.isnan(mine) or math.isnan(other):
            continue
        low = high = math.nan
        if all(s.slices >= SLICES_MIN for s in samples):
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = other_drawn / mine_drawn
            ratios = ratios[np.isfinite(ratios)]
            if len(ratios) > DRAWS / 2:
                low, high = bounds(ratios.tolist())
        found.append(Difference(name, unit, more_is_better, mine, other, other / mine if mine else math.nan, low, high))
    return found


def sample(history: History) -> Samples:
    """A run's traffic in slices of `SLICE_SECONDS` or more, by the time at which jobs and requests ended."""
    jobs = [j for j in history.jobs if j.outcome != "info"]
    requests = [r for r in history.requests if r.outcome == "ok"]
    ends = [j.finished_seconds for j in jobs] + [r.finished_seconds for r in requests]
    if not ends:
        return Samples(0, 0.0, {}, {}, {})
    start = min([j.submitted_seconds for j in jobs] + [r.started_seconds for r in requests])
    seconds = max(ends) - start
    slices = max(1, min(SLICES_MAX, int(seconds / SLICE_SECONDS)))
    slice_seconds = max(seconds / slices, 1e-9)

    def places(at: Sequence[float]) -> npt.NDArray[np.int64]:
        return np.minimum(((np.asarray(at) - start) / slice_seconds).astype(np.int64), slices - 1).clip(0)

    def summed(at: Sequence[float], amounts: Sequence[float]) -> Floats:
        return np.bincount(places(at), weights=np.asarray(amounts, dtype=float), minlength=slices).astype(float)

    sums, values, where = {}, {}, {}
    served = [r.finished_seconds for r in requests]
    sums["hits"] = summed(served, [r.hit_blocks for r in requests]) if served else np.zeros(slices)
    sums["refs"] = summed(served, [len(r.blocks) for r in requests]) if served else np.zeros(slices)
    timed: dict[str, list[tuple[float, float]]] = {
        "request": [(r.finished_seconds, r.finished_seconds - r.intended_seconds) for r in requests]
    }
    for direction in ("load", "store"):
        mine = [j for j in jobs if j.direction == direction]
        if mine:
            sums[direction] = summed([j.finished_seconds for j in mine], [j.bytes_ok / MIB for j in mine])
        timed[direction] = [(j.finished_seconds, j.finished_seconds - j.submitted_seconds) for j in mine]
        tasks = [t for t in history.tasks if t.direction == direction]
        timed[f"{direction} wait"] = [(t.started_seconds, t.started_seconds - t.enqueued_seconds) for t in tasks]
    for kind, pairs in timed.items():
        if pairs:
            ordered = sorted(pairs, key=lambda pair: pair[1])
            values[kind] = np.array([value for _, value in ordered])
            where[kind] = places([at for at, _ in ordered])
    return Samples(slices, slice_seconds, sums, values, where)


def _draw(draws: np.random.Generator, slices: int) -> Floats:
    """How often each slice is drawn, in each draw: shape (DRAWS, slices)."""
    return draws.multinomial(slices, np.full(slices, 1 / slices), size=DRAWS).astype(float)


_Of = Callable[[Samples, Floats], Floats]


def _rate(kind: str) -> _Of:
    def of(samples: Samples, weights: Floats) -> Floats:
        if kind not in samples.sums:
            return np.full(len(weights), math.nan)
        rates: Floats = weights @ samples.sums[kind] / (weights.sum(axis=1) * samples.slice_seconds)
        return rates

    return of


def _hit_percent(samples: Samples, weights: Floats) -> Floats:
    if not samples.sums["refs"].any():
        return np.full(len(weights), math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        percent: Floats = 100 * (weights @ samples.sums["hits"]) / (weights @ samples.sums["refs"])
    return percent


def _percentile_ms(kind: str, share: float) -> _Of:
    def of(samples: Samples, weights: Floats) -> Floats:
        if kind not in samples.values:
            return np.full(len(weights), math.nan)
        values, at = samples.values[kind], samples.at[kind]
        found = np.empty(len(weights))
        for number, drawn in enumerate(weights):
            upto = np.cumsum(drawn[at])
            place = np.searchsorted(upto, share * upto[-1]) if upto[-1] else -1
            found[number] = values[min(place, len(values) - 1)] * 1000 if place >= 0 else math.nan
        return found

    return of


_FIGURES: list[tuple[str, str, bool, _Of]] = [
    ("block hits", "%", True, _hit_percent),
    ("loaded", "MiB/s", True, _rate("load")),
    ("stored", "MiB/s", True, _rate("store")),
    *(
        (f"{name} p{share * 100:g}", "ms", False, _percentile_ms(kind, share))
        for kind, name in (
            ("request", "requests"),
            ("load", "load jobs"),
            ("store", "store jobs"),
            ("load wait", "wait of load tasks"),
            ("store wait", "wait of store tasks"),
        )
        for share in ((0.5, 0.99) if "wait" not in kind else (0.99,))
    ),
]


def in_words(differences: Sequence[Difference]) -> str:
    """Which figures differ, and which do not, in a sentence or two."""
    parts = []
    for word, start in (("better", "B is better in"), ("worse", "B is worse in")):
        if names := [f"{d.name} ({(d.ratio - 1) * 100:+.0f} %)" for d in differences if d.word == word]:
            parts.append(f"{start} {', '.join(names)}.")
    if names := [d.name for d in differences if d.word == "no difference seen"]:
        parts.append(f"No difference seen in {', '.join(names)}.")
    if names := [d.name for d in differences if d.word == "not known"]:
        parts.append(f"Too short to say: {', '.join(names)}.")
    return " ".join(parts) or "The two runs have no figure in common."


OWN_OPTIONS = {"command", "seed", "cpus", "keep", "traffic"}
"""Options of a single run, which do not change what is compared."""


def differing_options(a: Side, b: Side) -> dict[str, tuple[Any, Any]]:
    """Options that differ, with both values; None where a run has no such option."""
    left, right = a.history.options, b.history.options
    names = [name for name in dict.fromkeys([*left, *right]) if name not in OWN_OPTIONS]
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def difference_table(differences: Sequence[Difference]) -> Table:
    rows: Table = [["", "A", "B", "", "B / A", "from", "to", ""]]
    for d in differences:
        ends = ["" if math.isnan(v) else f"{v:.3f}" for v in (d.ratio, d.ratio_low, d.ratio_high)]
        rows.append([d.name, f"{d.a:,.2f}", f"{d.b:,.2f}", d.unit, *ends, d.word])
    return rows
