"""The tier of this checkout against the tier of an earlier commit, timed in the same seconds: did it become slower?

Each metric is measured in chunks. A chunk is two fresh processes, one with the package of today and one with that of
the commit, that take turns; its value is the median of ln(seconds of today / seconds of then), turn by turn. The run's
value is the median of its chunks, with a bootstrap interval: "ok", "slower" (an alarm), "faster", or "unknown" when
the chunks disagree so much that a change of `THRESHOLD` could be chance. Both run at the same time, so that load on
the machine affects both.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from harness.bench.compared_tiers import Contestant
from harness.bench.disk import Disk
from harness.core.statistics import bootstrap

THRESHOLD = 0.07
"""ln of the slowdown that raises an alarm: half of what must be found."""
HALF_WIDTH_MAX = 0.06
"""Of the interval: with a wider one `THRESHOLD` is too near to chance, on either side of it."""
CHUNKS = 12
CHUNKS_MORE = 24
"""A metric that may be slower by `THRESHOLD`, or is unclear, goes on once, to this many chunks."""
CHUNKS_MIN = 5

Outcome = Literal["ok", "slower", "faster", "unknown"]


class Metric(NamedTuple):
    """What is timed: one job of `blocks` blocks (store, load), or one lookup of `blocks` keys that are not there."""

    name: str
    block_bytes: int
    blocks: int
    turns: int


METRICS = {
    metric.name: metric
    for metric in (Metric("store", 65536, 32, 40), Metric("load", 65536, 32, 40), Metric("lookup", 65536, 512, 40))
}


class Judgement(NamedTuple):
    """`change` is relative (0.15: takes 15 % longer than then), 95 % sure to be between `low` and `high`."""

    metric: str
    outcome: Outcome
    change: float
    low: float
    high: float
    reason: str


def judge(metric: str, values: Sequence[float]) -> Judgement:
    """`values`: ln of the ratio, chunk by chunk."""
    if len(values) < CHUNKS_MIN:
        why = f"there are {len(values)} figures, fewer than {CHUNKS_MIN}"
        return Judgement(metric, "unknown", math.nan, math.nan, math.nan, why)
    change, low, high = bootstrap(values)
    outcome: Outcome = "slower" if change > THRESHOLD else "faster" if change < -THRESHOLD else "ok"
    reason = ""
    half_width = (high - low) / 2
    if half_width > HALF_WIDTH_MAX and low <= THRESHOLD and high >= -THRESHOLD:
        outcome = "unknown"
        reason = (
            f"half of the interval is {half_width:.1%} wide, more than {HALF_WIDTH_MAX:.1%}: the run's "
            f"{len(values)} chunks differ too much; load average {os.getloadavg()[0]:.1f}"
        )
    return Judgement(metric, outcome, math.expm1(change), math.expm1(low), math.expm1(high), reason)


class Comparison:
    """`frozen` is a folder that holds the package of then; `slower` makes the tier of today take so many times longer,
    to test that the slowdown is detected. `gaps` has the reason for each missing figure."""

    def __init__(self, frozen: Path, disk: Disk, metrics: Mapping[str, Metric], slower: float = 1.0) -> None:
        self.gaps: list[str] = []
        self._frozen = frozen
        self._disk = disk
        self._metrics = metrics
        self._slower = slower

    def run(self) -> list[Judgement]:
        """Measure and judge; what is unclear or may be an alarm is measured once more, and judged by all its chunks."""
        values = self.chunks(list(self._metrics), CHUNKS)
        judged = {name: judge(name, values[name]) for name in self._metrics}
        unclear = [n for n, one in judged.items() if one.outcome == "unknown" or math.log1p(one.high) > THRESHOLD]
        for name, more in self.chunks(unclear, CHUNKS_MORE - CHUNKS).items():
            judged[name] = judge(name, values[name] + more)
        return list(judged.values())

    def chunks(self, names: Sequence[str], count: int) -> dict[str, list[float]]:
        """`count` values of each metric, in turn; fewer where some could not be had."""
        found: dict[str, list[float]] = {name: [] for name in names}
        for number in range(count if names else 0):
            with ThreadPoolExecutor(2) as pool:
                today, then = pool.map(lambda package: Contestant("kvtier", package=package), (None, self._frozen))
                try:
                    for name in names if not (today.missing or then.missing) else ():
                        if times := self._measure(pool, [today, then], self._metrics[name], number % 2):
                            found[name].append(median(math.log(a / b) for a, b in zip(*times, strict=True)))
                finally:
                    for contestant, which in ((today, "this checkout"), (then, "the commit")):
                        contestant.close()
                        why = [contestant.missing] if contestant.missing else contestant.gaps
                        self.gaps += [f"the tier of {which}: {gap}" for gap in why]
        return found

    def _measure(
        self, pool: ThreadPoolExecutor, sides: Sequence[Contestant], metric: Metric, first: int
    ) -> list[list[float]] | None:
        """Seconds of each turn of both sides, or None. They pass the turn to each other through two pipes."""
        work = self._disk.path / f"compare-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        pipes = [str(work / f"turn-{i}") for i in range(2)]
        work.mkdir(mode=0o700)
        for pipe in pipes:
            os.mkfifo(pipe, 0o600)

        def measure(i: int) -> list[dict[str, Any]]:
            root = work / f"root-{i}"
            root.mkdir(mode=0o700)
            arguments = {
                "label": "compare",
                "what": metric.name,
                "blocks": metric.blocks,
                "turns": metric.turns,
                "my_turn": pipes[i],
                "your_turn": pipes[1 - i],
                "begins": i == first,
                "slower": 1.0 if i else self._slower,
            }
            return sides[i].measure(
                "turns", root, arguments=arguments, block_bytes=metric.block_bytes, slots=2 * metric.blocks
            )

        results = list(pool.map(measure, range(2)))
        shutil.rmtree(work)
        return [result[0]["seconds"] for result in results] if all(results) else None
