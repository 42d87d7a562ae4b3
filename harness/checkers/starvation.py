"""Does any class of jobs wait longer than the schedule allows? docs/starvation-bound.md derives what is checked here.

Where the tier says how it scheduled (`Task` records), per process and its incarnation:
1. own class first: no thread takes the other class while its own class has a task waiting;
2. FIFO within a class;
3. work-conserving: no thread is free while one and the same task waits for longer than a hand-over may take, which is
   the larger of the longest service time then and `NOISE_FACTOR` times the lateness of the canary then (a thread that
   only asks to be woken); tasks that have not begun yet count by the age that the gauges report;
4. each wait <= ceil((ahead + 1) / threads of the class) * (longest service + longest hand-over);
5. overtakes: tasks of the other class that came later and started earlier; by own threads none (this is rule 1), in all
   at most (threads of the other group) * (ceil(wait / shortest service) + 1).
6. stamps against the scheduler's own clock: a job's tasks come between its submit's call and return, and end before its
   result; the result is there with the next poll, give or take a hand-over.
Within that, enqueue and start are stamped under the pool's lock and taken at their word; service and hand-over times
are measured.
Rules 3 to 5 are left out for a process that died, since what it ran last is not in the history, and for one that had a
call hang for ever, since then the longest service time says nothing; `floods` judges those. Such a process has a note
"hang" on it, or its tier says that it replaces threads that hang (gauges "*_threads_hung") and more threads of a group
ran than its options give it.

Where the tier says nothing, only jobs are left, and a weaker comparison: while a class has jobs outstanding and none
finishes, the other class may finish at most `JOB_FACTOR` * threads (`THREADS_LEAST` at least) * (blocks outstanding, or
of its largest such job if that is more) blocks of jobs submitted later. That is far above what any fair schedule shows
and finds a class that does not run at all, not one that is merely slow.

Not covered: fairness between jobs or requests of one class, waiting inside the device, waits outside the tier (for
slots).

unknown: no loads, or no stores, or the two never met (no task came while the other class had one waiting or running).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from harness.checkers.base import FINDINGS_MAX, Findings, Life, Lives, Value, Verdict, milliseconds
from harness.checkers.wake_up_delays import CLOCK_SECONDS, Noise, Waits
from harness.core import notes
from harness.core.history import Direction, History, Job, Task

JOB_FACTOR = 4
THREADS_DEFAULT = 32  # of tiers that do not say
THREADS_LEAST = 8
"""With two threads, one slow read lets as many small jobs by as would be starvation with many."""
CLASSES: tuple[Direction, Direction] = ("load", "store")
OTHER: Mapping[Direction, Direction] = {"load": "store", "store": "load"}

Interval = tuple[float, float]


def check(history: History) -> Verdict:
    """Judges `tasks` where there are any, else `jobs`; `notes` of kind "canary"; options `read_threads`,
    `write_threads`."""
    if history.tasks:
        return _check_tasks(history)
    return _check_jobs(history)


@dataclass
class _Class:
    """Tasks of one class in one process, first in first out, with the sorted stamps that counting needs."""

    tasks: list[Task]
    enqueued: list[float] = field(init=False)
    started: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.tasks.sort(key=lambda t: (t.enqueued_seconds, t.depth, t.started_seconds))
        self.enqueued = [t.enqueued_seconds for t in self.tasks]
        self.started = sorted(t.started_seconds for t in self.tasks)

    def waiting_at(self, seconds: float) -> int:
        """Tasks that had come before this moment and started after it; a tie counts as started."""
        return max(0, bisect_left(self.enqueued, seconds) - bisect_right(self.started, seconds))

    def longest_waiting_at(self, seconds: float) -> Task | None:
        """The one of them that had come first; for a finding."""
        came = self.tasks[: bisect_left(self.enqueued, seconds)]
        return next((t for t in came if t.started_seconds > seconds), None)

    def ahead_of(self, position: int) -> int:
        """Tasks ahead of the one at `position` when it came, counted, not as the tier said."""
        return max(0, position - bisect_right(self.started, self.enqueued[position]))

    def overtakes_of(self, task: Task) -> int:
        """Tasks of this class that came after `task`, which is of the other, and started before it."""
        return max(
            0, bisect_left(self.started, task.started_seconds) - bisect_right(self.enqueued, task.enqueued_seconds)
        )

    def waiting_intervals(self) -> list[Interval]:
        """When at least one task of this class waited: disjoint, in order."""
        return _union((t.enqueued_seconds, t.started_seconds) for t in self.tasks)


class _Handover(NamedTuple):
    """The longest that a thread was free while its own class waited, and what rule 3 allows for one task."""

    longest_seconds: float = 0.0
    allowed_seconds: float = 0.0


@dataclass
class _Extremes:
    """The largest of a class over all processes, each with the bound that held for it."""

    wait_seconds: float = 0.0
    wait_bound_seconds: float = 0.0
    overtakes: int = 0
    overtakes_bound: float = 0.0

    def data(self) -> dict[str, Any]:
        return {
            "longest_wait_seconds": self.wait_seconds,
            "wait_bound_seconds": self.wait_bound_seconds,
            "most_overtakes": self.overtakes,
            "overtakes_bound": self.overtakes_bound if math.isfinite(self.overtakes_bound) else None,
        }


def _check_tasks(history: History) -> Verdict:
    findings = Findings()
    lives = Lives(history)
    by_life: dict[Life, list[Task]] = defaultdict(list)
    for task in history.tasks:
        by_life[lives.at(task.process, task.enqueued_seconds)].append(task)
    extremes = {c: _Extremes() for c in CLASSES}
    jobs: dict[Life, dict[int, Job]] = defaultdict(dict)
    for job in history.jobs:
        if job.results:
            jobs[lives.at(job.process, job.submitted_seconds)][job.job_id] = job
    passes: dict[Life, list[float]] = defaultdict(list)
    for gauge in history.gauges:
        passes[lives.at(gauge.process, gauge.monotonic_seconds)].append(gauge.values.get("longest_pass_seconds", 0.0))
    met, judged_whole, compared, handover = 0, 0, 0, _Handover()
    for life, tasks in sorted(by_life.items(), key=lambda item: item[0][:2]):
        process = _Process(history, lives, life, tasks, findings)
        process.judge_order()
        compared += process.judge_clock(jobs[life], max(passes[life], default=0.0))
        met += process.met()
        hung = any(n.is_a(notes.Hang) and n.detail.get("process") == life.process for n in history.notes)
        if life.ended_well and not hung and not process.replaced:
            judged_whole += 1
            handover = max(handover, process.judge_times(extremes))
    counts = {c: sum(t.direction == c for t in history.tasks) for c in CLASSES}
    value: Value = "false" if findings else "true"
    why = ""
    if not findings:
        if missing := [c for c in CLASSES if not counts[c]]:
            value, why = "unknown", f"no {' and no '.join(missing)} in the history; "
        elif not judged_whole:
            value, why = "unknown", "every process died or hung, so waits could not be judged; "
        elif not met:
            value, why = "unknown", "loads and stores never met in one process; "
    parts = [
        f"{c}s: longest wait {milliseconds(e.wait_seconds)} of {milliseconds(e.wait_bound_seconds)} allowed, "
        f"most overtakes {e.overtakes} of {e.overtakes_bound:.0f}"
        for c, e in extremes.items()
    ]
    figure = f"{why}{'; '.join(parts)}" + (f"; {findings.count} findings" if findings else "")
    data: dict[str, Any] = {
        "basis": "tasks",
        "tasks": counts,
        "met": met,
        "tasks_compared_with_jobs": compared,
        "longest_handover_seconds": handover.longest_seconds,
        "handover_allowed_seconds": handover.allowed_seconds,
        "load": extremes["load"].data(),
        "store": extremes["store"].data(),
    }
    return Verdict("starvation", value, figure, findings.list(), data)


class _Process:
    """One process's schedule."""

    def __init__(self, history: History, lives: Lives, life: Life, tasks: list[Task], findings: Findings) -> None:
        self.life = life
        self.who = f"process {life.process}" + (f" (start {life.incarnation})" if life.incarnation else "")
        self.tasks = tasks
        self.findings = findings
        self.classes = {c: _Class([t for t in tasks if t.direction == c]) for c in CLASSES}
        self.threads: dict[Direction, dict[int, list[Task]]] = {"load": defaultdict(list), "store": defaultdict(list)}
        for task in sorted(tasks, key=lambda t: t.started_seconds):
            self.threads[task.group][task.thread].append(task)
        # Threads that never ran anything are threads all the same.
        asked = _threads_asked(history, life.process)
        self.thread_count: dict[Direction, int] = {c: max(len(self.threads[c]), asked[c]) for c in CLASSES}
        self.canary = [
            n for n in history.notes if n.is_a(notes.Canary) and lives.at(n.process, n.monotonic_seconds) == life
        ]
        more = any(len(self.threads[c]) > asked[c] > 0 for c in CLASSES)
        self.replaced = False
        self._waiting: dict[Direction, list[Task]] = {"load": [], "store": []}
        for gauge in history.gauges:
            if lives.at(gauge.process, gauge.monotonic_seconds) != life:
                continue
            self.replaced |= more and "load_threads_hung" in gauge.values
            for direction in CLASSES:
                if age := gauge.values.get(f"{direction}_oldest_seconds", 0.0):
                    now = gauge.monotonic_seconds
                    unknown = (life.process, -1, direction, direction, -1, 0, 0)
                    self._waiting[direction].append(Task(*unknown, now - age, now, now))

    def met(self) -> int:
        """Tasks that came while the other class had one waiting or running."""
        busy = {c: _union((t.enqueued_seconds, t.finished_seconds) for t in self.classes[c].tasks) for c in CLASSES}
        return sum(_inside(t.enqueued_seconds, busy[OTHER[t.direction]]) for t in self.tasks)

    def judge_order(self) -> None:
        """Rules 1 and 2, and that the stamps can be true at all."""
        for task in self.tasks:
            if not task.enqueued_seconds <= task.started_seconds <= task.finished_seconds:
                self._find(task, "is not enqueued, started and finished in this order")
            if task.direction == task.group:
                continue
            own = self.classes[task.group]
            if waiting := own.waiting_at(task.started_seconds):
                # A linear search, for a person's sake: not for findings that are only counted.
                seen = self.findings.count < FINDINGS_MAX
                oldest = own.longest_waiting_at(task.started_seconds) if seen else None
                since = f", the oldest for {_ms(task.started_seconds - oldest.enqueued_seconds)}" if oldest else ""
                self._find(
                    task,
                    f"was taken by a thread of the {task.group} group while {waiting} {task.group} tasks waited{since}",
                )
        for direction in CLASSES:
            latest: Task | None = None
            for task in self.classes[direction].tasks:
                if latest and task.started_seconds < latest.started_seconds:
                    early = latest.started_seconds - task.started_seconds
                    self._find(
                        task,
                        f"started {_ms(early)} before that of job {latest.job_id}, which had come earlier: not FIFO",
                    )
                else:
                    latest = task
        for threads in self.threads.values():
            for mine in threads.values():
                for before, after in pairwise(mine):
                    if after.started_seconds < before.finished_seconds - CLOCK_SECONDS:
                        self._find(after, f"ran on a thread that was still busy with job {before.job_id}")

    def judge_times(self, extremes: Mapping[Direction, _Extremes]) -> _Handover:
        """Rules 3 to 5."""
        noise = Noise(self.canary, self.tasks)
        handover = {c: self._longest_handover(c) for c in CLASSES}
        for direction in CLASSES:
            waits = Waits([*self.classes[direction].tasks, *self._waiting[direction]], noise.least_seconds)
            for group in CLASSES:
                for thread, free in self._free(group):
                    self._judge_idleness(f"{thread} of the {group} group", free, waits, noise)
            self._judge_waits(direction, handover[direction], extremes[direction])
        return _Handover(max(handover.values()), noise.most_seconds)

    def _judge_idleness(self, thread: str, free: list[Interval], waits: Waits, noise: Noise) -> None:
        """Rule 3 for one thread: the task that waited longest while it was free, if that was too long."""
        worst, allowed, patient = noise.least_seconds, 0.0, None
        for begin, end in free:
            if end - begin <= worst:
                continue
            for task in waits.during(begin, end):
                both = max(begin, task.enqueued_seconds), min(end, task.started_seconds)
                if both[1] - both[0] > worst and both[1] - both[0] > (tolerance := noise.allowed_seconds(*both)):
                    worst, allowed, patient = both[1] - both[0], tolerance, task
        if patient:
            text = f"waited while {thread} was free for {_ms(worst)}; a hand-over may take {_ms(allowed)}"
            self._find(patient, text)

    def judge_clock(self, jobs: Mapping[int, Job], pass_seconds: float) -> int:
        """Rule 6; returns how many tasks could be compared. `pass_seconds`: the longest pass of the loop, which
        polls once in each."""
        poll_seconds = 2 * pass_seconds
        compared = 0
        ends: dict[int, float] = {}
        for task in self.tasks:
            if (job := jobs.get(task.job_id)) is None:
                continue
            compared += 1
            if task.enqueued_seconds < job.submitted_seconds - CLOCK_SECONDS:
                early = job.submitted_seconds - task.enqueued_seconds
                self._find(task, f"claims to have come {_ms(early)} before the job was submitted")
            elif task.enqueued_seconds > job.submit_returned_seconds + CLOCK_SECONDS:
                late = task.enqueued_seconds - job.submit_returned_seconds
                self._find(task, f"claims to have come {_ms(late)} after the job's submit had returned")
            if task.finished_seconds > job.finished_seconds + CLOCK_SECONDS:
                late = task.finished_seconds - job.finished_seconds
                self._find(task, f"claims to have ended {_ms(late)} after the job's result was there")
            ends[task.job_id] = max(task.finished_seconds, ends.get(task.job_id, -math.inf))
        noise = Noise(self.canary, self.tasks)
        for job_id, end in ends.items() if self.life.ended_well else ():  # else its last pass is not known
            allowed = poll_seconds + noise.allowed_seconds(end, jobs[job_id].finished_seconds)
            if (gap := jobs[job_id].finished_seconds - end) > allowed:
                self.findings.add(
                    f"{self.who}: the tasks of job {job_id} claim to have ended {_ms(gap)} before its result; between "
                    f"two polls there were {_ms(poll_seconds)} at most"
                )
        return compared

    def _longest_handover(self, group: Direction) -> float:
        """The longest that one thread was free while a task of its own class waited: what rule 4 adds to a turn."""
        waiting = self.classes[group].waiting_intervals()
        overlaps = (_longest_overlap(free, waiting) for _, free in self._free(group))
        return max((end - start for start, end in overlaps), default=0.0)

    def _judge_waits(self, direction: Direction, handover_seconds: float, extreme: _Extremes) -> None:
        """Rules 4 and 5 for one class."""
        mine, others = self.classes[direction], self.classes[OTHER[direction]]
        own = [t for ts in self.threads[direction].values() for t in ts]
        service_seconds = max((t.finished_seconds - t.started_seconds for t in own), default=0.0)
        by_others = [t for t in others.tasks if t.group != direction]
        shortest = min((t.finished_seconds - t.started_seconds for t in by_others), default=0.0)
        threads = self.thread_count[direction]
        if mine.tasks and not threads:
            self.findings.add(f"{self.who}: no thread belongs to {direction}s, so nothing bounds their wait")
            return
        turn_seconds = service_seconds + handover_seconds
        for position, task in enumerate(mine.tasks):
            wait = task.started_seconds - task.enqueued_seconds
            turns = math.ceil((mine.ahead_of(position) + 1) / threads)
            bound = turns * turn_seconds
            if wait > bound + CLOCK_SECONDS:
                self._find(
                    task, f"waited {_ms(wait)} behind {mine.ahead_of(position)} others; the bound is {_ms(bound)}"
                )
            if wait >= extreme.wait_seconds:
                extreme.wait_seconds, extreme.wait_bound_seconds = wait, bound
            overtakes = others.overtakes_of(task)
            most = self.thread_count[OTHER[direction]] * (math.ceil(wait / shortest) + 1) if shortest > 0 else math.inf
            if overtakes > most:
                self._find(task, f"was overtaken by {overtakes} {OTHER[direction]} tasks; the bound is {most}")
            if overtakes >= extreme.overtakes:
                extreme.overtakes, extreme.overtakes_bound = overtakes, most

    def _free(self, group: Direction) -> Iterator[tuple[str, list[Interval]]]:
        """When each thread of a group was free, in order; one that never ran anything always was."""
        for thread, tasks in sorted(self.threads[group].items()):
            bounds = [-math.inf]
            for task in tasks:
                bounds += (task.started_seconds, task.finished_seconds)
            bounds.append(math.inf)
            yield f"thread {thread}", [(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=True) if a < b]
        if self.thread_count[group] > len(self.threads[group]):
            yield "a thread that never ran anything", [(-math.inf, math.inf)]

    def _find(self, task: Task, text: str) -> None:
        known = f"a {task.direction} task of job {task.job_id}"
        what = known if task.thread >= 0 else f"the oldest {task.direction} task in the queue, as its gauges say,"
        self.findings.add(f"{self.who}: {what} {text}")


