"""One run of a series: a process of its own under a condition of the machine, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.environment import git
from harness.core.findings import Finding
from harness.core.installation import ROOT, module_command, python_path
from harness.core.seeds import SEED_MAX, stream
from harness.false_alarms.conditions import CONDITIONS, Surroundings
from harness.false_alarms.correct_tiers import CONTROLS
from harness.false_alarms.repeated_runs import Cell, Row
from harness.faults.rules import FaultUnavailable
from harness.mutants.base import Mutant
from harness.mutants.trial import ATTEMPTS_MAX
from harness.recorded_run import with_findings
from harness.report.verdict_text import VERDICT_WORDS
from harness.runner import as_arguments
from harness.scenarios import scenario

RUN_SECONDS_MAX = 900.0
END_SECONDS_MAX = 60.0
"""How long an interrupted run may take to judge what it has recorded."""
FINDINGS_MAX = 5
"""Of a run in the log; results.json has all."""


@cache
def commit() -> str:
    """The checkout's commit, with "+" if tracked files differ from it; "" outside a checkout."""
    known = git() or {}
    return f"{known['commit'][:7]}{'+' * known['changed']}" if known else ""


def unavailable(condition: str, folder: Path) -> str:
    """Why this machine cannot make a condition; "": it can."""
    try:
        with CONDITIONS[condition][1](folder, stream(0, "condition")):
            return ""
    except FaultUnavailable as error:
        return str(error)


def run_cells(
    cells: Iterator[Cell], jobs: int, until: float, make: Callable[[Cell], Row], say: Callable[[Row], None]
) -> None:
    """Make the runs, `jobs` at a time, none begun after `until` (monotonic). `say` gets each row, one after the other.

    An interrupt ends it when the runs under way have ended.
    """
    lock, stopped = threading.Lock(), threading.Event()

    def work() -> None:
        while True:
            with lock:
                cell = next(cells, None) if time.monotonic() < until and not stopped.is_set() else None
            if cell is None:
                return
            row = make(cell)
            with lock:
                say(row)

    if jobs == 1:
        return work()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for worker in [pool.submit(work) for _ in range(jobs)]:
                worker.result()
        finally:
            stopped.set()


def run_cell(cell: Cell, series: int, runs_dir: Path, mutant: Mutant | None = None) -> Row:
    """Make the run; of a mutant up to `ATTEMPTS_MAX`, until one does not pass. Its folder stays unless it passed."""
    first = cell.seed(series)
    for attempt in range(ATTEMPTS_MAX if mutant else 1):
        row = _run(cell, (first + attempt) % (SEED_MAX + 1), runs_dir, mutant)
        if row.outcome != "pass":
            break
    return row


def _run(cell: Cell, seed: int, runs_dir: Path, mutant: Mutant | None) -> Row:
    chosen, control = scenario(cell.scenario), CONTROLS.get(cell.tier)
    given: dict[str, Any] = {**chosen.short, "seed": seed}
    if mutant:
        given |= {"tier": mutant.tier, **mutant.options}
    else:
        assert control is not None, f"no correct tier {cell.tier!r}"
        given |= {"tier": control.tier, "tier_option": (*given.get("tier_option", ()), *control.options)}
    load = round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    started = time.monotonic()
    try:
        with CONDITIONS[cell.condition][1](runs_dir, stream(seed, "condition")) as around:
            if around.root_dir is not None:
                given["root_dir"] = str(around.root_dir)
            words = ["run", cell.scenario, *as_arguments(chosen.options(**given))]
            results, trouble = _carry_out(words, runs_dir, around)
    except FaultUnavailable as error:
        results, trouble = None, str(error)
    row = Row(*cell, seed, "not run", trouble, is_mutant=mutant is not None, load=load)
    if results is None:
        return row
    if results.get("interrupted"):  # with this process, whose children got the signal too
        raise KeyboardInterrupt
    if control:
        results = without(results, control.breaks)
    outcome = _outcome(results, mutant)
    found = _findings(results, mutant)
    if outcome == "pass":
        shutil.rmtree(results["run_dir"], ignore_errors=True)
    return Row(
        *cell,
        seed,
        outcome,
        "" if outcome == "pass" else results["reason"] or str(next(iter(found), "")),
        rules=list(dict.fromkeys(f.rule for f in found if f.kind == "finding" and f.rule)),
        findings=[f.to_json() for f in found[:FINDINGS_MAX]],
        is_mutant=mutant is not None,
        seconds=round(time.monotonic() - started, 1),
        load=load,
        command=results["command"].replace(f"{ROOT}{os.sep}", ""),  # the log is kept, and its machine is no matter
        folder="" if outcome == "pass" else Path(results["run_dir"]).name,
        commit=commit(),
    )


def _carry_out(words: list[str], runs_dir: Path, around: Surroundings) -> tuple[dict[str, Any] | None, str]:
    """results.json of the run, or None and why there is none."""
    command = [
        *around.prefix,
        *module_command(sys.executable, "harness"),
        *words,
        "--json",
        "--runs-dir",
        str(runs_dir),
    ]
    child = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": python_path(sys.executable, runs_dir)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        with around.beside(child.pid):
            output, errors = child.communicate(timeout=RUN_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return None, f"the run did not end within {RUN_SECONDS_MAX:g} s"
    except BaseException:  # Ctrl-C or SIGTERM: the run ends too, without a verdict
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=END_SECONDS_MAX)
        child.kill()
        raise
    try:
        return with_findings(json.loads(output)), ""
    except ValueError:
        said = (errors.strip() or output.strip() or "it printed nothing").splitlines()[-1]
        return None, f"the run ended with {child.returncode}: {said}"


def without(results: Mapping[str, Any], rules: Container[str]) -> dict[str, Any]:
    """The results as if these rules were not judged: a checker passes that found nothing against another one."""
    verdicts = []
    for verdict in results["verdicts"]:
        left = [f for f in verdict["findings"] if not (f.kind == "finding" and f.rule in rules)]
        value = verdict["value"]
        if value == "false" and not any(f.kind == "finding" for f in left):
            value = "unknown" if left else "true"
        verdicts.append({**verdict, "findings": left, "value": value})
    values = {verdict["value"] for verdict in verdicts}
    worst = "false" if "false" in values else "unknown" if "unknown" in values or results["reason"] else "true"
    return {**results, "verdicts": verdicts, "verdict": worst}


def _outcome(results: Mapping[str, Any], mutant: Mutant | None) -> str:
    """For a mutant, what its checker says decides, unless the run failed otherwise."""
    value = results["verdict"]
    if mutant and value != "false":
        value = next((v["value"] for v in results["verdicts"] if v["name"] == mutant.checker), "unknown")
        value = "unknown" if results["reason"] else value
    return VERDICT_WORDS[value]


def _findings(results: Mapping[str, Any], mutant: Mutant | None) -> list[Finding]:
    """Those of the checkers whose verdict is the run's: findings, else doubts, else figures. The one about the mutant's
    defect comes first."""
    found = [
        finding
        for verdict in results["verdicts"]
        if verdict["value"] == results["verdict"] != "true"
        for finding in (verdict["findings"] or [Finding(f"{verdict['name']}: {verdict['figure']}", kind="doubt")])
    ]
    return sorted(found, key=lambda finding: not (mutant and mutant.explains(finding)))
