"""The command `report`: writes the page of a recorded run again, and starts no process."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.click_types import PATH
from harness.report.index_page import write_index
from harness.report.run_page import write_report
from harness.runner import ensure_results


@click.command()
@click.argument("run_dir", type=PATH)
def report(run_dir: str) -> None:
    """Write a run's report.html again from what it recorded, and the list of runs beside it."""
    click.echo(write_report(ensure_results(Path(run_dir))))
    write_index(Path(run_dir).resolve().parent)
