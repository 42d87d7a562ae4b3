"""Sections on waiting: waits against their bound, queues, and the schedule around the longest wait."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.core.history import Direction, History
from harness.report.figures import (
    BOUND_COLOUR,
    CLASS_COLOURS,
    CLASSES,
    QUIET_COLOUR,
    Points,
    Section,
    Table,
    columns,
    draw_bands,
    duration,
    line,
    new_figure,
    origin_seconds,
    percentiles,
    plain,
    process_colour,
    thin,
)

BARS_MAX = 400
"""Tasks drawn in the schedule. Of more, the last ones are drawn."""
LANES_MAX = 40


def waits(history: History, data: Mapping[str, Any]) -> Section | None:
    """Each task's wait, by the number of tasks of its direction ahead of it, below the bound for that number.

    `data` is what the starvation checker measured. The staircase is ceil((ahead + 1) / threads) * (longest service +
    longest hand-over), with the largest figures of all processes. Each process's own bound is on it or below."""
    if not history.tasks:
        return None
    handover_seconds = float(data.get("longest_handover_seconds") or 0.0)
    directions = [direction for direction in CLASSES if any(t.direction == direction for t in history.tasks)]
    figure = new_figure("tasks of its direction ahead of it at its arrival", [f"{d}s waited, ms" for d in directions])
    figure.update_yaxes(type="log", dtick=1, exponentformat="none", tickformat=",~r")
    seconds: dict[str, list[float]] = {}
    parts = []
    for row, direction in enumerate(directions, 1):
        tasks = [t for t in history.tasks if t.direction == direction]
        seconds[direction] = [t.started_seconds - t.enqueued_seconds for t in tasks]
        points = sorted((float(t.depth), max(t.started_seconds - t.enqueued_seconds, 1e-6) * 1000) for t in tasks)
        dot = {"color": CLASS_COLOURS[direction], "size": 4, "opacity": 0.5}
        hover = "waited %{y:,.3g} ms behind %{x}"
        figure.add_scatter(
            **columns(thin(points)),
            mode="markers",
            name=f"{direction} tasks",
            marker=dot,
            hovertemplate=hover,
            row=row,
            col=1,
        )
        own = [t for t in tasks if t.group == direction]
        threads = _threads(history, direction)
        longest = max(seconds[direction])
        if own and threads and handover_seconds:
            turn_ms = (max(t.finished_seconds - t.started_seconds for t in own) + handover_seconds) * 1000
            deepest = int(points[-1][0])
            ahead = sorted({0, *range(threads, deepest + 1, threads), deepest})
            stairs = columns((float(a), math.ceil((a + 1) / threads) * turn_ms) for a in ahead)
            style = line(BOUND_COLOUR, shape="hv")
            figure.add_scatter(
                **stairs, mode="lines", name="bound", line=style, showlegend=row == 1, hovertemplate="%{y:,.0f} ms",
                row=row, col=1,
            )  # fmt: skip
        allowed = (data.get(direction) or {}).get("wait_bound_seconds")
        parts.append(
            f"the longest wait of a {direction} was {duration(longest)}"
            + (f" of {duration(allowed)} allowed" if allowed else "")
        )
    names = {"load": "load tasks", "store": "store tasks"}
    answer = f"{' and '.join(parts)}{'' if handover_seconds else '; this run computed no bound'}.".capitalize()
    return Section("Did any task wait longer than its bound?", answer, figure, percentiles(seconds, names))


def _threads(history: History, direction: Direction) -> int:
    """The fewest threads for this direction in any process: fewer threads, higher bound."""
    name = f"{'read' if direction == 'load' else 'write'}_threads"
    counts = [s.detail[name] for s in history.starts if s.detail.get(name)]
    return int(min(counts, default=history.options.get(name) or 0))


