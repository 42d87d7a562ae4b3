"""Makes a run and prints its verdict, for people or as JSON; the commands share it.

It judges nothing: it selects what to print of the results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.adapters import adapter_class
from harness.checkers.base import some
from harness.commands.progress import Progress
from harness.core.inputs import check_output
from harness.core.installation import tracing_is_installed
from harness.entry_point import HARNESS, errno_text, pip_install
from harness.report.junit import write_junit
from harness.report.verdict_text import VERDICT_WORDS, deciding, join
from harness.runner import Results, run
from harness.runtime.placement import Placement
from harness.runtime.supervisor import Child
from harness.scenarios.base import CommonOptions, Scenario

COLOURS = {"true": "green", "false": "red", "unknown": "yellow"}
WORD_WIDTH = max(map(len, VERDICT_WORDS.values()))
FINDINGS_SHOWN_MAX = 3
LAST_WORDS_SHOWN_MAX = 3
"""Of so many dead processes; the report has all."""
PLAIN_COLUMNS = 200
"""Of tables that go to a file or a pipe."""


def carry_out(
    chosen: Scenario,
    options: CommonOptions,
    runs_dir: Path,
    console: Console,
    quiet: bool,
    say: Callable[[Results], None],
    also_on_start: Callable[[Path], None] = lambda run_dir: None,
    also_on_tick: Callable[[Sequence[Child]], None] = lambda children: None,
    placement: Placement | None = None,
) -> Results:
    """Run a scenario with progress unless `quiet`, `say` its verdict, write its report, and put it on the list of runs.

    A report that cannot be written is one sentence on stderr, after the verdict, and does not change the exit code.
    `also_on_start` receives the run's folder, `also_on_tick` the workers, several times a second."""

    if getattr(options, "trace_every", 0) and adapter_class(options.tier).leaves_spans and not tracing_is_installed():
        print(f"{HARNESS.program}: no spans are recorded; for spans: {pip_install('tracing')}", file=sys.stderr)

    def on_start(options: CommonOptions, run_dir: Path, traffic: str) -> None:
        also_on_start(run_dir)
        if not progress.quiet:
            split = (options.read_threads, options.write_threads)
            threads = "splits of threads" if None in split else f"{split[0]}+{split[1]} threads"
            processes = f"{options.processes} process{'es' if options.processes != 1 else ''}"
            progress.line(
                f"[bold]{chosen.name}[/bold] of [bold]{escape(options.tier)}[/bold]: {processes}, "
                f"{threads}, blocks of {options.block_bytes >> 10} KiB, seed {options.seed}\n{escape(traffic)}"
            )

    with Progress(console, quiet) as progress:

        def on_tick(children: Sequence[Child]) -> None:
            also_on_tick(children)
            progress.tick(children)

        results = run(chosen, options, runs_dir, on_start, on_tick, progress.stage, placement)
    say(results)
    write_pages(results, runs_dir)
    return results


def write_pages(results: Results, runs_dir: Path | None) -> bool:
    """Write a run's report and the list of runs; False, and sentences on stderr, when a file of the run could not be
    written."""
    from harness.report.index_page import write_index  # here: a command that is refused does without plotly and numpy
    from harness.report.run_page import write_report

    problems = list(results.unwritten)
    try:
        if (Path(results.run_dir) / "results.json").exists():  # the report is made from it
            write_report(Path(results.run_dir))
        if runs_dir is not None:
            write_index(runs_dir)
    except OSError as error:
        problems.append(f"{str(error.filename)!r} cannot be written: {errno_text(error)}")
    for problem in problems:
        print(f"{HARNESS.program}: {problem}", file=sys.stderr)
    return not problems


def say_how(as_json: bool, console: Console) -> Callable[[Results], None]:
    """What prints the verdict of a run: results.json as it is, or lines for a person."""
    if as_json:
        return lambda results: print(json.dumps(results.to_json(), indent=1, default=str))
    return lambda results: say_results(results, console)


