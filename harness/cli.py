"""The command line: `kvtier-harness`, also `python -m harness`. Turns words into calls and verdicts into exit codes.

Exit codes: docs/exit-codes.md.
"""

from __future__ import annotations

import functools
import json
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.adapters import UnknownTier
from harness.adapters import mutants as known_mutants
from harness.adapters.base import PeerMissing
from harness.commands.clean import clean, notice
from harness.commands.click_types import ADDRESS, PATH, PAUSE, SECONDS, SIZE
from harness.commands.conform import conform
from harness.commands.console import carry_out, say_results, say_table, write_pages
from harness.commands.findings import findings
from harness.commands.install_peer import InstallFailed, install_peer
from harness.commands.mutants import false_alarms, mutants
from harness.commands.options_file import read_options
from harness.core.inputs import check_output
from harness.entry import HARNESS, VERSION, ExitCode
from harness.monitoring.observe import NoDashboards, NoPrometheus, observe
from harness.recorded import check_run, read_results
from harness.report import write_comparison, write_index, write_report
from harness.report.compare import compare, difference_table, differing_options, in_words, read_side
from harness.runner import EXIT_CODES, Results, judge, known_tiers
from harness.scenarios import scenarios
from harness.scenarios.base import Scenario, UsageError, check_tier
from harness.scenarios.load import SCENARIO as LOAD
from harness.scenarios.load import LoadOptions
from harness.scenarios.options import Declared, declarations

EXPECTED: dict[type[Exception], ExitCode] = {
    UsageError: ExitCode.USAGE,
    UnknownTier: ExitCode.USAGE,
    PeerMissing: ExitCode.INCONCLUSIVE,
    NoDashboards: ExitCode.INCONCLUSIVE,
    NoPrometheus: ExitCode.INCONCLUSIVE,
    InstallFailed: ExitCode.IO,
}
"""Exceptions whose text is a sentence for the user."""
RUNS_DIR = Declared("runs_dir", str, False, "runs", "where the run's folder is made", is_path=True)
RUN_DIR = click.argument("run_dir", type=PATH)


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
        notice(options.root_dir)
        results = carry_out(chosen, options, Path(runs_dir), console, quiet or as_json, _say(as_json, console))
        _say_page(results, as_json, console, Path(runs_dir) / "latest")
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


def _read_options(
    declared: Mapping[str, Declared], context: click.Context, parameter: click.Parameter, path: str | None
) -> None:
    """The file's values take the place of the defaults."""
    if path is not None:
        tables = {item.name for item in scenarios()} | {str(context.info_name)}
        context.default_map = read_options(path, str(context.info_name), tables, declared)


def _click_option(option: Declared) -> click.Option:
    name, text, default = option.typed, option.help, option.default
    if option.kind is bool:
        return click.Option([name], is_flag=True, default=default, help=text)
    if option.is_list:
        return click.Option([name], multiple=True, help=text)
    kind = SIZE if option.is_size else PATH if option.is_path else option.kind
    return click.Option([name], type=kind, default=default, show_default=default is not None, help=text)


for _chosen in scenarios():
    run_group.add_command(_scenario_command(_chosen))


for _command in (clean, conform, findings, install_peer, mutants, false_alarms):
    cli.add_command(_command)


def _say(as_json: bool, console: Console) -> Callable[[Results], None]:
    """How the verdict of a run is printed."""
    if as_json:
        return lambda results: print(json.dumps(results.to_json(), indent=1, default=str))
    return lambda results: say_results(results, console)


def _say_page(results: Results, as_json: bool, console: Console, folder: Path) -> None:
    """Where a run's report is; `folder` is how a person would name it. Nothing when it could not be written."""
    page = (folder if folder.exists() else Path(results.run_dir)) / "report.html"
    if not as_json and page.exists():
        console.print(f"{page}", soft_wrap=True, markup=False)


def _observe_command() -> click.Command:
    """`observe`, whose options are those of `run load`; the tier with the most to see is the default."""

    def invoke(runs_dir: str, wait: bool | None, **values: Any) -> None:
        options, console = LoadOptions(**values), Console(highlight=False)
        check_tier(options)
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
@RUN_DIR
@click.option("--json", "as_json", is_flag=True, help="print results.json instead of a table")
def check(run_dir: str, as_json: bool) -> None:
    """Judge a recorded run again; starts no process."""
    console = Console(highlight=False)
    results = judge(Path(run_dir))
    _say(as_json, console)(results)
    if write_pages(results, None):
        _say_page(results, as_json, console, Path(run_dir))
    sys.exit(EXIT_CODES[results.verdict])


