"""The command `shared-volume`: brings up hosts that share a volume, runs scenarios on them, and ends
with a table of verdicts. `make shared-volume` calls it. What this machine cannot do is skipped, with the reason. A run
in which the file system's server ended by itself is ended at once and inconclusive, whatever the checkers find.

Exit code: the worst of all runs: 0 pass, 1 fail, 2 inconclusive. A file system that this machine does not have is
inconclusive, unless --skip-is-well. A scenario that a file system cannot pass (`Volume.cannot`) is left out, with the
reason.
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
from harness.commands.batch import Batch, worst
from harness.commands.click_types import PATH, SEED
from harness.commands.console import coloured
from harness.faults.rules import FaultUnavailable
from harness.hosts import HOSTS
from harness.hosts.base import Volume
from harness.hosts.volume_behaviour import measure
from harness.runner import EXIT_CODES
from harness.runtime.supervisor import Child, WorkerFailed
from harness.scenarios import scenario, scenarios
from harness.scenarios.on_hosts import placed


class Line(NamedTuple):
    """A row of the table."""

    file_system: str
    scenario: str
    verdict: str
    figure: str
    run_dir: str = ""

    @property
    def shown(self) -> str:
        """The verdict for a person."""
        return coloured(self.verdict) if self.verdict in EXIT_CODES else f"[yellow]{self.verdict}[/]"


class _ServerWatch:
    """Ends a run, once, when the server has ended by itself: a tier is not judged by a volume that is gone."""

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


def _run_all(
    name: str, chosen: list[str], given: dict[str, Any], runs_dir: Path, console: Console, batch: Batch
) -> Iterator[Line]:
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
                results = batch.run(placed(item, volume), item.options(**values), on_tick=watch)
                (Path(results.run_dir) / "volume.json").write_text(json.dumps(facts, indent=1) + "\n")
                bad = [v for v in results.verdicts if v["value"] != "true"]
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
    given, folder = {"seed": seed, "tier": tier}, Path(runs_dir).resolve()
    batch = Batch(folder, console, quiet=True)
    for name in names or HOSTS:
        for line in _run_all(name, list(chosen or _names()), given, folder, console, batch):
            lines.append(line)
            console.print(f"{line.shown}: {line.file_system}, {line.scenario}: {escape(line.figure)}")
    table = Table("file system", "scenario", "verdict", "what decided it")
    for line in lines:
        table.add_row(line.file_system, line.scenario, line.shown, escape(line.figure))
    console.print(table)
    verdicts = {line.verdict for line in lines} - {"skipped", "left out"}
    skipped = any(line.verdict == "skipped" for line in lines) and not skip_is_well
    sys.exit(EXIT_CODES[worst([*verdicts, "unknown"] if skipped else verdicts or {"true"})])
