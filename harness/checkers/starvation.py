"""Whether a direction or a job waits longer than the schedule allows; docs/starvation-bound.md derives the bound.

Judged for each process and restart, where the tier reports its schedule (`Task` records):
1. Own direction first: no thread takes the other direction while a task of its own waits.
2. FIFO within a direction.
3. Work-conserving: no thread is free while one task waits for longer than a hand-over may take. That is the largest of
   the longest service time then, `NOISE_FACTOR` times the canary's lateness then, and a switch interval for each
   thread. A task that has not started counts by the age in the gauges.
4. Each wait <= ceil((ahead + 1) / threads of the direction) * (longest service + longest hand-over).
5. Overtaking tasks came later and started earlier. By the direction's own threads there are none (rule 1); in all at
   most (threads of the other group) * (ceil(wait / shortest service) + 1).
6. Stamps agree with the scheduler's clock: a job's tasks arrive between the call and the return of its submit, and end
   before its result. The first poll after the last end, and a hand-over later, returns the result.
Arrival and start are stamped under the pool's lock, and these stamps are trusted; service and hand-over are measured.

Rules 3 to 5 are left out for a process that was killed, since its last tasks are not in the history, and for one with a
hung call, since the longest service is then not finite; `floods` judges those. A call hung if a note "hang" names the
process, or if the tier reports hung threads (gauges "*_threads_hung") and more threads ran than its options give it.

For every tier jobs are judged too (`job_waits`): no job, and no direction, is held back while later jobs end. Without
`Task` records nothing else is judged. `evidence` says which time is charged to a tier.

Not covered: waits inside the device, waits outside the tier (for slots).

unknown: no loads, no stores, or no task that arrived while the other direction had one waiting or running.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from harness.checkers.base import FINDINGS_MAX, Findings, Life, Lives, Rule, Value, Verdict, milliseconds
from harness.checkers.evidence import REPETITIONS, Hindrance, least_life, most_life
from harness.checkers.intervals import Interval, inside, longest_overlap, union
from harness.checkers.job_waits import CLASS_HELD, JOB_HELD, OTHER, JobWaits, gaps, threads_asked
from harness.checkers.task_queue import TaskQueue
from harness.checkers.wake_up_delays import CLOCK_SECONDS, NOISE_FACTOR, Noise, Waits
from harness.core import notes
from harness.core.history import Direction, History, Job, Task

CLASSES: tuple[Direction, Direction] = ("load", "store")
FINDINGS_OF_A_RULE = 6
"""So many findings of one rule in one process are kept, so that all broken rules are shown."""

OWN_FIRST = Rule(
    "starvation/own-first", "No thread takes the other direction while its own direction has a task waiting."
)
FIFO = Rule("starvation/fifo", "Tasks of one direction start in the order in which they came.")
IDLE = Rule(
    "starvation/idle-thread",
    "No thread is free while a task waits.",
    f"an idle time of at most max(longest service, {NOISE_FACTOR:g} * wake-up delay, threads * switch interval), the "
    f"first two at that time; hindered time; idle times that add up to fewer than {REPETITIONS} times this limit",
)
WAIT_BOUND = Rule(
    "starvation/wait-bound",
    "No task waits longer, or is overtaken more often, than the derived bound (docs/starvation-bound.md).",
    "1 microsecond, for the rounding of time stamps; processes that died or whose calls hung",
)
STAMPS = Rule(
    "starvation/stamps",
    "The time stamps of the schedule agree with each other and with the scheduler's clock.",
    "1 microsecond; one hand-over between the end of a job's last task and the poll that returns the job",
)
RULES = (OWN_FIRST, FIFO, IDLE, WAIT_BOUND, STAMPS, JOB_HELD, CLASS_HELD)


def check(history: History) -> Verdict:
    """Judges `tasks` where there are any, else `jobs`; `notes` of kind "canary"; options `read_threads`,
    `write_threads`."""
    findings = Findings(RULES)
    waits = JobWaits(history)
    waits.judge(findings)
    if history.tasks:
        return _check_tasks(history, waits, findings)
    return _check_jobs(history, waits, findings)


class _Idle(NamedTuple):
    """A stretch in which a thread was free and a task waited, and how long it may last."""

    task: Task
    thread: str
    since: float
    until: float
    allowed_seconds: float

    @property
    def seconds(self) -> float:
        return self.until - self.since


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


def _check_tasks(history: History, waits: JobWaits, findings: Findings) -> Verdict:
    lives = Lives(history)
    by_life: dict[Life, list[Task]] = defaultdict(list)
    for task in history.tasks:
        by_life[lives.at(task.process, task.enqueued_seconds)].append(task)
    extremes = {c: _Extremes() for c in CLASSES}
    jobs: dict[Life, dict[int, Job]] = defaultdict(dict)
    for job in history.jobs:
        if job.results:
            jobs[lives.at(job.process, job.submitted_seconds)][job.job_id] = job
    met, judged_whole, compared, omitted, handover = 0, 0, 0, 0, _Handover()
    for life, tasks in sorted(by_life.items(), key=lambda item: item[0][:2]):
        process = _Process(history, lives, life, tasks, findings, waits.hindrance(life.process))
        process.judge_order()
        compared += process.judge_clock(jobs[life])
        met += process.met()
        hung = any(n.is_a(notes.Hang) and n.detail.get("process") == life.process for n in history.notes)
        if life.ended_well and not hung and not process.replaced:
            judged_whole += 1
            handover = max(handover, process.judge_times(extremes))
        omitted += process.omitted
    findings.count += omitted
    counts = {c: sum(t.direction == c for t in history.tasks) for c in CLASSES}
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    why = ""
    if not findings:
        if missing := [c for c in CLASSES if not counts[c]]:
            value, why = "unknown", f"no {' and no '.join(missing)} in the history; "
        elif not judged_whole:
            value, why = "unknown", "every process died or hung, so waits could not be judged; "
        elif not met:
            value, why = "unknown", "loads and stores never met in one process; "
    parts = [
        f"{c}s: longest wait {milliseconds(e.wait_seconds)} (bound {milliseconds(e.wait_bound_seconds)}), overtaken by "
        f"{e.overtakes} {OTHER[c]}s at most"
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

    def __init__(
        self,
        history: History,
        lives: Lives,
        life: Life,
        tasks: list[Task],
        findings: Findings,
        hindrance: Hindrance,
    ) -> None:
        self.life = life
        self.hindrance = hindrance
        self.found: Counter[str] = Counter()  # findings by rule
        self.omitted = 0
        self.who = f"process {life.process}" + (f" (start {life.incarnation})" if life.incarnation else "")
        self.tasks = tasks
        self.findings = findings
        self.classes = {c: TaskQueue([t for t in tasks if t.direction == c]) for c in CLASSES}
        self.threads: dict[Direction, dict[int, list[Task]]] = {"load": defaultdict(list), "store": defaultdict(list)}
        for task in sorted(tasks, key=lambda t: t.started_seconds):
            self.threads[task.group][task.thread].append(task)
        # Threads that never ran anything are threads all the same.
        asked = threads_asked(history, life.process)
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
        busy = {c: union((t.enqueued_seconds, t.finished_seconds) for t in self.classes[c].tasks) for c in CLASSES}
        return sum(inside(t.enqueued_seconds, busy[OTHER[t.direction]]) for t in self.tasks)

    def judge_order(self) -> None:
        """Rules 1 and 2, and that the stamps can be true at all."""
        for task in self.tasks:
            if not task.enqueued_seconds <= task.started_seconds <= task.finished_seconds:
                self._find(task, STAMPS, "is not enqueued, started and finished in this order")
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
                    OWN_FIRST,
                    f"was taken by a thread of the {task.group} group while {waiting} {task.group} tasks waited{since}",
                )
        for direction in CLASSES:
            latest: Task | None = None
            for task in self.classes[direction].tasks:
                if latest and task.started_seconds < latest.started_seconds:
                    early = latest.started_seconds - task.started_seconds
                    self._find(
                        task,
                        FIFO,
                        f"started {_ms(early)} before that of job {latest.job_id}, which had come earlier: not FIFO",
                    )
                else:
                    latest = task
        for threads in self.threads.values():
            for mine in threads.values():
                for before, after in pairwise(mine):
                    if after.started_seconds < before.finished_seconds - CLOCK_SECONDS:
                        self._find(after, STAMPS, f"ran on a thread that was still busy with job {before.job_id}")

    def judge_times(self, extremes: Mapping[Direction, _Extremes]) -> _Handover:
        """Rules 3 to 5."""
        noise = Noise(self.canary, self.tasks)
        handover = {c: self._longest_handover(c) for c in CLASSES}
        idle: list[_Idle] = []
        for direction in CLASSES:
            waits = Waits([*self.classes[direction].tasks, *self._waiting[direction]], noise.least_seconds)
            for group in CLASSES:
                for thread, free in self._free(group):
                    idle += self._idleness(f"{thread} of the {group} group", free, waits, noise)
            self._judge_waits(direction, handover[direction], extremes[direction])
        self._judge_idleness(idle)
        return _Handover(max(handover.values()), noise.most_seconds)

    def _idleness(self, thread: str, free: list[Interval], waits: Waits, noise: Noise) -> list[_Idle]:
        """Rule 3 for one thread: stretches, disjoint, in which it was free and a task waited for too long. The first
        few are enough."""
        found: list[_Idle] = []
        for begin, end in free:
            if end - begin <= noise.least_seconds:
                continue
            counted = len(found)
            for task in waits.during(begin, end):
                since, until = max(begin, task.enqueued_seconds), min(end, task.started_seconds)
                again = len(found) == counted or since >= found[-1].until
                if until - since <= (noise.least_seconds if again else found[-1].seconds):
                    continue
                if until - since > (allowed := noise.allowed_seconds(since, until)):
                    if not again:
                        found.pop()
                    found.append(_Idle(task, thread, since, until, allowed))
            if len(found) > FINDINGS_MAX:
                break
        return found

    def _judge_idleness(self, idle: list[_Idle]) -> None:
        """Rule 3. A thread that was hindered was not idle. One pause of the machine is no finding: each time that the
        hand-over took longer than allowed counts, and how many times longer."""
        times, apparent = 0, 0
        worst: dict[str, tuple[float, _Idle]] = {}
        counted_until = -math.inf
        for one in sorted(idle, key=lambda i: i.since):
            seconds = self.hindrance.idle_seconds(one.since, one.until)
            if one.since >= counted_until:
                apparent += int(one.seconds / one.allowed_seconds)
                times += int(seconds / one.allowed_seconds)
                counted_until = one.until
            if one.thread not in worst or seconds > worst[one.thread][0]:
                worst[one.thread] = seconds, one
        for seconds, one in worst.values():
            text = (
                f"waited while {one.thread} was free for {_ms(one.seconds)}; a hand-over may take "
                f"{_ms(one.allowed_seconds)}"
            )
            if times >= REPETITIONS and seconds > one.allowed_seconds:
                self._find(one.task, IDLE, f"{text} (that and more {times} times in this process)")
            elif times < REPETITIONS <= apparent:
                self._doubt(one.task, IDLE, f"{text}, but the process was hindered for {_ms(one.seconds - seconds)}")

    def judge_clock(self, jobs: Mapping[int, Job]) -> int:
        """Rule 6; returns how many tasks could be compared."""
        compared = 0
        ends: dict[int, float] = {}
        for task in self.tasks:
            if (job := jobs.get(task.job_id)) is None:
                continue
            compared += 1
            if task.enqueued_seconds < job.submitted_seconds - CLOCK_SECONDS:
                early = job.submitted_seconds - task.enqueued_seconds
                self._find(task, STAMPS, f"claims to have come {_ms(early)} before the job was submitted")
            elif task.enqueued_seconds > job.submit_returned_seconds + CLOCK_SECONDS:
                late = task.enqueued_seconds - job.submit_returned_seconds
                self._find(task, STAMPS, f"claims to have come {_ms(late)} after the job's submit had returned")
            if task.finished_seconds > job.finished_seconds + CLOCK_SECONDS:
                late = task.finished_seconds - job.finished_seconds
                self._find(task, STAMPS, f"claims to have ended {_ms(late)} after the job's result was there")
            ends[task.job_id] = max(task.finished_seconds, ends.get(task.job_id, -math.inf))
        noise = Noise(self.canary, self.tasks)
        late_results = []
        for job_id, end in ends.items() if self.life.ended_well else ():  # else its last poll is not known
            polled = jobs[job_id].submitted_seconds + least_life(jobs[job_id])
            if polled - end > (allowed := noise.allowed_seconds(end, polled)):
                times = int(self.hindrance.free_seconds(end, polled) / allowed)
                late_results.append((times, polled - end, job_id, allowed))
        certain = sum(late[0] for late in late_results)
        apparent = sum(int(gap / allowed) for _, gap, _, allowed in late_results)
        for times, gap, job_id, allowed in sorted(late_results, reverse=True):
            text = (
                f"{self.who}: the tasks of job {job_id} claim to have ended {_ms(gap)} before a poll that did not "
                f"return its result; {_ms(allowed)} are allowed"
            )
            known: dict[str, Any] = {
                "seconds": jobs[job_id].finished_seconds,
                "process": self.life.process,
                "job": job_id,
            }
            if certain < REPETITIONS:
                if apparent >= REPETITIONS:
                    self.findings.doubt(f"{text}, but the process was hindered", STAMPS, **known)
                break
            if times:
                self.findings.add(text, STAMPS, **known)
        return compared

    def _longest_handover(self, group: Direction) -> float:
        """The longest that one thread was free while a task of its own class waited: what rule 4 adds to a turn."""
        waiting = self.classes[group].waiting_intervals()
        overlaps = (longest_overlap(free, waiting) for _, free in self._free(group))
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
            text = f"{self.who}: no thread belongs to {direction}s, so nothing bounds their wait"
            self.findings.add(text, rule=WAIT_BOUND, process=self.life.process)
            return
        turn_seconds = service_seconds + handover_seconds
        for position, task in enumerate(mine.tasks):
            wait = task.started_seconds - task.enqueued_seconds
            turns = math.ceil((mine.ahead_of(position) + 1) / threads)
            bound = turns * turn_seconds
            if wait > bound + CLOCK_SECONDS:
                self._find(
                    task,
                    WAIT_BOUND,
                    f"waited {_ms(wait)} behind {mine.ahead_of(position)} others; the bound is {_ms(bound)}",
                )
            if wait >= extreme.wait_seconds:
                extreme.wait_seconds, extreme.wait_bound_seconds = wait, bound
            overtakes = others.overtakes_of(task)
            most = self.thread_count[OTHER[direction]] * (math.ceil(wait / shortest) + 1) if shortest > 0 else math.inf
            if overtakes > most:
                self._find(
                    task, WAIT_BOUND, f"was overtaken by {overtakes} {OTHER[direction]} tasks; the bound is {most}"
                )
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

    def _find(self, task: Task, rule: Rule, text: str) -> None:
        self.found[rule.id] += 1
        if self.found[rule.id] > FINDINGS_OF_A_RULE:
            self.omitted += 1  # those of other rules are shown as well
        else:
            self.findings.add(f"{self._named(task)} {text}", rule=rule, **self._about(task))

    def _doubt(self, task: Task, rule: Rule, text: str) -> None:
        self.findings.doubt(f"{self._named(task)} {text}", rule=rule, **self._about(task))

    def _named(self, task: Task) -> str:
        known = f"a {task.direction} task of job {task.job_id}"
        what = known if task.thread >= 0 else f"the oldest {task.direction} task in the queue, as its gauges say,"
        return f"{self.who}: {what}"

    def _about(self, task: Task) -> dict[str, Any]:
        about: dict[str, Any] = {"seconds": task.started_seconds, "process": self.life.process}
        about["incarnation"] = self.life.incarnation
        if task.thread >= 0:
            about |= {"job": task.job_id, "thread": f"{task.group} {task.thread}"}
        return about


def _ms(seconds: float) -> str:
    return milliseconds(seconds)


def _check_jobs(history: History, waits: JobWaits, findings: Findings) -> Verdict:
    counts = {c: sum(j.direction == c for j in history.jobs) for c in CLASSES}
    longest_wait = dict.fromkeys(CLASSES, 0.0)
    longest_gap = dict.fromkeys(CLASSES, 0.0)
    met = 0
    for process in sorted({j.process for j in history.jobs}):
        for direction in CLASSES:
            jobs = waits.jobs(process, direction)
            busy = union(
                sorted((j.submitted_seconds, j.finished_seconds) for j in waits.jobs(process, OTHER[direction]))
            )
            if process not in waits.in_submit:
                met += sum(inside(j.submitted_seconds, busy) for j in jobs)
            longest_wait[direction] = max([longest_wait[direction], *(most_life(j) for j in jobs if j.results)])
            longest_gap[direction] = max([longest_gap[direction], *(end - start for start, end, _ in gaps(jobs))])
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    why = ""
    if not findings and not all(counts.values()):
        value, why = "unknown", f"{counts['load']} loads and {counts['store']} stores in the history; "
    elif not findings and not met:
        if history.starts and waits.in_submit >= {s.process for s in history.starts}:
            why = "jobs run inside their submit: none waits for another; "
        else:
            value, why = "unknown", "loads and stores never met in one process; "
    parts = [
        f"{c}s: longest from submit to result {_ms(longest_wait[c])}, longest without progress {_ms(longest_gap[c])}"
        for c in CLASSES
    ]
    figure = f"{why}{'; '.join(parts)} (jobs only: the tier does not say how it schedules)"
    data = {
        "basis": "jobs",
        "jobs": counts,
        "met": met,
        "longest_seconds": longest_wait,
        "longest_gap_seconds": longest_gap,
    }
    return Verdict("starvation", value, figure, findings.list(), data)
