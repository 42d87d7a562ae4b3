"""Sections about blocks that move: throughput, latency, hit ratio, and whose blocks were read by whom."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from harness.core.history import History
from harness.core.traffic import oracle_hit_ratio
from harness.report.figures import (
    BOUND_COLOUR,
    CLASS_COLOURS,
    CLASSES,
    MIB,
    QUIET_COLOUR,
    Section,
    Table,
    cdf,
    columns,
    draw_bands,
    duration,
    line,
    new_figure,
    origin_seconds,
    percentile,
    percentiles,
    plain,
    process_colour,
    thin,
)

BINS = 100
CEILING_SHOWN_FACTOR = 2.5
"""A ceiling further than this above the traffic is told in words: drawn, it would press the traffic flat."""
LATENCY_NAMES = {"load": "load jobs", "store": "store jobs", "request": "requests, from their intended start"}
PROCESSES_SHOWN_MAX = 32
NUMBERS_MAX = 8
"""A matrix of more processes has no room for numbers in its cells."""


def throughput(history: History, device: Mapping[str, Any]) -> Section | None:
    """MiB/s of loads and of stores, stacked by process, under what the device alone can do."""
    jobs = [job for job in history.jobs if job.bytes_ok]
    if not jobs:
        return None
    start, end = origin_seconds(history), max(job.finished_seconds for job in jobs)
    bin_seconds = max(0.05, (end - start) / BINS)
    bins = max(1, math.ceil((end - start) / bin_seconds))
    moved: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0] * bins)
    for job in jobs:
        # Spread over the job's life: its bytes did not all move at the moment of its result.
        first = min(bins - 1, max(0, int((job.submitted_seconds - start) / bin_seconds)))
        last = min(bins - 1, max(first, int((job.finished_seconds - start) / bin_seconds)))
        rates = moved[job.direction, job.process]
        for place in range(first, last + 1):
            rates[place] += job.bytes_ok / bin_seconds / MIB / (last - first + 1)
    figure = new_figure("seconds", ["loaded, MiB/s", "stored, MiB/s"])
    table: Table = [["class", "process", "MiB", "mean MiB/s", "best MiB/s"]]
    times = plain((i + 0.5) * bin_seconds for i in range(bins))
    processes = sorted({process for _, process in moved})
    beyond, means = [], {}
    for row, direction in enumerate(CLASSES, 1):
        total = [0.0] * bins
        for process in processes:
            rates = moved.get((direction, process), [0.0] * bins)
            total = [a + b for a, b in zip(total, rates, strict=True)]
            figure.add_scatter(
                x=times,
                y=plain(rates, 4),
                name=f"process {process}",
                legendgroup=f"{process}",
                showlegend=row == 1,
                stackgroup=direction,
                line={"color": process_colour(process), "width": 0.5},
                hovertemplate="%{y:,.0f} MiB/s at %{x:.2f} s",
                row=row,
                col=1,
            )
            mib = sum(rates) * bin_seconds
            cells = (mib, mib / (bins * bin_seconds), max(rates))
            table.append([direction, f"{process}", *(f"{cell:,.1f}" for cell in cells)])
        means[direction] = sum(total) / bins
        if ceiling := device.get(f"{'read' if direction == 'load' else 'write'}_mib_per_second"):
            table.append([direction, "the device alone", "", f"{ceiling:,.1f}", ""])
            if ceiling <= CEILING_SHOWN_FACTOR * max(total):
                figure.add_hline(
                    ceiling, line=line(BOUND_COLOUR, dash="dash"), annotation_text="device alone", row=row, col=1
                )
            else:
                beyond.append(f"{direction}s could reach {ceiling:,.0f} MiB/s")
    draw_bands(figure, history)
    answer = f"In the mean {means['load']:,.0f} MiB/s were loaded and {means['store']:,.0f} MiB/s stored. "
    return Section("How much did each process move, and when?", answer + _ceiling_words(device, beyond), figure, table)


def _ceiling_words(device: Mapping[str, Any], beyond: list[str]) -> str:
    if not device.get("write_mib_per_second"):
        return f"The device's own limit was not measured{': ' + device['why'] if device.get('why') else ''}."
    words = f"The device alone, measured after the run ({device['how']}): "
    words += f"{device['read_mib_per_second']:,.0f} MiB/s read, {device['write_mib_per_second']:,.0f} MiB/s written"
    return f"{words}; not drawn where it lies far above." if beyond else f"{words}."


def latency(history: History) -> Section | None:
    """CDF of jobs by class from submission to result, and of requests from their intended start."""
    seconds = latencies(history)
    if not seconds:
        return None
    figure = new_figure("milliseconds", "share of them")
    figure.update_xaxes(type="log")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    for kind, name in LATENCY_NAMES.items():
        if values := seconds.get(kind):
            style = line(CLASS_COLOURS[kind], shape="hv")
            hover = "%{y:.1%} within %{x:,.3g} ms"
            figure.add_scatter(**cdf(values, 1000), mode="lines", name=name, line=style, hovertemplate=hover)
    parts = [
        f"{LATENCY_NAMES[kind]} {duration(percentile(ordered, 0.5))}, {duration(percentile(ordered, 0.99))}"
        for kind in LATENCY_NAMES
        if (ordered := sorted(seconds.get(kind, ())))
    ]
    answer = f"Half of them, and 99 of 100, took at most: {'; '.join(parts)}."
    return Section("How long did jobs and requests take?", answer, figure, percentiles(seconds, LATENCY_NAMES))


def latencies(history: History) -> dict[str, list[float]]:
    """Seconds of every job that ended, by class, and of every request that was served."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for job in history.jobs:
        if job.outcome != "info":
            seconds[job.direction].append(job.finished_seconds - job.submitted_seconds)
    for request in history.requests:
        if request.outcome == "ok":
            seconds["request"].append(request.finished_seconds - request.intended_seconds)
    return seconds


