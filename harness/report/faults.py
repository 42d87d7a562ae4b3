"""Section about the faults of a run: what each did, what the tier owed under it, and whether it paid.

`page` calls it with what the checker of faults measured; the registry says what each fault is. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import plotly.graph_objects as go

from harness.checkers.base import some
from harness.core.history import History
from harness.faults import FAULTS
from harness.faults.table import OWED
from harness.report.figures import Section, Table, duration, new_figure

PROMISES = (*OWED, "works again")
ROW_PIXELS = 18
_MARKS = {"kept": "✓", "not shown": "?", "broken": "✗"}
_LEVELS = {"kept": 1, "not shown": 0, "broken": -1}
_COLOURS = ("#c94f5a", "#8c93a8", "#4a9a68")  # of the levels -1, 0, 1: white marks are read on each, in either theme


class _Paid(NamedTuple):
    """One promise under one fault: "kept", "not shown" by the tier, or "broken", and in what words."""

    fault: str
    promise: str
    state: str
    said: str


def outcomes(history: History, rows: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """Faults by promises. `rows`: what the checker of faults says of each fault; None if there is none."""
    if not rows:
        return None
    paid = [one for fault in rows for one in _paid(fault, rows[fault])]
    figure = new_figure("", "", height=140 + ROW_PIXELS * len(rows))
    promises = [p for p in PROMISES if any(one.promise == p for one in paid)]
    cells = {(one.fault, one.promise): one for one in paid}
    grid = [[cells.get((fault, promise)) for promise in promises] for fault in rows]
    figure.add_trace(
        go.Heatmap(
            z=[[_LEVELS[one.state] if one else None for one in row] for row in grid],
            text=[[_MARKS[one.state] if one else "" for one in row] for row in grid],
            customdata=[
                [f"{_what(one.fault)}<br>{one.promise}: {one.said}" if one else "" for one in row] for row in grid
            ],
            x=promises,
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
    return Section("What did the tier make of each fault?", _answer(rows, paid), figure, _table(history, rows, paid))


def _paid(fault: str, row: Mapping[str, Any]) -> Iterator[_Paid]:
    for promise, said in row["owed"].items():
        if promise in PROMISES:  # what failed before the fault came is no promise
            kept = said == "yes" or row["verdict"] == "true"
            yield _Paid(fault, promise, said if said == "not shown" else "kept" if kept else "broken", said)


def _what(fault: str) -> str:
    return FAULTS[fault].what if fault in FAULTS else ""


def _answer(rows: Mapping[str, Mapping[str, Any]], paid: list[_Paid]) -> str:
    met = [fault for fault, row in rows.items() if row["verdict"] != "skipped"]
    counts = {state: [one for one in paid if one.state == state] for state in _MARKS}
    parts = [f"{len(met)} faults came, with {len(paid)} promises: {len(counts['kept'])} kept"]
    for state in ("broken", "not shown"):
        if named := sorted({f"{one.fault} ({one.promise})" for one in counts[state]}):
            parts.append(f"{len(counts[state])} {state}: {some(named, 5)}")
    worst = max(met, key=lambda fault: rows[fault]["hurt"], default=None)
    hurt = rows[worst]["hurt"] if worst is not None else 0
    most = f" Most was hurt by {worst}: {hurt} blocks were not stored, found or loaded while it lasted." if hurt else ""
    skipped = [f"{row['why']}" for row in rows.values() if row["verdict"] == "skipped"]
    return f"{'; '.join(parts)}.{most}" + (f" Skipped: {'; '.join(skipped)}." if skipped else "")


def _table(history: History, rows: Mapping[str, Mapping[str, Any]], paid: list[_Paid]) -> Table:
    lasted = {
        note.detail["fault"]: note.detail["lifted_seconds"] - note.detail["began_seconds"]
        for note in history.notes
        if note.kind == "met"
    }
    table: Table = [["fault", "what happens", "verdict", "blocks hurt", "lasted", "kept", "not kept, or not shown"]]
    for fault, row in rows.items():
        mine = [one for one in paid if one.fault == fault]
        others = [f"{one.promise}: {one.said}" for one in mine if one.state != "kept"]
        table.append(
            [
                fault,
                _what(fault),
                row["verdict"],
                f"{row['hurt']}",
                duration(lasted[fault]) if fault in lasted else "",
                ", ".join(one.promise for one in mine if one.state == "kept"),
                "; ".join([*others, *filter(None, [row.get("why")])]),
            ]
        )
    return table
