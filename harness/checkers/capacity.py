"""Whether a full root keeps its limit and evicts the least recently used blocks while loads and stores continue.

Judged:
- each sample of the files' bytes, less what was stored while it was taken, against `max_bytes` and the `slack`;
- evictions of different processes, which must not overlap;
- failed loads, whose only permitted reason is an evicted file, and failed stores, which must have been refused;
- for each writer the longest time without a stored block: `GAP_SECONDS_MAX`, plus ten times the latest wake-up;
- recency: a block that a reader loads again and again may be evicted only after other blocks of at least `keeps` of the
  limit (half of it) were stored or loaded since its last use. Half, because modification times are renewed only now and
  then, and victims are chosen from samples.

Not covered: bytes (integrity), which other blocks were evicted, several hosts.

unknown: the tier keeps no limit, the run sets none, the root was not full or hardly turned over, or the readers loaded
too little.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import PurePosixPath

from harness.checkers.base import (
    Findings,
    Lives,
    Rule,
    Value,
    Verdict,
    bookkeeping,
    canary_seconds,
    is_bookkeeping,
    milliseconds,
    of_job,
    of_note,
)
from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.history import History, Job, Note

GAP_SECONDS_MAX = 5.0
FULL = 0.5
RELOADS_MIN = 3

LIMIT = Rule(
    "capacity/limit",
    "The files under the root never take more bytes than the limit.",
    "the share of the option `slack`, and what was stored while a sample was taken: a sample takes time",
)
ONE_EVICTOR = Rule("capacity/one-evictor", "No two processes evict at the same time.")
REPORTED_ONCE = Rule(
    "capacity/evictions-reported-once", "Each eviction is reported once: no more than blocks that can have gone."
)
REFUSED_ONLY = Rule(
    "capacity/refused-only",
    "At the limit stores are refused, never failed, and a load fails only because its block is gone.",
    "failures that a shortage of the machine explains (see the terms)",
)
GOES_ON = Rule(
    "capacity/goes-on",
    "Each writer continues to store, since evictions free space.",
    f"gaps of at most {GAP_SECONDS_MAX:g} s + 10 * longest wake-up delay",
)
RECENCY = Rule(
    "capacity/recency",
    "A block is evicted only after other blocks of together half the limit (`keeps`) were used since its last use.",
    "evictions after half of the limit instead of all of it: modification times are renewed now and then, and victims "
    "are chosen from samples",
)
RULES = (LIMIT, ONE_EVICTOR, REPORTED_ONCE, REFUSED_ONLY, GOES_ON, RECENCY)


_REASONS = frozenset({"failed ENOENT", "failed full", "failed refused", "failed backlog"})


def check(history: History) -> Verdict:
    """Judges `jobs`, the option values, and `notes` "sample", "evicted", "missed", "counts", "canary", "unfit"."""
    findings = Findings(RULES)
    for note in (n for n in history.notes if n.is_a(notes.Unfit)):
        findings.doubt(note.text)
    limit = float(history.options.get("max_bytes") or 0)
    if not limit:
        findings.doubt("the run sets no limit")
    if findings.doubts:
        return Verdict("capacity", "unknown", findings.doubts[0], findings.list(), {})
    stored = _Stored([job for job in history.jobs if job.direction == "store"])
    samples = [note.detail for note in history.notes if note.is_a(notes.Sample)]
    allowed = limit * (1 + float(history.options.get("slack") or 0))
    highest = 0.0
    for sample in samples:
        least = sample["bytes"] - stored.between(sample["from_seconds"], sample["to_seconds"])
        highest = max(highest, least)
        if least > allowed:
            text = f"{least:,.0f} bytes under the root, {least / limit - 1:.1%} above the limit of {limit:,.0f}"
            seen, expected = f"{least:,.0f} bytes", f"{allowed:,.0f} bytes at most"
            findings.add(text, rule=LIMIT, seconds=sample["to_seconds"], expected=expected, seen=seen)
    evictions = sorted((n for n in history.notes if n.is_a(notes.Evicted)), key=lambda n: n.detail["started_seconds"])
    _judge_overlaps(evictions, findings)
    _judge_evictions(history, evictions, findings)
    _judge_failures(history, findings)
    gap = _judge_gaps(history, findings)
    reloads = _judge_recency(history, limit, findings)
    total, evicted = stored.total, sum(n.detail["bytes"] for n in evictions)
    if highest < FULL * limit:
        findings.doubt(f"the root never held more than {highest:,.0f} bytes: its limit was not tried")
    if total < (least := float(history.options.get("turnovers") or 0) * limit) or not evicted:
        findings.doubt(f"{total:,.0f} bytes were stored and {evicted:,} evicted, {least:,.0f} and some are needed")
    if min(reloads.values(), default=0) < RELOADS_MIN:
        findings.doubt("some of the readers' blocks were not loaded again and again")
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    share = limit or 1.0
    figure = (
        f"at most {highest / share:.1%} of the limit in {len(samples)} samples, {allowed / share:.0%} allowed; stored "
        f"{total / share:.1f} times the limit, evicted {evicted >> 20} MiB in {len(evictions)} rounds of "
        f"{len({n.process for n in evictions})} processes; longest time without a store {milliseconds(gap)}; "
        f"{sum(reloads.values())} loads of {len(reloads)} blocks in use; {findings.count} findings"
    )
    data = {
        "highest_bytes": highest,
        "allowed_bytes": allowed,
        "stored_bytes": total,
        "evicted_bytes": evicted,
        "rounds_by_process": dict(Counter(str(n.process) for n in evictions)),
        "longest_gap_seconds": gap,
        "samples": [[s["to_seconds"], s["bytes"]] for s in samples],
    }
    return Verdict("capacity", value, figure, findings.list(), data)


class _Stored:
    """Bytes stored up to a time; a job counts from its submission, or from its end."""

    def __init__(self, jobs: list[Job]) -> None:
        self.total = sum(job.bytes_ok for job in jobs)
        self._begun = _sums([(job.submitted_seconds, job.bytes_ok) for job in jobs])
        self._ended = _sums([(job.finished_seconds, job.bytes_ok) for job in jobs])

    def between(self, start: float, end: float) -> float:
        """At most: all jobs that were in flight at any time in between."""
        return _upto(self._begun, end) - _upto(self._ended, start)


_Sums = tuple[list[float], list[int]]


def _sums(pairs: list[tuple[float, int]]) -> _Sums:
    pairs.sort()
    return [at for at, _ in pairs], [0, *accumulate(size for _, size in pairs)]


def _upto(sums: _Sums, seconds: float) -> int:
    times, totals = sums
    return totals[bisect.bisect_right(times, seconds)]


def _judge_overlaps(evictions: list[Note], findings: Findings) -> None:
    latest: Note | None = None  # of all so far, the one that ended last
    for one in evictions:
        if latest is not None and latest.process != one.process:
            both = (
                min(latest.detail["finished_seconds"], one.detail["finished_seconds"]) - one.detail["started_seconds"]
            )
            if both > 0:
                pair = f"processes {latest.process} and {one.process}"
                text = f"{pair} evicted at the same time for {milliseconds(both)}"
                findings.add(text, rule=ONE_EVICTOR, seconds=one.detail["started_seconds"], process=one.process)
        if latest is None or one.detail["finished_seconds"] > latest.detail["finished_seconds"]:
            latest = one


def _judge_evictions(history: History, evictions: list[Note], findings: Findings) -> None:
    """No more blocks are reported evicted than can have gone: each store reported ok wrote one file at most."""
    own = bookkeeping(history)
    suffixes = {PurePosixPath(name.name).suffix for name in history.names}
    there = sum(PurePosixPath(f).suffix in suffixes and not is_bookkeeping(f, own) for f in history.files)
    written = sum(len(job.ok) for job in history.jobs if job.direction == "store")
    gone = sum(note.detail["blocks"] for note in evictions)
    if history.files and suffixes and gone > written - there:
        findings.add(
            f"{gone} blocks are reported evicted; {written} were stored and {there} are there at the end",
            rule=REPORTED_ONCE,
            expected=f"{written - there} at most",
            seen=f"{gone}",
        )


def _judge_failures(history: History, findings: Findings) -> None:
    """Failures that a shortage of the machine explains are doubts."""
    shortages, doubts = Shortages(history), dict[str, None]()
    for job in history.jobs:
        if job.direction == "store" and len(job.failed) > job.refused and job.outcome != "info":
            if why := shortages.of_job(job):
                doubts.setdefault(why)
                continue
            findings.add(
                f"job {job.job_id} of process {job.process} (store): {len(job.failed)} blocks failed, "
                f"{job.refused} of them refused",
                rule=REFUSED_ONLY,
                **of_job(job, block=job.failed[0], seen=job.reasons or None),
            )
    for note in history.notes:
        if note.is_a(notes.Counts):
            for name, count in note.detail["counts"].items():
                explained = any(why.startswith(f"{name.removeprefix('failed ')}:") for why in doubts)
                if name.startswith("failed ") and name not in _REASONS and not explained:
                    findings.add(
                        f"process {note.process}: {count} blocks {name}, where they may only be gone",
                        rule=REFUSED_ONLY,
                        **of_note(note),
                    )
    for why in doubts:
        findings.doubt(why)


def _judge_gaps(history: History, findings: Findings) -> float:
    """The longest time in which a writer stored nothing, between its first submission and its last. One that did not
    live to the end is not judged (`leftovers` is about that), nor is a time in which the root was full."""
    shortages, lives = Shortages(history), Lives(history)
    late = max((max(canary_seconds(history, p), default=0.0) for p in {s.process for s in history.starts}), default=0.0)
    bound = GAP_SECONDS_MAX + 10 * late
    writers = range(int(history.options.get("processes") or 0))
    longest = 0.0
    for process in writers:
        mine = [job for job in history.jobs if job.process == process and job.direction == "store"]
        if not mine:
            ends = [life.ended_well for life in lives.all() if life.process == process]
            (findings.add if ends and all(ends) else findings.doubt)(
                f"process {process} stored nothing", rule=GOES_ON, process=process
            )
            continue
        times = [min(job.submitted_seconds for job in mine), *sorted(job.finished_seconds for job in mine if job.ok)]
        times.append(max(job.submitted_seconds for job in mine))
        gap = max(b - a for a, b in pairwise(times))
        longest = max(longest, gap)
        if gap > bound:
            text = f"process {process} stored nothing for {milliseconds(gap)}; {milliseconds(bound)} are allowed"
            since, until = next((a, b) for a, b in pairwise(times) if b - a == gap)
            if why := shortages.of_time(since, until):
                findings.doubt(f"{text} ({why})", seconds=until, process=process)
            else:
                expected, seen = f"{milliseconds(bound)} at most", milliseconds(gap)
                findings.add(text, rule=GOES_ON, seconds=until, process=process, expected=expected, seen=seen)
    return longest


def _judge_recency(history: History, limit: float, findings: Findings) -> Counter[int]:
    """Loads of each block that readers use again and again; those that were lost too early are findings."""
    first = int(history.options.get("processes") or 0)
    readers = range(first, first + int(history.options.get("readers") or 0))
    used: dict[int, list[float]] = defaultdict(list)
    lost: list[tuple[float, int]] = [
        (n.monotonic_seconds, block) for n in history.notes if n.is_a(notes.Missed) for block in n.detail["blocks"]
    ]
    loads: Counter[int] = Counter()
    keeps = float(history.options.get("keeps", 0.5))
    for job in history.jobs:
        if job.process not in readers:
            continue
        for block in job.ok:
            used[block].append(job.submitted_seconds)
            loads[block] += job.direction == "load"
        if job.direction == "load":
            lost += [(job.finished_seconds, block) for block in job.failed]
    for times in used.values():
        times.sort()
    for at, block in lost:
        before = [seconds for seconds in used.get(block, ()) if seconds <= at]
        if before:
            since = _used_between(history.jobs, before[-1], at, block)
            if since < keeps * limit:
                findings.add(
                    f"block {block} was lost, though only {since / limit:.0%} of the limit was used since its last use",
                    rule=RECENCY,
                    seconds=at,
                    block=block,
                    expected=f"{keeps:.0%} of the limit used since, or more",
                    seen=f"{since / limit:.0%}",
                )
    return Counter({block: loads[block] for block in used})


def _used_between(jobs: Sequence[Job], start: float, end: float, but: int) -> float:
    """Bytes of the blocks that any process stored or loaded, each counted once, without block `but`. An upper bound:
    all jobs that were in flight at any time in between count."""
    sizes: dict[int, float] = {}
    for job in jobs:
        if job.ok and job.finished_seconds >= start and job.submitted_seconds <= end:
            sizes |= dict.fromkeys(job.ok, job.bytes_ok / len(job.ok))
    sizes.pop(but, None)
    return sum(sizes.values())
