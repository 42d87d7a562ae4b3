"""`python -m harness findings`: what the scenarios say about the real vLLM tier and, in the same run, about kvtier.

Each case is one run that anybody can repeat by its command. The table is written from the runs' results alone; nothing
here judges. `make findings` writes docs/findings-vllm-0.33.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.adapters import tier_python
from harness.commands.click_types import PATH, SEED
from harness.core.inputs import UsageError, check_output
from harness.core.installation import module_command, python_path
from harness.core.seeds import fresh_seed

TIERS = ("vllm", "kvtier")
FINDINGS_SHOWN = 4
CASE_SECONDS_MAX = 900.0


@dataclass(frozen=True)
class Case:
    """One weak point: what is suspected, the scenario that would show it, and which of its checkers decide."""

    title: str
    what: str
    scenario: str
    checkers: tuple[str, ...]
    options: tuple[str, ...] = ()
    vllm_options: tuple[str, ...] = ()


CASES = (
    Case(
        "Temp-file names collide",
        "Suffixes come from the seedable global `random`, and engines seed it alike: two processes that store the same "
        "block at the same moment take each other's temp file.",
        "sharing",
        ("results", "visibility"),
        ("--processes", "4", "--read-threads", "1", "--write-threads", "1"),
    ),
    Case(
        "The same without a seeded `random`",
        "The control: with suffixes that differ, nothing collides.",
        "sharing",
        ("results", "visibility", "integrity"),
        ("--processes", "4", "--read-threads", "1", "--write-threads", "1"),
        ("--tier-option", "seed_random=null"),
    ),
    Case(
        "The first store after SIGKILL is lost",
        "A killed process leaves its temp file; started again, it draws the same suffix and fails on it.",
        "crash",
        ("recovery", "leftovers"),
        ("--read-threads", "1", "--write-threads", "1"),
    ),
    Case(
        "Zero threads of a class are accepted, and it starves",
        "A flood of loads, and no write-priority thread.",
        "starvation",
        ("floods", "starvation"),
        ("--write-threads", "0", "--job-blocks", "1,64", "--seconds", "6"),
    ),
    Case(
        "A block waits behind large jobs",
        "A job is one task on one thread: what one block waits behind jobs of 16 blocks, and of 512.",
        "starvation",
        ("floods", "starvation"),
        ("--read-threads", "4", "--write-threads", "4", "--job-blocks", "16,512", "--block-bytes", "65536"),
    ),
    Case(
        "Wrong bytes, wrong sizes and strange files",
        "Block files damaged on disk: bits flipped, zeroed, cut, extended, swapped; directories, FIFOs and links in "
        "their place.",
        "faults",
        ("faults", "integrity"),
        ("--fault", "damage_*"),
    ),
    Case(
        "A store stops at its first bad block",
        "Each third write fails: what becomes of the other blocks of the same job.",
        "faults",
        ("faults",),
        ("--fault", "eio_write"),
    ),
    Case(
        "Two seeds on one root share nothing, in silence",
        "Who shares with whom, and who is told, over seeds, algorithms, start methods and Pythons.",
        "determinism",
        ("matrix", "openings"),
    ),
    Case(
        "On Python 3.11 the process aborts after some hundred thousand jobs",
        "Each call of the C functions gives back a reference to None that it never took. The soak run shows the loss; "
        "when the last reference is gone, Python before 3.12 ends with SIGABRT, whatever the engine is doing.",
        "soak",
        ("soak",),
        ("--seconds", "12", "--pace", "20", "--blocks", "128", "--block-bytes", "4096"),
        ("--tier-option", "seed_random=null"),
    ),
    Case(
        "Ordinary traffic",
        "Where both should be right: replayed traffic with reuse, every byte checked.",
        "load",
        ("sharing", "integrity", "starvation", "results"),
        ("--processes", "2", "--seconds", "10"),
        ("--tier-option", "seed_random=null"),
    ),
)


def _run(case: Case, tier: str, seed: int, runs_dir: Path) -> dict[str, Any]:
    """One run's results.json, or, where the tier refused to start, its sentence as the reason."""
    own = case.vllm_options if tier == "vllm" else ()
    arguments = ["run", case.scenario, "--tier", tier, "--seed", str(seed), *case.options, *own]
    child = subprocess.run(
        [*module_command(sys.executable, "harness"), *arguments, "--json", "--runs-dir", str(runs_dir)],
        env={**os.environ, "PYTHONPATH": python_path(sys.executable, runs_dir)},
        capture_output=True,
        text=True,
        timeout=CASE_SECONDS_MAX,
    )
    command = "python -m harness " + " ".join(arguments)
    try:
        results: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        results = {"verdict": "unknown", "verdicts": [], "reason": (child.stderr or child.stdout).strip()[-500:]}
    return {**results, "command": command}


