"""The command-line options of a scenario, made from what its options class declares, for every command that runs it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import click

from harness.commands.click_types import PATH, SIZE
from harness.commands.options_file import read_options
from harness.scenarios import names
from harness.scenarios.base import CommonOptions, Scenario
from harness.scenarios.option_declaration import Declared, declarations

RUNS_DIR = Declared("runs_dir", str, False, "runs", "where the run's folder is made", is_path=True)


def scenario_params(chosen: Scenario) -> list[click.Parameter]:
    """The options of a scenario, and those of every run."""
    declared = [*declarations(chosen.options), RUNS_DIR]
    return [
        *map(_click_option, declared),
        click.Option(
            ["--options"],
            is_eager=True,
            expose_value=False,
            callback=functools.partial(_read_options, {option.name: option for option in declared}),
            help="TOML file with options, at its top or in a table [NAME OF THE SCENARIO]; what is typed here wins",
        ),
    ]


def parsed_options(chosen: Scenario, arguments: Sequence[str]) -> CommonOptions:
    """The options of a scenario from what would be typed after `run NAME`. Raises `UsageError`."""
    context = click.Command(chosen.name, params=scenario_params(chosen)).make_context(chosen.name, list(arguments))
    return chosen.options(**{name: value for name, value in context.params.items() if name != RUNS_DIR.name})


def _read_options(
    declared: Mapping[str, Declared], context: click.Context, parameter: click.Parameter, path: str | None
) -> None:
    """The file's values take the place of the defaults."""
    if path is not None:
        tables = {*names(), str(context.info_name)}
        context.default_map = read_options(path, str(context.info_name), tables, declared)


def _click_option(option: Declared) -> click.Option:
    name, text, default = option.typed, option.help, option.default
    if option.kind is bool:
        return click.Option([name], is_flag=True, default=default, help=text)
    if option.is_list:
        return click.Option([name], multiple=True, help=text)
    kind = SIZE if option.is_size else PATH if option.is_path else option.kind
    return click.Option([name], type=kind, default=default, show_default=default is not None, help=text)
