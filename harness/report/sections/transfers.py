"""Sections about moving blocks: throughput, latency, hit ratio, and cross-process hits."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from harness.core.history import Direction, History
from harness.core.request_traces import oracle_hit_ratio
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
"""A ceiling above so many times the traffic's peak is not drawn: the traffic would be a flat line below it."""
DONE: dict[Direction, str] = {"load": "loaded", "store": "stored"}
LATENCY_NAMES = {"load": "load jobs", "store": "store jobs", "request": "requests, from their intended start"}
PROCESSES_SHOWN_MAX = 32
NUMBERS_MAX = 8
"""In a matrix of more processes the cells are too small for numbers."""


def ceiling(device: Mapping[str, Any], direction: Direction) -> float:
    """MiB/s of the device alone; 0.0 if it was not measured."""
    return float(device.get(f"{'read' if direction == 'load' else 'write'}_mib_per_second") or 0.0)


def ceiling_doubt(device: Mapping[str, Any], direction: Direction, rate: float) -> str:
    """Why a throughput in MiB/s is not compared with the device; "" if it can be: no tier is faster than its device."""
    if not 0 < ceiling(device, direction) < rate:
        return ""
    return (
        f"The {direction} throughput is not compared with the device: the probe ({device['how']}) measured "
        f"{ceiling(device, direction):,.0f} MiB/s, less than the run's {rate:,.0f} MiB/s. The page cache served the "
        "run, or the disk was busy during the probe."
    )


def throughput(history: History, device: Mapping[str, Any]) -> Section | None:
    """MiB/s of loads and of stores, stacked by process, below the throughput of the device alone."""
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
    directions = [direction for direction in CLASSES if any(moving == direction for moving, _ in moved)]
    figure = new_figure("seconds", [f"{DONE[direction]}, MiB/s" for direction in directions])
    table: Table = [["direction", "process", "MiB", "mean MiB/s", "best MiB/s"]]
    times = plain((i + 0.5) * bin_seconds for i in range(bins))
    processes = sorted({process for _, process in moved})
    sentences, means = [], []
    for row, direction in enumerate(directions, 1):
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
        mean = sum(total) / bins
        means.append(f"{mean:,.0f} MiB/s {DONE[direction]}")
        if alone := ceiling(device, direction):
            table.append([direction, "the device alone", "", f"{alone:,.1f}", ""])
            if doubt := ceiling_doubt(device, direction, mean):
                sentences.append(doubt)
            elif alone <= CEILING_SHOWN_FACTOR * max(total):
                figure.add_hline(
                    alone, line=line(BOUND_COLOUR, dash="dash"), annotation_text="device alone", row=row, col=1
                )
            else:
                sentences.append(f"The device's {alone:,.0f} MiB/s for {direction}s is above the plot.")
    draw_bands(figure, history)
    answer = " ".join([f"On average {' and '.join(means)}.", _device_words(device), *sentences])
    return Section("How much did each process move, and when?", answer, figure, table)


def _device_words(device: Mapping[str, Any]) -> str:
    if not device.get("write_mib_per_second"):
        return f"The device's own throughput was not measured{': ' + device['why'] if device.get('why') else ''}."
    return (
        f"The device alone, measured after the run ({device['how']}): {device['read_mib_per_second']:,.0f} MiB/s read, "
        f"{device['write_mib_per_second']:,.0f} MiB/s written."
    )


def latency(history: History) -> Section | None:
    """CDF of jobs by direction, from submission to result, and of requests from their intended start."""
    seconds = latencies(history)
    if not seconds:
        return None
    figure = new_figure("milliseconds", "share")
    figure.update_xaxes(type="log", dtick=1, tickformat=",~r")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    for kind, name in LATENCY_NAMES.items():
        if values := seconds.get(kind):
            style = line(CLASS_COLOURS[kind], shape="hv")
            hover = "%{y:.1%} within %{x:,.3g} ms"
            figure.add_scatter(**cdf(values, 1000), mode="lines", name=name, line=style, hovertemplate=hover)
    parts = [
        f"{LATENCY_NAMES[kind]} {duration(percentile(ordered, 0.5))} and {duration(percentile(ordered, 0.99))}"
        for kind in LATENCY_NAMES
        if (ordered := sorted(seconds.get(kind, ())))
    ]
    answer = f"p50 and p99: {'; '.join(parts)}."
    return Section("How long did jobs and requests take?", answer, figure, percentiles(seconds, LATENCY_NAMES))


def latencies(history: History) -> dict[str, list[float]]:
    """Seconds of every job that ended, by direction, and of every request that was served."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for job in history.jobs:
        if job.outcome != "info":
            seconds[job.direction].append(job.finished_seconds - job.submitted_seconds)
    for request in history.requests:
        if request.outcome == "ok":
            seconds["request"].append(request.finished_seconds - request.intended_seconds)
    return seconds


def hit_ratio(history: History) -> Section | None:
    """Cumulative block-hit ratio over time, between those computed for private caches and for one shared cache."""
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
    # The two lines coincide where nothing can be shared: one label is above, one below.
    for ratio, text, at in ((shared, "one shared cache", "top right"), (private, "private caches", "bottom right")):
        style = line(QUIET_COLOUR, dash="dash")
        figure.add_hline(ratio, line=style, annotation_text=f"{text}: {ratio:.1%}", annotation_position=at)
    draw_bands(figure, history)
    table = [["", "block hits"], ["private caches (computed)", f"{private:.2%}"], ["measured", f"{measured:.2%}"]]
    table.append(["one shared cache (computed)", f"{shared:.2%}"])
    answer = (
        f"{measured:.1%} of the requested blocks were hits. Computed from the same requests: {private:.1%} with an "
        f"unlimited cache for each process, {shared:.1%} with one unlimited shared cache."
    )
    return Section("Do the processes share?", answer, figure, table)


def writers_by_reader(history: History) -> Section | None:
    """Blocks loaded by each process, by the process whose store of them was reported ok first."""
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
    names = ["unknown" if w == -1 else f"process {w}" for w in writers]
    cells = [[count[writer, reader] for reader in processes] for writer in writers]
    figure = new_figure("loaded by", "stored by", height=max(220, 90 + 46 * len(writers)))
    figure.add_trace(
        go.Heatmap(
            z=cells,
            x=[f"process {p}" for p in processes],
            y=names,
            colorscale=[[0, "rgba(76,143,214,0)"], [1, "rgba(76,143,214,0.6)"]],
            zmin=0,
            showscale=False,
            hovertemplate="%{z:,} blocks stored by %{y}, loaded by %{x}<extra></extra>",
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
        figure.update_layout(annotations=numbers)  # in one call: each call reads all annotations again
    total, across = sum(count.values()), sum(n for (w, r), n in count.items() if w not in (r, -1))
    table = [["stored by", *(f"loaded by {p}" for p in processes)]]
    table += [[name, *(f"{cell:,}" for cell in row)] for name, row in zip(names, cells, strict=True)]
    answer = (
        f"{across:,} of {total:,} loaded blocks ({across / total:.0%}) are cross-process hits: another process stored "
        "them first."
    )
    return Section("Which process stored the blocks that each process loaded?", answer, figure, table)
