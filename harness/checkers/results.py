"""Whether each submitted job has exactly one result that accounts for all of its blocks.

Judged for each job: one record and one result (none only if the process was killed; the outcome is then "info"); ok and
failed blocks together are the job's blocks, each once; outcome and lists agree; no result before the submit. Errors
that the worker recorded are findings: a second result, a job without progress, an exception of the tier. So is a
submitted job without a record.

- Without a fault a failed load is a finding, since the lookup had called the block a hit.
- So is a failed store, except for blocks that the tier reports as refused: these are counted, not judged.
- After the first fault every failure may be its consequence, and is only counted.

Not covered: whether a block reported ok is right (integrity), when results come (starvation, nonblocking).

unknown: no job has a result, or the machine explains each failure, such as a full disk (`checkers.machine_refusals`).
"""

from __future__ import annotations

import math
from collections import Counter

from harness.adapters.metric_meanings import Done, contradictions
from harness.checkers.base import (
    About,
    Finding,
    Findings,
    Lives,
    Rule,
    Value,
    Verdict,
    called,
    first_fault_seconds,
    grouped,
    of_job,
    of_note,
    some,
)
from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.history import History, Job
from harness.core.limits import amount

ONE_RESULT = Rule(
    "results/one-result", "Each submitted job has exactly one result.", "jobs in flight when their process was killed"
)
ACCOUNTS = Rule("results/accounts", "A result names each block of its job once, as stored or loaded or as failed.")
NO_FAILURE = Rule(
    "results/no-failure",
    "Without a fault no block fails: a load follows a hit, and a store has a healthy device.",
    "stores that admission refused, at a bound that the tier states; failures that a shortage of the machine explains "
    "(see the terms)",
)
NO_ERROR = Rule("results/no-error", "No call of the tier raises, and no job stays in flight without progress.")
METRICS = Rule(
    "results/metrics",
    "At the end of an incarnation the tier's own Prometheus endpoint has the figures of its jobs' results, from 0.",
    "tiers without an endpoint, and adapters that do not say what its samples mean; incarnations that were killed, or "
    "that had a job without a result",
)
RULES = (ONE_RESULT, ACCOUNTS, NO_FAILURE, NO_ERROR, METRICS)


_Key = tuple[int, int, int]  # process, incarnation, job id


