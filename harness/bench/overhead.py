"""Overhead of metrics and tracing: a load run at full speed, observed in every other window of time.

The command `overhead` calls it. Blocks should be in memory (`--root-dir /dev/shm/...`), where no device hides the
overhead. Every process is scraped once in each observed window. A window is compared with the mean of its two
neighbours, which cancels other load on the machine; and by work, not by blocks, since a stored block costs more than a
loaded one. That ratio includes every effect and is noisy. The second figure, the thread clocks' time spent on
observation, is precise but excludes effects on caches and locks. No verdict follows from either.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console

from harness.commands.click_types import PATH, SIZE, Number
from harness.core.statistics import Interval, bootstrap
from harness.runner import run
from harness.scenarios.load import SCENARIO, LoadOptions

WINDOW_SECONDS = 1.0
"""Of which each watched one has a scrape. Long beside a job, of whose time a part may lie in the window before; short
beside what else a machine does."""


class Window(NamedTuple):
    """What `harness.adapters.kvtier_watch.Windows` wrote of one window of one process."""

    watched: bool
    seconds: float
    cpu_seconds: float
    spent_seconds: float  # of these on watching, by the clocks of its threads
    stored: int
    loaded: int


def spread(logs: Sequence[float]) -> Interval:
    """The geometric mean of ratios of rates, observed / not observed, from their logarithms: 0.97 means 3 % less."""
    return Interval(*(math.exp(end) for end in bootstrap(logs, statistics.fmean)))


def spent(windows: Sequence[Window]) -> float:
    """The share of the processor time of observed windows that metrics and tracing took; spans may leave later."""
    return sum(w.spent_seconds for w in windows) / sum(w.cpu_seconds for w in windows if w.watched)


def prices(windows: Sequence[Window]) -> tuple[float, float]:
    """Processor seconds of a stored and of a loaded block, by least squares over the unwatched windows."""
    rows = [(w.stored, w.loaded, w.cpu_seconds) for w in windows if not w.watched]
    ss, sl, ll = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    sc, lc = (sum(row[i] * row[2] for row in rows) for i in (0, 1))
    if (determinant := ss * ll - sl * sl) <= 0:  # all windows moved the same mixture: blocks are blocks
        return 1.0, 1.0
    stored, loaded = (sc * ll - lc * sl) / determinant, (lc * ss - sc * sl) / determinant
    return max(stored, 0.0), max(loaded, 0.0)


def contrasts(windows: Sequence[Window], price: tuple[float, float]) -> list[tuple[float, float]]:
    """Of each watched window between two unwatched ones: ln of its work a second, and of its work a processor second,
    over the mean of its neighbours'. Windows in which the process began, ended or did nothing do not count.
    """
    found = []
    for before, here, after in zip(windows[1:-1], windows[2:-1], windows[3:-1], strict=False):
        three = (before, here, after)
        work = [price[0] * w.stored + price[1] * w.loaded for w in three]
        if (before.watched, here.watched, after.watched) == (False, True, False) and all(work):
            by_wall = [math.log(done / w.seconds) for w, done in zip(three, work, strict=True)]
            by_cpu = [math.log(done / w.cpu_seconds) for w, done in zip(three, work, strict=True)]
            found.append((by_wall[1] - (by_wall[0] + by_wall[2]) / 2, by_cpu[1] - (by_cpu[0] + by_cpu[2]) / 2))
    return found


class _Scraper:
    """Scrapes every process of the run once in each watched window, and drops the answers."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def on_start(self, options: object, run_dir: Path, traffic: str) -> None:
        self._path = run_dir / "file_sd.json"

    def _run(self) -> None:
        period = 2 * WINDOW_SECONDS  # a quarter into each watched window, which are the even ones
        while not self._stop.wait(period - (time.monotonic() - WINDOW_SECONDS / 4) % period):
            with suppress(OSError, ValueError):
                for group in json.loads(self._path.read_text()) if self._path else ():
                    with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=5) as answer:
                        answer.read()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def measure(options: LoadOptions, runs_dir: Path, scraper: _Scraper) -> list[list[Window]]:
    """Make one run; the windows of each of its processes."""
    results = run(SCENARIO, options, runs_dir, scraper.on_start)
    if results.verdict == "false":
        findings = [finding for verdict in results.verdicts for finding in verdict["findings"]]
        raise click.ClickException(f"a run failed, so its rate means nothing: {'; '.join(findings[:3])}")
    files = Path(results.run_dir).glob("windows-*.json")
    return [[Window(*row) for row in json.loads(file.read_text())] for file in files]


def _shown(ratio: Interval) -> str:
    return f"{ratio.value:.3f} (95 %: {ratio.low:.3f} to {ratio.high:.3f})"


@click.command()
@click.option("--runs", type=Number(int, 1, 1000), default=10, show_default=True, help="load runs")
@click.option("--processes", default=2, show_default=True, help="worker processes")
@click.option("--requests", default=5000, show_default=True, help="requests of a run")
@click.option("--block-bytes", type=SIZE, default=256 << 10, show_default=True, help="size of a block")
@click.option("--root-dir", type=PATH, default=None, help="folder for the blocks (default: the run's)")
@click.option("--trace-every", default=20, show_default=True, help="every n-th request leaves spans")
@click.option(
    "--seed", type=Number(int, 0, 1 << 31), default=0, show_default=True, help="the first run's; the next has the next"
)
def main(
    runs: int, processes: int, requests: int, block_bytes: int, root_dir: str | None, trace_every: int, seed: int
) -> None:
    """Measure the cost of metrics and tracing together."""
    console = Console(highlight=False)
    measured: list[list[Window]] = []
    scraper = _Scraper()
    with tempfile.TemporaryDirectory(prefix="kvtier-overhead-") as folder:
        for number in range(runs):
            options = LoadOptions(
                processes=processes,
                requests=requests,
                block_bytes=block_bytes,
                root_dir=root_dir,
                trace_every=trace_every,
                watch_windows=WINDOW_SECONDS,
                seconds=0.0,
                speed=0.0,
                seed=seed + number,
            )
            measured += measure(options, Path(folder), scraper)
            flat = [window for process in measured for window in process]
            price = prices(flat)
            found = [one for process in measured for one in contrasts(process, price)]
            if not found:
                raise click.ClickException("a run was too short for three windows; more --requests are needed")
            by_wall, by_cpu = (spread([pair[i] for pair in found]) for i in (0, 1))
            shown = f"{_shown(by_wall)} and {_shown(by_cpu)}, {spent(flat):.2%}"
            console.print(f"run {number + 1} of {runs}: {len(found)} windows, {shown}", soft_wrap=True)
    scraper.close()
    console.print(
        f"observed / not observed, {len(found)} windows of {WINDOW_SECONDS} s of {processes} processes, blocks of "
        f"{block_bytes >> 10} KiB, every {trace_every}th request traced:\n"
        f"  work per second              {_shown(by_wall)}\n"
        f"  work per processor second    {_shown(by_cpu)}\n"
        f"  metrics and tracing          {spent(flat):.2%} of the processor time\n"
        f"  (a stored block costs {price[0] * 1e6:.0f} processor us, a loaded one {price[1] * 1e6:.0f})",
        soft_wrap=True,
    )
