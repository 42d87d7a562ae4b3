"""The command `compare`: two recorded runs side by side. It starts no process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from harness.commands.click_types import PATH
from harness.commands.console import say_table
from harness.core.inputs import UsageError, check_output
from harness.recorded_run import check_run
from harness.report.comparison_page import write_comparison
from harness.report.run_differences import compare, difference_table, differing_options, in_words, read_side
from harness.runner import ensure_results


@click.command(name="compare")
@click.argument("run_a", type=PATH)
@click.argument("run_b", type=PATH)
@click.option("--output", type=PATH, help="the page's file (default: compare-A.html in the folder of RUN_B)")
@click.option("--anyway", is_flag=True, help="also compare runs of different scenarios, in what both measured")
@click.option("--json", "as_json", is_flag=True, help="print the differences as JSON; no page")
def compare_runs(run_a: str, run_b: str, output: str | None, anyway: bool, as_json: bool) -> None:
    """What differs between two runs of one scenario, by how much, and how sure that is.

    Gives no verdict: the exit code is 0 whatever differs, and 64 when the runs cannot be compared.
    """
    page = Path(output) if output else Path(run_b) / f"compare-{Path(run_a).resolve().name}.html"
    for run_dir in (run_a, run_b):
        check_run(Path(run_dir))
    if not as_json:
        check_output("--output", page)
    a, b = (read_side(ensure_results(Path(run_dir))) for run_dir in (run_a, run_b))
    if (a.scenario != b.scenario) and not anyway:
        raise UsageError(
            f"{run_a!r} is a run of {a.scenario}, {run_b!r} of {b.scenario}: their figures mean different things; "
            "give two runs of one scenario, or --anyway"
        )
    differences = compare(a, b)
    if as_json:
        head: dict[str, Any] = {"a": a.results["run_dir"], "b": b.results["run_dir"]}
        head["scenarios"], head["options"] = [a.scenario, b.scenario], differing_options(a, b)
        print(json.dumps({**head, "differences": [d.to_json() for d in differences]}, indent=1))
        return
    write_comparison(a, b, differences, page)
    console = Console(highlight=False)
    titles, *rows = difference_table(differences)
    table = Table(box=None, pad_edge=False)
    for number, cell in enumerate(titles):
        table.add_column(cell, justify="left" if number in (0, 3, 7) else "right")
    for row in rows:
        table.add_row(*row)
    say_table(table, console)
    console.print(in_words(differences), soft_wrap=True, markup=False)
    if different := ", ".join(f"{name} ({x}, {y})" for name, (x, y) in differing_options(a, b).items()):
        console.print(f"options that differ (A, B): {different}", soft_wrap=True, markup=False)
    console.print(f"{page}", soft_wrap=True, markup=False)
