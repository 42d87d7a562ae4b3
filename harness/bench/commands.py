"""The group `bench` of the command line: `table`, `compare`, `eviction`, `plots`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.bench import commit_comparison, eviction, plan
from harness.bench.commit_package import default_commit, freeze
from harness.bench.compared_tiers import CONTESTANTS, Contestant
from harness.bench.disk import Disk, Unavailable, own_disk, plain_folder
from harness.bench.show import print_tables, write_docs
from harness.bench.targets import targets
from harness.commands.click_types import FOLDER, PATH, SECONDS, SEED, Number
from harness.core import environment
from harness.entry_point import HARNESS

BASELINES = Path(__file__).resolve().parents[2] / "tests" / "tiering" / "baselines"
COMPARE_DISK_BYTES = 1 << 30
TABLE_COLUMNS = 200
"""Width of tables in a file or a pipe, which are not cut to a terminal's."""
SIZES = {"full": plan.FULL, "quick": plan.QUICK, "smoke": plan.SMOKE}


@click.group(name="bench")
def bench() -> None:
    """Speed of tiers, side by side in one run, in ratios to this machine's ceilings at the same time."""


@bench.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="full", show_default=True, help="minutes: 10, 2, 0.3")
@click.option("--section", "sections", multiple=True, type=click.Choice(list(plan.SECTIONS)), help="only these")
@click.option(
    "--contestant", "names", multiple=True, type=click.Choice(list(CONTESTANTS)), help="only these; default all"
)
@click.option("--dir", "folder", type=FOLDER, default="/tmp", show_default=True, help="folder on the device to measure")
@click.option("--rounds", type=Number(int, 1, 1000), help="instead of the size's own number")
@click.option("--out", type=PATH, help="write the JSON here")
@click.option("--save", is_flag=True, help="keep it in this machine class's file under tests/tiering/baselines")
@click.option("--small", type=click.Path(exists=True), help="with --save: pytest-benchmark's JSON, kept beside it")
def table(
    size: str,
    sections: tuple[str, ...],
    names: tuple[str, ...],
    folder: str,
    rounds: int | None,
    out: str | None,
    save: bool,
    small: str | None,
) -> None:
    """Measure the large table: kvtier, the peer if installed, the device."""
    if save and (environment.git() or {"changed": True})["changed"]:
        raise click.ClickException("a kept result names its commit, and the checkout has changes: commit them first")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_COLUMNS)
    result = measure(SIZES[size], sections, names, Path(folder), rounds, console)
    print_tables(result, console)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result) + "\n")
    if save:
        parts = _small_parts(Path(small)) if small else {}
        click.echo(_keep(result["environment"], table=result, **parts))


def measure(
    size: plan.Size,
    sections: tuple[str, ...],
    names: tuple[str, ...],
    folder: Path,
    rounds: int | None,
    console: Console,
) -> dict[str, Any]:
    """Run the sections; the JSON-able result with environment, command, samples and targets."""
    if rounds:
        size = dataclasses.replace(size, rounds=rounds, flood_rounds=rounds)
    started = time.monotonic()
    samples: list[plan.Sample] = []
    notes: list[str] = []
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
        made = plan.Bench(size, disk, contestants, ceiling)
        for name in sections or plan.SECTIONS:
            began = time.monotonic()
            try:
                samples.extend(plan.SECTIONS[name](made))
            except (Unavailable, OSError) as error:
                notes.append(f"{name} was cut short: {error}")
            seconds[name] = round(time.monotonic() - began, 1)
            console.print(f"[dim]{name}: {seconds[name]:.0f} s[/]")
        notes += made.notes + [gap for contestant in contestants for gap in contestant.gaps]
    return {
        "command": _command(),
        "environment": here | {"disk": disk.kind},
        "wall_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.monotonic() - started, 1),
        "section_seconds": seconds,
        "notes": list(dict.fromkeys(notes)),
        "targets": [target._asdict() | {"ratio": list(target.ratio)} for target in targets(samples)],
        "samples": [list(sample) for sample in samples],
    }


