"""Writes a run folder's `report.html`: verdicts in words first, then plots with tables, then what was run and where."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.checkers import CHECKERS
from harness.core.history import History
from harness.core.inputs import read_json
from harness.recorded import read_results
from harness.report import faults, flow, machine, schedule
from harness.report.figures import Section, duration
from harness.report.shell import section_html, write_page
from harness.report.tables import flat, from_data, join, table_html, text
from harness.scenarios import scenarios

FINDINGS_SHOWN_MAX = 50
DRAWN = {"faults"}
"""Checkers whose tables a section of the page shows better."""
WORDS = {"true": "holds", "false": "is broken", "unknown": "was not decided"}


def write_report(run_dir: Path) -> Path:
    """Make the page from `results.json`, `environment.json` and the history; returns its path."""
    results = read_results(run_dir)
    environment = read_environment(run_dir)
    history = History.read(run_dir)
    plots = sections(history, results)
    happened = machine.happenings(history)
    body = [
        _head(results),
        _verdicts(results),
        _tiles(results),
        *(section_html(number, section) for number, section in enumerate(plots)),
        f"<h2>What happened when?</h2><div>{table_html(happened)}</div>" if len(happened) > 1 else "",
        "<h2>What was run?</h2>",
        f"<pre>{escape(results['command'])}</pre>",
        f"<p class='sub'>{escape(_proves(results['scenario']))}</p>",
        table_html(
            [["option", "value"], *([name, shown] for name, value in history.options.items() if (shown := text(value)))]
        ),
        "<h2>What did it run on?</h2>",
        table_html([["", ""], *flat(environment), *flat({"device": results.get("device") or {}})]),
        _last_words(results.get("last_output") or {}),
    ]
    title = f"{results['scenario']} of {results['tier']}: {results['verdict']}"
    return write_page(run_dir / "report.html", title, body, plots)


def sections(history: History, results: Mapping[str, Any]) -> list[Section]:
    """All plots that this history has data for, in the order of the page."""
    data = {verdict["name"]: verdict["data"] for verdict in results["verdicts"]}
    made = (
        faults.outcomes(history, (data.get("faults") or {}).get("faults") or {}),
        flow.hit_ratio(history),
        flow.who_wrote(history),
        flow.throughput(history, results.get("device") or {}),
        flow.latency(history),
        schedule.waits(history, data.get("starvation") or {}),
        schedule.worst_wait(history),
        schedule.queues(history),
        machine.held(history),
        machine.noise(history),
    )
    return [section for section in made if section is not None]


def read_environment(run_dir: Path) -> dict[str, Any]:
    """environment.json; empty if there is none."""
    path = run_dir / "environment.json"
    return read_json(path, dict) if path.exists() else {}


def verdict_words(results: Mapping[str, Any]) -> str:
    """The run's verdict as the end of a sentence."""
    broken = [v["name"] for v in results["verdicts"] if v["value"] == "false"]
    undecided = [v["name"] for v in results["verdicts"] if v["value"] == "unknown"]
    if broken:
        return f"{join(broken)} {'is' if len(broken) == 1 else 'are'} broken"
    if undecided or results["reason"]:
        return f"not decided: {join(undecided) or results['reason'].splitlines()[0]}"
    return "everything that was checked holds"


def _head(results: Mapping[str, Any]) -> str:
    value = results["verdict"]
    reason = f"<p class='unknown'>{escape(results['reason'])}</p>" if results["reason"] else ""
    return (
        f"<h1>{escape(results['scenario'])} of {escape(results['tier'])}: "
        f"<span class='{value}'>{escape(verdict_words(results))}</span></h1>"
        f"<p class='sub'>{results['seconds']:.0f} s, seed {results['seed']}</p>{reason}"
    )


def _verdicts(results: Mapping[str, Any]) -> str:
    items = []
    for verdict in results["verdicts"]:
        value = verdict["value"]
        measured = "" if verdict["name"] in DRAWN else _measured(verdict["data"])
        items.append(
            f"<li class='is-{value}'><b>{escape(verdict['name'])}</b>"
            f"<span class='badge {value}'>{WORDS[value]}</span> "
            f"<span class='sub'>{escape(_question(verdict['name']))}</span><br>{escape(verdict['figure'])}"
            f"{_findings(verdict['findings'], value)}{measured}</li>"
        )
    return f"<ul class='verdicts'>{''.join(items)}</ul>"


def _question(checker: str) -> str:
    """The first sentence of what the checker says about itself."""
    if checker not in CHECKERS:
        return ""
    doc = (
        (import_module(CHECKERS[checker].__module__).__doc__ or "")
        .split("\n\n")[0]
        .replace("\n", " ")
        .replace("`", "")
        .strip()
    )
    for mark in "?", ". ":
        if mark in doc:
            return doc.split(mark)[0] + mark.strip()
    return doc


def _proves(scenario: str) -> str:
    return next((" ".join(s.text.split()) for s in scenarios() if s.name == scenario), "")


def _findings(findings: list[str], value: str) -> str:
    if not findings:
        return ""
    items = "".join(f"<li><code>{escape(f)}</code></li>" for f in findings[:FINDINGS_SHOWN_MAX])
    more = f"<li>and {len(findings) - FINDINGS_SHOWN_MAX} more</li>" if len(findings) > FINDINGS_SHOWN_MAX else ""
    count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
    unfolded = "" if value == "true" else " open"
    return f"<details{unfolded}><summary>{count}</summary><ul class='findings'>{items}{more}</ul></details>"


def _measured(data: Mapping[str, Any]) -> str:
    """All that the checker measured; tables of cells are open, single figures fold away."""
    tables = from_data(data)
    return "".join(
        f"<details{' open' if name else ''}><summary>{escape(name) or 'figures'}</summary>{table_html(rows)}</details>"
        for name, rows in tables
    )


def tiles(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a run that a person looks for first, each with what it is."""
    totals, device = results["totals"], results.get("device") or {}
    found = [(f"{totals['requests']:,.0f}", "requests")] if totals.get("requests") else []
    found += [(f"{totals['jobs']:,.0f}", "jobs")] if totals.get("jobs") else []
    if totals.get("blocks"):
        found.append((f"{totals['hit_blocks'] / totals['blocks']:.1%}", "blocks that were hits"))
    for direction, past, device_name in (("load", "loaded", "read"), ("store", "stored", "write")):
        rate = totals.get(f"{direction}_mib_per_second")
        if rate:
            ceiling = device.get(f"{device_name}_mib_per_second")
            share = f", {rate / ceiling:.0%} of the device" if ceiling else ""
            found.append((f"{rate:,.0f} MiB/s", f"{past}{share}"))
        if (worst := totals.get(f"{direction}_p99_seconds")) is not None:
            found.append((duration(worst), f"99 of 100 {direction} jobs"))
    return found


def _tiles(results: Mapping[str, Any]) -> str:
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in tiles(results))
    return f"<div class='tiles'>{cells}</div>" if cells else ""


def _last_words(words: Mapping[str, str]) -> str:
    """What processes that died had written to stderr last."""
    return "".join(
        f"<h2>Last output of process {escape(label)}</h2><pre>{escape(said)}</pre>" for label, said in words.items()
    )
