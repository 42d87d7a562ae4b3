"""The command line: `kvtier-harness`, also `python -m harness`. Turns words into calls and verdicts into exit codes.

Exit code: 0 true, 1 false, 2 unknown, 64 bad usage (one sentence, no traceback), 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import typing
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from harness.adapters import UnknownTier
from harness.adapters.base import PeerMissing
from harness.progress import Progress
from harness.report import write_report
from harness.run import EXIT_CODES, EXIT_INTERRUPTED, Results, judge, known_tiers
from harness.run import run as make_run
from harness.scenarios import scenarios
from harness.scenarios.base import CommonOptions, Scenario, UsageError

EXIT_USAGE = 64
_COLOURS = {"true": "green", "false": "red", "unknown": "yellow"}
FINDINGS_SHOWN_MAX = 3


@click.group()
def cli() -> None:
    """Judge tiered KV-cache offload managers: several processes, one root, a verdict."""
    # A supervisor's SIGTERM ends a run in the same good order as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@cli.group(name="run")
def run_group() -> None:
    """Run a scenario against a tier and judge it."""


def _scenario_command(chosen: Scenario) -> click.Command:
    """`run NAME`, whose options are the fields of the scenario's options class."""

    def invoke(runs_dir: str, as_json: bool, quiet: bool, **values: Any) -> None:
        options = chosen.options(**values)
        _run(chosen, options, Path(runs_dir), as_json, quiet)

    hints = typing.get_type_hints(chosen.options)
    params: list[click.Parameter] = [_click_option(f, hints[f.name]) for f in dataclasses.fields(chosen.options)]
    params += [
        click.Option(["--runs-dir"], default="runs", show_default=True, help="where the run's folder is made"),
        click.Option(["--json", "as_json"], is_flag=True, help="print results.json instead of a table; no progress"),
        click.Option(["--quiet"], is_flag=True, help="no progress"),
    ]
    return click.Command(chosen.name, params=params, callback=invoke, help=chosen.proves)


def _click_option(item: dataclasses.Field[Any], hint: Any) -> click.Option:
    name = f"--{item.name.replace('_', '-')}"
    text = item.metadata["help"]
    if hint is bool:
        return click.Option([name], is_flag=True, default=item.default, help=text)
    if typing.get_origin(hint) is tuple:
        return click.Option([name], multiple=True, help=text)
    kind = next(t for t in (typing.get_args(hint) or (hint,)) if t is not type(None))
    return click.Option([name], type=kind, default=item.default, show_default=item.default is not None, help=text)


for _chosen in scenarios():
    run_group.add_command(_scenario_command(_chosen))


def _run(chosen: Scenario, options: CommonOptions, runs_dir: Path, as_json: bool, quiet: bool) -> None:
    console = Console(stderr=as_json, highlight=False)
    quiet = quiet or as_json

    def on_start(options: CommonOptions, run_dir: Path, traffic: str) -> None:
        if not quiet:
            threads = f"{options.read_threads}+{options.write_threads} threads"
            console.print(
                f"[bold]{chosen.name}[/bold] of [bold]{escape(options.tier)}[/bold]: {options.processes} processes, "
                f"{threads}, blocks of {options.block_bytes >> 10} KiB, seed {options.seed}\n{escape(traffic)}",
                soft_wrap=True,
            )

    with Progress(console, quiet) as progress:
        results = make_run(chosen, options, runs_dir, on_start, progress.tick, progress.stage)
    _finish(results, Path(results.run_dir), as_json, console, runs_dir)
    sys.exit(results.exit_code)


def _finish(results: Results, run_dir: Path, as_json: bool, console: Console, runs_dir: Path | None = None) -> None:
    """Write the report, then print what there is to know."""
    write_report(run_dir)
    if as_json:
        print((run_dir / "results.json").read_text(), end="")
        return
    width = max(len(verdict["name"]) for verdict in results.verdicts)
    for verdict in results.verdicts:
        value = f"[{_COLOURS[verdict['value']]}]{verdict['value']:<7}[/]"
        console.print(f"{verdict['name']:<{width}}  {value}  {escape(verdict['figure'])}", soft_wrap=True)
    for verdict in results.verdicts:
        if verdict["value"] != "true":
            for finding in verdict["findings"][:FINDINGS_SHOWN_MAX]:
                console.print(f"  {verdict['name']}: {escape(finding)}", soft_wrap=True)
            if len(verdict["findings"]) > FINDINGS_SHOWN_MAX:
                console.print(
                    f"  {verdict['name']}: {len(verdict['findings']) - FINDINGS_SHOWN_MAX} more in results.json"
                )
    if results.reason:
        console.print(f"[yellow]{escape(results.reason)}[/]", soft_wrap=True)
    colour = _COLOURS[results.verdict]
    mib = (results.totals["loaded_bytes"] + results.totals["stored_bytes"]) / (1 << 20)
    console.print(
        f"verdict [bold {colour}]{results.verdict}[/]: {results.totals['requests']:,.0f} requests, "
        f"{mib:,.0f} MiB moved in {results.seconds:.0f} s"
    )
    if results.verdict != "true":
        console.print(f"again: {escape(results.command)}", soft_wrap=True)
    latest = runs_dir / "latest" if runs_dir and (runs_dir / "latest").exists() else run_dir
    console.print(f"{latest}/report.html", soft_wrap=True)


@cli.command()
@click.argument("run_dir")
@click.option("--json", "as_json", is_flag=True, help="print results.json instead of a table")
def check(run_dir: str, as_json: bool) -> None:
    """Judge a recorded run again; starts no process."""
    results = judge(Path(run_dir))
    _finish(results, Path(run_dir), as_json, Console(highlight=False))
    sys.exit(EXIT_CODES[results.verdict])


@cli.command()
@click.argument("run_dir")
def report(run_dir: str) -> None:
    """Make a run's report.html again from what it recorded."""
    if not (Path(run_dir) / "results.json").exists():
        judge(Path(run_dir))
    click.echo(write_report(Path(run_dir)))


@cli.command(name="list")
def list_all() -> None:
    """Scenarios, tiers, and what each scenario proves."""
    console = Console(highlight=False)
    console.print("[bold]scenarios[/]")
    for item in scenarios():
        console.print(f"  [bold]{item.name}[/]  checks {', '.join(item.checkers)}")
        console.print("\n".join(f"    {line}" for line in item.proves.splitlines()), soft_wrap=True)
    console.print("[bold]tiers[/]")
    for name, what in known_tiers().items():
        console.print(f"  [bold]{name}[/]  {escape(what)}", soft_wrap=True)
    console.print("  [bold]module:Class[/]  any Adapter of your own")


def main(arguments: list[str] | None = None) -> typing.NoReturn:
    """The entry point; answers every mistake of the user with one sentence."""
    try:
        cli.main(args=arguments, prog_name="kvtier-harness", standalone_mode=False)
    except (UsageError, UnknownTier) as error:
        _complain(str(error), EXIT_USAGE)
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _complain(error.format_message() + hint, EXIT_USAGE)
    except click.ClickException as error:
        _complain(error.format_message(), EXIT_USAGE)
    except PeerMissing as error:
        _complain(f"skipped: {error}", EXIT_CODES["unknown"])
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    sys.exit(0)


def _complain(sentence: str, exit_code: int) -> typing.NoReturn:
    print(f"kvtier-harness: {sentence}", file=sys.stderr)
    sys.exit(exit_code)
