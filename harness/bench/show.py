"""Results for people: the tables on a terminal and in Markdown, the plots of docs/benchmarks.md. Reads result JSON."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.bench.plan import Sample
from harness.bench.stats import ratio, spread
from harness.bench.targets import Values, by_line

COLOURS = {"met": "green", "missed": "red", "unclear": "yellow", "unmeasured": "dim"}
ORDER = ("kvtier", "kvtier-direct", "kvtier-buffered", "vllm", "file per block", "device, 16 threads", "device, fio")


def values_of(result: Mapping[str, Any]) -> tuple[Values, dict[tuple[str, str, str], str]]:
    """The samples of a result by line, and each line's unit."""
    samples = [Sample(*row) for row in result["samples"]]
    return by_line(samples), {(s.section, s.row, s.metric): s.unit for s in samples}


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Section, row, metric, then each contestant's median and spread, and the ratio kvtier / vllm with its interval."""
    values, units = values_of(result)
    names = contestants(values)
    lines = [["section", "row", "metric", *names, "kvtier / vllm"]]
    for line, by_name in values.items():
        cells = [line[0], line[1], f"{line[2]}, {units[line]}" if units[line] else line[2]]
        cells += [figure(by_name[name]) if by_name.get(name) else "" for name in names]
        pair = ratio(by_name.get("kvtier", []), by_name.get("vllm", []))
        cells.append("" if pair.value != pair.value else f"{pair.value:.3g} [{pair.low:.3g}, {pair.high:.3g}]")
        lines.append(cells)
    return lines


def contestants(values: Values) -> list[str]:
    found = {name for by_name in values.values() for name in by_name}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def figure(values: list[float]) -> str:
    """Median, and in brackets the robust spread in percent."""
    middle = median(values)
    text = f"{middle:,.0f}" if abs(middle) >= 100 else f"{middle:.3g}"
    return text if len(values) < 2 else f"{text} (±{spread(values) * 100:.0f}%)"


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
    for name in ("", "what", "wanted", "measured", "95 %", ""):
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
