"""Whether `submit_store` and `submit_load` return at once, or only after the I/O.

Absolute times do not compare across machines. So each submit is compared with its own job's life (submit to result),
and with the wake-up delay of a thread of the same process (the canary). Each of three signs is a finding:
1. Habit: for at least half of a process's jobs the submit took more than half of the job's life, and the median submit
   is longer than the typical wake-up delay. Below that delay it is inconclusive.
2. Now and then: more than one submit in 1,000, and more than one in all, took longer than `NOISE_FACTOR` times the
   worst wake-up delay, and longer than half of its job's life or than the median job's. A queue that blocks when full
   does so. Where the kernel's account covers the process, only what it leaves unexplained of wake-up delays counts.
   In signs 1 and 2 time in which the scheduler's thread had no CPU or no lock does not count. Where only the lock
   explains such submits, sign 2 is inconclusive: the submit may have held it.
3. For at least three quarters of the jobs all tasks had ended when the submit returned, where the tier reports its
   tasks.

A tier that runs jobs inside `submit` (the reference tier) is measured, not judged. The other calls of the scheduler's
thread are judged where the scenario times them (`call_times`).

Not covered: a submit that is slow because it computes.

unknown: no job with a result, or no canary where sign 1 or 2 needs one.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from harness.checkers.base import Findings, Rule, Value, Verdict, canary_seconds, milliseconds
from harness.checkers.call_times import RULES as CALL_RULES
from harness.checkers.call_times import judge_calls
from harness.checkers.evidence import Hindrance
from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.history import History, Job
from harness.core.statistics import percentile

NOISE_FACTOR = 8.0
NOISE_SECONDS_MIN = 0.02
"""Submits of at most this time are noise, where the kernel's account explains the canary's delays."""
JOBS_MIN = 8

HABIT = Rule(
    "nonblocking/habit",
    "More than half of the submits of a process take less than half of the time from submit to result.",
    "a median submit that is no longer than the typical wake-up delay of the process; hindered time",
)
NOW_AND_THEN = Rule(
    "nonblocking/now-and-then",
    "No submit takes longer than half of its own job's time to the result, or than the median job's time.",
    f"one submit in 1,000 (at least one); submits of at most {NOISE_FACTOR:g} * longest wake-up delay of the process, "
    f"or max({NOISE_SECONDS_MIN * 1000:g} ms, {NOISE_FACTOR:g} * the part of it that the kernel's account does not "
    "explain), if that is less; hindered time",
)
ALL_ENDED = Rule(
    "nonblocking/all-ended",
    "A submit returns before all tasks of its job have ended, where the tier shows its schedule.",
    f"fewer than three jobs in four; processes with fewer than {JOBS_MIN} jobs",
)
RULES = (HABIT, NOW_AND_THEN, ALL_ENDED, *CALL_RULES)


def check(history: History) -> Verdict:
    """Judges `jobs`, `tasks` and `notes` of kind "canary"."""
    findings = Findings(RULES)
    data: dict[str, Any] = {}
    in_submit = {s.process for s in history.starts if s.detail.get("runs_in_submit")}
    shortages = Shortages(history)
    whys = [shortages.of_job(j) if j.failed else "" for j in history.jobs]  # such a job fails at once, without any I/O
    if refused := Counter(filter(None, whys)):
        for why, count in refused.items():
            findings.doubt(f"{count} jobs are not judged: {why}")
    jobs = [j for j, why in zip(history.jobs, whys, strict=True) if j.results == 1 and not why]
    for process in sorted({j.process for j in jobs}):
        mine = [j for j in jobs if j.process == process]
        blocked = sum(_submit(j) * 2 > _life(j) for j in mine)
        canaries = [n for n in history.notes if n.is_a(notes.Canary) and n.process == process]
        late = canary_seconds(history, process)
        p50, p99, longest = _percentiles([_submit(j) for j in mine])
        data[str(process)] = {"p50_seconds": p50, "p99_seconds": p99, "max_seconds": longest, "blocked": blocked}
        if process in in_submit:
            continue
        hindrance = Hindrance(history, process)
        over, shown = _over_when_submitted(process, mine, history)
        if shown >= JOBS_MIN and over * 4 >= shown * 3:
            findings.add(
                f"process {process}: in {over} of {shown} jobs all tasks had ended when the submit returned; it waits "
                "for the I/O",
                rule=ALL_ENDED,
                process=process,
            )
        if blocked * 2 >= len(mine):
            what = (
                f"process {process}: in {blocked} of {len(mine)} jobs the submit took over half of the job's life "
                f"(median {milliseconds(p50)})"
            )
            typical = [float(n.detail.get("typical_seconds", n.detail["late_seconds"])) for n in canaries]
            if typical and median(_unhindered(j, hindrance) for j in mine) > median(typical):
                findings.add(f"{what}; it waits for the I/O", rule=HABIT, process=process)
            else:
                text = f"{what}, but that is within this process's scheduling noise"
                findings.doubt(text, rule=HABIT, process=process)
        if not late:
            if blocked:
                text = f"process {process} has no canary, and {blocked} submits took over half of their job's life"
                findings.doubt(text, rule=NOW_AND_THEN, process=process)
            continue
        _now_and_then(process, mine, NOISE_FACTOR * max(late), NOISE_FACTOR * median(late), hindrance, findings)
    calls = judge_calls(history, findings, in_submit)
    value: Value = "false" if findings else "unknown" if findings.doubts or not jobs else "true"
    p50, p99, longest = _percentiles([_submit(j) for j in jobs])
    delays = [late for process in {j.process for j in jobs} for late in canary_seconds(history, process)]
    figure = (
        f"{len(jobs)} submits took p50 {milliseconds(p50)}, p99 {milliseconds(p99)}, max {milliseconds(longest)}; "
        f"median job {milliseconds(median(map(_life, jobs)) if jobs else 0.0)} from submit to result"
        + (f"; threads woke up to {milliseconds(max(delays))} late" if delays else "")
    )
    return Verdict("nonblocking", value, "; ".join([figure, *calls]), findings.list(), data)


def _over_when_submitted(process: int, jobs: list[Job], history: History) -> tuple[int, int]:
    """Jobs whose last task had ended when their submit returned, of those whose tasks the tier reports."""
    ends: dict[int, float] = {}
    for task in history.tasks:
        if task.process == process:
            ends[task.job_id] = max(task.finished_seconds, ends.get(task.job_id, task.finished_seconds))
    shown = [j for j in jobs if j.job_id in ends]
    return sum(ends[j.job_id] <= j.submit_returned_seconds for j in shown), len(shown)


def _now_and_then(
    process: int,
    jobs: list[Job],
    noise_seconds: float,
    typical_noise_seconds: float,
    hindrance: Hindrance,
    findings: Findings,
) -> None:
    """Sign 2. Submits that only the worst moments of the machine explain leave it undecided."""
    typical = median(map(_life, jobs))
    if hindrance.knows_scheduler:  # of the canary's delays only what the kernel's account leaves unexplained is noise
        noise_seconds = min(noise_seconds, max(NOISE_SECONDS_MIN, NOISE_FACTOR * hindrance.unexplained_seconds()))
        typical_noise_seconds = min(noise_seconds, typical_noise_seconds)
    slow = [j for j in jobs if _submit(j) > typical_noise_seconds and _submit(j) > min(_life(j) / 2, typical)]
    long = [j for j in slow if hindrance.free_seconds(j.submitted_seconds, j.submit_returned_seconds) > noise_seconds]
    if hindrance.knows_scheduler:  # a submit that held the interpreter's lock itself delays the canary as long
        slow = [j for j in slow if _with_cpu(j, hindrance) > typical_noise_seconds]
    few = max(1, len(jobs) // 1000)
    if len(long) <= few:
        if len(slow) > few:
            text = f"process {process}: {len(slow)} submits took up to {milliseconds(max(map(_submit, slow)))}"
            why = f"within {milliseconds(noise_seconds)} of noise without the time in which the process was hindered"
            findings.doubt(f"{text}, {why}", rule=NOW_AND_THEN, process=process)
        return
    for job in sorted(long, key=_submit, reverse=True):
        findings.add(
            f"process {process}: the submit of job {job.job_id} ({job.direction}, {len(job.blocks)} blocks) took "
            f"{milliseconds(_submit(job))} of the job's {milliseconds(_life(job))}",
            rule=NOW_AND_THEN,
            seconds=job.submit_returned_seconds,
            process=process,
            request=job.request,
            job=job.job_id,
            expected=f"{milliseconds(noise_seconds)} at most",
            seen=milliseconds(_submit(job)),
        )


def _submit(job: Job) -> float:
    return job.submit_returned_seconds - job.submitted_seconds


def _unhindered(job: Job, hindrance: Hindrance) -> float:
    """Of the submit what nothing hindered: the canary, which sleeps most of the time, sees no preemption."""
    return _submit(job) - hindrance.scheduler_seconds(job.submitted_seconds, job.submit_returned_seconds)


def _with_cpu(job: Job, hindrance: Hindrance) -> float:
    """Of the submit what was not without a CPU."""
    return _submit(job) - hindrance.scheduler_delayed_seconds(job.submitted_seconds, job.submit_returned_seconds)


def _life(job: Job) -> float:
    return job.finished_seconds - job.submitted_seconds


def _percentiles(values: list[float]) -> tuple[float, float, float]:
    """p50, p99 and the largest; zeros of nothing."""
    if not values:
        return 0.0, 0.0, 0.0
    return median(values), percentile(values, 0.99, "higher"), max(values)
