"""What watching costs: the same load run with metrics and traces and without, in turn, as fast as it goes.

`python -m harness.overhead`. Blocks should lie in memory (`--root-dir /dev/shm/...`), where nothing hides the cost; the
watched runs are scraped once a second, as a server would. It says a ratio with its spread and judges nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
import tempfile
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console

from harness.history import History
from harness.run import run
from harness.scenarios.load import SCENARIO, LoadOptions

RESAMPLES = 4000
SCRAPE_SECONDS = 1.0


class Rates(NamedTuple):
    """Of one run: blocks stored and loaded a second, and blocks per second of processor time, which a machine that is
    busy with other things disturbs less."""

    by_wall: float
    by_cpu: float


class Spread(NamedTuple):
    """The geometric mean of ratios, and its 95 % interval by the bootstrap."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} (95 %: {self.low:.3f} to {self.high:.3f})"


def spread(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Spread:
    """Of pairs (watched, unwatched) of rates: 0.97 means 3 % fewer blocks. At least one pair."""
    logs = [math.log(watched / unwatched) for watched, unwatched in pairs]
    rng = random.Random(seed)
    means = sorted(statistics.fmean(rng.choices(logs, k=len(logs))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return Spread(math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high))


class _Scraper:
    """Asks every process of the run that it is told of once a second, and throws the answers away."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def on_start(self, options: object, run_dir: Path, traffic: str) -> None:
        self._path = run_dir / "file_sd.json"

    def _run(self) -> None:
        while not self._stop.wait(SCRAPE_SECONDS):
            with suppress(OSError, ValueError):
                for group in json.loads(self._path.read_text()) if self._path else ():
                    with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=5) as answer:
                        answer.read()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def rates(options: LoadOptions, runs_dir: Path, scraper: _Scraper) -> Rates:
    """Make one run. Its time is that from the first request's start to the last one's end."""
    results = run(SCENARIO, options, runs_dir, scraper.on_start)
    if results.verdict == "false":
        findings = [finding for verdict in results.verdicts for finding in verdict["findings"]]
        raise click.ClickException(f"a run was judged false, so its rate says nothing: {'; '.join(findings[:3])}")
    history = History.read(Path(results.run_dir))
    started = min(request.started_seconds for request in history.requests)
    ended = max(request.finished_seconds for request in history.requests)
    cpu: dict[int, list[float]] = defaultdict(list)
    for gauge in history.gauges:
        if started <= gauge.monotonic_seconds <= ended:
            cpu[gauge.process].append(gauge.values["cpu_seconds"])
    blocks = sum(len(job.ok) for job in history.jobs)
    return Rates(blocks / (ended - started), blocks / sum(values[-1] - values[0] for values in cpu.values()))


@click.command()
@click.option("--pairs", default=8, show_default=True, help="runs of each kind")
@click.option("--processes", default=2, show_default=True, help="worker processes")
@click.option("--requests", default=400, show_default=True, help="requests of a run")
@click.option("--block-bytes", default=256 << 10, show_default=True, help="size of a block")
@click.option("--root-dir", default=None, help="folder for the blocks (default: the run's)")
@click.option("--trace-every", default=10, show_default=True, help="every n-th request leaves spans")
def main(pairs: int, processes: int, requests: int, block_bytes: int, root_dir: str | None, trace_every: int) -> None:
    """Measure the cost of metrics and tracing together."""
    console = Console(highlight=False)
    watched = LoadOptions(
        processes=processes,
        requests=requests,
        block_bytes=block_bytes,
        root_dir=root_dir,
        trace_every=trace_every,
        seconds=0.0,
        speed=0.0,
    )
    unwatched = dataclasses.replace(watched, unobserved=True)
    measured: list[tuple[Rates, Rates]] = []
    scraper = _Scraper()
    with tempfile.TemporaryDirectory(prefix="kvtier-overhead-") as folder:
        for number in range(pairs + 1):
            order = (watched, unwatched) if number % 2 else (unwatched, watched)
            found = {options.unobserved: rates(options, Path(folder), scraper) for options in order}
            on, off = found[False], found[True]
            console.print(
                f"{on.by_wall:6.0f} and {off.by_wall:6.0f} blocks/s, {on.by_cpu:6.0f} and {off.by_cpu:6.0f} by CPU"
                + (" (warming up, not counted)" if number == 0 else "")
            )
            measured += [(on, off)] if number else []
    scraper.close()
    console.print(
        f"watched / unwatched, {pairs} pairs of {processes} processes, blocks of {block_bytes >> 10} KiB, "
        f"every {trace_every}th request traced:\n"
        f"  blocks per second              {spread([(on.by_wall, off.by_wall) for on, off in measured])}\n"
        f"  blocks per processor second    {spread([(on.by_cpu, off.by_cpu) for on, off in measured])}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