def queues(history: History) -> Section | None:
    """Tasks queued, and the age of the oldest of them, as the tier reports them."""
    start = origin_seconds(history)
    figure = new_figure("seconds", ["tasks queued", "oldest task, ms"])
    table: Table = [["process", "direction", "most tasks queued", "oldest task, ms"]]
    most: tuple[float, int, str] = (0.0, 0, "")
    oldest = 0.0
    for process in sorted({g.process for g in history.gauges}):
        mine = sorted((g for g in history.gauges if g.process == process), key=lambda g: g.monotonic_seconds)
        for direction in CLASSES:
            depth: Points = []
            age: Points = []
            for gauge in mine:
                at = gauge.monotonic_seconds - start
                if (queued := gauge.values.get(f"{direction}_queue")) is not None:
                    depth.append((at, queued))
                if (seconds := gauge.values.get(f"{direction}_oldest_seconds")) is not None:
                    age.append((at, seconds * 1000))
            if not depth and not age:
                continue
            deepest, eldest = max((d for _, d in depth), default=0.0), max((a for _, a in age), default=0.0)
            table.append([f"{process}", direction, f"{deepest:,.0f}", f"{eldest:,.1f}"])
            most, oldest = max(most, (deepest, process, direction)), max(oldest, eldest)
            style = line(process_colour(process), dash="solid" if direction == "load" else "dot")
            name = f"process {process} {direction}s"
            for row, points in ((1, depth), (2, age)):
                figure.add_scatter(
                    **columns(thin(points, 600)), mode="lines", name=name, legendgroup=name, showlegend=row == 1,
                    line=style, row=row, col=1,
                )  # fmt: skip
    if not most[0] and not oldest:
        return None  # no queue, or a tier that does not report it
    figure.update_yaxes(rangemode="tozero")
    draw_bands(figure, history)
    answer = f"At most {most[0]:,.0f} tasks were queued" + (
        f" ({most[2]}s of process {most[1]}), the oldest for {duration(oldest / 1000)}." if most[0] else "."
    )
    return Section("How long were the queues, and how old was the oldest task?", answer, figure, table)


class _Bar(NamedTuple):
    lane: str
    direction: Direction
    start_seconds: float
    end_seconds: float
    text: str


def worst_wait(history: History) -> Section | None:
    """What the threads of a process did while its task with the longest wait was queued."""
    if not history.tasks:
        return _worst_job(history)
    worst = max(history.tasks, key=lambda t: t.started_seconds - t.enqueued_seconds)
    waited = worst.started_seconds - worst.enqueued_seconds
    end = worst.finished_seconds + 0.05 * (worst.finished_seconds - worst.enqueued_seconds)
    begin = worst.enqueued_seconds - 0.1 * (end - worst.enqueued_seconds)
    shown = [
        t
        for t in history.tasks
        if t.process == worst.process and t.finished_seconds > begin and t.started_seconds < end
    ]
    bars = [
        _Bar(f"{t.group} {t.thread}", t.direction, t.started_seconds, t.finished_seconds, f"job {t.job_id}")
        for t in sorted(shown, key=lambda t: t.started_seconds)[-BARS_MAX:]
    ]
    lanes = sorted({(t.group, t.thread) for t in shown})
    overtook = sum(
        t.enqueued_seconds > worst.enqueued_seconds and t.started_seconds < worst.started_seconds
        for t in shown
        if t.direction != worst.direction
    )
    answer = (
        f"A {worst.direction} task of job {worst.job_id} in process {worst.process} waited {duration(waited)} behind "
        f"{worst.depth} others of its direction, then took {duration(worst.finished_seconds - worst.started_seconds)}; "
        f"{overtook} task{'s' if overtook != 1 else ''} of the other direction came later and started earlier."
    )
    waiter = _Bar("this task", worst.direction, worst.enqueued_seconds, worst.finished_seconds, f"job {worst.job_id}")
    names = [f"{group} {thread}" for group, thread in lanes][:LANES_MAX]
    return _gantt("What happened during the longest wait?", answer, waiter, worst.started_seconds, bars, names, begin)


