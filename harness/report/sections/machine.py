"""Sections on processes and their machine: resources, wake-up delays, and a list of events."""

from __future__ import annotations

from collections import defaultdict

from harness.core import notes
from harness.core.history import History
from harness.report.figures import (
    MIB,
    Section,
    Table,
    bands,
    columns,
    draw_bands,
    duration,
    line,
    new_figure,
    origin_seconds,
    percentile,
    process_colour,
    thin,
)

HAPPENINGS_MAX = 200
_HELD = {"rss_bytes": ("memory, MiB", 1 / MIB), "fds": ("descriptors", 1.0), "threads": ("threads", 1.0)}
_LISTED = (notes.Phase, notes.Fault, notes.Hang, notes.Lifted, notes.Error)


def held(history: History) -> Section | None:
    """Memory, descriptors and threads of each process over time: a leak grows."""
    start = origin_seconds(history)
    resources = {name: _HELD[name] for name in _HELD if any(name in gauge.values for gauge in history.gauges)}
    if not resources:
        return None
    figure = new_figure("seconds", [title for title, _ in resources.values()], height=300)
    table: Table = [["process", "resource", "first", "maximum", "last"]]
    grown = []
    for process in sorted({g.process for g in history.gauges}):
        mine = sorted((g for g in history.gauges if g.process == process), key=lambda g: g.monotonic_seconds)
        for row, (name, (title, scale)) in enumerate(resources.items(), 1):
            points = [(g.monotonic_seconds - start, g.values[name] * scale) for g in mine if name in g.values]
            if not points:
                continue
            figure.add_scatter(
                **columns(thin(points, 400)), mode="lines", name=f"process {process}", legendgroup=f"{process}",
                showlegend=row == 1, line=line(process_colour(process)), row=row, col=1,
            )  # fmt: skip
            values = [value for _, value in points]
            # The first half is warm-up; growth in the second half may be a leak.
            middle, last = values[len(values) // 2], values[-1]
            if name == "rss_bytes" and len(values) > 2:
                grown.append((last - middle, process))
            table.append([f"{process}", title, *(f"{v:,.0f}" for v in (values[0], max(values), last))])
    draw_bands(figure, history)
    most, process = max(grown, default=(0.0, 0))
    answer = "The run was too short to show growth."
    if grown:
        answer = (
            f"In the second half of the run no process grew by more than {max(0.0, most):,.1f} MiB (process {process})."
        )
    return Section("Which resources did each process hold?", answer, figure, table)


def noise(history: History) -> Section | None:
    """How late the machine woke a sleeping thread of each process: its share in every latency."""
    start = origin_seconds(history)
    late: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for note in history.notes:
        if note.is_a(notes.Canary) and note.monotonic_seconds >= start:  # not while interpreters start
            late[note.process].append((note.monotonic_seconds - start, note.detail["late_seconds"] * 1000))
    if not late:
        return None
    figure = new_figure("seconds", "maximum delay, ms", height=280)
    table: Table = [["process", "median of maxima, ms", "maximum, ms"]]
    for process, points in sorted(late.items()):
        points.sort()
        style = line(process_colour(process))
        figure.add_scatter(**columns(thin(points, 600)), mode="lines", name=f"process {process}", line=style)
        values = sorted(ms for _, ms in points)
        table.append([f"{process}", f"{percentile(values, 0.5):,.1f}", f"{values[-1]:,.1f}"])
    worst = max(ms for points in late.values() for _, ms in points)
    answer = (
        f"The machine woke a sleeping thread up to {duration(worst / 1000)} late. No latency on this page is more "
        "exact than that."
    )
    return Section("How noisy was the machine?", answer, figure, table)


def happenings(history: History) -> Table:
    """Phases, faults and errors in order of time; the head alone if there are none."""
    start = origin_seconds(history)
    rows: Table = [["second", "process", "event", ""]]
    lasted = {(band.text, round(band.start_seconds, 6)): band for band in bands(history)}
    listed = sorted((n for n in history.notes if n.is_a(*_LISTED)), key=lambda n: n.monotonic_seconds)
    for note in listed[:HAPPENINGS_MAX]:
        at = note.monotonic_seconds - start
        band = lasted.get((note.text, round(at, 6)))
        text = note.text + (f" ({duration(band.end_seconds - band.start_seconds)})" if band else "")
        process = "harness" if note.process == -1 else f"process {note.process}"
        rows.append([f"{at:,.3f}", process, note.kind, text])
    if len(listed) > HAPPENINGS_MAX:
        rows.append(["", "", "", f"{len(listed) - HAPPENINGS_MAX} more in history-*.jsonl"])
    return rows