def _threads_asked(history: History, process: int) -> dict[Direction, int]:
    """Threads of each group by the options of this process's tier; 0 if they are not recorded."""
    own = next((s.detail for s in history.starts if s.process == process and "read_threads" in s.detail), {})
    told = {**history.options, **own}
    return {"load": int(told.get("read_threads") or 0), "store": int(told.get("write_threads") or 0)}


def _ms(seconds: float) -> str:
    return milliseconds(seconds)


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals covering the same; the input is sorted by its starts."""
    merged: list[Interval] = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        elif end > start:
            merged.append((start, end))
    return merged


def _inside(seconds: float, intervals: list[Interval]) -> bool:
    place = bisect_right(intervals, (seconds, math.inf)) - 1
    return place >= 0 and intervals[place][0] < seconds < intervals[place][1]


def _longest_overlap(left: list[Interval], right: list[Interval]) -> Interval:
    """The longest stretch that lies in one interval of each; both are disjoint and in order. (0, 0) if there is
    none."""
    best = (0.0, 0.0)
    place = 0
    for start, end in left:
        while place < len(right) and right[place][1] <= start:
            place += 1
        at = place
        while at < len(right) and right[at][0] < end:
            stretch = (max(start, right[at][0]), min(end, right[at][1]))
            if stretch[1] - stretch[0] > best[1] - best[0]:
                best = stretch
            at += 1
        place = max(place, at - 1)
    return best


def _check_jobs(history: History) -> Verdict:
    findings = Findings()
    counts = {c: sum(j.direction == c for j in history.jobs) for c in CLASSES}
    longest_wait = dict.fromkeys(CLASSES, 0.0)
    longest_gap = dict.fromkeys(CLASSES, 0.0)
    most_overtaking = dict.fromkeys(CLASSES, 0)
    met = 0
    for process in sorted({j.process for j in history.jobs}):
        mine = [j for j in history.jobs if j.process == process]
        threads = max(THREADS_LEAST, sum(_threads_asked(history, process).values()) or THREADS_DEFAULT)
        for direction in CLASSES:
            jobs = [j for j in mine if j.direction == direction]
            others = sorted(
                (j for j in mine if j.direction != direction and j.results), key=lambda j: j.submitted_seconds
            )
            starts = [j.submitted_seconds for j in others]
            met += sum(j.submitted_seconds < o.finished_seconds for j in jobs for o in _before(others, starts, j))
            for job in jobs:
                if job.results:
                    longest_wait[direction] = max(longest_wait[direction], job.finished_seconds - job.submitted_seconds)
            for start, end, blocks in _gaps(jobs):
                later = others[bisect_right(starts, start) : bisect_left(starts, end)]
                overtaking = sum(len(o.blocks) for o in later if o.finished_seconds < end)
                longest_gap[direction] = max(longest_gap[direction], end - start)
                most_overtaking[direction] = max(most_overtaking[direction], overtaking)
                # A thread may be at one job of the other class, however large, before it can turn to this one.
                largest = max((len(o.blocks) for o in later), default=0)
                if overtaking > JOB_FACTOR * threads * max(blocks, largest):
                    findings.add(
                        f"process {process}: from {start:.3f} on no {direction} finished for {_ms(end - start)} with "
                        f"{blocks} blocks outstanding, while {overtaking} blocks of {OTHER[direction]} jobs submitted "
                        "later finished"
                    )
    value: Value = "false" if findings else "true"
    why = ""
    if not findings and not all(counts.values()):
        value, why = "unknown", f"{counts['load']} loads and {counts['store']} stores in the history; "
    elif not findings and not met:
        if history.starts and all(s.detail.get("runs_in_submit") for s in history.starts):
            why = "jobs run inside their submit: none waits for another; "
        else:
            value, why = "unknown", "loads and stores never met in one process; "
    parts = [
        f"{c}s: longest from submit to result {_ms(longest_wait[c])}, longest without progress {_ms(longest_gap[c])}, "
        f"overtaken by {most_overtaking[c]} blocks in that time"
        for c in CLASSES
    ]
    figure = f"{why}{'; '.join(parts)} (jobs only: the tier does not say how it schedules)"
    data = {
        "basis": "jobs",
        "jobs": counts,
        "met": met,
        "longest_seconds": longest_wait,
        "longest_gap_seconds": longest_gap,
        "most_overtaking_blocks": most_overtaking,
    }
    return Verdict("starvation", value, figure, findings.list(), data)


def _before(others: list[Job], starts: list[float], job: Job) -> list[Job]:
    """The last few of the other class that were submitted before `job`: enough to know whether one was outstanding."""
    place = bisect_right(starts, job.submitted_seconds)
    return others[max(0, place - 8) : place]


def _gaps(jobs: list[Job]) -> Iterator[tuple[float, float, int]]:
    """Stretches in which jobs of one class were outstanding and none finished: start, end, blocks outstanding at start.

    A job without a result is outstanding until its process died or the run ended, which its record's end says.
    """
    events = sorted(
        [(j.submitted_seconds, 1, len(j.blocks)) for j in jobs]
        + [(j.finished_seconds, 0, -len(j.blocks)) for j in jobs]
    )
    blocks, since, at_start = 0, 0.0, 0
    for seconds, submitted, change in events:
        if blocks and not submitted:
            yield since, seconds, at_start
        if not submitted or not blocks:
            since, at_start = seconds, blocks + change
        blocks += change
