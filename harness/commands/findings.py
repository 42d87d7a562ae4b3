"""`kvtier-harness findings`: the verdicts of selected scenarios on vLLM's own tier and on kvtier.

Each case is one run for each tier, with its command. The page holds the runs' results and adds no judgement.
`make findings` writes docs/findings-vllm-0.33.md.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.adapters import tier_python
from harness.commands.batch import Batch, worst
from harness.commands.click_options import parsed_options
from harness.commands.click_types import PATH, SEED
from harness.core.inputs import UsageError, check_output
from harness.core.seeds import fresh_seed
from harness.entry_point import HARNESS
from harness.report.verdict_text import VERDICT_WORDS
from harness.scenarios import scenario

TIERS = ("vllm", "kvtier")
FINDINGS_SHOWN = 4


@dataclass(frozen=True)
class Case:
    """One suspected defect: the scenario that would show it, and the checkers that decide."""

    title: str
    what: str
    scenario: str
    checkers: tuple[str, ...]
    options: tuple[str, ...] = ()
    vllm_options: tuple[str, ...] = ()


CASES = (
    Case(
        "Temp-file names collide",
        "Suffixes of temp files come from the global `random`, which engines seed with the same value. Two processes "
        "that store the same block at the same time then use the same temp file.",
        "sharing",
        ("results", "visibility"),
        ("--processes", "4", "--read-threads", "1", "--write-threads", "1"),
    ),
    Case(
        "The same without a seeded `random`",
        "The control run: with different suffixes no names collide.",
        "sharing",
        ("results", "visibility", "integrity"),
        ("--processes", "4", "--read-threads", "1", "--write-threads", "1"),
        ("--tier-option", "seed_random=null"),
    ),
    Case(
        "The first store after SIGKILL is lost",
        "A killed process leaves its temp file. After its restart it draws the same suffix, and its store fails.",
        "crash",
        ("recovery", "leftovers"),
        ("--read-threads", "1", "--write-threads", "1"),
    ),
    Case(
        "Zero threads of a direction are accepted, and it starves",
        "A flood of loads with no write-priority thread.",
        "starvation",
        ("floods", "starvation"),
        ("--write-threads", "0", "--job-blocks", "1,64", "--seconds", "6"),
    ),
    Case(
        "A block waits behind large jobs",
        "A job is one task on one thread. The case measures the wait of one block behind jobs of 16 and of 512 blocks.",
        "starvation",
        ("floods", "starvation"),
        ("--read-threads", "4", "--write-threads", "4", "--job-blocks", "16,512", "--block-bytes", "65536"),
    ),
    Case(
        "Wrong bytes, wrong sizes and strange files",
        "Block files are damaged on disk: bits inverted, pages zeroed, files cut, extended or swapped. Directories, "
        "FIFOs and links take their place.",
        "faults",
        ("faults", "integrity"),
        ("--fault", "damage_*"),
    ),
    Case(
        "A store stops at its first failed block",
        "Each third write fails. The other blocks of the job must be stored.",
        "faults",
        ("faults",),
        ("--fault", "eio_write"),
    ),
    Case(
        "Two seeds on one root share nothing, without an error",
        "Which processes share, and which are refused, over seeds, hash algorithms, start methods and Python versions.",
        "determinism",
        ("seed_settings",),
    ),
    Case(
        "On Python 3.11 the process aborts after some hundred thousand jobs",
        "Each call of the C functions releases a reference to None that it never took. The soak run measures the loss. "
        "Python before 3.12 aborts the process (SIGABRT) when the last reference is gone.",
        "soak",
        ("soak",),
        ("--seconds", "12", "--pace", "20", "--blocks", "128", "--block-bytes", "4096"),
        ("--tier-option", "seed_random=null"),
    ),
    Case(
        "Ordinary traffic",
        "Replayed traffic with shared prefixes, in which both tiers should pass. Every loaded byte is checked.",
        "load",
        ("sharing", "integrity", "starvation", "results"),
        ("--processes", "2", "--seconds", "10"),
        ("--tier-option", "seed_random=null"),
    ),
)

PAGE_HEAD = """\
# Findings: vLLM 0.33.0's file-system tier

Each case is one suspected defect: the same scenario runs on vLLM's own tier and on kvtier. The verdict is that of the
named checkers, and each section has the commands. A case that vLLM's tier fails names a defect of version 0.33.0 with
the stated options; it says nothing about other versions. A tier that refuses to start is inconclusive; its section has
the message.

{facts} Written by `make findings` from the results of the runs.
"""


def _run(batch: Batch, case: Case, tier: str, seed: int) -> dict[str, Any]:
    """One run's results, or, where the tier refuses its options, its sentence as the reason."""
    own = case.vllm_options if tier == "vllm" else ()
    arguments = ["--tier", tier, "--seed", str(seed), *case.options, *own]
    chosen = scenario(case.scenario)
    try:
        results = vars(batch.run(chosen, parsed_options(chosen, arguments), f"{case.title}: {tier}"))
    except (UsageError, click.UsageError) as error:
        results = {"verdicts": [], "reason": str(error)}
    return {**results, "command": shlex.join([HARNESS.program, "run", chosen.name, *arguments])}


def _of(case: Case, results: dict[str, Any]) -> list[dict[str, Any]]:
    return [verdict for verdict in results["verdicts"] if verdict["name"] in case.checkers]


def _cell(case: Case, results: dict[str, Any]) -> str:
    return worst(verdict["value"] for verdict in _of(case, results))


def _section(case: Case, both: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"## {case.title}", "", case.what, ""]
    for tier, results in both.items():
        lines += [f"**{tier}**: {VERDICT_WORDS[_cell(case, results)]}. `{results['command']}`", ""]
        if results.get("reason"):
            lines += [f"- the run ended early: {_one_line(results['reason'])}"]
        for verdict in _of(case, results):
            lines += [f"- {verdict['name']}, {VERDICT_WORDS[verdict['value']]}: {_one_line(verdict['figure'])}"]
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
    """Run every case on vLLM's own tier and on kvtier, and print the verdicts. Needs vLLM (`install-peer`)."""
    known = [case.title for case in CASES]
    for title in wanted:
        if not any(name.startswith(title) for name in known):
            raise UsageError(f"--case is {title!r}; valid choices, or their beginnings: {'; '.join(known)}")
    if write is not None:
        check_output("--write", write)
    peer = tier_python("vllm")
    seed = fresh_seed() if seed is None else seed
    console = Console(highlight=False)
    batch = Batch(Path(runs_dir), console)
    version = subprocess.run([peer, "-V"], capture_output=True, text=True).stdout.strip()
    rows, sections = [], []
    for case in CASES:
        if wanted and not case.title.startswith(wanted):
            continue
        both = {tier: _run(batch, case, tier, seed) for tier in TIERS}
        cells = [VERDICT_WORDS[_cell(case, results)] for results in both.values()]
        rows.append(f"| {case.title} | {' | '.join(cells)} |")
        sections += _section(case, both)
        seen = ", ".join(f"{tier} {cell}" for tier, cell in zip(TIERS, cells, strict=True))
        console.print(f"{case.title}: {seen}", soft_wrap=True)
    facts = (
        f"Seed {seed}; vLLM's tier with its C extension on {version}, kvtier on Python {platform.python_version()}; "
    )
    facts += f"{os.cpu_count()} CPUs, Linux {platform.release().split('-')[0]}."
    page = [PAGE_HEAD.format(facts=facts), "| case | vLLM 0.33.0 | kvtier |", "|---|---|---|", *rows, "", *sections]
    if write:
        Path(write).write_text("\n".join(page).rstrip() + "\n")