def check(history: History) -> Verdict:
    """Judges `jobs`, and `notes` of kind "submitted", "error" and "fault"."""
    findings = Findings(RULES)
    lives = Lives(history)
    fault_seconds = first_fault_seconds(history)
    records: Counter[_Key] = Counter()
    counts: Counter[str] = Counter()
    shortages = Shortages(history)
    explained: Counter[str] = Counter()  # failures that the machine explains, by how
    for job in history.jobs:
        life = lives.at(job.process, job.submitted_seconds)
        records[job.process, life.incarnation, job.job_id] += 1
        who = f"job {job.job_id} of process {job.process} ({job.direction})"
        if job.results == 0 and job.outcome == "info" and not life.ended_well:
            counts["info"] += 1
            continue
        if job.results != 1:
            text = f"{who} got {job.results} results; each job gets exactly one"
            findings.add(text, rule=ONE_RESULT, **of_job(job, expected="1 result", seen=f"{job.results} results"))
            continue
        counts["results"] += 1
        for text in _accounts(job):
            findings.add(f"{who} {text}", rule=ACCOUNTS, **of_job(job))
        if not job.failed:
            continue
        counts[f"failed {job.direction}s"] += 1
        counts["refused"] += job.refused
        excused = job.refused if job.direction == "store" else 0
        if len(job.failed) > excused and job.finished_seconds < fault_seconds:
            if why := shortages.of_job(job):
                explained[why] += 1
                continue
            but = f" ({excused} of them refused)" if excused else ""
            named = f" with {job.reasons.replace(' ', ', ')}" if job.reasons else ""
            room = _room(job, shortages)
            findings.add(
                f"{who} failed for block {some(job.failed)}{but}{named} although no fault was injected{room}",
                rule=NO_FAILURE,
                **of_job(job, block=job.failed[0], seen=job.reasons or None),
            )
    for (process, incarnation, job_id), count in records.items():
        if count > 1:
            text = f"job {job_id} of process {process} is recorded {count} times"
            findings.add(text, rule=ONE_RESULT, process=process, incarnation=incarnation, job=job_id)
    errors = [n for n in history.notes if n.is_a(notes.Error)]
    why_of = {id(n): shortages.of_error(n) for n in errors}
    of_tier = [n for n in errors if n.process >= 0 and not why_of[id(n)]]
    for rule in RULES:
        broken = [n for n in of_tier if (n.detail.get("rule") or NO_ERROR.id) == rule.id]
        for text in grouped(((called(n.process), Finding(n.text, About(**of_note(n)))) for n in broken), True):
            findings.add(text, rule=rule)
    explained.update(why for why in why_of.values() if why)
    for text, note in {n.text: n for n in reversed(errors) if n.process < 0}.items():
        findings.add(f"the harness: {text}", **of_note(note))
    for note in history.notes:
        if note.is_a(notes.Submitted):
            life = lives.at(note.process, note.monotonic_seconds)
            if not records[note.process, life.incarnation, note.detail["job_id"]]:
                if life.ended_well:
                    text = f"job {note.detail['job_id']} of process {note.process} was submitted and is lost"
                    known = of_note(note, request=note.detail["request"], incarnation=life.incarnation)
                    findings.add(text, rule=ONE_RESULT, **known)
                else:
                    counts["info"] += 1
    compared = _judge_metrics(history, lives, findings)
    for why, count in explained.items():
        findings.doubt(f"{count} jobs or processes failed for want of something: {why}")
    value: Value = "false" if findings else "unknown" if findings.doubts or not counts["results"] else "true"
    figure = (
        f"{counts['results']} of {len(records)} jobs got exactly one result, {counts['info']} lost to process exit; "
        f"failed: {counts['failed loads']} loads, {counts['failed stores']} stores "
        f"({counts['refused']} blocks refused); "
        f"{findings.count} findings" + (f"; metrics of {compared} incarnations compared" if compared else "")
    )
    return Verdict("results", value, figure, findings.list(), {"jobs": len(records), **counts})


def _judge_metrics(history: History, lives: Lives, findings: Findings) -> int:
    """Compares each scrape with the jobs of its incarnation; how many there were to compare."""
    compared = 0
    for note in (n for n in history.notes if n.is_a(notes.Scraped)):
        life = lives.at(note.process, note.monotonic_seconds)
        jobs = [
            j for j in history.jobs if j.process == note.process and lives.at(j.process, j.submitted_seconds) == life
        ]
        if not all(job.results == 1 for job in jobs):
            continue
        compared += 1
        done = [Done(job.direction, len(job.ok), len(job.failed)) for job in jobs]
        odd = contradictions(note.detail["values"], done, int(history.options.get("block_bytes") or 0))
        if odd:
            text = f"{called(note.process)}: the tier's endpoint has other figures than the results of its jobs: "
            findings.add(text + some(odd), rule=METRICS, **of_note(note, incarnation=life.incarnation))
    return compared


def _room(job: Job, shortages: Shortages) -> str:
    """What speaks against a tier that says that the root was full."""
    free = shortages.least_free()
    return f" and {amount(free)} or more were free" if "ENOSPC" in job.reasons and math.isfinite(free) else ""


def _accounts(job: Job) -> list[str]:
    """What does not add up in one job that has its one result."""
    texts = []
    if Counter(job.ok) + Counter(job.failed) != Counter(job.blocks):
        missing = Counter(job.blocks) - Counter(job.ok) - Counter(job.failed)
        extra = Counter(job.ok) + Counter(job.failed) - Counter(job.blocks)
        parts = [
            f"no outcome for {some(missing)}" if missing else "",
            f"too many for {some(extra)}" if extra else "",
        ]
        texts.append("does not account for its blocks: " + ", ".join(filter(None, parts)))
    if job.outcome != ("fail" if job.failed else "ok"):
        texts.append(f'has outcome "{job.outcome}" with {len(job.failed)} failed blocks')
    if job.refused > len(job.failed):
        texts.append(f"refused {job.refused} blocks, but only {len(job.failed)} failed")
    if job.finished_seconds < job.submitted_seconds:
        texts.append(f"finished {job.submitted_seconds - job.finished_seconds:.6f} s before it was submitted")
    return texts
