"""The command `check`: judges a recorded run again, and starts no process."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from harness.commands.click_types import PATH
from harness.commands.console import JUNIT_HELP, check_junit, say_how, say_junit, say_page, write_pages
from harness.runner import EXIT_CODES, judge


@click.command()
@click.argument("run_dir", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="print results.json instead of a table")
@click.option("--junit", type=PATH, help=JUNIT_HELP)
def check(run_dir: str, as_json: bool, junit: str | None) -> None:
    """Judge a recorded run again; starts no process."""
    check_junit(junit)
    console = Console(highlight=False)
    results = judge(Path(run_dir))
    say_how(as_json, console)(results)
    if write_pages(results, None):
        say_page(results, as_json, console, Path(run_dir))
    say_junit(junit, [results])
    sys.exit(EXIT_CODES[results.verdict])
