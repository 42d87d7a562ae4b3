"""Whether memory, descriptors, threads or queues grow in a long run, and the tier's counters agree with the history.

Growth, for each process and quantity (memory, descriptors, threads, each queue, and references to None that compiled
code released without having taken them, which ends a Python before 3.12): after a warm-up of `WARM_UP` of the run the
samples are divided by time into up to `BINS_MAX` bins. A finding needs both a significant trend of the bins' medians
(Mann and Kendall, `SIGMAS` standard deviations) and a rise above `LEAST` (Theil and Sen's slope over the time judged).

Agreement: the tier's counters at its end ("stored", "loaded", "failed ...") equal the sums over its jobs. Each block
that was stored and not removed is a file, and each block file was stored by a process. Nothing is in quarantine. A load
fails only for a block that was removed, at most once for each removal and request in flight.

Not covered: growth below the noise, growth outside the processes other than files, what `results` judges.

unknown: too few samples for any process, or a process that was killed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from statistics import median
from typing import Any

from harness.checkers.base import Findings, Lives, Rule, Value, Verdict, is_quarantined, some
from harness.core import notes
from harness.core.history import History

WARM_UP = 1 / 3
BINS_MAX = 24
BINS_MIN = 12  # fewer could not show a trend beyond `SIGMAS`, however steady
SIGMAS = 3.7
LEAST: dict[str, tuple[float, float]] = {
    "rss_bytes": (4 << 20, 0.03),
    "fds": (2, 0.0),
    "threads": (2, 0.0),
    "none_references_lost": (50, 0.0),
    "load_queue": (8, 0.0),
    "store_queue": (8, 0.0),
}
"""The least rise that counts: so much, and such a share of the median."""
BROUGHT_BY_SOME = frozenset({"none_references_lost"})
"""Gauges that only adapters of tiers with compiled code bring."""

GROWTH = Rule(
    "soak/growth",
    "Memory, descriptors, threads and queues of a process do not grow while the traffic stays the same.",
    f"rises below a threshold for each quantity ({', '.join(LEAST)}), and below {SIGMAS} standard deviations of a "
    "trend test",
)
FILES = Rule("soak/files", "At the end the block files are those of the blocks that were stored and not removed.")
COUNTS = Rule("soak/counts", "The blocks that a tier counts as stored, loaded and failed are those of its results.")
LOADS = Rule(
    "soak/loads",
    "A load fails only for a block whose file was removed.",
    "`window` loads (requests in flight) of each process for each removal of the block's file",
)
RULES = (GROWTH, FILES, COUNTS, LOADS)


def check(history: History) -> Verdict:
    """Judges `gauges`, `jobs`, `names`, `files`, `stops`, `notes` "removed" and "counts", and the option `window`."""
    findings = Findings(RULES)
    growth: dict[str, dict[str, Any]] = {}
    for life in Lives(history).all():
        if not life.ended_well:
            findings.doubt(f"process {life.process} did not end in good order")
        samples = sorted((g for g in history.gauges if g.process == life.process), key=lambda g: g.monotonic_seconds)
        samples = samples[:-1]  # the last is taken when the tier is closed
        rows = growth[str(life.process)] = {}
        for name in LEAST:
            points = [(g.monotonic_seconds, g.values[name]) for g in samples if name in g.values]
            if not points and name in BROUGHT_BY_SOME:
                continue
            if (trend := _trend(points)) is None:
                findings.doubt(f"process {life.process}: {len(points)} samples of {name} are too few")
                continue
            level, rise, sigmas, seconds = trend
            rows[name] = {"median": level, "rise": rise, "sigmas": sigmas, "seconds": seconds}
            least, share = LEAST[name]
            if sigmas > SIGMAS and rise > max(least, share * level):
                findings.add(
                    f"process {life.process}: {name} rises by {rise:,.0f} in {seconds:.0f} s (median {level:,.0f}; as "
                    f"steadily as chance does not, {sigmas:.1f} standard deviations)",
                    rule=GROWTH,
                    seconds=points[-1][0],
                    process=life.process,
                    expected=f"{max(least, share * level):,.0f} at most",
                    seen=f"{rise:,.0f}",
                )
    agreement = _agreement(history, findings)
    judged = sum(map(len, growth.values()))
    if not judged and not findings.doubts:
        findings.doubt("no process was sampled")
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    worst = max((row["rise"] for rows in growth.values() for n, row in rows.items() if n == "rss_bytes"), default=0.0)
    figure = (
        f"{judged} quantities of {len(growth)} processes watched, memory's largest trend {worst / (1 << 20):+.2f} MiB; "
        f"{agreement['jobs']} jobs, {agreement['removed']} files removed, {agreement['files']} block files at the end; "
        f"counters {agreement['counters']}; {findings.count} findings"
    )
    return Verdict("soak", value, figure, findings.list(), {"growth": growth, "agreement": agreement})


def _trend(points: list[tuple[float, float]]) -> tuple[float, float, float, float] | None:
    """Median, rise over the time judged, standard deviations of Mann and Kendall's statistic, seconds judged."""
    if not points:
        return None
    points.sort()
    first, last = points[0][0], points[-1][0]
    begin = first + WARM_UP * (last - first)
    judged = [p for p in points if p[0] >= begin]
    bins = min(BINS_MAX, len(judged))
    if bins < BINS_MIN:
        return None
    cuts = [round(i * len(judged) / bins) for i in range(bins + 1)]
    parts = [judged[a:b] for a, b in pairwise(cuts)]
    medians = [(median(t for t, _ in part), median(v for _, v in part)) for part in parts]
    pairs = list(combinations(medians, 2))
    score = sum((b[1] > a[1]) - (b[1] < a[1]) for a, b in pairs)
    variance = bins * (bins - 1) * (2 * bins + 5) / 18
    slope = median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)
    seconds = last - begin
    return median(v for _, v in judged), slope * seconds, score / math.sqrt(variance), seconds


