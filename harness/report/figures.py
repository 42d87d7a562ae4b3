"""History -> plotly figures, each with the question that it answers and the same facts as a table.

`page` calls `sections`; nothing here reads files or writes HTML.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from harness.history import History
from harness.traffic import oracle_hit_ratio

Table = list[list[str]]  # the first row is the head
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#bab0ac")
CLASS_COLOURS = {"load": "#4c78a8", "store": "#f58518", "request": "#54a24b"}
POINTS_MAX = 3000
"""Points of one trace; more are thinned, the extremes of each stretch kept."""
PERCENTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Section:
    """One plot of the page: its title is the question, `table` says the same to those who cannot see the plot."""

    title: str
    figure: go.Figure
    table: Table


def sections(history: History) -> list[Section]:
    """All plots that this history has data for, in the order of the page."""
    makers: Sequence[Callable[[History], Section | None]] = (throughput, latency, waits, hit_ratio, queues, noise)
    return [section for make in makers if (section := make(history)) is not None]


def origin_seconds(history: History) -> float:
    """The moment that plots count from: the common start of the traffic, else the first process's start."""
    phases = [n.monotonic_seconds for n in history.notes if n.kind == "phase" and n.process == -1]
    return min(phases or [s.monotonic_seconds for s in history.starts], default=0.0)


def throughput(history: History) -> Section | None:
    """MiB/s per process, loads and stores, in bins of about a hundredth of the run."""
    jobs = [job for job in history.jobs if job.bytes_ok]
    if not jobs:
        return None
    start = origin_seconds(history)
    end = max(job.finished_seconds for job in jobs)
    bin_seconds = max(0.25, (end - start) / 120)
    bins = int((end - start) / bin_seconds) + 1
    moved: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0] * bins)
    for job in jobs:
        place = min(bins - 1, max(0, int((job.finished_seconds - start) / bin_seconds)))
        moved[job.process, job.direction][place] += job.bytes_ok / bin_seconds / (1 << 20)
    figure = _figure("seconds", "MiB/s")
    table: Table = [["process", "class", "MiB", "mean MiB/s", "best MiB/s"]]
    times = [(i + 0.5) * bin_seconds for i in range(bins)]
    for (process, direction), rates in sorted(moved.items()):
        colour = COLOURS[process % len(COLOURS)]
        line = {"color": colour, "dash": "solid" if direction == "load" else "dot", "width": 1.5}
        figure.add_scatter(x=times, y=rates, mode="lines", name=f"process {process} {direction}s", line=line)
        mib = sum(rates) * bin_seconds
        table.append(
            [f"{process}", direction, f"{mib:,.0f}", f"{mib / (bins * bin_seconds):,.1f}", f"{max(rates):,.1f}"]
        )
    _bands(figure, history, start)
    return Section("How much did each process move, and when?", figure, table)


