"""Whether an outage of one host, or of the server, fails only jobs in flight there, and only during the outage.

Judged for each fault (notes "fault" and "lifted", by process):
- On processes that were not hit no block fails, and no block that was stored before is missed.
- On processes that were hit a block fails only in a job that was in flight between the fault and `recovery_seconds_max`
  (option) after its end.
- Within that time each process that lives stores a block again, without a restart unless it lost its power.
- A process that kept its power does not end.
- A block reported stored is found by the first lookup after the recovery, on each host. Blocks that a host without
  power reported in its last moments may be missing; they are counted.
- In rounds on visibility (notes "soon") the first hit comes at most `visible_seconds_max` (option) after the store.
- Where the tier reports tasks and gauges "*_running_oldest_seconds": a task that hung for more than `HUNG_SECONDS_MIN`
  shows there with at least `HUNG_SHARE_MIN` of its age.
- At the end of a process no thread counts as hung ("*_threads_hung").

Not covered: wrong bytes (integrity), results (results), temp files (leftovers).

unknown: no fault, a fault during which no job was in flight on the processes that it hit, or no round on visibility.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from harness.checkers.base import (
    Findings,
    Life,
    Lives,
    Rule,
    Value,
    Verdict,
    milliseconds,
    of_job,
    of_note,
    of_stop,
    some,
)
from harness.core import notes
from harness.core.history import History, Job, Note

HUNG_SECONDS_MIN = 2.0
HUNG_SHARE_MIN = 0.5
POWER_LOSS_WINDOW_SECONDS = 60.0
"""What a host reported stored so long before it lost power has long been written back."""

UNHARMED = Rule(
    "outage/unharmed",
    "A block fails only on a process that was hit, in a job in flight between the fault and its recovery.",
    "the time `recovery_seconds_max` after the end of the outage",
)
LIVES = Rule("outage/lives", "A process that keeps its power does not end.")
RECOVERS = Rule("outage/recovers", "Each process that lives stores again.", "the time `recovery_seconds_max`")
SHOWN = Rule(
    "outage/shown",
    "A call that hangs shows in the gauges.",
    f"hangs of less than {HUNG_SECONDS_MIN:g} s; gauges that show at least {HUNG_SHARE_MIN:.0%} of the hang's age",
)
THREADS = Rule("outage/threads", "At the end no thread counts as hung.")
FOUND = Rule(
    "outage/stored-is-found",
    "A block reported stored is found by the first lookup of each process that is well.",
    f"blocks that a host reported in the {POWER_LOSS_WINDOW_SECONDS:g} s before it lost its power",
)
SOON = Rule("outage/soon", "A stored block is visible to the other host in time.", "the time `visible_seconds_max`")
RULES = (UNHARMED, LIVES, RECOVERS, SHOWN, THREADS, FOUND, SOON)


class _Away(NamedTuple):
    """One process hit by one fault: [since, until) is the outage."""

    process: int
    what: str
    since: float
    until: float
    text: str


def check(history: History) -> Verdict:
    """Judges `jobs`, `stops` and notes "fault", "lifted", "asked", "soon"."""
    recovery_max = float(history.options.get("recovery_seconds_max", 30.0))
    findings, counts = Findings(RULES), Counter[str]()
    outages = _outages(history)
    by_process: dict[int, list[_Away]] = defaultdict(list)
    for outage in outages:
        by_process[outage.process].append(outage)
    if not outages:
        findings.doubt("no host was cut off")
    for text in dict.fromkeys(outage.text for outage in outages):
        hit = [outage for outage in outages if outage.text == text]
        if not any(_in_flight(history, outage) for outage in hit):
            findings.doubt(f"{text}: it met no job in flight")
    recoveries = _recoveries(history, outages, recovery_max, findings)
    for job in history.jobs:
        if not job.failed:
            continue
        counts["failed blocks"] += len(job.failed)
        away = by_process[job.process]
        if not any(job.finished_seconds >= o.since and job.submitted_seconds <= o.until + recovery_max for o in away):
            findings.add(
                f"process {job.process} was not hit, and failed to {job.direction} block {some(job.failed)} "
                f"(job {job.job_id})",
                rule=UNHARMED,
                **of_job(job, block=job.failed[0], seen=job.reasons or None),
            )
    for stop in history.stops:
        if stop.exit_code and not any(o.what == "power" for o in by_process[stop.process]):
            text = f"process {stop.process} ended with exit code {stop.exit_code} although it kept its power"
            findings.add(text, rule=LIVES, **of_stop(stop))
    _questions(history, by_process, recovery_max, findings, counts)
    waited = _others_waited(history, outages)
    hung = _hung(history, outages, findings)
    lost = _threads_hung(history, findings)
    slowest = _visibility(history, findings)
    if not slowest:
        findings.doubt("nobody looked how soon a block is visible")
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    soon = "; ".join(f"{kind}: {milliseconds(seconds)}" for kind, seconds in slowest.items())
    slow = milliseconds(max(recoveries.values(), default=0.0))
    longest = milliseconds(max(waited.values(), default=0.0))
    hang = milliseconds(max(hung.values(), default=0.0))
    doubts = "; ".join([*findings.doubts, ""])
    figure = (
        f"{doubts}{len({o.text for o in outages})} outages, {counts['failed blocks']} blocks failed "
        f"in them, {counts['lost with the power']} of reported ones lost with the power; slowest recovery {slow}; "
        f"others waited {longest} for a job at most; longest hung call {hang}, "
        f"{lost:g} threads replaced at a time; "
        f"visible to the other host after {soon or 'nobody knows'}"
    )
    data: dict[str, Any] = {
        "recovery_seconds": {name: _finite(seconds) for name, seconds in recoveries.items()},
        "others_waited_seconds": waited,
        "hung_seconds": hung,
        "threads_hung": lost,
        "visible_seconds": {name: _finite(seconds) for name, seconds in slowest.items()},
        **counts,
    }
    return Verdict("outage", value, figure, findings.list(), data)


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None  # never


def _outages(history: History) -> list[_Away]:
    lifted = [n for n in history.notes if n.is_a(notes.Lifted)]
    found = []
    for note in history.notes:
        if note.is_a(notes.Fault) and "what" in note.detail:
            process = int(note.detail["process"])
            ends = [
                n.monotonic_seconds
                for n in lifted
                if n.detail.get("process") == process and n.monotonic_seconds >= note.monotonic_seconds
            ]
            until = min(ends, default=math.inf)
            found.append(_Away(process, str(note.detail["what"]), note.monotonic_seconds, until, note.text))
    return found


def _in_flight(history: History, outage: _Away) -> bool:
    return any(
        job.process == outage.process and job.submitted_seconds <= outage.since <= job.finished_seconds
        for job in history.jobs
    )


def _recoveries(history: History, outages: list[_Away], recovery_max: float, findings: Findings) -> dict[str, float]:
    """By kind of outage, the longest time from its end to the first whole store that finished after it."""
    longest: dict[str, float] = {}
    for outage in outages:
        stores = [
            job.finished_seconds - outage.until
            for job in history.jobs
            if job.process == outage.process and job.direction == "store" and job.ok and not job.failed
            if job.finished_seconds > outage.until
        ]
        first = min(stores, default=math.inf)
        longest[outage.what] = max(first, longest.get(outage.what, 0.0))
        if first > recovery_max:
            when = "never" if math.isinf(first) else f"only after {first:.1f} s"
            text = f"process {outage.process} stored {when} after the end of: {outage.text}"
            findings.add(
                text,
                rule=RECOVERS,
                seconds=outage.until,
                process=outage.process,
                expected=f"{recovery_max:g} s at most",
            )
    return longest


def _others_waited(history: History, outages: list[_Away]) -> dict[str, float]:
    """By kind of outage, the longest that a job took which those who were not hit had in flight during it."""
    longest: dict[str, float] = {}
    for what in {outage.what for outage in outages}:
        for outage in (o for o in outages if o.what == what):
            hit = {
                o.process
                for o in outages
                if o.text == outage.text and o.since < outage.until and outage.since < o.until
            }
            seconds = [
                job.finished_seconds - job.submitted_seconds
                for job in history.jobs
                if job.process not in hit
                and job.submitted_seconds < outage.until
                and job.finished_seconds > outage.since
            ]
            longest[what] = max([longest.get(what, 0.0), *seconds])
    return longest


def _hung(history: History, outages: list[_Away], findings: Findings) -> dict[str, float]:
    """By kind of outage, the longest that a task of those hit hung in it; each must have shown in the gauges."""
    longest: dict[str, float] = {}
    for outage in outages:
        for task in (t for t in history.tasks if t.process == outage.process):
            since, until = max(task.started_seconds, outage.since), min(task.finished_seconds, outage.until)
            if until - since < HUNG_SECONDS_MIN:
                continue
            longest[outage.what] = max(until - since, longest.get(outage.what, 0.0))
            name = f"{task.direction}_running_oldest_seconds"
            shown = [
                gauge.values.get(name, 0.0)
                for gauge in history.gauges
                if gauge.process == outage.process and since <= gauge.monotonic_seconds <= until
            ]
            if max(shown, default=0.0) < HUNG_SHARE_MIN * (until - since):
                findings.add(
                    f"a {task.direction} of process {outage.process} hung for {until - since:.1f} s in: {outage.text}; "
                    f"its gauges told of {max(shown, default=0.0):.1f} s at most",
                    rule=SHOWN,
                    seconds=until,
                    process=task.process,
                    job=task.job_id,
                    thread=f"{task.group} {task.thread}",
                )
    return longest


def _threads_hung(history: History, findings: Findings) -> float:
    """The most at a time in one process; at its end there are none."""
    lives, most = Lives(history), 0.0
    last: dict[Life, float] = {}
    for gauge in history.gauges:
        lost = sum(gauge.values.get(f"{direction}_threads_hung", 0.0) for direction in ("load", "store"))
        most = max(most, lost)
        last[lives.at(gauge.process, gauge.monotonic_seconds)] = lost
    for life, lost in last.items():
        if lost and life.ended_well:
            text = f"process {life.process} ended with {lost:g} threads that had not come back from a hung call"
            findings.add(
                text, rule=THREADS, seconds=life.end_seconds, process=life.process, incarnation=life.incarnation
            )
    return most


def _questions(
    history: History,
    by_process: dict[int, list[_Away]],
    recovery_max: float,
    findings: Findings,
    counts: Counter[str],
) -> None:
    """A block reported stored must be found by the first lookup of each process that is not cut off."""
    stored: dict[int, Job] = {}  # block -> its first reported store
    for job in sorted(history.jobs, key=lambda j: j.finished_seconds):
        if job.direction == "store":
            for block in job.ok:
                stored.setdefault(block, job)
    soon = {block for n in history.notes if n.is_a(notes.Soon) for block in n.detail["blocks"]}
    asked_before: set[tuple[int, int]] = set()
    lost: set[int] = set()
    for note in sorted((n for n in history.notes if n.is_a(notes.Asked)), key=_asked):
        at = _asked(note)
        away = any(o.since - 1.0 <= at <= o.until + recovery_max for o in by_process[note.process])
        for block, verdict in zip(note.detail["blocks"], note.detail["verdicts"], strict=True):
            first = (note.process, block) not in asked_before
            asked_before.add((note.process, block))
            store = stored.get(block)
            if block in soon or store is None or store.finished_seconds >= at or verdict == "h" or not first:
                counts["questions"] += 1
                continue
            if away:  # a device that does not answer has nothing
                counts["missed while away"] += 1
            elif _lost_power(store, at, by_process):
                lost.add(block)
            else:
                how = "got a miss" if verdict == "m" else "never got an answer"
                findings.add(
                    f"process {note.process} asked for block {block} {at - store.finished_seconds:.3f} s after process "
                    f"{store.process} had reported it stored, and {how}",
                    rule=FOUND,
                    **of_note(note, seconds=at, block=block, expected="a hit", seen=how),
                )
    counts["lost with the power"] = len(lost)


def _asked(note: Note) -> float:
    return float(note.detail["asked_seconds"])


def _lost_power(job: Job, at: float, by_process: dict[int, list[_Away]]) -> bool:
    return any(
        o.what == "power" and o.since <= at and o.since - job.finished_seconds < POWER_LOSS_WINDOW_SECONDS
        for o in by_process[job.process]
    )


def _visibility(history: History, findings: Findings) -> dict[str, float]:
    """The longest time from a reported store to the other host's first hit, by whether it had asked before."""
    bound = float(history.options.get("visible_seconds_max", 1.0))
    stored = {block: job for job in history.jobs if job.direction == "store" for block in job.ok}
    longest: dict[str, float] = {}
    for note in history.notes:
        if not note.is_a(notes.Soon):
            continue
        for block in note.detail["blocks"]:
            if (job := stored.get(block)) is None:
                continue
            hits = [
                _asked(n)
                for n in history.notes
                if n.is_a(notes.Asked) and n.process != job.process and block in n.detail["blocks"]
                if n.detail["verdicts"][n.detail["blocks"].index(block)] == "h"
            ]
            seconds = max(0.0, min(hits, default=math.inf) - job.finished_seconds)
            longest[note.text] = max(seconds, longest.get(note.text, 0.0))
            if seconds > bound:
                when = "never" if math.isinf(seconds) else f"only {seconds:.2f} s after it was stored"
                findings.add(
                    f"block {block}, {note.text}, was visible to the other host {when}; the bound is {bound:g} s",
                    rule=SOON,
                    **of_job(job, block=block, expected=f"{bound:g} s at most", seen=when),
                )
    return longest
