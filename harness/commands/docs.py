"""The group `docs`: pages and tables of docs/ that are generated from declarations or from recorded runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from harness.commands.click_types import PATH
from harness.commands.lazy import LazyGroup, member
from harness.core.inputs import check_output

PAGES = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = Path(__file__).resolve().parents[1] / "results.schema.json"
RESULTS_HEAD = """\
# results.json and JUnit XML

`kvtier-harness run` and `check` write `results.json` into the run's folder; `--json` prints it. Its JSON Schema is
`harness/results.schema.json` (version {version}). Earlier versions stay readable: in version 1, which the file did not
name, a finding was its sentence alone. This page is written by `kvtier-harness docs results`.

Times in findings are seconds of the host's monotonic clock, as in `history-*.jsonl`. A field that is not known is left
out. Request, incarnation, file, writer and trace id are derived from the history, where it decides them.

`--junit FILE` of `run`, `conform` and `check` writes JUnit XML. Each run is a test suite, and each rule of its checkers
a test case. A rule with findings is a failure. A rule that could not be judged is skipped, with the reason.
"""
MEMBERS = {
    "faults": member("harness.commands.docs:faults", "Write docs/faults.md from the declared faults."),
    "results": member("harness.commands.docs:results", "Write docs/results.md from the schema of results.json."),
    "guarantees": member("harness.commands.docs:guarantees", "Write docs/guarantees.md from the declared rules."),
    "conformance": member("harness.commands.docs:conformance", "Write docs/conformance.md and the pages of findings."),
    "filesystems": member("harness.report.volume_page:main", "Print the tables of docs/filesystems.md."),
}


@click.group(cls=LazyGroup, members=lambda: MEMBERS)
def docs() -> None:
    """Write generated pages of docs/."""


@click.command()
@click.option("--output", type=PATH, default=str(PAGES / "faults.md"), help="the page's file (default: docs/faults.md)")
def faults(output: str) -> None:
    """Write docs/faults.md from the declared faults."""
    from harness.scenarios.faults import page  # here: the other pages do without

    check_output("--output", Path(output))
    Path(output).write_text(page(), encoding="utf-8")
    click.echo(output)


@click.command()
@click.option("--output", type=PATH, default=str(PAGES / "results.md"), help="the page's file")
def results(output: str) -> None:
    """Write docs/results.md from the schema of results.json."""
    check_output("--output", Path(output))
    Path(output).write_text(results_page(), encoding="utf-8")
    click.echo(output)


def results_page() -> str:
    """docs/results.md."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    lines = [RESULTS_HEAD.format(version=schema["properties"]["version"]["const"])]
    parts = {"results.json": schema, "A verdict": schema["$defs"]["verdict"], "A finding": schema["$defs"]["finding"]}
    for title, part in parts.items():
        lines += [f"## {title}", "", "| field | type | |", "|---|---|---|"]
        lines += [f"| `{name}` | {kind} | {text} |" for name, kind, text in _fields(schema, part)]
        lines.append("")
    return "\n".join(lines)


def _fields(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, field in part["properties"].items():
        reference = schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
        declared = {**reference, **field}
        kind = " or ".join(f"`{value}`" for value in declared.get("enum", ())) or declared.get("type", "integer")
        needed = "" if name in part["required"] else "optional; "
        text = declared["description"]
        yield name, kind, f"{needed}{text[0].lower()}{text[1:]}" if needed else text


@click.command()
@click.option(
    "--output", type=PATH, default=str(PAGES / "guarantees.md"), help="the page's file (default: docs/guarantees.md)"
)
def guarantees(output: str) -> None:
    """Write docs/guarantees.md from the declared promises, rules, scenarios and mutants."""
    from harness.report.guarantees_page import page  # here: the other pages do without

    check_output("--output", Path(output))
    Path(output).write_text(page(), encoding="utf-8")
    click.echo(output)


@click.command()
def conformance() -> None:
    """Write docs/conformance.md and each peer's page of findings from the records under docs/findings."""
    from harness.commands.conformance import write_pages  # here: the other pages do without

    for path in write_pages(PAGES):
        click.echo(path)
