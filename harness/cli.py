"""The command line: `kvtier-harness`, also `python -m harness`. Turns words into calls and verdicts into exit codes.

Exit codes: docs/exit-codes.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
import tomllib
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.adapters import UnknownTier
from harness.adapters.base import PeerMissing
from harness.conform import conform
from harness.entry import HARNESS, VERSION, ExitCode
from harness.findings import findings
from harness.mutants.commands import false_alarms, mutants
from harness.observe import NoPrometheus, observe
from harness.report import write_comparison, write_index, write_report
from harness.report.compare import compare, difference_table, in_words, read_side
from harness.run import EXIT_CODES, Results, judge, known_tiers
from harness.scenarios import scenarios
from harness.scenarios.base import Scenario, UsageError
from harness.scenarios.load import SCENARIO as LOAD
from harness.scenarios.load import LoadOptions
from harness.show import carry_out, say_results, say_table

EXPECTED: dict[type[Exception], ExitCode] = {
    UsageError: ExitCode.USAGE,
    UnknownTier: ExitCode.USAGE,
    PeerMissing: ExitCode.INCONCLUSIVE,
    NoPrometheus: ExitCode.INCONCLUSIVE,
}
"""Exceptions whose text is a sentence for the user."""


@click.group()
@click.version_option(VERSION, prog_name=HARNESS.program)
@click.option("--debug", is_flag=True, expose_value=False, help="print the traceback of an error")
def cli() -> None:
    """Judge tiered KV-cache offload managers: several processes, one root, a verdict."""


@cli.group(name="run")
def run_group() -> None:
    """Run a scenario against a tier and judge it."""


def _scenario_command(chosen: Scenario) -> click.Command:
    """`run NAME`, whose options are the fields of the scenario's options class."""

    def invoke(runs_dir: str, as_json: bool, quiet: bool, **values: Any) -> None:
        options = chosen.options(**values)
        console = Console(stderr=as_json, highlight=False)
        results = carry_out(chosen, options, Path(runs_dir), console, quiet or as_json)
        _say(results, Path(results.run_dir), as_json, console, Path(runs_dir) / "latest")
        sys.exit(results.exit_code)

    params = [
        *_params(chosen),
        click.Option(["--json", "as_json"], is_flag=True, help="print results.json instead of a table; no progress"),
        click.Option(["--quiet"], is_flag=True, help="no progress"),
    ]
    text = f"{chosen.title}\n\n{chosen.proves}"
    return click.Command(chosen.name, params=params, callback=invoke, help=text, short_help=chosen.title)


def _params(chosen: Scenario) -> list[click.Parameter]:
    """The options of a scenario, and those of every run."""
    hints = typing.get_type_hints(chosen.options)
    return [
        *(_click_option(f, hints[f.name]) for f in dataclasses.fields(chosen.options)),
        click.Option(
            ["--options"],
            is_eager=True,
            expose_value=False,
            callback=_read_options,
            help="TOML file with options, at its top or in a table [NAME OF THE SCENARIO]; what is typed here wins",
        ),
        click.Option(["--runs-dir"], default="runs", show_default=True, help="where the run's folder is made"),
    ]