def latency(history: History) -> Section | None:
    """CDF of jobs by class from submission to result, and of requests from their intended start."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for job in history.jobs:
        if job.outcome != "info":
            seconds[job.direction].append(job.finished_seconds - job.submitted_seconds)
    for request in history.requests:
        if request.outcome == "ok":
            seconds["request"].append(request.finished_seconds - request.intended_seconds)
    if not seconds:
        return None
    figure = _figure("milliseconds", "share that took at most so long")
    figure.update_xaxes(type="log")
    figure.update_yaxes(tickformat=".0%")
    names = {"load": "load jobs", "store": "store jobs", "request": "requests, from their intended start"}
    for kind in (kind for kind in names if kind in seconds):
        values = sorted(seconds[kind])
        kept = sorted({round(i * (len(values) - 1) / min(len(values), POINTS_MAX)) for i in range(POINTS_MAX + 1)})
        kept = [i for i in kept if i < len(values)]
        x, y = [max(values[i], 1e-6) * 1000 for i in kept], [(i + 1) / len(values) for i in kept]
        figure.add_scatter(x=x, y=y, mode="lines", name=names[kind], line={"color": CLASS_COLOURS[kind], "shape": "hv"})
    return Section("How long did jobs and requests take?", figure, _percentiles(seconds, names))


def waits(history: History) -> Section | None:
    """Queue wait of every task when it started, by class."""
    if not history.tasks:
        return None
    start = origin_seconds(history)
    seconds: dict[str, list[float]] = defaultdict(list)
    figure = _figure("seconds", "milliseconds in the queue")
    figure.update_yaxes(rangemode="tozero")
    for direction in ("load", "store"):
        points = sorted(
            (t.started_seconds - start, t.started_seconds - t.enqueued_seconds)
            for t in history.tasks
            if t.direction == direction
        )
        if points:
            seconds[direction] = [wait for _, wait in points]
            thin = _thin(points)
            x, y = [at for at, _ in thin], [wait * 1000 for _, wait in thin]
            marker = {"color": CLASS_COLOURS[direction], "size": 4, "opacity": 0.6}
            figure.add_scatter(x=x, y=y, mode="markers", name=f"{direction} tasks", marker=marker)
    _bands(figure, history, start)
    names = {"load": "load tasks", "store": "store tasks"}
    return Section("How long did anything wait for a thread?", figure, _percentiles(seconds, names))


def hit_ratio(history: History) -> Section | None:
    """Cumulative block-hit ratio over time, between what private caches and one shared cache would have had."""
    requests = sorted((r for r in history.requests if r.outcome == "ok"), key=lambda r: r.started_seconds)
    if not requests:
        return None
    start = origin_seconds(history)
    blocks = [r.blocks for r in requests]
    shared = oracle_hit_ratio(blocks).ratio
    private = oracle_hit_ratio(blocks, [r.process for r in requests]).ratio
    times, ratios, hits, refs = [], [], 0, 0
    for request in sorted(requests, key=lambda r: r.finished_seconds):
        hits, refs = hits + request.hit_blocks, refs + len(request.blocks)
        times.append(request.finished_seconds - start)
        ratios.append(hits / refs if refs else 0.0)
    figure = _figure("seconds", "blocks that were hits, so far")
    figure.update_yaxes(tickformat=".0%", range=[0, max(0.05, shared, *ratios) * 1.15])
    thin = _thin(list(zip(times, ratios, strict=True)))
    x, y = [at for at, _ in thin], [ratio for _, ratio in thin]
    figure.add_scatter(x=x, y=y, mode="lines", name="measured", line={"color": COLOURS[0]})
    for ratio, text in ((shared, "one shared cache"), (private, "private caches")):
        figure.add_hline(ratio, line_dash="dash", line_color="#888", annotation_text=f"{text} {ratio:.1%}")
    table = [["", "block hits"], ["private caches (computed)", f"{private:.2%}"], ["measured", f"{ratios[-1]:.2%}"]]
    return Section("Do the processes share?", figure, [*table, ["one shared cache (computed)", f"{shared:.2%}"]])


def queues(history: History) -> Section | None:
    """Tasks waiting, and the oldest of them, as the tier reported it."""
    start = origin_seconds(history)
    figure = _figure("seconds", "milliseconds")
    table: Table = [["process", "class", "most tasks queued", "oldest waiter, ms"]]
    processes = sorted({g.process for g in history.gauges})
    for process in processes:
        mine = [g for g in history.gauges if g.process == process]
        for direction in ("load", "store"):
            name = f"{direction}_oldest_seconds"
            points = [(g.monotonic_seconds - start, g.values[name] * 1000) for g in mine if name in g.values]
            if not points:
                continue
            depth = max(g.values.get(f"{direction}_queue", 0) for g in mine)
            table.append([f"{process}", direction, f"{depth:,.0f}", f"{max(age for _, age in points):,.1f}"])
            thin = _thin(points)
            x, y = [at for at, _ in thin], [age for _, age in thin]
            line = {"color": COLOURS[process % len(COLOURS)], "dash": "solid" if direction == "load" else "dot"}
            figure.add_scatter(x=x, y=y, mode="lines", name=f"process {process} {direction}s", line=line)
    if len(table) == 1:
        return None
    _bands(figure, history, start)
    return Section("How old was the oldest waiter?", figure, table)


def noise(history: History) -> Section | None:
    """How late a sleeping thread of each process woke: the machine's share in every latency above."""
    start = origin_seconds(history)
    late: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for note in history.notes:
        if note.kind == "canary":
            late[note.process].append((note.monotonic_seconds - start, note.detail["late_seconds"] * 1000))
    if not late:
        return None
    figure = _figure("seconds", "milliseconds late, worst of each second")
    table: Table = [["process", "median of the worst, ms", "worst, ms"]]
    for process, points in sorted(late.items()):
        x, y = [at for at, _ in points], [ms for _, ms in points]
        line = {"color": COLOURS[process % len(COLOURS)]}
        figure.add_scatter(x=x, y=y, mode="lines", name=f"process {process}", line=line)
        table.append([f"{process}", f"{_percentile(sorted(y), 0.5):,.1f}", f"{max(y):,.1f}"])
    return Section("How noisy was the machine?", figure, table)


def _figure(x: str, y: str) -> go.Figure:
    """Transparent and grey, so that it reads on a light and on a dark page."""
    figure = go.Figure()
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#888", "family": "system-ui, sans-serif"},
        margin={"l": 55, "r": 15, "t": 10, "b": 45},
        height=340,
        legend={"orientation": "h", "y": -0.2},
        hovermode="closest",
    )
    axis: dict[str, Any] = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)"}
    figure.update_xaxes(title=x, **axis)
    figure.update_yaxes(title=y, **axis)
    return figure


def _bands(figure: go.Figure, history: History, start: float) -> None:
    """Shade the time from each fault to the moment when it was lifted."""
    since: dict[str, float] = {}
    for note in sorted(history.notes, key=lambda n: n.monotonic_seconds):
        if note.kind == "fault":
            since[note.text] = note.monotonic_seconds - start
        elif note.kind == "lifted" and note.text in since:
            end = note.monotonic_seconds - start
            figure.add_vrect(since.pop(note.text), end, fillcolor="#e45756", opacity=0.15, annotation_text=note.text)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS_MAX` of points that are sorted by x; of each stretch its lowest and its highest."""
    if len(points) <= POINTS_MAX:
        return list(points)
    stretch = -(-len(points) * 2 // POINTS_MAX)
    kept: list[tuple[float, float]] = []
    for at in range(0, len(points), stretch):
        part = points[at : at + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ranks = [(i + 1) / len(ordered) for i in range(len(ordered))]
    return ordered[min(len(ordered) - 1, bisect_left(ranks, share))]


def _percentiles(seconds: dict[str, list[float]], names: dict[str, str]) -> Table:
    def cells(values: Iterable[float]) -> list[str]:
        ordered = sorted(values)
        return [f"{len(ordered):,}", *(f"{_percentile(ordered, share) * 1000:,.2f}" for share in PERCENTILES)]

    head = ["milliseconds", "count", *("worst" if share == 1 else f"p{share * 100:g}" for share in PERCENTILES)]
    return [head, *([names[kind], *cells(seconds[kind])] for kind in names if kind in seconds)]
