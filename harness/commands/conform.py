"""`conform module:Class`: the contract and every scenario on somebody's own tier, one after the other, one verdict.

The command line has it; each scenario is an ordinary run with a folder and a report of its own. What needs more than
a tier and a folder (hosts, disks), or for what the tier does not claim, is left out and named.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from harness.adapters import adapter_class, tier_python
from harness.commands.batch import Batch
from harness.commands.clean import notice
from harness.commands.click_types import PATH, SECONDS, SEED, SIZE
from harness.commands.console import JUNIT_HELP, WORD_WIDTH, check_junit, coloured, say_junit
from harness.core.seeds import fresh_seed
from harness.scenarios import scenarios
from harness.scenarios.base import CommonOptions, Scenario, UsageError, check_machine, check_root, check_tier

LONG_SECONDS = 120
"""A scenario that takes longer by default is left out of --full."""
_GIVEN = ("root_dir", "processes", "block_bytes", "read_threads", "write_threads", "tier_option")


@click.command()
@click.argument("tier", metavar="TIER")
@click.option("--scenario", "names", multiple=True, help="only this one; may be repeated (default: all)")
@click.option(
    "--seconds", type=SECONDS, default=3.0, show_default=True, help="of traffic in each, or as many as it needs"
)
@click.option(
    "--full", is_flag=True, help=f"as many seconds as each has by default; none that has more than {LONG_SECONDS}"
)
@click.option("--seed", type=SEED, help="of all scenarios (default: a fresh one, printed)")
@click.option("--root-dir", type=PATH, help="folder to share; fresh folders inside it are used and removed")
@click.option("--processes", type=int, help="worker processes (default: the scenario's)")
@click.option("--block-bytes", type=SIZE, help="size of a block (default: the scenario's)")
@click.option("--read-threads", type=int, help="read-priority threads of each process (default: the scenario's)")
@click.option("--write-threads", type=int, help="write-priority threads of each process (default: the scenario's)")
@click.option("--tier-option", multiple=True, help="NAME=VALUE for the tier itself; may be repeated")
@click.option("--runs-dir", type=PATH, default="runs", show_default=True, help="where the runs' folders are made")
@click.option("--json", "as_json", is_flag=True, help="print all results as JSON; no progress")
@click.option("--quiet", is_flag=True, help="no progress")
@click.option("--junit", type=PATH, help=JUNIT_HELP)
def conform(
    tier: str, names: tuple[str, ...], runs_dir: str, as_json: bool, quiet: bool, junit: str | None, **given: Any
) -> None:
    """The contract and all scenarios on TIER: a name from `list`, or module:Class, an Adapter of your own.

    The exit code is that of the worst verdict: 0 pass, 1 fail, 2 inconclusive.
    """
    check_junit(junit)
    adapter_class(tier)  # an unknown tier is refused first
    tier_python(tier)
    seed = fresh_seed() if given["seed"] is None else given["seed"]
    planned, left_out = plan(tier, names, seed, given, Path(runs_dir))
    console = Console(stderr=as_json, highlight=False)

    notice(given["root_dir"])
    batch = Batch(Path(runs_dir), console, quiet, silent=as_json)
    for number, (chosen, options) in enumerate(planned, 1):
        batch.run(chosen, options, f"{chosen.name} ({number} of {len(planned)})")
    if as_json:
        runs = [results.to_json() for results in batch.done]
        document = {"tier": tier, "verdict": batch.verdict, "exit_code": batch.exit_code, "seed": seed}
        document |= {"runs": runs, "left_out": left_out}
        print(json.dumps(document, indent=1, default=str))
    else:
        console.print()
        line = f"{escape(tier)}: {coloured(batch.verdict)}, seed {seed}; all runs: {runs_dir}/index.html"
        console.print(line, soft_wrap=True)
        for results in batch.done:
            folder = Path(results.run_dir).name
            mark = coloured(results.verdict, WORD_WIDTH)
            line = f"{results.scenario:<12} {mark}  {results.seconds:4.0f} s  {runs_dir}/{folder}/report.html"
            console.print(line, soft_wrap=True)
            if results.reason:
                console.print(f"{'':<12} {escape(results.reason.splitlines()[0])}", soft_wrap=True)
        for name, why in left_out.items():
            console.print(f"{name:<12} left out: {escape(why)}", soft_wrap=True)
    say_junit(junit, batch.done)
    sys.exit(batch.exit_code)


def plan(
    tier: str, names: Sequence[str], seed: int, given: Mapping[str, Any], runs_dir: Path = Path("runs")
) -> tuple[list[tuple[Scenario, CommonOptions]], dict[str, str]]:
    """The scenarios `names` (none: all that this tier can be asked) with their options, and why others are left out.

    Raises `UsageError` on a name or an option that cannot work, before the first scenario has taken its time.
    """
    known = {item.name: item for item in scenarios()}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--scenario is {unknown[0]!r}; valid choices: {', '.join(known)}")
    adapter = adapter_class(tier)
    reasons = {item.name: item.apart or item.lacks(adapter) for item in known.values()}
    if given.get("full"):
        reasons |= {name: _too_long(item) for name, item in known.items() if not reasons[name]}
    left_out = {} if names else {name: reason for name, reason in reasons.items() if reason}
    chosen = [known[name] for name in dict.fromkeys(names or known) if name not in left_out]
    planned = [(item, _options(item, tier, seed, given)) for item in chosen]
    for item, options in planned:
        if options.root_dir is not None:
            check_root(options.root_dir)
        check_tier(options)
        check_machine(item, options, runs_dir)
        check_machine(item, options, runs_dir, item.prepare(options))
    return planned, left_out


def _options(chosen: Scenario, tier: str, seed: int, given: Mapping[str, Any]) -> CommonOptions:
    """The scenario's own defaults, with what was given; a scenario without a duration keeps its zero seconds, and
    one that needs more seconds gets them."""
    values = {name: given[name] for name in _GIVEN if given.get(name) not in (None, ())}
    if _seconds(chosen) and not given.get("full"):
        values["seconds"] = max(given["seconds"], chosen.seconds_min)
    return chosen.options(tier=tier, seed=seed, **values)


def _seconds(chosen: Scenario) -> float:
    """How long a scenario's traffic lasts by default; 0: as long as it takes."""
    return float(next(f.default for f in dataclasses.fields(chosen.options) if f.name == "seconds"))  # type: ignore[arg-type]


def _too_long(chosen: Scenario) -> str:
    seconds = _seconds(chosen)
    return f"takes {seconds:,.0f} s: kvtier-harness run {chosen.name}" if seconds > LONG_SECONDS else ""
