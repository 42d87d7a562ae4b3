"""Whatever a checker or the environment recorded, as tables; the pages call it, and it knows none of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from harness.report.figures import Table

ROWS_MAX = 500
Named = list[tuple[str, Table]]


def table_html(rows: Table) -> str:
    """A table that scrolls by itself where the page is narrow; nothing if there is only a head."""
    head, *body = rows
    if not body:
        return ""
    cells = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head) if any(head) else ""
    numbers = [all(_is_number(row[i]) or not row[i] for row in body) for i in range(len(body[0]))]
    lines = "".join(
        f"<tr>{''.join(_cell(cell, number) for cell, number in zip(row, numbers, strict=True))}</tr>"
        for row in body[:ROWS_MAX]
    )
    more = f"<p class='sub'>and {len(body) - ROWS_MAX:,} more rows</p>" if len(body) > ROWS_MAX else ""
    return f"<div class='scroll'><table>{f'<tr>{cells}</tr>' if cells else ''}{lines}</table></div>{more}"


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").rstrip(" %"))
    except ValueError:
        return False
    return True


def _cell(cell: str, number: bool) -> str:
    """In a column of numbers they stand to the right; verdicts have their colour."""
    kind = " class='n'" if number else f" class='badge {cell}'" if cell in ("true", "false", "unknown") else ""
    return f"<td{kind}>{escape(cell)}</td>"


def from_data(data: Mapping[str, Any]) -> Named:
    """What a checker measured, as tables: single figures first, then each list or map of records as one of its own."""
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


def words(name: str) -> str:
    return name.replace("_", " ")


def text(value: Any) -> str:
    """A value for a person: whole numbers with commas, others to four digits, lists with commas."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(key))} {text(item)}" for key, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(text(item) for item in value)
    return str(value)


def join(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
