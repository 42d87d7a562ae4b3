"""A run against a baseline, by ratios to the frozen yardstick that was timed in the same seconds: did it become slower?

A run measures each metric in chunks, each a process of its own in which tier and yardstick take turns; a chunk's value
is the median of ln(tier seconds / yardstick seconds), turn by turn. The metrics' chunks take turns too, so that a
neighbour's busy minute is not one metric's alone. The run's value is the median of its chunks, with a bootstrap
standard error. A baseline is several runs. Against it a run is "ok", "slower" (an alarm), "faster", or
"unknown" when chunks or runs disagree so much that a change of `THRESHOLD` could be chance.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from statistics import median, stdev
from typing import Any, Literal, NamedTuple

from harness.bench.contest import Contestant
from harness.bench.disk import Disk
from harness.bench.yardstick import VERSION

THRESHOLD = 0.06
"""ln of the slowdown that raises an alarm."""
ERROR_MAX = 0.034
"""Of the difference between run and baseline, one standard error: with more, `THRESHOLD` is too near to chance. At
this, 4 % of unchanged runs lie beyond it, and 1 % of those that are slower by 15 % lie below."""
CHUNKS = 12
CHUNKS_MORE = 24
"""A run that may be slower by `THRESHOLD`, or is unclear, goes on once, to this many chunks; so long are a baseline's
runs."""

Outcome = Literal["ok", "slower", "faster", "unknown"]


class Metric(NamedTuple):
    """What is timed: one job of `blocks` blocks (store, load), or one lookup of `blocks` keys that are not there."""

    name: str
    block_bytes: int
    blocks: int
    pairs: int


METRICS = {
    metric.name: metric
    for metric in (Metric("store", 65536, 32, 40), Metric("load", 65536, 32, 40), Metric("lookup", 65536, 512, 80))
}


class Judgement(NamedTuple):
    """`change` is relative (0.15: takes 15 % longer than the baseline), 95 % sure to be between `low` and `high`."""

    metric: str
    outcome: Outcome
    change: float
    low: float
    high: float
    reason: str


def chunk(tier: Contestant, disk: Disk, metric: Metric, slower: float = 1.0) -> float | None:
    """One value of one fresh process; None, with the reason in `tier.gaps`, when there is none."""
    work = disk.path / f"compare-{os.getpid()}"
    for name in ("tier", "yardstick"):
        (work / name).mkdir(parents=True, mode=0o700)
    arguments = {
        "label": "compare",
        "what": metric.name,
        "folder": str(work / "yardstick"),
        "pairs": metric.pairs,
        "blocks": metric.blocks,
        "slower": slower,
    }
    results = tier.measure(
        "paired", work / "tier", arguments=arguments, block_bytes=metric.block_bytes, slots=2 * metric.blocks
    )
    shutil.rmtree(work)
    if not results:
        return None
    times = results[0]
    return median(math.log(ours / its) for ours, its in zip(times["tier"], times["yardstick"], strict=True))


def chunks(
    tier: Contestant, disk: Disk, metrics: Sequence[str], count: int, slower: float = 1.0
) -> dict[str, list[float]]:
    """`count` chunks of each metric, in turn; fewer where some had no value."""
    found: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(count):
        for name in metrics:
            if (value := chunk(tier, disk, METRICS[name], slower)) is not None:
                found[name].append(value)
    return found


def standard_error(values: Sequence[float], seed: int = 0) -> float:
    """Of the median of `values`, by bootstrap; infinite for fewer than three."""
    if len(values) < 3:
        return math.inf
    draw = random.Random(seed)
    return stdev(median(draw.choices(values, k=len(values))) for _ in range(400))


def judge(metric: str, values: Sequence[float], baseline: Sequence[Sequence[float]]) -> Judgement:
    """`values`: chunks of the run; `baseline`: chunks of each of its runs."""
    if len(values) < 3 or len(baseline) < 2:
        return Judgement(metric, "unknown", math.nan, math.nan, math.nan, "there are too few figures")
    runs = [median(run) for run in baseline]
    change = median(values) - median(runs)
    # How much the baseline's runs differ holds the scatter of their chunks and more: memory that lies elsewhere, other
    # neighbours. This run may be noisier than they were.
    own, theirs = standard_error(values), stdev(runs)
    error = math.hypot(max(own, theirs), theirs / math.sqrt(len(runs)))
    low, high = change - 1.96 * error, change + 1.96 * error
    reason = ""
    outcome: Outcome = "slower" if change > THRESHOLD else "faster" if change < -THRESHOLD else "ok"
    if error > ERROR_MAX and low <= THRESHOLD and high >= -THRESHOLD:
        outcome, load = "unknown", os.getloadavg()[0]
        reason = (
            f"the standard error is {error:.1%}, above {ERROR_MAX:.1%}: of this run's chunks {own:.1%}, of the "
            f"baseline's runs {theirs:.1%}; load average {load:.1f}"
        )
    return Judgement(metric, outcome, math.expm1(change), math.expm1(low), math.expm1(high), reason)


def compare(
    tier: Contestant, disk: Disk, baseline: Mapping[str, Any], metrics: Sequence[str] = (), slower: float = 1.0
) -> list[Judgement]:
    """Measure and judge; what is unclear or may be an alarm is measured once more, and judged by all its chunks."""
    runs = {name: baseline["runs"].get(name, []) for name in metrics or METRICS}
    values = chunks(tier, disk, list(runs), CHUNKS, slower)
    judged = {name: judge(name, values[name], runs[name]) for name in runs}
    unclear = [n for n, one in judged.items() if one.outcome == "unknown" or math.log1p(one.high) > THRESHOLD]
    for name, more in chunks(tier, disk, unclear, CHUNKS_MORE - CHUNKS, slower).items():
        judged[name] = judge(name, values[name] + more, runs[name])
    return list(judged.values())


def too_noisy(baseline: Mapping[str, Any]) -> list[str]:
    """Why `compare` would say "unknown" whatever it measured, in a sentence per metric."""
    scatter = {name: stdev(map(median, runs)) for name, runs in baseline["runs"].items()}
    return [
        f"the baseline's {len(baseline['runs'][name])} runs of {name} differ by {found:.1%} (standard deviation), "
        f"more than {ERROR_MAX:.1%}"
        for name, found in scatter.items()
        if found > ERROR_MAX
    ]


def measure_baseline(tier: Contestant, disk: Disk, runs: int) -> dict[str, Any]:
    """`runs` runs of all metrics, in turn."""
    measured = [chunks(tier, disk, list(METRICS), CHUNKS_MORE) for _ in range(runs)]
    found = {name: [run[name] for run in measured] for name in METRICS}
    return {"yardstick": VERSION, "metrics": {n: list(m[1:]) for n, m in METRICS.items()}, "runs": found}


def unfit(baseline: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why a baseline says nothing about this machine or this yardstick, in one sentence; None if it may be used."""
    if baseline["compare"]["yardstick"] != VERSION:
        return f"the baseline was measured with yardstick {baseline['compare']['yardstick']}, here it is {VERSION}"
    if baseline["compare"]["metrics"] != {name: list(metric[1:]) for name, metric in METRICS.items()}:
        return "the baseline measured other sizes"
    theirs = baseline["environment"]
    for name in ("python", "cpu_model", "cpus_usable", "disk"):
        mine, its = _release(name, here), _release(name, theirs)
        if mine != its:
            return f"the baseline is of another machine class: {name} {its!r}, here {mine!r}"
    return None


def _release(name: str, environment: Mapping[str, Any]) -> Any:
    value = environment.get(name)
    return ".".join(str(value).split(".")[:2]) if name == "python" else value
