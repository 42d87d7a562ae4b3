"""Tries mutants, which must be detected, and right tiers, which must be passed; `commands` and tests call it.

Each trial is a short run of one scenario with real processes. It judges only through the checkers.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.checkers import CHECKERS
from harness.core.history import History
from harness.mutants.base import Mutant
from harness.runner import Results, run
from harness.scenarios import scenario

SHORT: Mapping[str, Mapping[str, Any]] = {
    "load": {"processes": 2, "requests": 150, "speed": 0.0, "seconds": 5.0, "block_bytes": 16384, "slots": 512},
    "sharing": {"seconds": 1.0},
    "determinism": {"seconds": 0.5, "python": (sys.executable,)},
    "crash": {"seconds": 1.0},
    "contract": {},
    "faults": {"fault": ("damage_*", "stale_temps", "short_third_write")},
    "soak": {"seconds": 12.0, "pace": 20.0, "blocks": 128, "block_bytes": 4096},
    "capacity": {
        "seconds": 6.0,
        "processes": 4,
        "readers": 1,
        "block_bytes": 16384,
        "kept": 16,
        "max_bytes": 8 << 20,
        "turnovers": 0.5,
        "keeps": 0.2,  # down to the low water mark remain 0.3, a fifth of which are trailers
        "slack": 0.4,  # four eighths of 0.7, a sample, and a block for each process
        "tier_option": ('capacity={"high_water": 0.6, "low_water": 0.3}',),
    },
    "starvation": {"seconds": 2.0, "job_blocks": "1,16", "read_threads": 2, "write_threads": 2},
}
"""Options that make one run of a scenario take seconds; a scenario that is not here runs with its own defaults."""

BEYOND: Mapping[tuple[str, str], str] = {
    ("capacity", "memory"): "the oracle keeps no limit",
}
"""(scenario, tier): why that tier does not claim what the scenario asks."""

ATTEMPTS_MAX = 3
"""Some defects are races, which need not show in every short run: so many seeds in a row may be tried."""


class Trial(NamedTuple):
    """What became of a mutant: the verdict of the checker meant for it, and the finding that detects it ("": none)."""

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
    """What became of a right tier: the run's verdict, and if it is not "true" what was said against it."""

    tier: str
    scenario: str
    seed: int
    busy: bool
    verdict: str
    why: str
    command: str
    seconds: float


def short_run(name: str, tier: str, seed: int, runs_dir: Path, **changes: Any) -> Results:
    """One short run of a scenario."""
    chosen = scenario(name)
    options = chosen.options(**{**SHORT.get(name, {}), "tier": tier, "seed": seed, **changes})
    return run(chosen, options, runs_dir)


def try_mutant(mutant: Mutant, seed: int, runs_dir: Path, attempts_max: int = ATTEMPTS_MAX) -> Trial:
    """Run the mutant's scenario and ask the checker meant for it. The folder of a run stays if the mutant survived."""
    for attempt in range(1, attempts_max + 1):
        started = time.monotonic()
        results = short_run(mutant.scenario, mutant.tier, seed + attempt - 1, runs_dir, **mutant.options)
        verdict = CHECKERS[mutant.checker](History.read(Path(results.run_dir)))
        finding = next((f for f in verdict.findings if re.search(mutant.finding, f)), "")
        trial = Trial(mutant, verdict.value, finding, attempt, time.monotonic() - started, results.command)
        if trial.detected:
            shutil.rmtree(results.run_dir)
            break
    return trial


def try_right_tier(tier: str, name: str, seed: int, runs_dir: Path, busy: bool = False) -> ControlRun:
    """Run a scenario on a tier that is right. The folder of a run stays if the tier was not passed."""
    started = time.monotonic()
    results = short_run(name, tier, seed, runs_dir)
    why = ""
    if results.verdict == "true":
        shutil.rmtree(results.run_dir)
    else:
        against = (v for v in results.verdicts if v["value"] == results.verdict)
        why = next((f"{v['name']}: {[*v['findings'], v['figure']][0]}" for v in against), results.reason)
    return ControlRun(tier, name, seed, busy, results.verdict, why, results.command, time.monotonic() - started)


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another program that wants all of every core, for as long as the block lasts."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def table(trials: Iterable[Trial]) -> str:
    """docs/mutants.md."""
    lines = [
        "# Tiers that are wrong on purpose, and who detects them",
        "",
        "Generated by `make mutants`. Each mutant is a few lines over a right tier (`harness/mutants/`). Its scenario",
        'is run for seconds with real processes, and the checker named here must come back "false", with a finding',
        "about this very defect. A mutant that survives is a failing test.",
        "`kvtier-harness run SCENARIO --tier NAME` runs any scenario on one of them.",
        "",
        "| mutant | its defect | scenario | checker | what the checker said | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for trial in trials:
        mutant = trial.mutant
        said = trial.finding.splitlines()[0] if trial.detected else f"**survived** ({trial.value})"
        cells = (mutant.name, mutant.defect, mutant.scenario, mutant.checker, said, f"{trial.seconds:.1f}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