def _agreement(history: History, findings: Findings) -> dict[str, Any]:
    counters = _counters(history, findings)
    removed: dict[int, list[float]] = defaultdict(list)  # block -> when it was gone at the latest
    for note in history.notes:
        if note.is_a(notes.Removed):
            removed[note.detail["block"]].append(note.monotonic_seconds)
    _judge_failures(history, removed, findings)
    name_of = {n.block: n.name for n in history.names}
    block_of = {name: block for block, name in name_of.items()}
    files = set(history.files)
    stored: dict[int, float] = {}  # when the latest store that succeeded was submitted
    tried: set[int] = set()
    for job in history.jobs:
        if job.direction == "store":
            tried.update(job.blocks)
            for block in set(job.ok).difference(job.in_memory):
                stored[block] = max(job.submitted_seconds, stored.get(block, -math.inf))
    if name_of:
        gone = [
            b
            for b, at in stored.items()
            if b in name_of and name_of[b] not in files and not any(t >= at for t in removed[b])
        ]
        if gone:
            text = f"blocks {some(sorted(gone))} were stored, never removed since, and are no files at the end"
            findings.add(text, rule=FILES, seconds=stored[min(gone)], block=min(gone), file=name_of[min(gone)])
        unasked = [n for n in files & block_of.keys() if block_of[n] not in tried]
        if unasked:
            findings.add(f"{some(sorted(unasked))} are block files that nobody stored", rule=FILES, file=min(unasked))
    if quarantined := sorted(filter(is_quarantined, files)):
        findings.add(
            f"{some(quarantined)} were quarantined, and nothing had damaged them", rule=FILES, file=quarantined[0]
        )
    return {
        "jobs": len(history.jobs),
        "removed": sum(map(len, removed.values())),
        "files": len(files & block_of.keys()),
        "counters": counters,
    }


def _counters(history: History, findings: Findings) -> str:
    """Compares what each process's tier counted with its jobs; in words."""
    above = {s.process for s in history.starts if s.detail.get("keeps_in_memory")}
    counted = {n.process: n.detail["counts"] for n in history.notes if n.is_a(notes.Counts) and n.process not in above}
    for process, counts in counted.items():
        sums: Counter[str] = Counter()
        for job in (j for j in history.jobs if j.process == process and j.results):
            sums["stored" if job.direction == "store" else "loaded"] += len(job.ok)
            sums["failed"] += len(job.failed)
        tier = Counter({n: counts.get(n, 0) for n in ("stored", "loaded")})
        tier["failed"] = sum(v for n, v in counts.items() if n.startswith("failed "))
        for name in ("stored", "loaded", "failed"):
            if tier[name] != sums[name]:
                findings.add(
                    f"process {process}: the tier counted {tier[name]} blocks {name}, its jobs say {sums[name]}",
                    rule=COUNTS,
                    process=process,
                    expected=f"{sums[name]}",
                    seen=f"{tier[name]}",
                )
    if above:
        return "are of the files, below a memory tier that serves the jobs: compared by the tier's own findings alone"
    return f"of {len(counted)} processes compared" if counted else "not shown by the tier"


def _judge_failures(history: History, removed: dict[int, list[float]], findings: Findings) -> None:
    window = int(history.options.get("window") or 1)
    failed: Counter[tuple[int, int]] = Counter()
    for job in history.jobs:
        if job.direction == "load":
            failed.update((job.process, block) for block in job.failed)
    for (process, block), count in failed.items():
        if count > window * len(removed[block]):
            findings.add(
                f"process {process}: {count} loads of block {block} failed, which was removed {len(removed[block])} "
                "times",
                rule=LOADS,
                process=process,
                block=block,
            )
