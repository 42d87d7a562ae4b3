"""Runs mutants, which must be detected, and correct tiers, which must pass; the commands and tests call it.

Each trial is a short run of one scenario with real processes. Only the checkers decide.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from harness.checkers import CHECKERS
from harness.core.history import History
from harness.entry_point import Terminated
from harness.mutants.base import Mutant
from harness.mutants.registry import MUTANTS
from harness.report.verdict_text import VERDICT_WORDS
from harness.runner import Results, run
from harness.scenarios import scenario

ATTEMPTS_MAX = 3
"""Seeds tried in a row. Some defects are races that do not show in every short run."""


class Trial(NamedTuple):
    """The result for a mutant: the verdict of its checker, and the finding that detects it ("": none)."""

    mutant: Mutant
    value: str
    finding: str
    attempts: int
    seconds: float
    command: str

    @property
    def detected(self) -> bool:
        return self.value == "false" and bool(self.finding)


class ControlRun(NamedTuple):
    """The result for a correct tier: the run's verdict, and the first finding unless it is "true"."""

    tier: str
    scenario: str
    seed: int
    busy: bool
    verdict: str
    why: str
    command: str
    seconds: float


def short_run(name: str, tier: str, seed: int, runs_dir: Path, **changes: Any) -> Results:
    """One short run of a scenario. Raises `KeyboardInterrupt` when it was interrupted: no other run follows."""
    chosen = scenario(name)
    options = chosen.options(**{**chosen.short, "tier": tier, "seed": seed, **changes})
    results = run(chosen, options, runs_dir)
    if results.interrupted:
        raise Terminated if results.terminated else KeyboardInterrupt
    return results


def try_mutant(mutant: Mutant, seed: int, runs_dir: Path, attempts_max: int = ATTEMPTS_MAX) -> Trial:
    """Run the mutant's scenario and its checker. The folder of a run stays if the mutant survived."""
    for attempt in range(1, attempts_max + 1):
        started = time.monotonic()
        results = short_run(mutant.scenario, mutant.tier, seed + attempt - 1, runs_dir, **mutant.options)
        verdict = CHECKERS[mutant.checker](History.read(Path(results.run_dir)))
        finding = next((f for f in verdict.findings if mutant.explains(f)), "")
        trial = Trial(mutant, verdict.value, finding, attempt, time.monotonic() - started, results.command)
        if trial.detected:
            shutil.rmtree(results.run_dir)
            break
    return trial


def try_control(tier: str, name: str, seed: int, runs_dir: Path, busy: bool = False) -> ControlRun:
    """The control run: a scenario on a correct tier. Its folder stays if the tier did not pass."""
    started = time.monotonic()
    results = short_run(name, tier, seed, runs_dir)
    why = ""
    if results.verdict == "true":
        shutil.rmtree(results.run_dir)
    else:
        against = (v for v in results.verdicts if v["value"] == results.verdict)
        why = next((f"{v['name']}: {[*v['findings'], v['figure']][0]}" for v in against), results.reason)
    return ControlRun(tier, name, seed, busy, results.verdict, why, results.command, time.monotonic() - started)


PAGE_HEAD = """\
# Mutants: is each defect detected?

**{detected} of {tried} mutants are detected.** Written by `make mutants`.

A mutant is a correct tier with one known defect, a few lines in `harness/mutants/`. Its scenario runs for seconds with
real processes. The mutant is detected if the checker in its row fails it, with a finding about that defect. A mutant
that survives is a failing test. `make false-alarms` is the control: the same short runs on correct tiers must pass.

`kvtier-harness run SCENARIO --tier NAME` runs any scenario on a mutant.

| mutant | defect | scenario | checker | finding | seconds |
|---|---|---|---|---|---|
"""


def table(trials: Iterable[Trial], page: str = "") -> str:
    """docs/mutants.md. Of an earlier `page` it keeps the rows of mutants without a trial, and the text behind them."""
    rows = {trial.mutant.name: _row_of(trial) for trial in trials}
    lines = page.splitlines(keepends=True)
    kept = {line[2:].split(" | ")[0]: line for line in lines if line.startswith("| ")}
    order = [*MUTANTS, *(name for name in rows if name not in MUTANTS)] if page else rows
    found = [row for name in order if (row := rows.get(name) or kept.get(name))]
    detected = sum("| **survived** (" not in row for row in found)
    behind = "".join(lines).rpartition("\n| ")[2].partition("\n")[2]
    return PAGE_HEAD.format(detected=detected, tried=len(found)) + "".join(found) + behind


def _row_of(trial: Trial) -> str:
    finding = trial.finding.splitlines()[0] if trial.detected else f"**survived** ({VERDICT_WORDS[trial.value]})"
    return _row(*facts(trial.mutant), finding, f"{trial.seconds:.1f}")


def facts(mutant: Mutant) -> tuple[str, str, str, str]:
    """The cells of a mutant's row that need no run."""
    return mutant.name, mutant.defect, mutant.scenario, mutant.checker


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
