"""The command `shared-volume`: brings up hosts that share a volume, runs scenarios on them, and ends
with a table of verdicts. `make shared-volume` calls it. What this machine cannot do is skipped, loudly. A run in
which the file system's server ended by itself is ended at once and unknown, whatever the checkers say of the rest.

Exit code: the worst of all runs: 1 false, 2 unknown, 0 true. A file system that cannot be had here is unknown, unless
--skip-is-well; a scenario that a file system has no answer to anywhere (`Volume.cannot`) is left out, and says why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.adapters import tier_python
from harness.commands.click_types import PATH, SEED
from harness.faults.rules import FaultUnavailable
from harness.hosts import HOSTS
from harness.hosts.base import Volume
from harness.hosts.behaviour import measure
from harness.report import write_report
from harness.runner import EXIT_CODES
from harness.runner import run as make_run
from harness.runtime.supervisor import Child, WorkerFailed
from harness.scenarios import scenario, scenarios
from harness.scenarios.on_hosts import placed

_COLOURS = {"true": "green", "false": "red", "unknown": "yellow", "skipped": "yellow", "left out": "yellow"}


class Line(NamedTuple):
    """A row of the table."""

    file_system: str
    scenario: str
    verdict: str
    figure: str
    run_dir: str = ""


class _ServerWatch:
    """Ends a run, once, when the server has ended without being told to: tiers are not judged by what is not there."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.death = ""

    def __call__(self, children: Sequence[Child]) -> None:
        if not self.death and (death := self._volume.server_death()):
            self.death = death
            raise WorkerFailed(death)


def _names() -> list[str]:
    """The scenarios that declare how they run on hosts."""
    return [item.name for item in scenarios() if item.on_hosts is not None]


def _run_all(name: str, chosen: list[str], given: dict[str, Any], runs_dir: Path, console: Console) -> Iterator[Line]:
    try:
        with HOSTS[name](runs_dir) as volume, tempfile.TemporaryDirectory(dir=runs_dir) as local:
            facts = {"file_system": volume.file_system, "mount_options": volume.mount_options}
            facts |= measure(volume, Path(local)) if "outage" in chosen else {}
            for what in chosen:
                if what in volume.cannot:
                    yield Line(volume.file_system, what, "left out", volume.cannot[what])
                    continue
                console.print(f"[bold]{what}[/] on {volume.file_system} ({escape(volume.mount_options)})")
                item = scenario(what)
                values = {**(item.on_hosts or {}), **given, "root_dir": str(volume.seen_here)}
                if what == "outage":
                    values["visible_seconds_max"] = volume.visible_seconds_max
                watch = _ServerWatch(volume)
                results = make_run(placed(item, volume), item.options(**values), runs_dir, on_tick=watch)
                write_report(Path(results.run_dir))
                (Path(results.run_dir) / "volume.json").write_text(json.dumps(facts, indent=1) + "\n")
                bad = [v for v in results.verdicts if v["value"] != "true"]
                for verdict in bad:
                    console.print(f"  {verdict['name']} {verdict['value']}: {escape(verdict['figure'])}")
                    for finding in verdict["findings"][:5]:
                        console.print(f"    {escape(finding)}")
                figure = results.reason or (bad or results.verdicts)[0]["figure"]
                yield Line(
                    volume.file_system, what, "unknown" if watch.death else results.verdict, figure, results.run_dir
                )
                if watch.death:
                    volume.restart_server(0.0)
    except FaultUnavailable as reason:
        yield Line(name, "all", "skipped", str(reason))


@click.command(name="shared-volume")
@click.option("--file-system", "names", multiple=True, type=click.Choice(list(HOSTS)), help="default: all of them")
@click.option("--scenario", "chosen", multiple=True, type=click.Choice(_names()), help="default: all of them")
@click.option("--seed", type=SEED, default=None, help="the integer that every random choice derives from")
@click.option("--tier", default="kvtier", show_default=True, help="the tier to judge: a name, or module:Class")
@click.option("--runs-dir", type=PATH, default="runs", show_default=True, help="where the runs' folders are made")
@click.option("--skip-is-well", is_flag=True, help="what cannot be had here does not spoil the exit code")
def shared_volume(
    names: tuple[str, ...], chosen: tuple[str, ...], seed: int | None, tier: str, runs_dir: str, skip_is_well: bool
) -> None:
    """Scenarios with processes on two hosts that share a volume of a real network file system."""
    tier_python(tier)
    console = Console(highlight=False, soft_wrap=True)
    Path(runs_dir).mkdir(exist_ok=True)
    lines: list[Line] = []
    for name in names or HOSTS:
        for line in _run_all(
            name, list(chosen or _names()), {"seed": seed, "tier": tier}, Path(runs_dir).resolve(), console
        ):
            lines.append(line)
            console.print(f"  [{_COLOURS[line.verdict]}]{line.verdict}[/] {escape(line.figure)}")
    table = Table("file system", "scenario", "verdict", "what decided it")
    for line in lines:
        table.add_row(
            line.file_system, line.scenario, f"[{_COLOURS[line.verdict]}]{line.verdict}[/]", escape(line.figure)
        )
    console.print(table)
    verdicts = {line.verdict for line in lines}
    if "skipped" in verdicts and not skip_is_well:
        verdicts.add("unknown")
    worst = "false" if "false" in verdicts else "unknown" if "unknown" in verdicts else "true"
    sys.exit(EXIT_CODES[worst])
