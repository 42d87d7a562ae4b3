"""Parts of every plot of a report: sections, colours, axes, bands, thinning, percentiles.

It reads no file, writes no HTML, and knows no theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from harness.core import notes, statistics
from harness.core.history import Direction, History, Note

Table = list[list[str]]  # the first row is the head
Points = list[tuple[float, float]]  # sorted by their first

PROCESS_COLOURS = ("#4c8fd6", "#e8913a", "#4fae6e", "#b57bc4", "#d9606a", "#3fb0b5", "#a68158", "#8c93a8")
CLASS_COLOURS = {"load": "#4c8fd6", "store": "#e8913a", "request": "#4fae6e"}
BOUND_COLOUR = "#d9606a"
QUIET_COLOUR = "#8c93a8"
CLASSES: tuple[Direction, Direction] = ("load", "store")
POINTS_MAX = 1500
"""Points of one trace. More are thinned; the extremes of each stretch are kept."""
LABEL_SHARE = 0.2
"""Share of a plot's width for one band's label. A band that begins within it has no label; the table names it."""
PERCENTILES = (0.5, 0.9, 0.99, 1.0)
MIB = 1 << 20
LEGEND_PIXELS = 46  # below the plot: the axis and its title


@dataclass(frozen=True)
class Section:
    """One plot of a page: a question, the answer in words, the plot, and a table with the same figures."""

    question: str
    answer: str
    figure: go.Figure | None  # None if there is nothing to draw
    table: Table

    @property
    def is_drawn(self) -> bool:
        """Whether the plot shows anything: a line of one point is invisible."""
        traces = self.figure.data if self.figure is not None else ()
        return any(t.type != "scatter" or "markers" in (t.mode or "") or len(t.x) > 1 for t in traces)


class Band:
    """A stretch of time that a plot shades: a phase of the scenario, or a fault until it is lifted."""

    def __init__(self, kind: str, text: str, start_seconds: float, end_seconds: float) -> None:
        self.kind, self.text, self.start_seconds, self.end_seconds = kind, text, start_seconds, end_seconds


def origin_seconds(history: History) -> float:
    """Time zero of all plots: the common start of the traffic, else the first process's start."""
    phases = [n.monotonic_seconds for n in history.notes if n.is_a(notes.Phase) and n.process == -1]
    return min(phases or [s.monotonic_seconds for s in history.starts], default=0.0)


def end_seconds(history: History) -> float:
    """The last moment of traffic."""
    ended = [j.finished_seconds for j in history.jobs] + [r.finished_seconds for r in history.requests]
    return max(ended + [n.monotonic_seconds for n in history.notes if n.is_a(notes.Phase, notes.Lifted)], default=0.0)


def bands(history: History) -> list[Band]:
    """Phases and faults in seconds from the origin. A fault that is never lifted lasts until its process restarts, else
    to the end."""
    start, end = origin_seconds(history), end_seconds(history)
    found: list[Band] = []
    phases = sorted((n for n in history.notes if n.is_a(notes.Phase) and n.process == -1), key=_when)
    ends = [*(n.monotonic_seconds for n in phases[1:]), end]
    for note, after in zip(phases, ends, strict=False):
        if after > note.monotonic_seconds:
            found.append(Band("phase", note.text, note.monotonic_seconds - start, after - start))
    since: dict[tuple[str, object], float] = {}
    for note in sorted((n for n in history.notes if n.is_a(notes.Fault, notes.Hang, notes.Lifted)), key=_when):
        what = (note.text, note.detail.get("process"))
        if note.is_a(notes.Lifted):
            # "lifted" has the name of its fault; without a name it ends every fault of the tier.
            for open_fault in [f for f in since if f == what] or list(since):
                found.append(Band("fault", open_fault[0], since.pop(open_fault), note.monotonic_seconds - start))
        else:
            since.setdefault(what, note.monotonic_seconds - start)
    starts = sorted((s.process, s.monotonic_seconds - start) for s in history.starts if s.incarnation)
    for (text, process), at in since.items():
        again = (began for other, began in starts if other == process and began > at)
        found.append(Band("fault", text, at, next(again, max(at, end - start))))
    return found


def _when(note: Note) -> float:
    return note.monotonic_seconds


