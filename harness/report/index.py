"""Writes `index.html` beside the run folders: every run with its verdict, newest first, each a link to its report."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from harness.core.inputs import UsageError
from harness.recorded import read_results
from harness.report.figures import duration
from harness.report.shell import write_page

RUNS_MAX = 500
_HEAD = (
    "when (UTC)",
    "scenario",
    "tier",
    "verdict",
    "seed",
    "requests",
    "hits",
    "loaded MiB/s",
    "stored",
    "load p99",
    "s",
)


def write_index(runs_dir: Path) -> Path:
    """List the newest `RUNS_MAX` runs that have results; returns the page's path."""
    rows = []
    folders = sorted((p for p in runs_dir.iterdir() if p.is_dir() and not p.is_symlink()), reverse=True)
    for folder in folders:
        try:
            results = read_results(folder)
        except UsageError:
            continue  # under way, damaged, or not a run
        rows.append(_row(folder, results))
        if len(rows) == RUNS_MAX:
            break
    head = "".join(f"<th scope='col'>{name}</th>" for name in _HEAD)
    more = f"<p class='sub'>The newest {RUNS_MAX}.</p>" if len(rows) == RUNS_MAX else ""
    body = [f"<h1>Runs</h1>{more}<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>"]
    return write_page(runs_dir / "index.html", "Runs", body)


def _row(folder: Path, results: dict[str, Any]) -> str:
    totals = results.get("totals") or {}
    when = folder.name[:16]
    if len(when) == 16 and when[8] == "T":  # 20260102T030405Z, as `run` names its folders
        when = f"{when[:4]}-{when[4:6]}-{when[6:8]} {when[9:11]}:{when[11:13]}:{when[13:15]}"
    broken = [v["name"] for v in results["verdicts"] if v["value"] == results["verdict"] != "true"]
    verdict = results["verdict"] + (f": {', '.join(broken)}" if broken else "")
    hits = f"{totals['hit_blocks'] / totals['blocks']:.1%}" if totals.get("blocks") else ""
    rates = [totals.get(f"{direction}_mib_per_second") for direction in ("load", "store")]
    worst = totals.get("load_p99_seconds")
    cells = [
        f"<td class='whole'><a href='{escape(folder.name)}/report.html'>{escape(when)}</a></td>",
        f"<td>{escape(results['scenario'])}</td>",
        f"<td class='long'>{escape(results['tier'])}</td>",
        f"<td class='{results['verdict']}'><b>{escape(verdict)}</b></td>",
        f"<td class='n'>{results['seed']}</td>",
        f"<td class='n'>{totals.get('requests', 0):,.0f}</td>",
        f"<td class='n'>{hits}</td>",
        *(f"<td class='n'>{f'{rate:,.0f}' if rate else ''}</td>" for rate in rates),
        f"<td class='n whole'>{duration(worst) if worst is not None else ''}</td>",
        f"<td class='n'>{results.get('seconds', 0):,.0f}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"
