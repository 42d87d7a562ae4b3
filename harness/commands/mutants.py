"""`kvtier-harness mutants`: defects that the checkers detect. Exit code: 0 if every mutant was detected; else 1."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from harness.commands.click_types import PATH, SEED
from harness.core.inputs import UsageError, check_output, near
from harness.core.seeds import fresh_seed
from harness.report.verdict_text import VERDICT_WORDS


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seed", type=SEED, help="the integer that the runs derive from (default: a fresh one)")
@click.option("--runs-dir", type=PATH, default="runs", show_default=True, help="keeps folders of mutants that survive")
@click.option("--write", type=PATH, help="write the table to this file; with NAMES its other rows stay")
def mutants(names: tuple[str, ...], seed: int | None, runs_dir: str, write: str | None) -> None:
    """Run mutants, tiers with one known defect: all, or those NAMED. Its checker must detect each."""
    from harness.mutants.registry import MUTANTS
    from harness.mutants.trial import table, try_mutant

    if unknown := sorted(set(names) - set(MUTANTS)):
        raise UsageError(f"there is no mutant {unknown[0]!r}{near(unknown[0], MUTANTS)}; valid: {', '.join(MUTANTS)}")
    if write is not None:
        check_output("--write", write)
    seed = fresh_seed() if seed is None else seed
    console = Console(highlight=False)
    console.print(f"seed {seed}")
    trials = []
    for name in names or MUTANTS:
        trial = try_mutant(MUTANTS[name], seed, Path(runs_dir))
        trials.append(trial)
        mark = "[green]detected[/]" if trial.detected else "[bold red]survived [/]"
        said = trial.finding or f"verdict {VERDICT_WORDS[trial.value]}; again: {trial.command}"
        text = f"{mark} {name}, {trial.mutant.scenario}, {trial.seconds:.1f} s"
        tries = f", at attempt {trial.attempts}" if trial.attempts > 1 else ""
        console.print(f"{text}{tries}\n  {trial.mutant.checker}: {escape(said.splitlines()[0])}", soft_wrap=True)
    detected = sum(trial.detected for trial in trials)
    console.print(f"{detected} of {len(trials)} mutants detected in {sum(t.seconds for t in trials):.0f} s")
    if write:
        page = Path(write)
        earlier = page.read_text(encoding="utf-8") if names and page.exists() else ""
        page.write_text(table(trials, earlier), encoding="utf-8")
    sys.exit(0 if detected == len(trials) else 1)
