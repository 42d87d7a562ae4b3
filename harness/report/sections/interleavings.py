"""Sections on schedules that break a rule: the calls of each process in a column of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core import notes
from harness.core.history import History
from harness.report.figures import Section, Table

SHOWN_MAX = 10


def counterexamples(history: History) -> list[Section]:
    """A section for each shortest schedule of a kind of violation."""
    found = [note.detail for note in history.notes if note.is_a(notes.Counterexample)]
    return [_section(number, detail) for number, detail in enumerate(found[:SHOWN_MAX], 1)]


def _section(number: int, detail: Mapping[str, Any]) -> Section:
    table: Table = [["step", *(f"process {name}" for name in detail["actors"])]]
    for step, (actor, call, result) in enumerate(detail["trace"]):
        cells = [""] * len(detail["actors"])
        cells[actor] = f"{call} {result}".rstrip()
        mark = " goes wrong here" if step == detail["step"] else ""
        table.append([f"{step + 1}{mark}", *cells])
    answer = f"{'; '.join(detail['texts'])}. Again: kvtier-harness explore --replay {detail['file']}"
    return Section(f"Schedule {number} that breaks a rule: {detail['program']}", answer, None, table)
