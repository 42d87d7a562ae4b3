"""Results for people: the tables on a terminal and in Markdown, the plots of docs/benchmarks.md. Reads result JSON."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.bench.plan import FLOOR, PEER_FLOOR, Sample
from harness.bench.targets import Values, by_line
from harness.core.statistics import paired_ratio, relative_spread

COLOURS = {"met": "green", "missed": "red", "unclear": "yellow", "unmeasured": "dim"}
ORDER = (
    "kvtier",
    "kvtier-direct",
    "kvtier-buffered",
    "kvtier-durable",
    "kvtier-pure",
    "vllm",
    FLOOR,
    PEER_FLOOR,
    "file per block",
    "device, 16 threads",
    "device, fio",
)
RATIOS = (("kvtier", "vllm"), ("kvtier", FLOOR), ("kvtier-durable", "kvtier"))
"""Numerator and denominator of the ratios, in lines that have both."""


def values_of(result: Mapping[str, Any]) -> tuple[Values, dict[tuple[str, str, str], str]]:
    """The samples of a result by line, and each line's unit."""
    samples = [Sample(*row) for row in result["samples"]]
    return by_line(samples), {(s.section, s.row, s.metric): s.unit for s in samples}


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Section, row, metric, then each contestant's median and spread, and the `RATIOS` with their intervals."""
    values, units = values_of(result)
    names = contestants(values)
    lines = [["section", "row", "metric", *names, *(f"{ours} / {theirs}" for ours, theirs in RATIOS)]]
    for line, by_name in values.items():
        cells = [line[0], line[1], f"{line[2]}, {units[line]}" if units[line] else line[2]]
        cells += [figure(by_name[name]) if by_name.get(name) else "" for name in names]
        pairs = [paired_ratio(by_name.get(ours, []), by_name.get(theirs, [])) for ours, theirs in RATIOS]
        cells += ["" if p.value != p.value else f"{p.value:.3g} [{p.low:.3g}, {p.high:.3g}]" for p in pairs]
        lines.append(cells)
    return lines


def contestants(values: Values) -> list[str]:
    found = {name for by_name in values.values() for name in by_name}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def figure(values: list[float]) -> str:
    """Median, and in brackets the robust spread in percent."""
    middle = median(values)
    text = f"{middle:,.0f}" if abs(middle) >= 100 else f"{middle:.3g}"
    return text if len(values) < 2 else f"{text} (±{relative_spread(values) * 100:.0f}%)"


def print_tables(result: Mapping[str, Any], console: Console) -> None:
    head, *body = rows(result)
    for section in dict.fromkeys(row[0] for row in body):
        lines = [row for row in body if row[0] == section]
        used = [i for i in range(1, len(head)) if i < 3 or any(line[i] for line in lines)]
        shown = Table(title=section, title_justify="left")
        for i in used:
            shown.add_column(head[i], justify="left" if i < 3 else "right")
        for line in lines:
            shown.add_row(*(escape(line[i]) for i in used))
        console.print(shown)
    judged = Table(title="targets", title_justify="left")
    for name in ("", "what", "wanted", "measured", "interval", ""):
        judged.add_column(name)
    for target in result["targets"]:
        value, low, high = target["ratio"]
        outcome = target["outcome"]
        cells = (f"{value:.3g}", f"{low:.3g} .. {high:.3g}") if value == value else ("", "")
        colour = COLOURS[outcome]
        judged.add_row(
            str(target["number"]), escape(target["what"]), target["wanted"], *cells, f"[{colour}]{outcome}[/]"
        )
    console.print(judged)
    for note in result["notes"]:
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    console.print(f"{result['seconds']:.0f} s: {escape(result['command'])}", soft_wrap=True)


# --- docs/benchmarks.md ---

_PLOTS = (
    ("throughput-store", "Store throughput by block size, MiB/s", "throughput", "store", "linear"),
    ("throughput-cold", "Cold-load throughput by block size, MiB/s", "throughput", "cold", "linear"),
    ("throughput-warm", "Warm-load throughput by block size, MiB/s", "throughput", "warm", "linear"),
    ("floods", "One-block job under a flood of the other direction: p99, ms", "floods", "p99", "log"),
    ("lookups", "Batched lookups, keys/s", "lookups", "lookups", "linear"),
    ("scale", "Processes on one root: total throughput, MiB/s", "scale", "total", "linear"),
)
"""File, title, section, metric, scale of the values."""


_HEAD = """\
# Benchmarks

All figures beside vLLM 0.33.0's own tier, 16+16 threads each, with checksums and metrics on in kvtier. The committed
results are in `tests/tiering/baselines/`; `make bench` measures again, `make bench-docs` writes this page, and
`make bench-compare` judges a change.

Contestants take turns in one run, and each measurement is a new process. A figure is the median of its rounds with its
robust spread. A ratio pairs neighbours in time; brackets hold its bootstrap interval. With 3 to 5 rounds, as here, that
is the range of the rounds and no 95 % confidence interval. *Cold*: no byte of the block is in the page cache. *Known*:
the process remembers that the block exists. [speed.md](speed.md) explains what bounds the figures.

The GPU path is unmeasured. `make bench-gpu-compare` measures the copy loop beside four candidates in ten minutes
([predictions](../tests/tiering/benchmarks/gpu/README.md)).
"""


