"""The list of runs, `index.html` beside their folders: newest first, with verdicts and links to the reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.core.inputs import UsageError
from harness.recorded_run import read_results
from harness.report.figures import duration
from harness.report.rendering import file_url, write_page
from harness.report.verdict_text import short_summary, summary

RUNS_MAX = 500
_COLUMNS = (
    "when (UTC)",
    "verdict",
    "scenario",
    "tier",
    "seed",
    "requests",
    "hits",
    "loaded MiB/s",
    "stored MiB/s",
    "load p99",
    "seconds",
)


class _Row(NamedTuple):
    report: str  # URL
    when: str
    scenario: str
    tier: str
    verdict: str
    short: str
    summary: str
    figures: list[str]


def write_index(runs_dir: Path) -> Path:
    """List the newest `RUNS_MAX` runs that have results; returns the page's path."""
    rows: list[_Row] = []
    folders = sorted((p for p in runs_dir.iterdir() if p.is_dir() and not p.is_symlink()), reverse=True)
    for folder in folders:
        try:
            results = read_results(folder)
        except UsageError:
            continue  # not finished, damaged, or not a run
        rows.append(_row(folder, results))
        if len(rows) == RUNS_MAX:
            break
    return write_page(runs_dir / "index.html", "index.html", columns=_COLUMNS, runs=rows, is_cut=len(rows) == RUNS_MAX)


def _row(folder: Path, results: dict[str, Any]) -> _Row:
    totals = results.get("totals") or {}
    when = folder.name[:16]
    if len(when) == 16 and when[8] == "T":  # 20260102T030405Z, as `run` names its folders
        when = f"{when[:4]}-{when[4:6]}-{when[6:8]} {when[9:11]}:{when[11:13]}:{when[13:15]}"
    rates = [totals.get(f"{direction}_mib_per_second") for direction in ("load", "store")]
    p99 = totals.get("load_p99_seconds")
    figures = [
        str(results["seed"]),
        f"{totals.get('requests', 0):,.0f}",
        f"{totals['hit_blocks'] / totals['blocks']:.1%}" if totals.get("blocks") else "",
        *(f"{rate:,.0f}" if rate else "" for rate in rates),
        duration(p99) if p99 is not None else "",
        f"{results.get('seconds', 0):,.0f}",
    ]
    return _Row(
        file_url(f"{folder.name}/report.html"),
        when,
        results["scenario"],
        results["tier"],
        results["verdict"],
        short_summary(results),
        summary(results),
        figures,
    )