def _worst_job(history: History) -> Section | None:
    """The same for a tier that does not report its schedule: jobs in flight beside the longest one."""
    ended = [j for j in history.jobs if j.outcome != "info"]
    if not ended:
        return None
    worst = max(ended, key=lambda j: j.finished_seconds - j.submitted_seconds)
    beside = sorted(
        (
            j
            for j in ended
            if j.process == worst.process
            and j is not worst
            and j.finished_seconds > worst.submitted_seconds
            and j.submitted_seconds < worst.finished_seconds
        ),
        key=lambda j: j.submitted_seconds,
    )[:BARS_MAX]
    free: list[float] = []  # when each lane is free again
    bars = []
    for job in beside:
        lane = next((i for i, at in enumerate(free) if at <= job.submitted_seconds), len(free))
        if lane >= LANES_MAX:
            continue
        free[lane : lane + 1] = [job.finished_seconds]
        bars.append(
            _Bar(
                f"job lane {lane + 1}", job.direction, job.submitted_seconds, job.finished_seconds, f"job {job.job_id}"
            )
        )
    took = worst.finished_seconds - worst.submitted_seconds
    answer = (
        f"A {worst.direction} job of {len(worst.blocks)} blocks in process {worst.process} took {duration(took)} from "
        f"submission to result, with {len(beside)} other jobs in flight. The tier does not report its schedule."
    )
    waiter = _Bar("this job", worst.direction, worst.submitted_seconds, worst.finished_seconds, f"job {worst.job_id}")
    begin = worst.submitted_seconds - 0.1 * took
    lanes = [f"job lane {lane + 1}" for lane in range(len(free))]
    return _gantt("What happened during the longest job?", answer, waiter, worst.finished_seconds, bars, lanes, begin)


def _gantt(
    question: str, answer: str, waiter: _Bar, started: float, bars: Sequence[_Bar], lanes: list[str], begin: float
) -> Section:
    """Lanes of bars in milliseconds from the waiter's arrival. The top lane is the waiter's: waiting, then running."""
    zero = waiter.start_seconds
    figure = new_figure("milliseconds since its arrival", "", height=130 + 22 * (len(lanes) + 1))
    traces: dict[str, list[_Bar]] = defaultdict(list)
    for bar in bars:
        if bar.lane in lanes:
            traces[f"{bar.direction}s"].append(bar)
    waiting = waiter._replace(end_seconds=started)
    for name, colour, listed in (
        ("it waits" if started < waiter.end_seconds else "it is in flight", BOUND_COLOUR, [waiting]),
        ("it runs", CLASS_COLOURS[waiter.direction], [waiter._replace(start_seconds=started)]),
        ("loads", CLASS_COLOURS["load"], traces["loads"]),
        ("stores", CLASS_COLOURS["store"], traces["stores"]),
    ):
        listed = [bar for bar in listed if bar.end_seconds > bar.start_seconds]
        if not listed:
            continue
        figure.add_bar(
            orientation="h",
            base=plain(((max(bar.start_seconds, begin) - zero) * 1000 for bar in listed), 6),
            x=plain((bar.end_seconds - max(bar.start_seconds, begin)) * 1000 for bar in listed),
            y=[bar.lane for bar in listed],
            customdata=[bar.text for bar in listed],
            marker={"color": colour, "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"}},
            name=name,
            showlegend=name != "it runs",
            hovertemplate="%{customdata}: %{x:,.3g} ms from %{base:,.4g} ms on",
        )
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_yaxes(
        categoryorder="array", categoryarray=[*reversed(lanes), waiter.lane], automargin=True, showgrid=False
    )
    figure.add_vline(0, line=line(QUIET_COLOUR, dash="dot"))
    figure.add_vline(float(f"{(started - zero) * 1000:.6g}"), line=line(QUIET_COLOUR, dash="dot"))
    busy: dict[tuple[str, Direction], list[float]] = defaultdict(list)
    for bar in bars:
        busy[bar.lane, bar.direction].append(min(bar.end_seconds, started) - max(bar.start_seconds, zero))
    table: Table = [["lane", "direction", "pieces", "ms during the wait"]]
    for (lane, direction), times in sorted(busy.items()):
        table.append([lane, direction, f"{len(times)}", f"{sum(max(0.0, t) for t in times) * 1000:,.1f}"])
    return Section(question, answer, figure, table)
