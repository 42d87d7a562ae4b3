"""Whether the death of a process loses only its own jobs in flight.

Judged, in a run whose only faults are processes killed and paused: no job that has a result failed, in any process. In
particular the first store after a restart succeeds, and a load of a block that a lookup called a hit. Every process
that should restart did (notes "error"), and a paused process continued.

Not covered: whether finished stores are found (visibility), wrong bytes (integrity), files left behind (leftovers).

unknown: no process was killed in the middle of a job, none stored a block after its restart, or no process looked up a
block that a killed process had reported stored.
"""

from __future__ import annotations

from collections import Counter

from harness.checkers.base import Findings, Life, Lives, Rule, Value, Verdict, of_job, of_note, some
from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.history import History, Job

OWN_JOBS = Rule(
    "recovery/own-jobs",
    "The death or pause of a process makes no block of a completed job fail, in any process. The first store after a "
    "restart succeeds.",
    "failures of stores that a shortage of the machine explains (see the terms)",
)
RESTARTS = Rule("recovery/restarts", "A killed process opens its tier again on the same root.")
RULES = (OWN_JOBS, RESTARTS)


def check(history: History) -> Verdict:
    """Judges `jobs`, `starts`, `stops`, and notes of kind "fault", "skipped", "error" and "asked"."""
    findings = Findings(RULES)
    lives, shortages = Lives(history), Shortages(history)
    short: dict[str, None] = {}  # why stores failed that the machine explains
    counts: Counter[str] = Counter()
    faults = [n for n in history.notes if n.is_a(notes.Fault)]
    killed = {(life.process, life.incarnation): life for life in lives.all() if (life.exit_code or 0) < 0}
    stored_by_dead: dict[int, float] = {}  # block -> when its storer died
    first_stores: dict[tuple[int, int], Job] = {}
    for job in sorted(history.jobs, key=lambda j: j.submitted_seconds):
        life = lives.at(job.process, job.submitted_seconds)
        where = (life.process, life.incarnation)
        first = job.direction == "store" and first_stores.setdefault(where, job) is job
        if where in killed:
            counts["cut jobs"] += job.outcome == "info"
            if job.direction == "store":
                stored_by_dead.update(dict.fromkeys(job.ok, life.end_seconds))
        if job.failed and (why := shortages.of_job(job)):
            short.setdefault(why)
        elif job.failed:
            findings.add(
                _failure(job, life, first), rule=OWN_JOBS, **of_job(job, block=job.failed[0], seen=job.reasons or None)
            )
        elif first and life.incarnation:
            counts["stores after a restart"] += 1
    for note in history.notes:
        if note.is_a(notes.Error) and "restart" in note.text:
            findings.add(note.text, rule=RESTARTS, **of_note(note, process=note.detail.get("process", note.process)))
        elif note.is_a(notes.Asked):
            asked_seconds = float(note.detail["asked_seconds"])
            asked = zip(note.detail["blocks"], note.detail["verdicts"], strict=True)
            counts["found of the dead"] += sum(
                verdict == "h" and stored_by_dead.get(block, asked_seconds) < asked_seconds for block, verdict in asked
            )
    blows = Counter(f"{n.detail.get('how')} at {n.detail.get('step')}" for n in faults)
    reached = {n.detail.get("step") for n in faults}
    missed = {str(n.detail["step"]) for n in history.notes if n.is_a(notes.Skipped) and "step" in n.detail} - reached
    missing = [
        text
        for text, there in (
            ("no process was killed", killed),
            ("no job was cut short", counts["cut jobs"]),
            ("nothing was stored after a restart", counts["stores after a restart"]),
            ("nobody asked for what a killed process had stored", counts["found of the dead"]),
        )
        if not there
    ]
    for text in [*missing, *short]:
        findings.doubt(text)
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    figure = (
        f"{'; '.join([*findings.doubts, ''])}{len(killed)} processes killed, {counts['cut jobs']} jobs with them, "
        f"{counts['stores after a restart']} first stores after a restart, {counts['found of the dead']} times a block "
        f"of a dead process was found; steps that the tier never made: {some(sorted(missed)) or 'none'}; "
        f"{findings.count} findings"
    )
    data = {"killed": len(killed), "faults": dict(blows), "steps never made": sorted(missed), **counts}
    return Verdict("recovery", value, figure, findings.list(), data)


def _failure(job: Job, life: Life, first: bool) -> str:
    who = f"process {job.process}" + (f" (start {life.incarnation})" if life.incarnation else "")
    blocks = f"block {some(job.failed)}"
    if job.direction == "load":
        return f"{who} got a hit for {blocks} and could not load it (job {job.job_id})"
    if first and life.incarnation:
        return f"{who} lost its first store after its restart: {blocks} (job {job.job_id})"
    return f"{who} could not store {blocks} (job {job.job_id}) although only processes were killed"
