"""Jobs and directions that are held back, judged by jobs alone; `starvation` includes it for every tier.

A count of overtaking jobs is no duration: many cached loads may end during one slow call of the device. So a wait must
also exceed the device's own times, which the run measures: `HELD_FACTOR` times the longest call of the device probe,
and of the unloaded lives. Hindered time is not charged. docs/starvation-bound.md has the formulas.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from harness.checkers.base import Findings, Rule, milliseconds, of_job
from harness.checkers.evidence import (
    HELD_FACTOR,
    REPETITIONS,
    UNMEASURED_SECONDS,
    Hindrance,
    device_seconds,
    least_life,
    most_life,
)
from harness.core import notes
from harness.core.history import DIRECTIONS, Direction, History, Job

OVERTAKES_FACTOR = 2
JOB_FACTOR = 4
THREADS_DEFAULT = 32  # of tiers that do not say
THREADS_LEAST = 8
"""With two threads, one slow read lets as many small jobs by as would be starvation with many."""
HELD_SECONDS_MIN = 0.02
NO_PAUSE_FACTOR = 30
"""A single wait of so many times what is allowed is no pause of the machine."""
OTHER: Mapping[Direction, Direction] = {"load": "store", "store": "load"}

JOB_HELD = Rule(
    "starvation/job-held-back",
    "No job waits while jobs of its direction that were submitted later end.",
    f"overtaking blocks <= {OVERTAKES_FACTOR} * threads * blocks of the largest job concerned; wait <= max("
    f"{HELD_SECONDS_MIN * 1000:g} ms, {HELD_FACTOR} * device time), or {UNMEASURED_SECONDS:g} s without a "
    f"measured device time; hindered time; fewer than {REPETITIONS} breaches (one of {NO_PAUSE_FACTOR} "
    f"times the limit counts as {REPETITIONS})",
)
CLASS_HELD = Rule(
    "starvation/class-held-back",
    "No direction waits as a whole while later jobs of the other direction end.",
    f"overtaking blocks <= {JOB_FACTOR} * threads (at least {THREADS_LEAST}) * max(blocks outstanding, blocks of the "
    "largest overtaking job) * ratio of the unloaded lives (at least 1); waits and breaches as of a single job",
)
RULES = (JOB_HELD, CLASS_HELD)


class _Baseline(NamedTuple):
    """Of one process and direction: the mean life of a single block with nothing else in flight, and what a wait must
    exceed to be no spread of the device as it typically is."""

    mean_seconds: float | None
    typical_seconds: float


class _Held(NamedTuple):
    """A job or a class that was held back: in seconds the wait, what it may typically be, the wait without hindered
    time, and what it may be with the device as it was then."""

    seconds: float
    typical_seconds: float
    free_seconds: float
    allowed_seconds: float
    text: str
    about: dict[str, Any]


class JobWaits:
    """The jobs of a run, and what they are compared with."""

    def __init__(self, history: History) -> None:
        self.in_submit = {s.process for s in history.starts if s.detail.get("runs_in_submit")}
        self._history = history
        self._jobs: dict[int, list[Job]] = defaultdict(list)
        for job in history.jobs:
            self._jobs[job.process].append(job)
        self._hindrance: dict[int, Hindrance] = {}
        self._device = [
            (float(n.detail["from_seconds"]), n.monotonic_seconds, float(n.detail["longest_seconds"]))
            for n in history.notes
            if n.is_a(notes.Device)
        ]
        self._hung = {n.detail["process"] for n in history.notes if n.is_a(notes.Hang)}

    def processes(self) -> list[int]:
        """Those whose jobs can wait for one another, and in which no call was made to hang."""
        return sorted(self._jobs.keys() - self.in_submit - self._hung)

    def jobs(self, process: int, direction: Direction) -> list[Job]:
        return [j for j in self._jobs[process] if j.direction == direction]

    def hindrance(self, process: int) -> Hindrance:
        if process not in self._hindrance:
            self._hindrance[process] = Hindrance(self._history, process)
        return self._hindrance[process]

    def baseline(self, process: int, direction: Direction) -> _Baseline:
        tags = {
            n.detail["tag"]
            for n in self._history.notes
            if n.process == process and n.is_a(notes.Unloaded) and n.detail["direction"] == direction
        }
        unloaded = [j for j in self._jobs[process] if j.request in tags and j.results]
        # The longest but one: a single pause is no spread.
        spreads = sorted(most_life(j) for j in unloaded)[-2:-1]
        if self._device:
            spreads.append(device_seconds(self._history))
        typical = max(HELD_SECONDS_MIN, HELD_FACTOR * max(spreads)) if spreads else UNMEASURED_SECONDS
        return _Baseline(fmean(map(least_life, unloaded)) if unloaded else None, typical)

    def _allowed_seconds(self, begin: float, end: float, typical_seconds: float) -> float:
        """What a wait between these moments must exceed: the device may have been slower than it typically is."""
        then = [longest for since, until, longest in self._device if since < end and begin < until]
        return max(typical_seconds, HELD_FACTOR * max(then, default=0.0))

    def judge(self, findings: Findings) -> None:
        """Adds findings where something was held back `REPETITIONS` times, else doubts."""
        for process in self.processes():
            threads = sum(threads_asked(self._history, process).values()) or THREADS_DEFAULT
            for direction in DIRECTIONS:
                self._conclude(JOB_HELD, list(self._held_jobs(process, direction, threads)), findings)
                many = max(THREADS_LEAST, threads)
                self._conclude(CLASS_HELD, list(self._held_classes(process, direction, many)), findings)

    @staticmethod
    def _conclude(rule: Rule, held: list[_Held], findings: Findings) -> None:
        """A finding if it came again, by waits without hindered time and the device as it was then; a doubt if by all
        waits and the device as it typically is; else nothing: a pause that did not come again."""
        certain = sorted((h for h in held if h.free_seconds > h.allowed_seconds), key=lambda h: -h.free_seconds)
        if sum(_times(h.free_seconds / h.allowed_seconds) for h in certain) >= REPETITIONS:
            for one in certain:
                findings.add(f"{one.text} ({len(certain)} times in this process)", rule=rule, **one.about)
        elif sum(_times(h.seconds / h.typical_seconds) for h in held) >= REPETITIONS:
            worst = max(held, key=lambda h: h.free_seconds)
            why = f"nothing hindered the process in {milliseconds(worst.free_seconds)} of it, too little to tell"
            findings.doubt(f"{worst.text}; {why}", rule=rule, **worst.about)

    def _held_jobs(self, process: int, direction: Direction, threads: int) -> Iterator[_Held]:
        baseline = self.baseline(process, direction)
        jobs = sorted(self.jobs(process, direction), key=lambda j: j.submitted_seconds)
        submitted = [j.submitted_seconds for j in jobs]
        for job in jobs:
            if least_life(job) <= baseline.typical_seconds:
                continue
            until = job.submitted_seconds + least_life(job)
            later = jobs[bisect_right(submitted, job.submit_returned_seconds) : bisect_left(submitted, until)]
            earlier = [k for k in later if k.results and k.finished_seconds <= until]
            if not earlier:
                continue
            most = OVERTAKES_FACTOR * threads * max(len(job.blocks), *(len(k.blocks) for k in earlier))
            if (overtaking := sum(len(k.blocks) for k in earlier)) <= most:
                continue
            since = min(k.finished_seconds for k in earlier)
            if until - since > baseline.typical_seconds:
                allowed = self._allowed_seconds(job.submitted_seconds, until, baseline.typical_seconds)
                text = (
                    f"process {process}: job {job.job_id} ({direction}, {len(job.blocks)} blocks) had no result for "
                    f"{milliseconds(until - since)} after a {direction} submitted later had ended, and {overtaking} "
                    f"blocks of {direction}s submitted later ended before it; the device explains "
                    f"{milliseconds(allowed)} at most"
                )
                free = self.hindrance(process).free_seconds(since, until)
                about = of_job(job, expected=milliseconds(allowed), seen=milliseconds(until - since))
                yield _Held(until - since, baseline.typical_seconds, free, allowed, text, about)

    def _held_classes(self, process: int, direction: Direction, threads: int) -> Iterator[_Held]:
        mine, other = self.baseline(process, direction), self.baseline(process, OTHER[direction])
        dearer = max(1.0, mine.mean_seconds / other.mean_seconds) if mine.mean_seconds and other.mean_seconds else 1.0
        others = sorted(
            (j for j in self.jobs(process, OTHER[direction]) if j.results), key=lambda j: j.submitted_seconds
        )
        starts = [j.submitted_seconds for j in others]
        for start, end, blocks in gaps(self.jobs(process, direction)):
            if end - start <= mine.typical_seconds:
                continue
            later = others[bisect_right(starts, start) : bisect_left(starts, end)]
            overtaking = sum(len(o.blocks) for o in later if o.finished_seconds < end)
            # A thread may be at one job of the other class, however large, before it can turn to this one.
            largest = max((len(o.blocks) for o in later), default=0)
            if overtaking > JOB_FACTOR * threads * max(blocks, largest) * dearer:
                text = (
                    f"process {process}: from {start:.3f} on no {direction} finished for {milliseconds(end - start)} "
                    f"with {blocks} blocks outstanding, while {overtaking} blocks of {OTHER[direction]} jobs submitted "
                    "later finished"
                )
                free = self.hindrance(process).free_seconds(start, end)
                about = {"seconds": end, "process": process, "seen": milliseconds(end - start)}
                allowed = self._allowed_seconds(start, end, mine.typical_seconds)
                yield _Held(end - start, mine.typical_seconds, free, allowed, text, about)


def _times(excess: float) -> int:
    """How often a wait of so many times what is allowed counts."""
    return REPETITIONS if excess >= NO_PAUSE_FACTOR else 1


def threads_asked(history: History, process: int) -> dict[Direction, int]:
    """Threads of each group by the options of this process's tier; 0 if they are not recorded."""
    own = next((s.detail for s in history.starts if s.process == process and "read_threads" in s.detail), {})
    known = {**history.options, **own}
    return {"load": int(known.get("read_threads") or 0), "store": int(known.get("write_threads") or 0)}


def gaps(jobs: list[Job]) -> Iterator[tuple[float, float, int]]:
    """Stretches in which jobs of one class were outstanding and none finished: start, end, blocks outstanding at start.

    A job without a result is outstanding until its process died or the run ended, which its record's end says. A
    result ends a stretch with the last poll that did not return it.
    """
    events = sorted(
        [(j.submitted_seconds, 1, len(j.blocks)) for j in jobs]
        + [(j.submitted_seconds + least_life(j), 0, -len(j.blocks)) for j in jobs]
    )
    blocks, since, at_start = 0, 0.0, 0
    for seconds, submitted, change in events:
        if blocks and not submitted:
            yield since, seconds, at_start
        if not submitted or not blocks:
            since, at_start = seconds, blocks + change
        blocks += change
