"""Tables from the data of any checker or environment; it knows none of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.report.figures import Table
from harness.report.verdict_text import VERDICT_WORDS, text, words

ROWS_MAX = 500
VERDICT_COLUMNS = {"verdict", "kept"}
Named = list[tuple[str, Table]]


class Cell(NamedTuple):
    text: str
    kind: str  # class of its element: "number", "badge true", ...


class Grid(NamedTuple):
    """A table as the template `parts.html` renders it."""

    head: list[Cell]  # empty if no column has a name
    body: list[list[Cell]]
    more: int  # rows beyond `ROWS_MAX`


def grid(rows: Table) -> Grid:
    """Columns of numbers are aligned to the right; columns of verdicts show words for people."""
    head, *body = rows
    are_numbers = [all(_is_number(row[i]) or not row[i] for row in body) for i in range(len(head))]
    named = [Cell(cell, "number" if is_number else "") for cell, is_number in zip(head, are_numbers, strict=True)]
    lines = [
        [_cell(name, cell, is_number) for name, cell, is_number in zip(head, row, are_numbers, strict=True)]
        for row in body[:ROWS_MAX]
    ]
    return Grid(named if any(head) else [], lines, max(0, len(body) - ROWS_MAX))


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").rstrip(" %"))
    except ValueError:
        return False
    return True


def _cell(column: str, cell: str, is_number: bool) -> Cell:
    if column in VERDICT_COLUMNS and cell in VERDICT_WORDS:
        return Cell(VERDICT_WORDS[cell], f"badge {cell}")
    return Cell(cell, "number" if is_number else "")


def from_data(data: Mapping[str, Any]) -> Named:
    """A checker's data as tables: single figures first, then a table for each list or map of records."""
    single: Table = [["figure", "value"]]
    found: Named = []
    for name, value in data.items():
        title = words(name)
        if records := _records(value):
            found.append((title, _columns(records)))
        elif isinstance(value, Mapping):
            single += [[f"{title}: {words(str(key))}", text(item)] for key, item in value.items()]
        else:
            single.append([title, text(value)])
    return [*([("", single)] if len(single) > 1 else []), *found]


def _records(value: Any) -> list[Mapping[str, Any]]:
    """The rows of a list of records, or of a map of records of one form; empty if it is neither."""
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and value
        and all(isinstance(v, Mapping) for v in value)
    ):
        return list(value)
    if isinstance(value, Mapping) and len(value) > 1 and all(isinstance(v, Mapping) and v for v in value.values()):
        return [{"": key, **record} for key, record in value.items()]
    return []


def _columns(records: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for record in records for name in record))
    return [[words(name) for name in names], *([text(record.get(name)) for name in names] for record in records)]


def flat(values: Mapping[str, Any], prefix: str = "") -> Table:
    """A map of maps as rows of name and value."""
    rows: Table = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name} ")
        else:
            rows.append([words(f"{prefix}{name}"), text(value)])
    return rows
