"""Writes a run folder's `report.html`: verdicts first, then plots with tables, then what was run and where."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from harness.checkers import CHECKERS
from harness.core.history import History
from harness.core.inputs import read_json
from harness.recorded_run import read_results
from harness.report.figures import CLASSES, Section, duration, end_seconds, origin_seconds
from harness.report.rendering import write_page
from harness.report.sections import faults, interleavings, machine, moments, transfers, waiting
from harness.report.tables import flat, from_data
from harness.report.verdict_text import summary, text
from harness.scenarios import scenarios

FINDINGS_SHOWN_MAX = 50
DRAWN = {"faults"}
"""Checkers whose tables a section of the page shows better."""


class Tile(NamedTuple):
    """A headline figure, and why a comparison is missing from it."""

    value: str
    name: str
    doubt: str = ""


def write_report(run_dir: Path) -> Path:
    """Make the page from `results.json`, `environment.json` and the history; returns its path."""
    results = read_results(run_dir)
    history = History.read(run_dir)
    shown_options = {**history.options, "seed": str(results["seed"])}  # to copy: without commas
    options = [[name, shown] for name, value in shown_options.items() if (shown := text(value))]
    machine_rows = [*flat(read_environment(run_dir)), *flat({"device": results.get("device") or {}})]
    plots, found = sections(history, results), moments.moments(history, results)
    for section in plots:
        moments.mark(section, found, origin_seconds(history), end_seconds(history))
    return write_page(
        run_dir / "report.html",
        "report.html",
        plots,
        found,
        results=results,
        summary=summary(results),
        verdicts=[_verdict(verdict) for verdict in results["verdicts"]],
        tiles=tiles(results),
        happenings=machine.happenings(history),
        description=_description(results["scenario"]),
        options=[["option", "value"], *options],
        environment=[["", ""], *machine_rows],
        last_output=results.get("last_output") or {},
    )


def sections(history: History, results: Mapping[str, Any]) -> list[Section]:
    """All plots for which this history has data, in the order of the page."""
    data = {verdict["name"]: verdict["data"] for verdict in results["verdicts"]}
    made = (
        *interleavings.counterexamples(history),
        faults.outcomes(history, (data.get("faults") or {}).get("faults") or {}),
        transfers.hit_ratio(history),
        transfers.writers_by_reader(history),
        transfers.throughput(history, results.get("device") or {}),
        transfers.latency(history),
        waiting.waits(history, data.get("starvation") or {}),
        waiting.worst_wait(history),
        waiting.queues(history),
        machine.held(history),
        machine.noise(history),
    )
    return [section for section in made if section is not None]


def read_environment(run_dir: Path) -> dict[str, Any]:
    """environment.json; empty if there is none."""
    path = run_dir / "environment.json"
    return read_json(path, dict) if path.exists() else {}


def _verdict(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict with the checker's question, the findings to show, and the tables of what it measured."""
    findings = [finding for finding in verdict["findings"] if finding.kind == "finding"]
    return {
        **verdict,
        "question": _question(verdict["name"]),
        "count": len(findings) + verdict["omitted"],
        "doubts": [finding for finding in verdict["findings"] if finding.kind == "doubt"],
        "findings": findings[:FINDINGS_SHOWN_MAX],
        "not_shown": len(findings[FINDINGS_SHOWN_MAX:]),
        "not_listed": verdict["omitted"],
        "measured": [] if verdict["name"] in DRAWN else from_data(verdict["data"]),
    }


def _question(checker: str) -> str:
    """The first sentence of the checker's docstring."""
    if checker not in CHECKERS:
        return ""
    doc = (import_module(CHECKERS[checker].__module__).__doc__ or "").split("\n\n")[0]
    doc = " ".join(doc.replace("`", "").split())
    for mark in "?", ". ":
        if mark in doc:
            return doc.split(mark)[0] + mark.strip()
    return doc


def _description(scenario: str) -> str:
    return next((" ".join(s.text.split()) for s in scenarios() if s.name == scenario), "")


def tiles(results: Mapping[str, Any]) -> list[Tile]:
    """The headline figures of a run."""
    totals, device = results["totals"], results.get("device") or {}
    found = [Tile(f"{totals['requests']:,.0f}", "requests")] if totals.get("requests") else []
    found += [Tile(f"{totals['jobs']:,.0f}", "jobs")] if totals.get("jobs") else []
    if totals.get("blocks"):
        found.append(Tile(f"{totals['hit_blocks'] / totals['blocks']:.1%}", "block hits"))
    for direction in CLASSES:
        if rate := totals.get(f"{direction}_mib_per_second"):
            ceiling, doubt = transfers.ceiling(device, direction), transfers.ceiling_doubt(device, direction, rate)
            share = f", {rate / ceiling:.0%} of the device" if ceiling and not doubt else ""
            found.append(Tile(f"{rate:,.0f} MiB/s", f"{transfers.DONE[direction]}{share}", doubt))
        if (p99 := totals.get(f"{direction}_p99_seconds")) is not None:
            found.append(Tile(duration(p99), f"{direction} p99"))
    return found
