"""`kvtier-harness false-alarms`: correct tiers under hostile conditions, each of which must pass; mutants must not.

Exit code: 1 if a correct tier failed or a mutant passed; else 2 if more than 5 % of the quiet control runs were
inconclusive; else 0.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from harness.adapters.base import PeerMissing
from harness.commands.click_types import PATH, SECONDS, SEED, Number
from harness.commands.console import COLOURS
from harness.core.inputs import UsageError, check_output, near
from harness.core.seeds import fresh_seed
from harness.report.verdict_text import VERDICT_WORDS

if TYPE_CHECKING:
    from harness.false_alarms.repeated_runs import Cell, Row

QUIET_INCONCLUSIVE_MAX = 0.05
_COLOUR_OF = {word: COLOURS[value] for value, word in VERDICT_WORDS.items()}


@click.command(name="false-alarms")
@click.option("--duration", type=SECONDS, help="begin no run later than so many seconds from now")
@click.option("--runs", type=Number(int, 1, 1_000_000), help="so many runs (default: each combination once)")
@click.option(
    "--jobs", type=Number(int, 1, 64), default=1, help="so many runs at a time, which then disturb each other"
)
@click.option("--conditions", help="comma-separated names, as docs/error-rates.md has them (default: all)")
@click.option("--tiers", help="comma-separated names of correct tiers (default: all)")
@click.option("--scenarios", "names", help="comma-separated names (default: all that need one machine)")
@click.option("--mutants", "with_mutants", is_flag=True, help="run mutants instead: none may pass")
@click.option("--mutant", "only", multiple=True, help="with --mutants, only this one; may be repeated")
@click.option("--seed", type=SEED, help="the integer that all choices derive from (default: the log's, or a fresh one)")
@click.option("--log", "log_path", type=PATH, help="append each run to this file; runs that it has are not made again")
@click.option("--write", type=PATH, help="write the table for all runs of the log to this file")
@click.option(
    "--runs-dir", type=PATH, default="runs", show_default=True, help="keeps folders of runs that did not pass"
)
def false_alarms(
    duration: float | None,
    runs: int | None,
    jobs: int,
    conditions: str | None,
    tiers: str | None,
    names: str | None,
    with_mutants: bool,
    only: tuple[str, ...],
    seed: int | None,
    log_path: str | None,
    write: str | None,
    runs_dir: str,
) -> None:
    """Control runs: correct tiers in short runs of every scenario, on a quiet machine and under hostile conditions."""
    from harness.false_alarms.conditions import CONDITIONS
    from harness.false_alarms.control_run import run_cell, run_cells, unavailable
    from harness.false_alarms.correct_tiers import CONTROLS
    from harness.false_alarms.page import page
    from harness.false_alarms.repeated_runs import Log, lacks, names_of_scenarios, plan
    from harness.mutants.registry import MUTANTS

    console = Console(highlight=False)
    chosen_conditions = _chosen("--conditions", conditions, list(CONDITIONS))
    chosen_tiers = _chosen("--tiers", tiers, list(CONTROLS))
    chosen_names = _chosen("--scenarios", names, names_of_scenarios())
    mutants = [MUTANTS[name] for name in _chosen("--mutant", ",".join(only) or None, list(MUTANTS))]
    if write is not None:
        check_output("--write", write)
    folder = Path(runs_dir)
    log = Log(Path(log_path) if log_path else None, fresh_seed() if seed is None else seed)
    if seed is not None and seed != log.seed:
        raise UsageError(f"--seed is {seed}, and {log_path!r} is of a series with seed {log.seed}; leave --seed out")
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"seed {log.seed}")

    for name in chosen_conditions:
        if why := unavailable(name, folder):
            console.print(f"left out: {name}: {escape(why)}", soft_wrap=True)
    chosen_conditions = [name for name in chosen_conditions if not unavailable(name, folder)]
    if not with_mutants:
        for tier in list(chosen_tiers):
            try:
                everywhere = [lacks(tier, name) for name in chosen_names]
            except PeerMissing as error:
                chosen_tiers.remove(tier)
                console.print(f"left out: {tier}: {escape(str(error))}", soft_wrap=True)
                continue
            for condition in (name for name in chosen_conditions if name in CONTROLS[tier].unfit):
                console.print(f"left out: {tier} under {condition}: {CONTROLS[tier].unfit[condition]}", soft_wrap=True)
            for rule, why in CONTROLS[tier].breaks.items():
                console.print(f"left out: {rule} of {tier}: {why}", soft_wrap=True)
            for name, why in zip(chosen_names, everywhere, strict=True):
                if why:
                    console.print(f"left out: {name} of {tier}: {why}", soft_wrap=True)

    cells = plan(log.seed, chosen_conditions, chosen_tiers, chosen_names, mutants if with_mutants else ())
    done = log.done()
    until = math.inf if duration is None else time.monotonic() + duration
    once = runs is None and duration is None
    wanted = itertools.takewhile(lambda cell: not (once and cell.repetition), (c for c in cells if c not in done))

    def make(cell: Cell) -> Row:
        return run_cell(cell, log.seed, folder, MUTANTS[cell.tier] if with_mutants else None)

    made: list[Row] = []

    def say(row: Row) -> None:
        log.add(row)
        made.append(row)
        _say(row, len(made), console)

    run_cells(itertools.islice(wanted, runs), jobs, until, make, say)
    if write:
        Path(write).write_text(page(log.seeds, log.rows), encoding="utf-8")
    sys.exit(_conclude(made, console))


def _chosen(option: str, given: str | None, known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in given.split(","))) if given is not None else list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"{option} is {name!r}{near(name, known)}; valid choices: {', '.join(known)}")
    return names


def _say(row: Row, number: int, console: Console) -> None:
    word = f"[bold {_COLOUR_OF.get(row.outcome, 'dim')}]{row.outcome}[/]"
    console.print(f"{number} {row.condition} {row.tier} {row.scenario}: {word}, {row.seconds:.1f} s", soft_wrap=True)
    bad = ("pass", "inconclusive", "not run") if row.is_mutant else ("fail", "inconclusive", "not run")
    if row.outcome in bad:
        console.print(f"  {escape(row.why)}", soft_wrap=True)
        console.print(f"  again: {escape(row.command)}", soft_wrap=True)


def _conclude(made: Sequence[Row], console: Console) -> int:
    """Print the counts; the exit code."""
    counts: dict[str, dict[str, int]] = {}
    for row in made:
        mine: dict[str, int] = counts.setdefault(row.condition, {})
        mine[row.outcome] = mine.get(row.outcome, 0) + 1
    for name, by_outcome in sorted(counts.items()):
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(by_outcome.items()))
        console.print(f"{name:<10} {said}")
    wrong = [row for row in made if row.outcome == ("pass" if row.is_mutant else "fail")]
    what = "mutants passed" if made and made[0].is_mutant else "control runs failed"
    console.print(f"{len(wrong)} of {len(made)} {what}")
    quiet: Mapping[str, int] = counts.get("quiet", {})
    unknown = quiet.get("inconclusive", 0) > QUIET_INCONCLUSIVE_MAX * sum(quiet.values())
    return 1 if wrong else 2 if unknown and not made[0].is_mutant else 0
