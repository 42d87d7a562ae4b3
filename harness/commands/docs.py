"""The group `docs`: pages and tables of docs/ that are generated from declarations or from recorded runs."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.click_types import PATH
from harness.commands.lazy import LazyGroup, member
from harness.core.inputs import check_output

PAGES = Path(__file__).resolve().parents[2] / "docs"
MEMBERS = {
    "faults": member("harness.commands.docs:faults", "Write docs/faults.md from the declared faults."),
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
