"""The pages' HTML: Jinja2 templates, autoescaped, around the figures and plotly's code. It reads no run.

Each page is one file that opens offline, also alone: plotly is inside it, compressed.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from harness.core.run_files import write_text
from harness.report.figures import PROCESS_COLOURS, Section
from harness.report.sections.moments import Moment
from harness.report.tables import grid
from harness.report.verdict_text import VERDICT_WORDS, summary

TEMPLATES = Path(__file__).with_name("templates")


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"grid": grid, "summary": summary, "word": VERDICT_WORDS.__getitem__}
    return found


@cache
def _plotly() -> str:
    """Plotly's code as gzip in base64, which draw.js decompresses: 2.0 MB instead of 4.8 MB."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode()


def write_page(
    path: Path, template: str, sections: Sequence[Section] = (), moments: Sequence[Moment] = (), **values: Any
) -> Path:
    """Fill a template with `values` and the plots of `sections` and `moments`, and replace `path` in one step.

    Raises OSError.
    """
    plots: dict[str, Any] = {}
    drawn = {f"plot-{n}": section for n, section in enumerate(sections)}
    drawn |= {f"moment-plot-{moment.number}": moment.section for moment in moments if moment.section}
    if figures := {name: _figure(section.figure) for name, section in drawn.items() if section.is_drawn}:
        plots = {"light": _theme("light"), "dark": _theme("dark"), "figures": figures}
    page = _templates().get_template(template)
    code = _plotly() if plots else ""
    write_text(path, page.render(values, sections=sections, moments=moments, plots=plots, plotly=code) + "\n")
    return path


def file_url(path: str) -> str:
    """A relative path as a URL; its name may be no text."""
    return quote(os.fsencode(path))


def _figure(figure: go.Figure) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return {"data": plain["data"], "layout": plain["layout"]}


def _theme(theme: str) -> dict[str, Any]:
    """Plotly's own light or dark template, on the page's colours."""
    ink, grid_line, name = {
        "light": ("#1d2129", "#e3e6ec", "plotly_white"),
        "dark": ("#e4e6eb", "#2c313b", "plotly_dark"),
    }[theme]
    layout: dict[str, Any] = plotly.io.templates[name].layout.to_plotly_json()
    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "colorway": list(PROCESS_COLOURS)}
    layout |= {**clear, "font": {"color": ink, "family": "system-ui, sans-serif", "size": 12}}
    for axis in ("xaxis", "yaxis"):
        layout[axis] = {**layout.get(axis, {}), "gridcolor": grid_line, "linecolor": grid_line}
        layout[axis]["zerolinecolor"] = grid_line
    return {"layout": layout}
