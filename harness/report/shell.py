"""The HTML around every page: style for light, dark and narrow, plotly inline once, and the few lines that draw.

Pages hand it their parts; it knows no run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.io
from plotly.offline import get_plotlyjs

from harness.core.run_files import write_text
from harness.report.figures import PROCESS_COLOURS, Section
from harness.report.tables import table_html

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2129;--paper:#fff;--soft:#f3f4f7;--line:#d9dce3;--dim:#5b6373;
--true:#1f7a46;--false:#b3261e;--unknown:#8a5a00;--link:#1f5fbf}
@media(prefers-color-scheme:dark){:root{--ink:#e4e6eb;--paper:#14161b;--soft:#1e2128;--line:#343944;--dim:#a2a9b8;
--true:#5fc98b;--false:#ff8a80;--unknown:#e3b341;--link:#82b1ff}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1.2rem 1rem 4rem;
color:var(--ink);background:var(--paper)}
h1{font-size:1.45rem;line-height:1.25;margin:.2rem 0 .4rem}h2{font-size:1.12rem;line-height:1.3;margin:2.6rem 0 .2rem}
p{margin:.3rem 0;overflow-wrap:anywhere}.sub,.answer{color:var(--dim)}a{color:var(--link)}
code,pre{font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
pre{background:var(--soft);padding:.6rem .8rem;border-radius:.4rem;margin:.5rem 0}
table{border-collapse:collapse;font-size:.9rem}
td,th{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td,th{overflow-wrap:normal}th{color:var(--dim);font-weight:600;white-space:nowrap}td.n{text-align:right;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}
td.whole{white-space:nowrap}td.long{min-width:8rem;overflow-wrap:anywhere}
.badge{font-weight:600;white-space:nowrap}
.true{color:var(--true)}.false{color:var(--false)}.unknown{color:var(--unknown)}
.verdicts{list-style:none;margin:1rem 0;padding:0}
.verdicts>li{border-left:.25rem solid var(--mark,var(--line));background:var(--soft);border-radius:.3rem;
padding:.45rem .8rem;margin:.4rem 0;overflow-wrap:anywhere}
.verdicts .true,.verdicts .false,.verdicts .unknown{margin-left:.3rem}
li.is-true{--mark:var(--true)}li.is-false{--mark:var(--false)}li.is-unknown{--mark:var(--unknown)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8rem,1fr));gap:.5rem;margin:1rem 0}
.tiles div{background:var(--soft);border-radius:.3rem;padding:.5rem .8rem}
.tiles b{display:block;font-size:1.15rem;font-variant-numeric:tabular-nums}
.tiles span{color:var(--dim);font-size:.85rem}
details{margin:.3rem 0}summary{cursor:pointer;color:var(--dim)}ul.findings{margin:.3rem 0;padding-left:1.2rem}
.plot{width:100%;margin:.4rem 0}
"""

_DRAW = """
const page=JSON.parse(document.getElementById('plots').textContent);
const dark=matchMedia('(prefers-color-scheme: dark)');
function draw(){for(const [id,p] of Object.entries(page.figures))
Plotly.react(id,p.data,{...p.layout,template:dark.matches?page.dark:page.light},
{displaylogo:false,responsive:true,displayModeBar:false})}
draw();dark.addEventListener('change',draw);
"""


def write_page(path: Path, title: str, body: Sequence[str], sections: Sequence[Section] = ()) -> Path:
    """One self-contained file, replaced in one step: a reader never gets half of it."""
    scripts = ""
    if sections:
        figures = {f"plot-{number}": _figure(section) for number, section in enumerate(sections)}
        data = json.dumps({"light": _template("light"), "dark": _template("dark"), "figures": figures})
        data = data.replace("</", "<\\/")
        scripts = (
            f"<script type='application/json' id='plots'>{data}</script>"
            f"<script>{get_plotlyjs()}</script><script>{_DRAW}</script>"
        )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main>{scripts}</body></html>\n"
    )
    write_text(path, page)
    return path


def section_html(number: int, section: Section) -> str:
    """The place of the `number`-th plot of `write_page`, its question and answer, and its table."""
    question = escape(section.question)
    return (
        f"<h2>{question}</h2><p class='answer'>{escape(section.answer)}</p>"
        f"<div class='plot' id='plot-{number}' role='img' aria-label='{question} The table below says the same.'></div>"
        f"<details><summary>as a table</summary>{table_html(section.table)}</details>"
    )


def _figure(section: Section) -> dict[str, Any]:
    figure: dict[str, Any] = json.loads(section.figure.to_json())
    figure["layout"].pop("template", None)
    return {"data": figure["data"], "layout": figure["layout"]}


def _template(theme: str) -> dict[str, Any]:
    """Plotly's own light or dark theme, on the page's colours."""
    ink, grid, name = {"light": ("#1d2129", "#e3e6ec", "plotly_white"), "dark": ("#e4e6eb", "#2c313b", "plotly_dark")}[
        theme
    ]
    layout: dict[str, Any] = plotly.io.templates[name].layout.to_plotly_json()
    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "colorway": list(PROCESS_COLOURS)}
    layout |= {**clear, "font": {"color": ink, "family": "system-ui, sans-serif", "size": 12}}
    for axis in ("xaxis", "yaxis"):
        layout[axis] = {**layout.get(axis, {}), "gridcolor": grid, "linecolor": grid, "zerolinecolor": grid}
    return {"layout": layout}