def _read_options(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """The file's values take the place of the defaults."""
    if path is None:
        return
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--options: {path!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--options: {path!r} is not TOML: {error}") from error
    own = given.get(str(context.info_name), {})
    tables = {item.name for item in scenarios()}
    values = {name: value for name, value in given.items() if name not in tables} | own
    multiple = {p.name: p.multiple for p in context.command.params if isinstance(p, click.Option)}
    defaults: dict[str, Any] = {}
    for name, value in values.items():
        option = name.replace("-", "_")
        if option not in multiple or option == parameter.name:
            valid = ", ".join(sorted(str(n) for n in multiple if n != parameter.name))
            raise UsageError(f"--options: {path!r} has {name!r}; valid choices: {valid}")
        # As text, so that a value is read just as if it had been typed.
        values_listed = value if isinstance(value, list) else [value]
        defaults[option] = [str(v) for v in values_listed] if multiple[option] else str(value)
    context.default_map = defaults


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


for _command in (conform, findings, mutants, false_alarms):
    cli.add_command(_command)


def _say(results: Results, run_dir: Path, as_json: bool, console: Console, folder: Path) -> None:
    """What came of a run; `folder` is how a person would name it."""
    if as_json:
        print((run_dir / "results.json").read_text(), end="")
    else:
        say_results(results, console, (folder if folder.exists() else run_dir) / "report.html")


def _observe_command() -> click.Command:
    """`observe`, whose options are those of `run load`; the tier with the most to see is the default."""

    def invoke(runs_dir: str, wait: bool | None, **values: Any) -> None:
        options, console = LoadOptions(**values), Console(highlight=False)
        results = observe(options, Path(runs_dir), console, sys.stdin.isatty() if wait is None else wait)
        sys.exit(results.exit_code)

    text = (
        "Make a load run with Prometheus around it, and Grafana and Tempo where containers run; say what panels show."
    )
    wait = "keep the servers up until Enter (default: where somebody can press it)"
    params = [*_params(LOAD), click.Option(["--wait/--no-wait"], default=None, help=wait)]
    for param in params:
        param.default = "kvtier-stack" if param.name == "tier" else param.default
    return click.Command("observe", params=params, callback=invoke, help=text)


cli.add_command(_observe_command())


@cli.command()
@click.argument("run_dir")
@click.option("--json", "as_json", is_flag=True, help="print results.json instead of a table")
def check(run_dir: str, as_json: bool) -> None:
    """Judge a recorded run again; starts no process."""
    with _written(Path(run_dir) / "report.html"):
        results = judge(Path(run_dir))
        write_report(Path(run_dir))
    _say(results, Path(run_dir), as_json, Console(highlight=False), Path(run_dir))
    sys.exit(EXIT_CODES[results.verdict])


@cli.command()
@click.argument("run_dir")
def report(run_dir: str) -> None:
    """Make a run's report.html again from what it recorded, and the list of runs beside it."""
    with _written(Path(run_dir) / "report.html"):
        _judged(Path(run_dir))
        click.echo(write_report(Path(run_dir)))
        write_index(Path(run_dir).resolve().parent)


@cli.command(name="compare")
@click.argument("run_a")
@click.argument("run_b")
@click.option("--output", help="the page's file (default: compare-A.html in the folder of RUN_B)")
@click.option("--json", "as_json", is_flag=True, help="print the differences as JSON; no page")
def compare_runs(run_a: str, run_b: str, output: str | None, as_json: bool) -> None:
    """What differs between two runs, by how much, and how sure that is. Judges neither: the exit code is 0."""
    a, b = (read_side(_judged(Path(run_dir))) for run_dir in (run_a, run_b))
    differences = compare(a, b)
    if as_json:
        sides = {"a": a.results["run_dir"], "b": b.results["run_dir"]}
        print(json.dumps({**sides, "differences": [d.to_json() for d in differences]}, indent=1))
        return
    page = Path(output) if output else Path(run_b) / f"compare-{a.name}.html"
    with _written(page):
        write_comparison(a, b, differences, page)
    console = Console(highlight=False)
    head, *rows = difference_table(differences)
    table = Table(box=None, pad_edge=False)
    for number, cell in enumerate(head):
        table.add_column(cell, justify="left" if number in (0, 3, 7) else "right")
    for row in rows:
        table.add_row(*row)
    say_table(table, console)
    console.print(in_words(differences), soft_wrap=True, markup=False)
    console.print(f"{page}", soft_wrap=True, markup=False)


@contextmanager
def _written(page: Path) -> Iterator[None]:
    """Turns a page that cannot be written, or what it is made of that cannot be read, into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{str(page)!r} cannot be made: {error.strerror}: {str(error.filename)!r}") from error


def _judged(run_dir: Path) -> Path:
    """The same folder, with results. Raises `UsageError` when it is no run."""
    if not (run_dir / "results.json").exists():
        judge(run_dir)
    return run_dir


@cli.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="print the same as JSON")
def list_all(as_json: bool) -> None:
    """Scenarios, tiers, and what each scenario proves."""
    tiers = known_tiers()
    if as_json:
        listed = [
            {"name": s.name, "title": s.title, "checkers": s.checkers, "proves": " ".join(s.proves.split())}
            for s in scenarios()
        ]
        print(json.dumps({"scenarios": listed, "tiers": tiers}, indent=1))
        return
    console = Console(highlight=False)
    console.print("[bold]scenarios[/]")
    for item in scenarios():
        console.print(f"  [bold]{item.name}[/]: {escape(item.title)}", soft_wrap=True)
        console.print(escape("\n".join(f"    {line}".rstrip() for line in item.proves.splitlines())), soft_wrap=True)
        console.print(f"    Verdicts: {', '.join(item.checkers)}.\n", soft_wrap=True)
    console.print("[bold]tiers[/]")
    width = max(map(len, [*tiers, "module:Class"]))
    for name, what in {**tiers, "module:Class": "any Adapter of your own"}.items():
        console.print(f"  [bold]{name:<{width}}[/]  {escape(what)}", soft_wrap=True)


@cli.command()
@click.argument("root_dir")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="how long to watch")
@click.option("--every", type=click.FloatRange(0.1), default=5.0, show_default=True, help="seconds between two looks")
@click.option("--metrics", multiple=True, metavar="HOST:PORT", help="an engine's /metrics, for cross-process hits")
def watch(root_dir: str, seconds: float, every: float, metrics: tuple[str, ...]) -> None:
    """Judge a root that live engines use, from outside. Exit code 1 when something is wrong, 2 when nothing moved."""
    from harness.watch import RootUnreadable, Watch

    watching, deadline = Watch(root_dir, metrics), time.monotonic() + seconds
    findings: dict[str, None] = {}
    moved = 0
    try:
        while True:
            now = watching.look()
            moved += now.new_blocks
            findings |= dict.fromkeys(now.findings)
            hits = "" if now.foreign_hits is None else f", {now.foreign_hits:,.0f} cross-process hits"
            rate = f"{now.new_blocks / now.seconds:.1f} new/s" if now.seconds else "first look"
            print(
                f"{now.blocks:,} blocks, {now.bytes / 2**20:,.0f} MiB, {rate}, {now.gone_blocks:,} gone, "
                f"{len(now.writers)} writers, {now.verified:,} verified{hits}, findings: {len(now.findings)}",
                flush=True,
            )
            if (left := deadline - time.monotonic()) <= 0:
                break
            time.sleep(min(every, left))
    except RootUnreadable as error:
        raise UsageError(str(error)) from error
    for finding in findings:
        print(f"  {finding}")
    verdict = "false" if findings else "true" if moved else "unknown"
    print(f"verdict {verdict}")
    sys.exit(EXIT_CODES[verdict])


def main(arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Carries out the command and ends the process with its exit code."""
    run = functools.partial(cli.main, prog_name=HARNESS.program, standalone_mode=False)
    HARNESS.answer(run, sys.argv[1:] if arguments is None else arguments, EXPECTED)
