"""The command `explore`: programs in each order of their system calls that can differ, or one recorded schedule again.

It makes a run of the scenario `interleavings`, and prints the schedules that break a rule.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from harness.commands.clean import notice
from harness.commands.click_options import scenario_params
from harness.commands.click_types import PATH
from harness.commands.console import JUNIT_HELP, carry_out, check_junit, say_how, say_junit, say_page
from harness.core import notes
from harness.core.history import History
from harness.core.inputs import UsageError, read_json
from harness.explore.diagram import diagram
from harness.scenarios import scenario

CHOSEN = scenario("interleavings")
FROM_THE_FILE = {"tier": str, "block_bytes": int, "tier_options": dict}
"""What a counterexample's file says of the tier; an option that is typed wins."""


@click.pass_context
def _explore(
    context: click.Context, /, runs_dir: str, as_json: bool, quiet: bool, junit: str | None, **values: Any
) -> None:
    if values["replay"] is not None:
        values |= _recorded(context, values["replay"])
    options = CHOSEN.options(**values)
    check_junit(junit)
    console = Console(stderr=as_json, highlight=False)
    notice(options.root_dir)
    results = carry_out(CHOSEN, options, Path(runs_dir), console, quiet or as_json, say_how(as_json, console))
    for note in History.read(Path(results.run_dir)).notes:
        if note.is_a(notes.Counterexample) and not as_json:
            about = note.detail
            text = diagram(about["actors"], about["trace"], about["step"])
            again = f"again: kvtier-harness explore --replay {Path(results.run_dir) / about['file']}"
            console.print("\n".join(["", *about["texts"], text, again]), markup=False, soft_wrap=True)
    say_page(results, as_json, console, Path(runs_dir) / "latest")
    say_junit(junit, [results])
    sys.exit(results.exit_code)


def _recorded(context: click.Context, path: str) -> dict[str, Any]:
    """Options that the file says and nobody typed. Raises `UsageError`."""
    found = read_json(path, dict)
    for name, kind in FROM_THE_FILE.items():
        if not isinstance(found.get(name), kind):
            raise UsageError(f"--replay is {path!r}, which is no counterexample: its {name} is {found.get(name)!r}")
    said = {"tier": found["tier"], "block_bytes": found["block_bytes"]}
    said["tier_option"] = tuple(f"{name}={json.dumps(value)}" for name, value in found["tier_options"].items())
    default = ParameterSource.DEFAULT
    return {name: value for name, value in said.items() if context.get_parameter_source(name) is default}


explore = click.Command(
    "explore",
    params=[
        *scenario_params(CHOSEN),
        click.Option(["--json", "as_json"], is_flag=True, help="print results.json instead of a table; no progress"),
        click.Option(["--quiet"], is_flag=True, help="no progress"),
        click.Option(["--junit"], type=PATH, help=JUNIT_HELP),
    ],
    callback=_explore,
    help=f"{CHOSEN.title}\n\nWith --replay FILE one recorded schedule is run again, on the tier of the file.\n\n"
    f"{CHOSEN.proves}",
    short_help=CHOSEN.title,
)