@cli.command()
@RUN_DIR
def report(run_dir: str) -> None:
    """Make a run's report.html again from what it recorded, and the list of runs beside it."""
    click.echo(write_report(_judged(Path(run_dir))))
    write_index(Path(run_dir).resolve().parent)


@cli.command(name="compare")
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
    a, b = (read_side(_judged(Path(run_dir))) for run_dir in (run_a, run_b))
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


def _judged(run_dir: Path) -> Path:
    """The same folder, with results, judged again if these are missing or damaged. Raises `UsageError` when it is no
    run."""
    check_run(run_dir)
    try:
        read_results(run_dir)
    except UsageError:
        judge(run_dir)
    return run_dir


@cli.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="print the same as JSON")
def list_all(as_json: bool) -> None:
    """Scenarios, tiers, and what each scenario proves."""
    tiers, defects = known_tiers(), {name: mutant.defect for name, mutant in known_mutants().items()}
    if as_json:
        listed = [
            {"name": s.name, "title": s.title, "checkers": s.checkers, "proves": " ".join(s.proves.split())}
            for s in scenarios()
        ]
        print(json.dumps({"scenarios": listed, "tiers": tiers, "mutants": defects}, indent=1))
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
    console.print("\n[bold]mutants[/], tiers with a known defect, for --tier (docs/mutants.md)")
    width = max(map(len, defects))
    for name, what in defects.items():
        console.print(f"  [bold]{name:<{width}}[/]  {escape(what)}", soft_wrap=True)


@cli.command()
@click.argument("root_dir", type=PATH)
@click.option("--seconds", type=SECONDS, default=60.0, show_default=True, help="how long to watch")
@click.option("--every", type=PAUSE, default=5.0, show_default=True, help="seconds between two looks")
@click.option(
    "--metrics", type=ADDRESS, multiple=True, metavar="HOST:PORT", help="an engine's /metrics, for cross-process hits"
)
@click.option(
    "--window",
    type=SECONDS,
    default=3600.0,
    show_default=True,
    help="files in quarantine and old temp files count from so many seconds before the watch on; 0: from its start",
)
def watch(root_dir: str, seconds: float, every: float, metrics: tuple[str, ...], window: float) -> None:
    """Judge a root that live engines use, from outside. Exit code 1 when something is wrong, 2 when nothing moved or
    something could not be read."""
    from harness.monitoring.audit import RootUnreadable, Watch, age_text

    watching, deadline = Watch(root_dir, metrics, window), time.monotonic() + seconds
    findings: dict[str, None] = {}
    moved = older = 0
    try:
        while True:
            now = watching.look()
            moved += now.new_blocks
            older += now.older
            findings |= dict.fromkeys(now.findings)
            hits = "" if now.cross_process_hits is None else f", {now.cross_process_hits:,.0f} cross-process hits"
            rate = f"{now.new_blocks / now.seconds:.1f} new/s" if now.seconds else "first look"
            print(
                f"{now.blocks:,} blocks, {now.bytes / 2**20:,.0f} MiB, {rate}, {now.gone_blocks:,} gone, "
                f"{len(now.writers)} writers, {now.verified:,} verified{hits}, findings: {len(findings)}",
                flush=True,
            )
            if (left := deadline - time.monotonic()) <= 0:
                break
            time.sleep(min(every, left))
    except RootUnreadable as error:
        raise UsageError(str(error)) from error
    for finding in findings:
        print(f"  {finding}")
    for path, problem in now.unreadable.items():
        print(f"  not judged: {path} {problem}")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(watching.since_seconds))
    if older:
        files = f"{older:,} file{'s' * (older != 1)}"
        print(f"not judged: {files} in quarantine or unpublished since before {since}; to judge older ones: --window")
    verdict = "false" if findings else "true" if moved and not now.unreadable else "unknown"
    print(f"verdict {verdict}; files in quarantine judged since {since} ({age_text(window)} before the watch)")
    sys.exit(EXIT_CODES[verdict])


def main(arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Carries out the command and ends the process with its exit code."""
    answer(cli, HARNESS.program, arguments)


def answer(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """The same for any command of the harness: those that only `python -m` reaches end alike."""
    run = functools.partial(command.main, prog_name=program, standalone_mode=False)
    HARNESS._replace(program=program).answer(run, sys.argv[1:] if arguments is None else arguments, EXPECTED)