def hit_ratio(history: History) -> Section | None:
    """Cumulative block-hit ratio over time, between what private caches and one shared cache would have had."""
    requests = sorted((r for r in history.requests if r.outcome == "ok"), key=lambda r: r.started_seconds)
    if not any(r.blocks for r in requests):
        return None
    start = origin_seconds(history)
    blocks = [r.blocks for r in requests]
    shared = oracle_hit_ratio(blocks).ratio
    private = oracle_hit_ratio(blocks, [r.process for r in requests]).ratio
    points, hits, refs = [], 0, 0
    for request in sorted(requests, key=lambda r: r.finished_seconds):
        hits, refs = hits + request.hit_blocks, refs + len(request.blocks)
        points.append((request.finished_seconds - start, hits / refs if refs else 0.0))
    measured = points[-1][1]
    figure = new_figure("seconds", "hits so far")
    figure.update_yaxes(tickformat=".0%", range=[0, min(1.0, max(0.05, shared, measured) * 1.3)])
    hover = "%{y:.1%} after %{x:.2f} s"
    figure.add_scatter(
        **columns(thin(points)), mode="lines", name="measured", line=line(CLASS_COLOURS["load"]), hovertemplate=hover
    )
    # The two may lie upon each other where nothing could be shared: one label above, one below.
    for ratio, text, at in ((shared, "one shared cache", "top right"), (private, "private caches", "bottom right")):
        style = line(QUIET_COLOUR, dash="dash")
        figure.add_hline(ratio, line=style, annotation_text=f"{text}: {ratio:.1%}", annotation_position=at)
    draw_bands(figure, history)
    table = [["", "block hits"], ["private caches (computed)", f"{private:.2%}"], ["measured", f"{measured:.2%}"]]
    table.append(["one shared cache (computed)", f"{shared:.2%}"])
    answer = (
        f"{measured:.1%} of the blocks that were asked for came out of the cache. Computed from the same requests: "
        f"{private:.1%} if each process had an endless cache of its own, {shared:.1%} with one endless cache for all."
    )
    return Section("Do the processes share?", answer, figure, table)


def who_wrote(history: History) -> Section | None:
    """Blocks loaded by each process, by the process whose store of them was the first to be reported ok."""
    first: dict[int, tuple[float, int]] = {}
    for job in history.jobs:
        if job.direction == "store":
            for block in job.ok:
                known = first.get(block, (math.inf, -1))
                first[block] = min(known, (job.finished_seconds, job.process))
    loads = [job for job in history.jobs if job.direction == "load" and job.ok]
    if not first or not loads:
        return None
    count: Counter[tuple[int, int]] = Counter()
    for job in loads:
        for block in job.ok:
            count[first.get(block, (0.0, -1))[1], job.process] += 1
    processes = sorted({p for _, p in first.values()} | {job.process for job in loads})[:PROCESSES_SHOWN_MAX]
    writers = [*processes, *([-1] if any(w == -1 for w, _ in count) else [])]
    names = ["nobody known" if w == -1 else f"process {w}" for w in writers]
    cells = [[count[writer, reader] for reader in processes] for writer in writers]
    figure = new_figure("read by", "written by", height=max(220, 90 + 46 * len(writers)))
    figure.add_trace(
        go.Heatmap(
            z=cells,
            x=[f"process {p}" for p in processes],
            y=names,
            colorscale=[[0, "rgba(76,143,214,0)"], [1, "rgba(76,143,214,0.6)"]],
            zmin=0,
            showscale=False,
            hovertemplate="%{z:,} blocks that %{y} wrote were read by %{x}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, title_standoff=4, automargin=True)
    figure.update_xaxes(showgrid=False)
    if len(processes) <= NUMBERS_MAX:
        numbers = [
            {"x": f"process {reader}", "y": writer, "text": f"{cell:,}", "showarrow": False}
            for writer, row in zip(names, cells, strict=True)
            for reader, cell in zip(processes, row, strict=True)
        ]
        figure.update_layout(annotations=numbers)  # at once: plotly reads all of them again for each that is added
    total, foreign = sum(count.values()), sum(n for (w, r), n in count.items() if w not in (r, -1))
    table = [["written by", *(f"read by {p}" for p in processes)]]
    table += [[name, *(f"{cell:,}" for cell in row)] for name, row in zip(names, cells, strict=True)]
    answer = f"{foreign:,} of {total:,} loaded blocks ({foreign / total:.0%}) had been stored first by another process."
    return Section("Who wrote what others read?", answer, figure, table)