def say_page(results: Results, as_json: bool, console: Console, folder: Path) -> None:
    """Print the path of a run's report below `folder`; nothing with --json or where no report could be written."""
    page = (folder if folder.exists() else Path(results.run_dir)) / "report.html"
    if not as_json and page.exists():
        console.print(f"{page}", soft_wrap=True, markup=False)


JUNIT_HELP = "also write JUnit XML to this file: a test case for each rule of the checkers"


def check_junit(path: str | None) -> None:
    """Raises `UsageError` unless the file of --junit can be written; before anything starts."""
    if path is not None:
        check_output("--junit", path)


def say_junit(path: str | None, runs: Sequence[Results]) -> None:
    """Write the file of --junit, if it was asked for. Raises OSError."""
    if path is not None:
        write_junit(Path(path), [vars(results) for results in runs])


def say_results(results: Results, console: Console) -> None:
    """The verdict with what decided it, a line per checker, findings, and how to repeat the run; the rest is in the
    report."""
    passed = f"all {len(results.verdicts)} checkers" if len(results.verdicts) > 1 else "its checker"
    decided = join(deciding(vars(results))) or (passed if results.verdict == "true" else "see below")
    mib = (results.totals["loaded_bytes"] + results.totals["stored_bytes"]) / (1 << 20)
    console.print(
        f"{coloured(results.verdict)}: {decided}; {results.totals['requests']:,.0f} requests, "
        f"{mib:,.0f} MiB moved in {results.seconds:.0f} s",
        soft_wrap=True,
    )
    say_verdicts(results, console)


def coloured(value: str, width: int = 0) -> str:
    """A verdict's word for a person, padded, in its colour."""
    return f"[bold {COLOURS[value]}]{VERDICT_WORDS[value]:<{width}}[/]"


def say_verdicts(results: Results, console: Console) -> None:
    """The verdicts; for a run that did not pass also its findings, last output, seed and command."""
    width = max((len(verdict["name"]) for verdict in results.verdicts), default=0)
    for verdict in results.verdicts:
        value = coloured(verdict["value"], WORD_WIDTH)
        console.print(f"{verdict['name']:<{width}}  {value}  {escape(verdict['figure'])}", soft_wrap=True)
    if results.verdict == "true":
        return
    for verdict in results.verdicts:
        if verdict["value"] != "true":
            for finding in verdict["findings"][:FINDINGS_SHOWN_MAX]:
                console.print(f"  {verdict['name']}: {escape(finding)}", soft_wrap=True)
            if (more := len(verdict["findings"]) - FINDINGS_SHOWN_MAX) > 0:
                console.print(f"  {verdict['name']}: {more} more in results.json")
    if results.reason:
        console.print(f"[yellow]{escape(results.reason)}[/]", soft_wrap=True)
    for labels, said in _last_words(results)[:LAST_WORDS_SHOWN_MAX]:
        console.print(f"last output of process {labels[0]}:")
        console.print("\n".join(f"  {line}" for line in said.splitlines()), soft_wrap=True, markup=False)
        if also := labels[1:]:
            console.print(f"  the same of process{'es' if len(also) > 1 else ''} {some(also)}")
    console.print(f"seed {results.seed}; again: {escape(results.command)}", soft_wrap=True)


def _last_words(results: Results) -> list[tuple[list[str], str]]:
    """What dead processes last said, each thing once, with their labels. Tracebacks of one error are one thing."""
    said: dict[str, tuple[list[str], str]] = {}
    for label, words in results.last_output.items():
        is_traceback = "Traceback (most recent call last)" in words
        said.setdefault(words.splitlines()[-1] if is_traceback else words, ([], words))[0].append(label)
    return list(said.values())


def say_table(table: Table, console: Console) -> None:
    """A table; where no terminal says how wide it may be, each of its rows is a line."""
    wide = console if console.is_terminal else Console(file=console.file, highlight=False, width=PLAIN_COLUMNS)
    wide.print(table)
