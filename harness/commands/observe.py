"""The command `observe`, whose options are those of `run load`; the tier with the most to see is the default."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.commands.click_options import scenario_params
from harness.entry_point import check_packages
from harness.monitoring.live_dashboards import observe as observe_run
from harness.scenarios.base import check_tier
from harness.scenarios.load import SCENARIO as LOAD
from harness.scenarios.load import LoadOptions


def _invoke(runs_dir: str, wait: bool | None, **values: Any) -> None:
    check_packages()
    options, console = LoadOptions(**values), Console(highlight=False)
    check_tier(options)
    results = observe_run(options, Path(runs_dir), console, sys.stdin.isatty() if wait is None else wait)
    sys.exit(results.exit_code)


def _command() -> click.Command:
    text = "Run the scenario load with Prometheus, and Grafana and Tempo where containers run; print what panels show."
    wait = "keep the servers up until Enter (default: where stdin is a terminal)"
    params = [*scenario_params(LOAD), click.Option(["--wait/--no-wait"], default=None, help=wait)]
    for param in params:
        param.default = "kvtier-stack" if param.name == "tier" else param.default
    return click.Command("observe", params=params, callback=_invoke, help=text)


observe = _command()
