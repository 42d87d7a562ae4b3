"""`kvtier-harness mutants` and `false-alarms`: defects that the checkers detect, and control runs that they fail.

Exit code: 0 if every mutant was detected, or every control run passed; else 1.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from harness.adapters import adapter_class, canonical, tier_python
from harness.commands.click_types import PATH, SEED, Number
from harness.commands.console import coloured
from harness.core.inputs import UsageError, check_output, near
from harness.core.seeds import fresh_seed
from harness.report.verdict_text import VERDICT_WORDS
from harness.scenarios import scenarios


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seed", type=SEED, help="the integer that the runs derive from (default: a fresh one)")
@click.option("--runs-dir", type=PATH, default="runs", show_default=True, help="keeps folders of mutants that survive")
@click.option("--write", type=PATH, help="write the table to this file")
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
        Path(write).write_text(table(trials), encoding="utf-8")
    sys.exit(0 if detected == len(trials) else 1)


@click.command(name="false-alarms")
@click.option("--runs", default=10, show_default=True, type=Number(int, 1, 10_000), help="of each scenario and tier")
@click.option("--tier", "tiers", multiple=True, help="only this one; may be repeated (default: the scenario's)")
@click.option(
    "--scenario", "names", multiple=True, help="only this one; may be repeated (default: all that need one machine)"
)
@click.option("--busy/--quiet", default=None, help="beside a program that burns every core (default: each second run)")
@click.option("--seed", type=SEED, help="the first run's seed; the next run has the next (default: fresh)")
@click.option("--runs-dir", type=PATH, default="runs", show_default=True, help="keeps folders of runs with an alarm")
def false_alarms(
    runs: int, tiers: tuple[str, ...], names: tuple[str, ...], busy: bool | None, seed: int | None, runs_dir: str
) -> None:
    """Control runs: correct tiers in short runs of every scenario; each must pass."""
    from harness.mutants.trial import busy_neighbour, try_control

    known = {item.name: item for item in scenarios() if not item.apart}
    for name in names:
        if name not in known:
            raise UsageError(f"--scenario is {name!r}{near(name, known)}; valid choices: {', '.join(known)}")
    tiers = tuple(map(canonical, tiers))
    for tier in tiers:
        tier_python(tier)
    pairs = [(item, tier) for item in map(known.get, names or known) if item for tier in tiers or item.tiers]

    first = fresh_seed() if seed is None else seed
    console = Console(highlight=False)
    console.print(f"seeds from {first}")
    counts: Counter[tuple[str, str, bool, str]] = Counter()
    for run in range(runs):
        beside = run % 2 == 1 if busy is None else busy
        with busy_neighbour() if beside else contextlib.nullcontext():
            for item, tier in pairs:
                if item.lacks(adapter_class(tier)):
                    continue
                result = try_control(tier, item.name, first + run, Path(runs_dir), beside)
                counts[item.name, tier, beside, result.verdict] += 1
                if result.verdict != "true":
                    console.print(
                        f"{coloured(result.verdict)} {item.name} {tier}: {escape(result.why)}", soft_wrap=True
                    )
                    where = " (every core was busy)" if beside else ""
                    console.print(f"  again: {escape(result.command)}{where}", soft_wrap=True)
        passed = sum(count for (*_, verdict), count in counts.items() if verdict == "true")
        console.print(f"[dim]run {run + 1} of {runs}: {passed} of {counts.total()} passed so far[/]")
    for name, tier, beside in sorted({key[:3] for key in counts}):
        mine = {verdict: counts[name, tier, beside, verdict] for verdict in ("true", "false", "unknown")}
        said = ", ".join(f"{count} {VERDICT_WORDS[verdict]}" for verdict, count in mine.items())
        console.print(f"{name:<12} {tier:<8} {'busy ' if beside else 'quiet'}  {said}")
    alarms = sum(count for (*_, verdict), count in counts.items() if verdict != "true")
    for item, tier in pairs:
        if why := item.lacks(adapter_class(tier)):
            console.print(f"{item.name:<12} {tier:<8} not run: {why}")
    console.print(f"{alarms} of {counts.total()} control runs did not pass")
    sys.exit(0 if not alarms else 1)
