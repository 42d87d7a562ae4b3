"""Writes a run folder's `report.html`: verdicts in words first, then plots with tables, then what was run and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from harness.history import History
from harness.report.figures import Section, Table, sections

FINDINGS_SHOWN_MAX = 50
_WORDS = {
    "true": "held",
    "false": "is broken",
    "unknown": "was not decided",
}
_STYLE = """
:root{color-scheme:light dark;--good:#2e8b57;--bad:#c0392b;--open:#b7791f;--line:rgba(128,128,128,.3)}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.1rem;margin:2.2rem 0 .3rem}
p.sub{opacity:.75;margin:.2rem 0}
code,pre{font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
pre{background:rgba(128,128,128,.12);padding:.6rem .8rem;border-radius:.4rem;margin:.5rem 0}
table{border-collapse:collapse;font-size:.92rem}
td,th{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
.scroll{overflow-x:auto}
.badge{font-weight:600}.true{color:var(--good)}.false{color:var(--bad)}.unknown{color:var(--open)}
details{margin:.3rem 0}summary{cursor:pointer;opacity:.75}
ul{margin:.3rem 0;padding-left:1.2rem}li{overflow-wrap:anywhere}
"""


def write_report(run_dir: Path) -> Path:
    """Make the page from `results.json`, `environment.json` and the history; returns its path."""
    results = json.loads((run_dir / "results.json").read_text())
    environment = json.loads((run_dir / "environment.json").read_text())
    history = History.read(run_dir)
    plots = sections(history)
    body = [
        _verdict(results),
        *(_section(number, section) for number, section in enumerate(plots)),
        "<h2>What was run</h2>",
        f"<pre>{escape(results['command'])}</pre>",
        _table([["option", "value"], *([name, _short(value)] for name, value in history.options.items())]),
        "<h2>What it ran on</h2>",
        _table([["", ""], *_flat(environment)]),
        _last_words(run_dir),
    ]
    title = f"{results['scenario']} of {results['tier']}: {results['verdict']}"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style>
<script>{get_plotlyjs() if plots else ""}</script></head>
<body>{"".join(body)}</body></html>
"""
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _verdict(results: Mapping[str, Any]) -> str:
    value, totals = results["verdict"], results["totals"]
    broken = [v["name"] for v in results["verdicts"] if v["value"] == "false"]
    open_ = [v["name"] for v in results["verdicts"] if v["value"] == "unknown"]
    if broken:
        words = f"{_and(broken)} {'is' if len(broken) == 1 else 'are'} broken"
    elif open_ or results["reason"]:
        words = f"not decided: {_and(open_) or results['reason']}"
    else:
        words = "everything that was checked holds"
    mib = (totals["loaded_bytes"] + totals["stored_bytes"]) / (1 << 20)
    rows = "".join(
        f"<tr><td>{escape(v['name'])}</td><td class='badge {v['value']}'>{_WORDS[v['value']]}</td>"
        f"<td>{escape(v['figure'])}{_findings(v['findings'])}</td></tr>"
        for v in results["verdicts"]
    )
    reason = f"<p class='unknown'>{escape(results['reason'])}</p>" if results["reason"] else ""
    return (
        f"<h1>{escape(results['scenario'])} of {escape(results['tier'])}: "
        f"<span class='{value}'>{escape(words)}</span></h1>"
        f"<p class='sub'>{totals['requests']:,} requests, {totals['blocks']:,} blocks asked for, {mib:,.0f} MiB moved "
        f"in {results['seconds']:.0f} s; seed {results['seed']}</p>{reason}"
        f"<div class='scroll'><table>{rows}</table></div>"
    )


def _findings(findings: list[str]) -> str:
    if not findings:
        return ""
    items = "".join(f"<li><code>{escape(f)}</code></li>" for f in findings[:FINDINGS_SHOWN_MAX])
    more = f"<li>and {len(findings) - FINDINGS_SHOWN_MAX} more</li>" if len(findings) > FINDINGS_SHOWN_MAX else ""
    return f"<details open><summary>{len(findings)} findings</summary><ul>{items}{more}</ul></details>"


def _section(number: int, section: Section) -> str:
    plot = section.figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{number}",
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    table = f"<details><summary>as a table</summary>{_table(section.table)}</details>"
    return f"<h2>{escape(section.title)}</h2>{plot}{table}"


def _table(rows: Table) -> str:
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<div class='scroll'><table><tr>{cells}</tr>{lines}</table></div>"


def _last_words(run_dir: Path) -> str:
    """What processes wrote to stderr, if anything: the last lines of each."""
    said = []
    for path in sorted(run_dir.glob("stderr-*.txt")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-32:]
        if lines:
            said.append(f"<h2>{escape(path.stem)}</h2><pre>{escape(chr(10).join(lines))}</pre>")
    return "".join(said)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Table:
    rows: Table = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            rows.append([f"{prefix}{name}".replace("_", " "), _short(value)])
    return rows


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
