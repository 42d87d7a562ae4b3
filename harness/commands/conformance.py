"""`kvtier-harness conformance`: the suite of docs/conformance.md on peers and on the control tiers, in one run.

Each case is one run for each tier. Its record replaces the case's earlier one, so the suite can be run in parts.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.adapters import tier_python
from harness.adapters.peers import PEERS
from harness.commands.batch import Batch
from harness.commands.click_options import parsed_options
from harness.commands.click_types import PATH, SEED
from harness.core.inputs import UsageError
from harness.core.seeds import fresh_seed
from harness.entry_point import HARNESS
from harness.findings import pages
from harness.findings.record import file_name, keep, record, records
from harness.findings.suite import CONTROLS, SUITE, Case
from harness.report.verdict_text import VERDICT_WORDS
from harness.scenarios import scenario

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _record(batch: Batch, case: Case, tier: str, seed: int) -> dict[str, Any]:
    """One run, as it is kept."""
    arguments = ["--tier", tier, "--seed", str(seed), *case.options, *case.of_tier.get(tier, ())]
    chosen = scenario(case.scenario)
    results = vars(batch.run(chosen, parsed_options(chosen, arguments), f"{case.name}: {tier}"))
    command = shlex.join([HARNESS.program, "run", chosen.name, *arguments])
    return record(case, {**results, "command": command}, Path(results["run_dir"]))


@click.command()
@click.argument("peers", nargs=-1, metavar="[PEER]...", type=click.Choice(sorted(PEERS)))
@click.option("--case", "wanted", multiple=True, help="only this case of the suite; may be repeated")
@click.option("--seed", type=SEED, help="the integer that every run derives from (default: a fresh one)")
@click.option("--runs-dir", type=PATH, default="runs", show_default=True, help="where the runs' folders are made")
@click.option("--write", type=PATH, help="keep the records in this folder (docs/findings has those of the page)")
@click.option("--controls/--no-controls", default=True, help="also judge kvtier and the reference tier")
def conformance(
    peers: tuple[str, ...], wanted: tuple[str, ...], seed: int | None, runs_dir: str, write: str | None, controls: bool
) -> None:
    """Run the conformance suite on each PEER and on the control tiers, and print the verdicts.

    A peer needs its environment (`install-peer`). `docs conformance` makes the pages from the records.
    """
    known = [case.name for case in SUITE]
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"--case is {unknown[0]!r}; valid choices: {', '.join(known)}")
    if write is not None and not Path(write).is_dir():
        raise UsageError(f"--write is {write!r}, which is not a directory")
    tiers = (*(CONTROLS if controls else ()), *peers)
    versions = {tier: _python(tier_python(tier)) for tier in tiers}
    seed = fresh_seed() if seed is None else seed
    console = Console(highlight=False)
    batch = Batch(Path(runs_dir), console, quiet=True, silent=True)
    for case in SUITE:
        if wanted and case.name not in wanted:
            continue
        for tier in tiers:
            found = _record(batch, case, tier, seed)
            facts = f"Seed {seed}; {versions[tier]}; {os.cpu_count()} CPUs, Linux {platform.release().split('-')[0]}."
            if write is not None:
                keep(Path(write), tier, seed, facts, case, found)
            failing = [rule for rule, one in found["rules"].items() if one["value"] == "false"]
            verdict = VERDICT_WORDS[batch.done[-1].verdict]
            console.print(f"{case.name:<12} {tier:<10} {verdict:<13} {' '.join(failing)}", soft_wrap=True)


def _python(interpreter: str) -> str:
    return subprocess.run([interpreter, "-V"], capture_output=True, text=True).stdout.strip()


def write_pages(docs: Path) -> list[Path]:
    """Write docs/conformance.md and each peer's page from the records in docs/findings. Raises OSError."""
    found = records(docs / "findings")
    made = {docs / "conformance.md": pages.conformance(found)}
    for one in found:
        if one["tier"] in PEERS:
            made[docs / "findings" / f"{file_name(one['tier'])}.md"] = pages.findings(one)
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return list(made)
