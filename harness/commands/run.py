"""The group `run`: one sub-command per scenario, whose options are the fields of the scenario's options class."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.lazy import LazyGroup, Member
from harness.scenarios import names, scenario, title

if TYPE_CHECKING:
    from harness.runtime.placement import Placement


def _members() -> Mapping[str, Member]:
    return {name: Member(title(name), functools.partial(command, name)) for name in names()}


@click.group(name="run", cls=LazyGroup, members=_members)
def run_group() -> None:
    """Run a scenario against a tier and judge it."""


def command(name: str, placement: Placement | None = None) -> click.Command:
    """`run NAME`, with its workers where `placement` puts them (default: here)."""
    from rich.console import Console  # here: `run --help` does without

    from harness.commands.clean import notice
    from harness.commands.click_options import scenario_params
    from harness.commands.click_types import PATH
    from harness.commands.console import JUNIT_HELP, carry_out, check_junit, say_how, say_junit, say_page

    chosen = scenario(name)

    def invoke(runs_dir: str, as_json: bool, quiet: bool, junit: str | None, **values: Any) -> None:
        options = chosen.options(**values)
        check_junit(junit)
        console = Console(stderr=as_json, highlight=False)
        notice(options.root_dir)
        say = say_how(as_json, console)
        results = carry_out(chosen, options, Path(runs_dir), console, quiet or as_json, say, placement=placement)
        say_page(results, as_json, console, Path(runs_dir) / "latest")
        say_junit(junit, [results])
        sys.exit(results.exit_code)

    params = [
        *scenario_params(chosen),
        click.Option(["--json", "as_json"], is_flag=True, help="print results.json instead of a table; no progress"),
        click.Option(["--quiet"], is_flag=True, help="no progress"),
        click.Option(["--junit"], type=PATH, help=JUNIT_HELP),
    ]
    text = f"{chosen.title}\n\n{chosen.proves}"
    return click.Command(name, params=params, callback=invoke, help=text, short_help=chosen.title)