@bench.command(name="compare")
@click.option("--dir", "folder", type=FOLDER, default="/tmp", show_default=True, help="folder on the device to measure")
@click.option("--against", help="a commit; default: the one whose table was kept last in tests/tiering/baselines")
@click.option(
    "--slower",
    type=Number(float, 1.0, 1000.0),
    default=1.0,
    show_default=True,
    help="make the tier take so many times longer, to be found",
)
@click.option(
    "--metric", "metrics", multiple=True, type=click.Choice(list(commit_comparison.METRICS)), help="only these"
)
@click.option(
    "--trials",
    type=Number(int, 1, 10_000),
    default=1,
    show_default=True,
    help="so many runs, and how many of them raised an alarm",
)
def compare_command(folder: str, against: str | None, slower: float, metrics: tuple[str, ...], trials: int) -> None:
    """Is this checkout's tier slower than that of an earlier commit? Exit code 0 no, 1 yes, 2 inconclusive."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_COLUMNS)
    chosen = {name: commit_comparison.METRICS[name] for name in metrics or commit_comparison.METRICS}
    with contextlib.ExitStack() as stack:
        try:
            frozen = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-frozen-")))
            commit = freeze(against or default_commit(BASELINES), frozen)
        except Unavailable as error:
            console.print(f"inconclusive: {error}", soft_wrap=True)
            sys.exit(2)
        try:
            disk = stack.enter_context(own_disk(Path(folder), COMPARE_DISK_BYTES))
        except Unavailable:
            disk = stack.enter_context(plain_folder(Path(folder)))
        console.print(f"against {commit}, on {disk.kind}")
        alarms, unknown = 0, 0
        for trial in range(trials):
            comparison = commit_comparison.Comparison(frozen, disk, chosen, slower)
            judged = comparison.run()
            for one in judged:
                shown = f"{one.change:+.1%} ({one.low:+.1%} .. {one.high:+.1%})"
                outcome = "inconclusive" if one.outcome == "unknown" else one.outcome
                console.print(f"{trial + 1:2} {one.metric:7} {outcome:12} {shown} {one.reason}", soft_wrap=True)
            for gap in dict.fromkeys(comparison.gaps):
                click.echo(gap, err=True)
            outcomes = {one.outcome for one in judged}
            alarms += "slower" in outcomes
            unknown += "slower" not in outcomes and "unknown" in outcomes
        if trials > 1:
            console.print(f"{alarms} alarms, {unknown} inconclusive in {trials} runs, slowed {slower:g} times")
    sys.exit(1 if alarms else 2 if unknown else 0)


@bench.command(name="eviction")
@click.option(
    "--files",
    type=Number(int, 1, 10**8),
    default=100_000,
    show_default=True,
    help="of the root; 1,000,000 take 3 GB and minutes to make",
)
@click.option(
    "--dir", "folder", type=FOLDER, default="/tmp", show_default=True, help="where the root is made, and removed"
)
@click.option("--seconds", type=SECONDS, default=600.0, show_default=True, help="the pass is cut short after so long")
@click.option("--seed", type=SEED, default=0, show_default=True, help="of ages and loads")
@click.option("--out", type=PATH, help="write the JSON here")
def eviction_command(files: int, folder: str, seconds: float, seed: int, out: str | None) -> None:
    """Measure what a pass of eviction over very many files costs loads at the same time."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-eviction-") as root_dir:
        found = eviction.measure(Path(root_dir), files, seconds, seed)
        result = {"command": _command(), "environment": environment.describe(Path(root_dir)), **found}
    if out:
        Path(out).write_text(json.dumps(result) + "\n")
    ratio, p99 = found["p99_ratio"], found["p99_seconds"]
    shown = f"{ratio.value:.3f} ({ratio.low:.3f} .. {ratio.high:.3f})" if ratio else "inconclusive"
    click.echo(f"p99 of a load with a pass {p99['with'] * 1e3:.2f} ms, without {p99['without'] * 1e3:.2f} ms: {shown}")
    click.echo(
        f"{files + eviction.LOADED_BLOCKS - found['left']:,} of {files:,} files went in {found['seconds']:.0f} s, "
        f"{'to the end' if found['finished'] else 'cut short'}; {found['left_when_killed'] or 0:,} were left when an "
        f"evictor was killed; {found['left_but_older_than_the_cutoff']:,} older ones stayed; "
        f"the evictor took {found['evictor_rss_bytes'] / (1 << 20):.0f} MiB"
    )


@bench.command()
@click.option("--out", "folder", default="docs", show_default=True, help="folder of benchmarks.md")
def plots(folder: str) -> None:
    """Write docs/benchmarks.md and its plots from the results that are kept."""
    results = {path.stem: json.loads(path.read_text()) for path in BASELINES.glob("*.json")}
    click.echo(write_docs(results, Path(folder)))


def _keep(here: dict[str, Any], **parts: Any) -> Path:
    """Lay `parts` over what the machine class's file holds; a sample a line, so that a change can be read."""
    path = BASELINES / f"{machine_class(here)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps(kept | parts, indent=1)
    path.write_text(re.sub(r"\[\s+((?:[^\[\]{}\n]+\n\s*)+)\]", _one_line, text) + "\n")
    return path


def _one_line(match: re.Match[str]) -> str:
    return "[" + " ".join(match[1].split()) + "]"


def _small_parts(path: Path) -> dict[str, Any]:
    """pytest-benchmark's medians and quartiles, without what is the same for all."""
    found = json.loads(path.read_text())["benchmarks"]
    stats = {one["name"]: {name: one["stats"][name] for name in ("median", "iqr", "rounds")} for one in found}
    return {"small": {"unit": "seconds", "parts": stats}}


def machine_class(here: dict[str, Any]) -> str:
    """A name for machines whose ratios may be compared: processor, how many of them, file system, Python."""
    python = ".".join(here["python"].split(".")[:2])
    words = f"{here['cpu_model'] or 'cpu'} {here['cpus_usable']}cpu {here['root']['file_system']} py{python}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


def _command() -> str:
    """How to do it again; places are this machine's own affair."""
    words, given = [HARNESS.program], iter(sys.argv[1:])
    for word in given:
        if word in ("--dir", "--out", "--small"):
            next(given, None)
        else:
            words.append(word)
    return shlex.join(words)


def _disk(stack: contextlib.ExitStack, folder: Path, size: plan.Size, notes: list[str]) -> tuple[Disk, Path]:
    """A disk for tiers, and a folder for the ceiling's file that is of the same kind."""
    try:
        disk = stack.enter_context(own_disk(folder, size.disk_bytes))
        ceiling = stack.enter_context(own_disk(folder, size.volume_bytes + (512 << 20)))
        return disk, ceiling.path
    except Unavailable as error:
        notes.append(f"no disk of its own: {error}")
        return stack.enter_context(plain_folder(folder)), stack.enter_context(plain_folder(folder)).path