def draw_bands(figure: go.Figure, history: History) -> None:
    """Shade faults red and every second phase grey, with labels at the top where there is space."""
    found = bands(history)
    phases = [b for b in found if b.kind == "phase"]
    faults = [b for b in found if b.kind == "fault"]
    shapes, labels = [], []
    for listed, colour, opacity in ((phases[1::2], QUIET_COLOUR, 0.12), (faults, BOUND_COLOUR, 0.16)):
        for band in listed:
            where = {"x0": band.start_seconds, "x1": band.end_seconds, "y0": 0, "y1": 1, "yref": "paper"}
            line = {"width": 1 if band.kind == "fault" else 0, "color": colour}
            shapes.append(
                {"type": "rect", "layer": "below", "fillcolor": colour, "opacity": opacity, "line": line} | where
            )
    for listed, height in ((phases, 1.0), (faults, 0.93)):
        if listed is phases and len(phases) == 1:
            continue  # it is the whole run
        label_seconds = LABEL_SHARE * max((band.end_seconds for band in found), default=0.0)
        free_from = -label_seconds
        for band in sorted(listed, key=lambda band: band.start_seconds):
            if band.start_seconds >= free_from:
                free_from = band.start_seconds + label_seconds
                place = {"x": band.start_seconds, "y": height, "yref": "paper", "xanchor": "left", "yanchor": "top"}
                labels.append({"text": short(band.text, 24), "showarrow": False, "font": {"size": 10}} | place)
    figure.update_layout(shapes=[*figure.layout.shapes, *shapes], annotations=[*figure.layout.annotations, *labels])


def new_figure(x: str, y: str | Sequence[str], height: int = 320) -> go.Figure:
    """A panel for each of `y`, one above the other, with a common x axis. The page's theme colours them."""
    titles = [y] if isinstance(y, str) else list(y)
    height = height if len(titles) == 1 else int(height * (0.35 + 0.55 * len(titles)))
    figure = make_subplots(rows=len(titles), cols=1, shared_xaxes=True, vertical_spacing=0.09)
    figure.update_layout(
        template=None,
        margin={"l": 58, "r": 14, "t": 12, "b": 44},
        height=height,
        legend={
            "orientation": "h",
            "y": -LEGEND_PIXELS / (height - 56),
            "yanchor": "top",
            "x": 0,
            "itemsizing": "constant",
        },
        hovermode="closest",
    )
    for row, title in enumerate(titles, 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text=x, row=len(titles), col=1)
    return figure


def plain(values: Iterable[float], digits: int = 5) -> list[float]:
    """Values rounded to so many significant digits, which keeps a page small."""
    return [float(f"{value:.{digits}g}") for value in values]


def columns(points: Iterable[tuple[float, float]]) -> dict[str, list[float]]:
    """x and y of points, rounded."""
    listed = list(points)
    return {"x": plain((x for x, _ in listed), 6), "y": plain(y for _, y in listed)}


def thin(points: Points, most: int = POINTS_MAX) -> Points:
    """At most `most` of points that are sorted by x: of each stretch its lowest and its highest."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) // (most // 2))
    kept: Points = []
    for at in range(0, len(points), stretch):
        part = points[at : at + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return statistics.percentile(values, share, "inverted_cdf")


def percentiles(seconds: dict[str, list[float]], names: dict[str, str]) -> Table:
    """A row for each kind of `names` that has values: their count, and percentiles in milliseconds."""

    def cells(values: Sequence[float]) -> list[str]:
        return [f"{len(values):,}", *(f"{percentile(values, share) * 1000:,.2f}" for share in PERCENTILES)]

    head = ["milliseconds", "count", *("maximum" if share == 1 else f"p{share * 100:g}" for share in PERCENTILES)]
    return [head, *([names[kind], *cells(seconds[kind])] for kind in names if seconds.get(kind))]


def cdf(values: Iterable[float], scale: float = 1.0, most: int = POINTS_MAX) -> dict[str, list[float]]:
    """x and y of the cumulative distribution; more points than `most` are thinned evenly."""
    ordered = sorted(values)
    last = len(ordered) - 1
    kept = sorted({round(i * last / most) for i in range(most + 1)}) if last > most else range(len(ordered))
    return {"x": plain(max(ordered[i], 1e-7) * scale for i in kept), "y": plain((i + 1) / len(ordered) for i in kept)}


def process_colour(process: int) -> str:
    return PROCESS_COLOURS[process % len(PROCESS_COLOURS)]


def short(text: str, most: int) -> str:
    """A text, cut to at most `most` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def duration(seconds: float) -> str:
    """A duration for a person."""
    if seconds >= 1:
        return f"{seconds:,.2f} s" if seconds < 100 else f"{seconds:,.0f} s"
    return f"{seconds * 1000:.3g} ms" if seconds >= 1e-4 or not seconds else f"{seconds * 1e6:.3g} µs"


def line(colour: str, **more: Any) -> dict[str, Any]:
    return {"color": colour, "width": 1.6, **more}