def write_docs(results: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """`benchmarks.md` in `folder` and its plots beside it, from the files of machine classes (name -> content)."""
    path = folder / "benchmarks.md"
    path.write_text(page(results))
    for name, content in results.items():
        if content.get("table"):
            _draw(content["table"], folder / "benchmarks", name)
    return path


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of `benchmarks.md`; for each machine the conclusions, plots, tables of all sections, targets."""
    text = _HEAD
    for name, content in sorted(results.items()):
        result = content.get("table")
        if result is None:
            continue
        here = result["environment"]
        lines = ["", f"## {here['cpu_model']}, {here['cpus_usable']} CPUs, {here['disk']}", "", *_conclusions(result)]
        commit = f" at commit {here['git']['commit'][:7]}" if here.get("git") else ""
        lines += ["", f"Python {here['python']}, Linux {here['kernel']}, `{result['command']}`{commit}, "]
        lines[-1] += f"{result['seconds']:.0f} s."
        lines += ["", *(f"- {note}" for note in result["notes"])]
        for plot, title, _ in _plots(result):
            lines += ["", f"![{title}](benchmarks/{name}-{plot}.svg)"]
        head, *body = rows(result)
        for section in dict.fromkeys(row[0] for row in body):
            kept = [row for row in body if row[0] == section]
            used = [i for i in range(1, len(head)) if any(row[i] for row in kept)]
            lines += ["", f"### {section.capitalize()}", ""]
            lines += _markdown([[line[i] for i in used] for line in [head, *kept]])
        lines += ["", "### Targets", "", "*unclear*: the interval contains the target.", ""]
        lines += _markdown(_target_rows(result))
        text += "\n".join(lines) + "\n"
    return text


_CONCLUSIONS = (
    "**Latency, p99 in relation to vLLM's.** One-block load under 512-block stores: {floods|512-block stores, 256 KiB|"
    "p99}. One-block store under 512-block loads: {floods|512-block loads, 64 KiB|p99}.",
    "**Throughput at 256 KiB in relation to vLLM's.** Stores: {throughput|256 KiB|store}. Cold loads: {throughput|"
    "256 KiB|cold}. Warm loads: {throughput|256 KiB|warm}. Lookups of known blocks: {lookups|known, batches of 128|"
    "lookups}.",
    "**Price in relation to vLLM's.** CPU time of cold loads at 256 KiB: {throughput|256 KiB|cold CPU}. Stores of 16 "
    "processes that also load from memory: {scale|16 processes|store}.",
)
"""The table's conclusions, in three sentences; {section|end of the row|metric} becomes a ratio with its interval."""


def _conclusions(result: Mapping[str, Any]) -> list[str]:
    values, _ = values_of(result)

    def figure_of(match: re.Match[str]) -> str:
        section, row, metric = match[1].split("|")
        pairs = [by for (s, r, m), by in values.items() if s == section and r.endswith(row) and m == metric]
        found = paired_ratio(*(pairs[0].get(name, []) for name in RATIOS[0])) if pairs else None
        if found is None or found.value != found.value:
            return "(unmeasured)"
        return f"{found.value:.3g}x (range {found.low:.3g} to {found.high:.3g})"

    sentences = [re.sub(r"{(.*?)}", figure_of, sentence) for sentence in _CONCLUSIONS]
    return [
        textwrap.fill(f"- {sentence}", 120, subsequent_indent="  ", break_on_hyphens=False) for sentence in sentences
    ]


def _target_rows(result: Mapping[str, Any]) -> list[list[str]]:
    table = [["", "what", "wanted", "measured", "interval", ""]]
    for target in result["targets"]:
        value, low, high = target["ratio"]
        shown = (f"{value:.3g}", f"{low:.3g} .. {high:.3g}") if value == value else ("", "")
        table.append([str(target["number"]), target["what"], target["wanted"], *shown, target["outcome"]])
    return table


def _markdown(table: list[list[str]]) -> list[str]:
    head, *body = table
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]]


def _plots(result: Mapping[str, Any]) -> list[tuple[str, str, Values]]:
    """File, title and lines of each plot that has any."""
    values, _ = values_of(result)
    found = []
    for name, title, section, metric, _scale in _PLOTS:
        lines = {line: by for line, by in values.items() if (line[0], line[2]) == (section, metric)}
        if lines:
            found.append((name, title, lines))
    return found


def _draw(result: Mapping[str, Any], folder: Path, machine: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "kvtier"  # the same results give the same file
    from matplotlib import pyplot

    scales = {name: scale for name, *_, scale in _PLOTS}
    folder.mkdir(exist_ok=True)
    for name, title, lines in _plots(result):
        names = contestants(lines)
        figure, axes = pyplot.subplots(figsize=(8.5, 0.9 + 0.24 * len(lines) * (len(names) + 1)))
        for place, who in enumerate(names):
            at = [i + place / (len(names) + 1) for i in range(len(lines))]
            middles = [median(by[who]) if by.get(who) else 0.0 for by in lines.values()]
            low = [m - min(by[who]) if by.get(who) else 0.0 for m, by in zip(middles, lines.values(), strict=True)]
            high = [max(by[who]) - m if by.get(who) else 0.0 for m, by in zip(middles, lines.values(), strict=True)]
            axes.barh(at, middles, 1 / (len(names) + 1), xerr=[low, high], label=who, error_kw={"lw": 0.8})
        axes.set_yticks([i + 0.35 for i in range(len(lines))], [row for _, row, _ in lines])
        axes.invert_yaxis()
        axes.set_xscale(scales[name])
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        figure.tight_layout()
        figure.savefig(folder / f"{machine}-{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
