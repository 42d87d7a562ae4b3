"""The section on faults: what each fault did, the behaviour expected under it, and whether the tier showed it.

Its data is what the checker of faults measured; the registry describes each fault. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import plotly.graph_objects as go

from harness.checkers.base import some
from harness.core import notes
from harness.core.history import History
from harness.faults import FAULTS
from harness.faults.table import GUARANTEES
from harness.report.figures import Section, Table, duration, new_figure

EXPECTED = (*GUARANTEES, "works again")
ROW_PIXELS = 18
_MARKS = {"met": "✓", "not shown": "?", "not met": "✗"}
_LEVELS = {"met": 1, "not shown": 0, "not met": -1}
_COLOURS = ("#c94f5a", "#8c93a8", "#4a9a68")  # of the levels -1, 0, 1; white marks are legible on each


class _Outcome(NamedTuple):
    """One expected behaviour under one fault: "met", "not shown" by the tier, or "not met", in the checker's words."""

    fault: str
    behaviour: str
    state: str
    figure: str


def outcomes(history: History, rows: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """Faults by expected behaviours. `rows`: what the checker of faults says of each fault; None if there is none."""
    if not rows:
        return None
    shown = [one for fault in rows for one in _outcomes(fault, rows[fault])]
    question, answer = "How did the tier behave under each fault?", _answer(rows, shown)
    table = _table(history, rows, shown)
    if not shown:
        return Section(question, answer, None, table)
    figure = new_figure("", "", height=140 + ROW_PIXELS * len(rows))
    behaviours = [name for name in EXPECTED if any(one.behaviour == name for one in shown)]
    cells = {(one.fault, one.behaviour): one for one in shown}
    grid = [[cells.get((fault, name)) for name in behaviours] for fault in rows]
    figure.add_trace(
        go.Heatmap(
            z=[[_LEVELS[one.state] if one else None for one in row] for row in grid],
            text=[[_MARKS[one.state] if one else "" for one in row] for row in grid],
            customdata=[
                [f"{_what(one.fault)}<br>{one.behaviour}: {one.figure}" if one else "" for one in row] for row in grid
            ],
            x=behaviours,
            y=list(rows),
            texttemplate="%{text}",
            textfont={"color": "#fff"},
            hovertemplate="%{y}: %{customdata}<extra></extra>",
            hoverongaps=False,
            colorscale=[[level, colour] for i, colour in enumerate(_COLOURS) for level in (i / 3, (i + 1) / 3)],
            zmin=-1,
            zmax=1,
            showscale=False,
            xgap=2,
            ygap=2,
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True, dtick=1)
    figure.update_xaxes(side="top", tickangle=-55, showgrid=False, automargin=True, dtick=1)
    figure.update_layout(margin={"l": 10, "t": 90, "b": 10})
    return Section(question, answer, figure, table)


def _outcomes(fault: str, row: Mapping[str, Any]) -> Iterator[_Outcome]:
    for name, figure in row.get("expected", row.get("owed", {})).items():  # "owed": in older runs
        if name in EXPECTED:  # anything else failed before the fault
            is_met = figure == "yes" or row["verdict"] == "true"
            yield _Outcome(fault, name, figure if figure == "not shown" else "met" if is_met else "not met", figure)


def _what(fault: str) -> str:
    return FAULTS[fault].what if fault in FAULTS else ""


def _answer(rows: Mapping[str, Mapping[str, Any]], shown: list[_Outcome]) -> str:
    injected = [fault for fault, row in rows.items() if row["verdict"] != "skipped"]
    counts = {state: [one for one in shown if one.state == state] for state in _MARKS}
    parts = [f"{len(injected)} faults injected, {len(shown)} expected behaviours: {len(counts['met'])} met"]
    for state in ("not met", "not shown"):
        if named := sorted({f"{one.fault} ({one.behaviour})" for one in counts[state]}):
            parts.append(f"{len(counts[state])} {state}: {some(named, 5)}")
    worst = max(injected, key=lambda fault: rows[fault]["hurt"], default=None)
    hurt = rows[worst]["hurt"] if worst is not None else 0
    most = f" Most blocks were affected by {worst}: {hurt} were not stored, found or loaded during it." if hurt else ""
    skipped = [f"{row['why']}" for row in rows.values() if row["verdict"] == "skipped"]
    return f"{'; '.join(parts)}.{most}" + (f" Skipped: {'; '.join(skipped)}." if skipped else "")


def _table(history: History, rows: Mapping[str, Mapping[str, Any]], shown: list[_Outcome]) -> Table:
    seconds = {
        note.detail["fault"]: note.detail["lifted_seconds"] - note.detail["began_seconds"]
        for note in history.notes
        if note.is_a(notes.Met)
    }
    table: Table = [["fault", "what happens", "verdict", "blocks affected", "duration", "met", "not met, or not shown"]]
    for fault, row in rows.items():
        mine = [one for one in shown if one.fault == fault]
        others = [f"{one.behaviour}: {one.figure}" for one in mine if one.state != "met"]
        table.append(
            [
                fault,
                _what(fault),
                row["verdict"],
                f"{row['hurt']}",
                duration(seconds[fault]) if fault in seconds else "",
                ", ".join(one.behaviour for one in mine if one.state == "met"),
                "; ".join([*others, *filter(None, [row.get("why")])]),
            ]
        )
    return table
