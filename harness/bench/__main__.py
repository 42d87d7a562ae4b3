"""The command line of the benches: `python -m harness.bench table`, `compare`, `baseline`, `plots`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness import environment
from harness.bench import plan
from harness.bench.contest import CONTESTANTS, Contestant
from harness.bench.disk import Disk, Unavailable, own_disk, plain_folder
from harness.bench.show import print_tables
from harness.bench.targets import targets

SIZES = {"full": plan.FULL, "quick": plan.QUICK, "smoke": plan.SMOKE}


@click.group()
def cli() -> None:
    """How fast tiers are, side by side in one run, in ratios to what this machine gives at the same time."""


@cli.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="full", show_default=True, help="minutes: 10, 2, 0.3")
@click.option("--section", "sections", multiple=True, type=click.Choice(list(plan.SECTIONS)), help="only these")
@click.option(
    "--contestant", "names", multiple=True, type=click.Choice(list(CONTESTANTS)), help="only these; default all"
)
@click.option("--dir", "folder", default="/tmp", show_default=True, help="folder on the device to measure")
@click.option("--rounds", type=int, help="instead of the size's own number")
@click.option("--out", type=click.Path(), help="write the JSON here")
def table(
    size: str, sections: tuple[str, ...], names: tuple[str, ...], folder: str, rounds: int | None, out: str | None
) -> None:
    """Measure the large table: kvtier, the peer if installed, the device."""
    console = Console(highlight=False)
    result = measure(SIZES[size], sections, names, Path(folder), rounds, console)
    print_tables(result, console)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1) + "\n")


def measure(
    size: plan.Size,
    sections: tuple[str, ...],
    names: tuple[str, ...],
    folder: Path,
    rounds: int | None,
    console: Console,
) -> dict[str, Any]:
    """Run the sections; the JSON-able result with environment, command, samples and targets."""
    import dataclasses

    if rounds:
        size = dataclasses.replace(size, rounds=rounds, flood_rounds=rounds)
    started, samples, notes = time.monotonic(), [], []
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        disk, ceiling = _disk(stack, folder, size, notes)
        here = environment.describe(disk.path)
        contestants = []
        for name in dict.fromkeys([*(names or CONTESTANTS), "raw"]):
            contestant = Contestant(name)
            stack.callback(contestant.close)
            contestants.append(contestant)
            if contestant.missing:
                notes.append(f"{name} is missing: {contestant.missing}")
        bench = plan.Bench(size, disk, contestants, ceiling)
        for name in sections or plan.SECTIONS:
            began = time.monotonic()
            samples += list(plan.SECTIONS[name](bench))
            seconds[name] = round(time.monotonic() - began, 1)
            console.print(f"[dim]{name}: {seconds[name]:.0f} s[/]")
        notes += bench.notes + [gap for contestant in contestants for gap in contestant.gaps]
    return {
        "command": shlex.join(["python", "-m", "harness.bench", *sys.argv[1:]]),
        "environment": here | {"disk": disk.kind},
        "wall_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.monotonic() - started, 1),
        "section_seconds": seconds,
        "notes": list(dict.fromkeys(notes)),
        "targets": [target._asdict() | {"ratio": list(target.ratio)} for target in targets(samples)],
        "samples": [list(sample) for sample in samples],
    }


def _disk(stack: contextlib.ExitStack, folder: Path, size: plan.Size, notes: list[str]) -> tuple[Disk, Path]:
    """A disk for tiers, and a folder for the ceiling's file that is of the same kind."""
    try:
        disk = stack.enter_context(own_disk(folder, size.disk_bytes))
        ceiling = stack.enter_context(own_disk(folder, size.volume_bytes + (512 << 20)))
        return disk, ceiling.path
    except Unavailable as error:
        notes.append(f"no disk of its own: {error}")
        return stack.enter_context(plain_folder(folder)), stack.enter_context(plain_folder(folder)).path


if __name__ == "__main__":
    cli(prog_name="python -m harness.bench")
