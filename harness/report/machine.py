"""Sections about processes and their machine: what they held, how late the machine woke them, what happened when."""

from __future__ import annotations

from collections import defaultdict

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
_TOLD = ("phase", "fault", "hang", "lifted", "error", "leak")


def held(history: History) -> Section | None:
    """Memory, descriptors and threads of each process over time: what leaks, grows."""
    start = origin_seconds(history)
    figure = new_figure("seconds", [title for title, _ in _HELD.values()], height=300)
    table: Table = [["process", "what", "at first", "most", "at last"]]
    grown = []
    for process in sorted({g.process for g in history.gauges}):
        mine = sorted((g for g in history.gauges if g.process == process), key=lambda g: g.monotonic_seconds)
        for row, (name, (title, scale)) in enumerate(_HELD.items(), 1):
            points = [(g.monotonic_seconds - start, g.values[name] * scale) for g in mine if name in g.values]
            if not points:
                continue
            figure.add_scatter(
                **columns(thin(points, 400)), mode="lines", name=f"process {process}", legendgroup=f"{process}",
                showlegend=row == 1, line=line(process_colour(process)), row=row, col=1,
            )  # fmt: skip
            values = [value for _, value in points]
            # The first half is for warming up: what still grows in the second is worth a look.
            middle, last = values[len(values) // 2], values[-1]
            if name == "rss_bytes":
                grown.append((last - middle, process))
            table.append([f"{process}", title, *(f"{v:,.0f}" for v in (values[0], max(values), last))])
    if len(table) == 1:
        return None
    draw_bands(figure, history)
    most, process = max(grown, default=(0.0, 0))
    answer = (
        f"In the second half of its life no process grew by more than {max(0.0, most):,.1f} MiB (process {process})."
    )
    return Section("What did each process hold?", answer, figure, table)


def noise(history: History) -> Section | None:
    """How late a sleeping thread of each process woke: the machine's share in every latency above."""
    start = origin_seconds(history)
    late: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for note in history.notes:
        if note.kind == "canary" and note.monotonic_seconds >= start:  # not while interpreters start
            late[note.process].append((note.monotonic_seconds - start, note.detail["late_seconds"] * 1000))
    if not late:
        return None
    figure = new_figure("seconds", "ms late at worst", height=280)
    table: Table = [["process", "median of the worst, ms", "worst, ms"]]
    for process, points in sorted(late.items()):
        points.sort()
        style = line(process_colour(process))
        figure.add_scatter(**columns(thin(points, 600)), mode="lines", name=f"process {process}", line=style)
        values = sorted(ms for _, ms in points)
        table.append([f"{process}", f"{percentile(values, 0.5):,.1f}", f"{values[-1]:,.1f}"])
    worst = max(ms for points in late.values() for _, ms in points)
    answer = (
        f"A thread that only asked to be woken came up to {duration(worst / 1000)} late: no latency on this page can "
        "be trusted to less than that."
    )
    return Section("How noisy was the machine?", answer, figure, table)


def happenings(history: History) -> Table:
    """Phases, faults and errors in their order; the head alone if nothing was noted."""
    start = origin_seconds(history)
    rows: Table = [["second", "where", "what", ""]]
    lasted = {(band.text, round(band.start_seconds, 6)): band for band in bands(history)}
    told = sorted((n for n in history.notes if n.kind in _TOLD), key=lambda n: n.monotonic_seconds)
    for note in told[:HAPPENINGS_MAX]:
        at = note.monotonic_seconds - start
        band = lasted.get((note.text, round(at, 6)))
        text = note.text + (f" ({duration(band.end_seconds - band.start_seconds)})" if band else "")
        who = "harness" if note.process == -1 else f"process {note.process}"
        rows.append([f"{at:,.3f}", who, note.kind, text])
    if len(told) > HAPPENINGS_MAX:
        rows.append(["", "", "", f"and {len(told) - HAPPENINGS_MAX} more"])
    return rows
