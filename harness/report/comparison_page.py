"""Writes the page of two runs: the figures that differ, their plots, and the options that differ."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from harness.core.statistics import CONFIDENCE
from harness.report.figures import (
    CLASS_COLOURS,
    CLASSES,
    QUIET_COLOUR,
    Section,
    Table,
    cdf,
    line,
    new_figure,
    origin_seconds,
    percentiles,
    plain,
)
from harness.report.rendering import file_url, write_page
from harness.report.run_differences import DRAWS, Difference, Side, difference_table, in_words, sample
from harness.report.sections.transfers import DONE, LATENCY_NAMES, latencies
from harness.report.tables import flat

LINES = "A is solid, B is dotted."


def write_comparison(a: Side, b: Side, differences: Sequence[Difference], path: Path) -> Path:
    """The page of two runs."""
    plots = [s for s in (_forest(differences), _throughput(a, b), *_latencies(a, b)) if s is not None]
    folder = path.resolve().parent
    return write_page(
        path,
        "compare.html",
        plots,
        sides=(a, b),
        links=[file_url(os.path.relpath(side.run_dir / "report.html", folder)) for side in (a, b)],
        answer=in_words(differences),
        confidence=f"{CONFIDENCE:.0%}",
        draws=DRAWS,
        differing=[["", "A", "B"], *_differing(a, b)],
    )


def _differing(a: Side, b: Side) -> Table:
    """Options, environment values and device figures that differ."""
    left, right = (
        dict(
            flat({name: value for name, value in side.history.options.items() if name != "command"})
            + flat(side.environment)
            + flat({"device": side.results.get("device") or {}})
        )
        for side in (a, b)
    )
    names = dict.fromkeys([*left, *right])
    return [[name, left.get(name, ""), right.get(name, "")] for name in names if left.get(name) != right.get(name)]


def _forest(differences: Sequence[Difference]) -> Section | None:
    shown = [d for d in differences if math.isfinite(d.ratio) and d.ratio > 0]
    if not shown:
        return None
    figure = new_figure("B / A, with its interval", "", height=110 + 30 * len(shown))
    colours = {"better": CLASS_COLOURS["request"], "worse": "#d9606a"}
    for d in shown:
        whiskers = None
        if not math.isnan(d.ratio_low):
            whiskers = {
                "type": "data", "symmetric": False, "thickness": 1.6,
                "array": plain([max(0.0, d.ratio_high - d.ratio)]),
                "arrayminus": plain([max(0.0, d.ratio - d.ratio_low)]),
            }  # fmt: skip
        figure.add_scatter(
            x=plain([d.ratio]),
            y=[d.name],
            mode="markers",
            marker={"size": 9, "color": colours.get(d.word, QUIET_COLOUR)},
            error_x=whiskers,
            showlegend=False,
            hovertemplate=f"{d.name}: %{{x:.3f}}, {d.word}<extra></extra>",
        )
    figure.add_vline(1, line=line(QUIET_COLOUR, dash="dot"))
    figure.update_xaxes(type="log", tickformat=",~g", nticks=6)
    names = [d.name for d in reversed(shown)]
    figure.update_yaxes(categoryorder="array", categoryarray=names, automargin=True, showgrid=False)
    answer = "Left of the line B has less, right of it more. Green is better, red is worse, grey is no difference seen."
    return Section("How do the figures of B compare with those of A?", answer, figure, difference_table(differences))


def _throughput(a: Side, b: Side) -> Section | None:
    sides = [("A", a, sample(a.history), "solid"), ("B", b, sample(b.history), "dot")]
    directions = [d for d in CLASSES if any(d in taken.sums for _, _, taken, _ in sides)]
    if not directions:
        return None
    figure = new_figure("seconds", [f"{DONE[direction]}, MiB/s" for direction in directions])
    table: Table = [["direction", "run", "mean MiB/s", "best slice, MiB/s"]]
    for letter, side, taken, dash in sides:
        first = min((j.submitted_seconds for j in side.history.jobs), default=0.0) - origin_seconds(side.history)
        times = plain(first + (i + 0.5) * taken.slice_seconds for i in range(taken.slices))
        for row, direction in enumerate(directions, 1):
            if direction in taken.sums:
                rates = taken.sums[direction] / taken.slice_seconds
                style = line(CLASS_COLOURS[direction], dash=dash)
                figure.add_scatter(
                    x=times, y=plain(rates), mode="lines", name=f"{letter} {direction}s", line=style, row=row, col=1
                )
                table.append([direction, letter, f"{rates.mean():,.1f}", f"{rates.max():,.1f}"])
    return Section("How much did they move, and when?", LINES, figure, table)


def _latencies(a: Side, b: Side) -> list[Section]:
    both = [(letter, latencies(side.history), dash) for letter, side, dash in (("A", a, "solid"), ("B", b, "dot"))]
    figure = new_figure("milliseconds", "share")
    figure.update_xaxes(type="log", dtick=1, tickformat=",~r")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    table: Table = []
    for letter, seconds, dash in both:
        for kind in LATENCY_NAMES:
            if values := seconds.get(kind):
                style = line(CLASS_COLOURS[kind], dash=dash, shape="hv")
                figure.add_scatter(**cdf(values, 1000, 600), mode="lines", name=f"{letter} {kind}s", line=style)
        head, *rows = percentiles(seconds, LATENCY_NAMES)
        table = table or [["run", *head]]
        table += [[letter, *row] for row in rows]
    if len(table) < 2:
        return []
    return [Section("How long did jobs and requests take?", LINES, figure, table)]