def _of(case: Case, results: dict[str, Any]) -> list[dict[str, Any]]:
    return [verdict for verdict in results["verdicts"] if verdict["name"] in case.checkers]


def _cell(case: Case, results: dict[str, Any]) -> str:
    values = {verdict["value"] for verdict in _of(case, results)}
    for value in ("false", "unknown", "true"):
        if value in values:
            return value
    return "unknown"


def _section(case: Case, both: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"## {case.title}", "", case.what, ""]
    for tier, results in both.items():
        lines += [f"**{tier}**: {_cell(case, results)}. `{results['command']}`", ""]
        if results.get("reason"):
            lines += [f"- the run ended early: {_one_line(results['reason'])}"]
        for verdict in _of(case, results):
            lines += [f"- {verdict['name']}, {verdict['value']}: {_one_line(verdict['figure'])}"]
            lines += [f"  - {_one_line(finding)}" for finding in verdict["findings"][:FINDINGS_SHOWN]]
            if more := len(verdict["findings"]) - FINDINGS_SHOWN:
                lines += [f"  - and {more} more"] if more > 0 else []
        lines += [""]
    return lines


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."


@click.command()
@click.option("--write", type=PATH, help="write the findings to this file, as Markdown")
@click.option("--seed", type=SEED, help="the integer that every run derives from (default: a fresh one)")
@click.option("--runs-dir", type=PATH, default="runs", show_default=True, help="where the runs' folders are made")
@click.option("--case", "wanted", multiple=True, help="only cases whose title begins so; may be repeated")
def findings(write: str | None, seed: int | None, runs_dir: str, wanted: tuple[str, ...]) -> None:
    """Run every case on the real vLLM tier and on kvtier, and say what was seen. Needs vLLM (`install-peer`)."""
    known = [case.title for case in CASES]
    for title in wanted:
        if not any(name.startswith(title) for name in known):
            raise UsageError(f"--case is {title!r}; valid choices, or their beginnings: {'; '.join(known)}")
    if write is not None:
        check_output("--write", write)
    peer = tier_python("vllm")
    seed = fresh_seed() if seed is None else seed
    console = Console(highlight=False)
    version = subprocess.run([peer, "-V"], capture_output=True, text=True).stdout.strip()
    rows, sections = [], []
    for case in CASES:
        if wanted and not case.title.startswith(wanted):
            continue
        both = {tier: _run(case, tier, seed, Path(runs_dir)) for tier in TIERS}
        cells = [_cell(case, results) for results in both.values()]
        rows.append(f"| {case.title} | {' | '.join(cells)} |")
        sections += _section(case, both)
        seen = ", ".join(f"{tier} {cell}" for tier, cell in zip(TIERS, cells, strict=True))
        console.print(f"{case.title}: {seen}", soft_wrap=True)
    page = [
        "# What the harness says about vLLM 0.33.0's file-system tier",
        "",
        "Written by `make findings`; every line below comes from the runs. "
        f"Seed {seed}; vLLM's tier with its C extension on {version}, kvtier on Python {platform.python_version()}; "
        f"{os.cpu_count()} CPUs, Linux {platform.release().split('-')[0]}.",
        "",
        "| case | vLLM 0.33.0 | kvtier |",
        "|---|---|---|",
        *rows,
        "",
        *sections,
    ]
    if write:
        Path(write).write_text("\n".join(page).rstrip() + "\n")
