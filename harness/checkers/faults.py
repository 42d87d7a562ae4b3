"""Whether the tier keeps, under each fault, the guarantees that `harness.faults.table` states for it.

Judged from the steps of a fault (notes "met": before, under, look, repair, after, last), their jobs (`request` is the
step) and the answers of lookups (notes "asked"):
- no wrong byte: no block of a load reported ok was wrong;
- one result: each job has one, also a job that hung until the fault was lifted;
- reported: a block reported stored under the fault is found afterwards, and right;
- others unharmed: no more stores, loads or lookups failed than the fault can affect, where that number is known; a
  fault of one direction affects no job of the other;
- counted: if a block failed, the tier counts a failure under a reason that the table allows;
- no block: a block that failed to be stored, or was seen to be gone, is not found, or is found and right;
- no leftovers: no file but blocks was added;
- not blocked: no submit took half as long as the hang, and the direction that does not hang continued;
- repaired: the block was stored again, found and right;
- explained: see the notes "opening".
An item that the tier does not show, such as counters, is "not shown" and decides nothing. After each fault all blocks,
and fresh ones, must be stored, found and right.

Not covered: whether the fault took effect, where nothing counts its effects.

unknown: no fault was injected, or the tier failed before a fault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from harness.checkers.base import (
    Findings,
    Rule,
    Value,
    Verdict,
    bookkeeping,
    grouped,
    is_bookkeeping,
    of_job,
    of_note,
    some,
    unexplained_ends,
)
from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.history import History, Job, Note
from harness.faults import FAULTS, Fault

DEPTHS = (
    *("RecursionError", "MemoryError", "TypeError", "KeyError", "AttributeError", "IndexError", "NameError"),
    *("UnicodeDecodeError", "UnicodeEncodeError", "JSONDecodeError", "OverflowError", "AssertionError"),
)
"""Exceptions that a refusal with a reason never is: they come from an internal error."""


_DEMANDED = {
    "no wrong byte": ("No block of a load reported ok has a wrong byte.", ""),
    "one result": ("Each job has exactly one result.", "jobs of processes that the fault killed"),
    "reported": ("A block reported stored under the fault is found afterwards, and right.", ""),
    "others unharmed": (
        "No more blocks are hurt than the fault can hurt, and none in the direction that it leaves alone.",
        "for damaged files two failures each: one of a lookup and one of a load",
    ),
    "counted": ("A failure is counted, under a reason that the fault allows.", "tiers that count nothing"),
    "no block": ("A block that failed to be stored, or was seen to be gone, is not found.", ""),
    "no leftovers": ("No file appears under the root but those of blocks.", "the tier's declared own files"),
    "not blocked": ("No submit waits for a device that hangs, nor does the direction that does not hang.", ""),
    "explained": ("Whatever the tier's own files hold, the tier opens and works, or refuses with a reason.", ""),
    "lives": ("No process ends under a fault that does not kill it.", ""),
    "repaired": (
        "A damaged block that a lookup or a load has met can be stored again, and is found and right.",
        "a store before any load: it reads no file of the right size, reports success, and the next load is a miss",
    ),
    "works again": ("After the fault all blocks and fresh ones are stored, found and right.", ""),
}
RULES = tuple(Rule(f"faults/{name.replace(' ', '-')}", *said) for name, said in _DEMANDED.items())


def _rule(name: str) -> str:
    return f"faults/{name.replace(' ', '-')}"


class _Seen(NamedTuple):
    """What one fault left in the history."""

    met: Note
    jobs: dict[str, list[Job]]  # by step
    asked: dict[str, list[Note]]
    counted: dict[str, float]  # what the tier counted from before the fault to its repair
    counts_anything: bool
    names: set[str]
    submitted_after: float
    keeps_in_memory: bool  # above the files
    own: tuple[str, ...]  # the tier's bookkeeping


def check(history: History) -> Verdict:
    """Judges `jobs`, `names`, `starts`, and `notes` "met", "asked", "stepped", "refused", "unready", "opening",
    "skipped"."""
    findings, shortages = Findings(RULES), Shortages(history)
    table: dict[str, dict[str, Any]] = {}
    jobs: dict[int, list[Job]] = defaultdict(list)
    for job in history.jobs:
        jobs[job.request].append(job)
    names = {n.name for n in history.names}
    for met in (n for n in history.notes if n.is_a(notes.Met)):
        fault = FAULTS[met.detail["fault"]]
        behaviour, hurt = _judge(fault, _see(met, history, jobs, names))
        wrong = {name: how for name, how in behaviour.items() if how not in ("", "not shown")}
        if wrong and (short := shortages.of_time(met.detail["began_seconds"], met.monotonic_seconds)):
            wrong = {"before": f"{'; '.join(wrong.values())} ({short})"} if "no wrong byte" not in wrong else wrong
        if "before" in wrong:
            findings.doubt(f"{fault.name}: {wrong['before']}")
        else:
            for name, how in wrong.items():
                known = {"seconds": met.detail["lifted_seconds"]}
                known |= _known(name, _see(met, history, jobs, names))
                sentence = f"{fault.name} ({fault.what}): {name}: {how}"
                findings.add(sentence, rule=_rule(name), expected=name, **known)
        row = "unknown" if "before" in wrong else "false" if wrong else "true"
        table[fault.name] = {"verdict": row, "expected": {n: s or "yes" for n, s in behaviour.items()}, "hurt": hurt}
    for note in (n for n in history.notes if n.is_a(notes.Refused) and "fault" in n.detail):
        has_reason = bool(note.text.strip())
        row = "true" if has_reason else "false"
        table[note.detail["fault"]] = {"verdict": row, "expected": {"explained": note.text}, "hurt": 0}
        if not has_reason:
            sentence = f"{note.detail['fault']}: explained: it refused to start without a reason"
            findings.add(sentence, rule=_rule("explained"), **of_note(note))
    for note in (n for n in history.notes if n.is_a(notes.Unready)):
        findings.doubt(f"{note.text}; so this fault was not injected")
        table[note.detail["fault"]] = {"verdict": "unknown", "expected": {}, "hurt": 0}
    _judge_openings(history, table, findings)
    under_faults = {label for n in history.notes if n.is_a(notes.Met) for label in n.detail["died"]}
    ends, outside = unexplained_ends(history)
    for text in grouped((who, how) for who, how in ends if who not in under_faults):
        findings.add(text, rule=_rule("lives"))
    for text in grouped(outside, colon=True):
        findings.doubt(text)
    skipped = {n.detail["fault"]: n.text for n in history.notes if n.is_a(notes.Skipped) and "fault" in n.detail}
    for name, why in skipped.items():
        table.setdefault(name, {"verdict": "skipped", "expected": {}, "hurt": 0, "why": why})
    verdicts = [row["verdict"] for row in table.values()]
    value: Value = "false" if findings else "true" if "true" in verdicts and not findings.doubts else "unknown"
    not_shown = sorted({n for row in table.values() for n, how in row["expected"].items() if how == "not shown"})
    figure = (
        f"{verdicts.count('true')} of {len(verdicts) - verdicts.count('skipped')} faults kept their guarantees"
        + (f", {verdicts.count('false')} did not" if "false" in verdicts else "")
        + (f"; the tier does not show: {', '.join(not_shown)}" if not_shown else "")
        + (f"; {len(skipped)} skipped: {some(skipped.values(), 3)}" if skipped else "")
    )
    return Verdict("faults", value, figure, findings.list(), {"faults": table})


def _known(guarantee: str, seen: _Seen) -> dict[str, Any]:
    """What is known of the moment in which a fault broke a guarantee: that of the first job that shows it."""
    for job in sorted((j for step in seen.jobs.values() for j in step), key=lambda j: j.finished_seconds):
        if guarantee == "no wrong byte" and job.wrong:
            return of_job(job, block=job.wrong[0][0], seen=job.wrong[0][1])
        if guarantee == "one result" and job.results != 1:
            return of_job(job, seen=f"{job.results} results")
    return {}


def _see(met: Note, history: History, jobs: dict[int, list[Job]], names: set[str]) -> _Seen:
    steps: dict[str, int] = met.detail["steps"]
    step_of = {number: name for name, number in steps.items()}
    asked: dict[str, list[Note]] = defaultdict(list)
    counted: dict[str, float] = defaultdict(float)
    counts_anything = False
    for process in met.detail["processes"]:
        base: dict[str, float] = {}
        for note in (n for n in history.notes if n.process == process and n.is_a(notes.Stepped)):
            counts = note.detail["counts"]
            counts_anything |= bool(counts)
            if note.detail["step"] == steps["before"]:
                base = counts
            # A process that was started again counts from zero: then nothing is taken off.
            latest = counts if step_of.get(note.detail["step"]) in ("under", "look", "repair", "after") else None
            if latest is not None:
                for name, value in latest.items():
                    more = value - base.get(name, 0.0)
                    if more > 0:
                        counted[name] += more
                base = {**base, **latest}
    for note in history.notes:
        if note.is_a(notes.Asked) and note.detail["step"] in step_of:
            asked[step_of[note.detail["step"]]].append(note)
    mine = {name: jobs.get(number, []) for name, number in steps.items()}
    in_memory = any(start.detail.get("keeps_in_memory") for start in history.starts)
    began, own = met.detail["began_seconds"], bookkeeping(history)
    return _Seen(met, mine, asked, dict(counted), counts_anything, names, began, in_memory, own)


def _judge(fault: Fault, seen: _Seen) -> tuple[dict[str, str], int]:
    """Guarantee -> "" if it was kept, "not shown", or how it was broken; and how many blocks were hurt."""
    detail = seen.met.detail
    killed = bool(detail["died"]) and not fault.liveness
    under = seen.jobs["under"]
    all_jobs = [job for step in seen.jobs.values() for job in step]
    failed = {d: [b for j in under if j.direction == d for b in j.failed] for d in ("load", "store")}
    missing = _missing(seen.asked["under"])
    hurt = len(failed["load"]) + len(failed["store"]) + len(missing)
    stored = {b for j in under if j.direction == "store" for b in j.ok}
    behaviour: dict[str, str] = {}
    if short := [b for j in seen.jobs["before"] for b in j.failed] or _lost(seen, "before", detail["old"]):
        return {"before": f"blocks {some(short)} were not stored although no fault was injected yet"}, 0

    def expect(name: str, text: str) -> None:
        if name in fault.guarantees:
            behaviour[name] = text

    wrong = [f"block {b}: {how}" for j in all_jobs for b, how in j.wrong]
    expect("no wrong byte", some(wrong, 3))
    lost = [j.job_id for j in all_jobs if j.results != 1 and not (killed and j.results == 0)]
    expect("one result", f"job {some(lost)} did not get exactly one" if lost else "")
    found = _right(seen, "look")
    unfound = sorted(stored - found)
    expect("reported", f"blocks {some(unfound)} were reported stored and are not found" if unfound else "")
    expect("others unharmed", _others(fault, seen, failed, missing, hurt))
    expect("counted", _counted(fault, seen, hurt))
    torn = sorted(_hit(seen.asked["look"]) - found - stored)
    expect("no block", f"blocks {some(torn)} are said to be there and do not load" if torn else "")
    leftovers = [name for name in detail["new_files"] if name not in seen.names and not is_bookkeeping(name, seen.own)]
    expect("no leftovers", f"{some(leftovers)} came" if leftovers else "")
    expect("not blocked", _blocked(fault, seen))
    expect("explained", "")
    if detail["died"] and not killed:
        behaviour["lives"] = f"process {some(detail['died'])} ended under it"
    alive = _liveness(seen)
    if "repaired" in fault.guarantees:
        behaviour["repaired"] = alive or _shape(detail.get("shapes", ()))
    behaviour["works again"] = detail["failure"] or alive
    return behaviour, hurt


def _shape(shapes: Sequence[str]) -> str:
    if not shapes or shapes[0] == shapes[1]:
        return ""
    return f"the block was {shapes[0]}, and is {shapes[1]} after it was damaged and stored again"


def _others(fault: Fault, seen: _Seen, failed: dict[str, list[int]], missing: list[int], hurt: int) -> str:
    if (most := seen.met.detail["hurt"]) is not None and hurt > most * (2 if fault.mechanism == "damage" else 1):
        return f"{hurt} blocks failed or were not found, and {most} can have been hurt"
    for direction in ("load", "store"):
        innocent = direction not in fault.hits and fault.hits[0] in ("load", "store")
        other_way = failed[direction] + (missing if direction == "load" else [])
        if innocent and other_way and seen.met.detail["hurt"] is None:
            return f"{direction}s of blocks {some(other_way)} failed, and they need nothing that was taken away"
    return ""


def _counted(fault: Fault, seen: _Seen, hurt: int) -> str:
    if not seen.counts_anything:
        return "not shown"
    failures = {n: v for n, v in seen.counted.items() if n.startswith("failed ") or n == "quarantined"}
    if not hurt:
        return ""
    if not failures:
        if seen.keeps_in_memory and not any(job.failed for job in seen.jobs["under"]):
            return "not shown"  # no file was read: the process that held the block loaded it from memory
        return f"{hurt} blocks were hurt and none is counted"
    if fault.reasons and not {f"failed {reason}" for reason in fault.reasons} & failures.keys():
        return f"counted as {', '.join(sorted(failures))}; valid: {', '.join(fault.reasons)}"
    return ""


def _blocked(fault: Fault, seen: _Seen) -> str:
    detail, under = seen.met.detail, seen.jobs["under"]
    submits = [j.submit_returned_seconds - j.submitted_seconds for j in under]
    for rule in fault.rules:
        if rule.action == "hang" and (longest := max(submits, default=0.0)) * 2 > _held(detail):
            return f"a submit took {longest:.3f} s while calls hung"
        if rule.action == "delay" and submits and (typical := median(submits)) * 2 > rule.amount:
            return f"submits took {typical:.3f} s (median) on a device slower by {rule.amount:g} s"
    if fault.rules and all(rule.action == "hang" and rule.nth for rule in fault.rules):
        others = [j for j in under if j.direction not in fault.hits]
        late = [j.job_id for j in others if not j.results or j.finished_seconds > detail["lifted_seconds"]]
        if late:
            return f"jobs {some(late)} of the direction that does not hang waited for the lift"
    return ""


def _held(detail: dict[str, Any]) -> float:
    return float(detail["lifted_seconds"]) - float(detail["began_seconds"])


def _liveness(seen: _Seen) -> str:
    """Everything, stored again after the lift, is found and right; so are blocks stored afterwards."""
    detail = seen.met.detail
    everything = [*detail["old"], *detail["new"]]
    for step, blocks, what in (("repair", everything, "stored"), ("after", detail["fresh"], "stored")):
        if unstored := _lost(seen, step, blocks):
            return f"after the lift blocks {some(unstored)} could not be {what}"
    for step, blocks in (("after", everything), ("last", detail["fresh"])):
        processes = {n.process for n in seen.asked[step]}
        if not processes:
            return "after the lift no process got as far as to look for blocks"
        for process in sorted(processes):
            right = _right(seen, step, process)
            if unfound := [b for b in blocks if b not in right]:
                return f"after the lift process {process} did not find blocks {some(unfound)}, or not right"
    return ""


def _lost(seen: _Seen, step: str, blocks: list[int]) -> list[int]:
    """Those of the blocks that no store of the step succeeded with."""
    stored = {b for j in seen.jobs.get(step, ()) if j.direction == "store" for b in j.ok}
    return [b for b in blocks if b not in stored]


def _right(seen: _Seen, step: str, process: int | None = None) -> set[int]:
    """Blocks that a load of the step brought, right."""
    found: set[int] = set()
    for job in seen.jobs.get(step, ()):
        if job.direction == "load" and (process is None or job.process == process):
            found |= set(job.ok) - {block for block, _ in job.wrong}
    return found


def _hit(asked: list[Note]) -> set[int]:
    pairs = [(b, v) for n in asked for b, v in zip(n.detail["blocks"], n.detail["verdicts"], strict=True)]
    return {block for block, verdict in pairs if verdict == "h"}


def _missing(asked: list[Note]) -> list[int]:
    pairs = [(b, v) for n in asked for b, v in zip(n.detail["blocks"], n.detail["verdicts"], strict=True)]
    return [block for block, verdict in pairs if verdict != "h"]


def _judge_openings(history: History, table: dict[str, dict[str, Any]], findings: Findings) -> None:
    opened = [n for n in history.notes if n.is_a(notes.Opening)]
    if not opened:
        return
    bad = 0
    counts = {"refused": 0, "opened": 0}
    for note in opened:
        outcome, kind, text = (note.detail[name] for name in ("outcome", "error", "said"))
        counts[outcome] += 1
        where = f"hostile_config: {note.detail['file']} holding {note.text}" if note.detail["file"] else "a fresh root"
        how = ""
        if outcome == "refused" and not note.detail["file"]:
            how = f"was refused: {text}"
        elif outcome == "refused" and (kind in DEPTHS or not text.strip()):
            how = f"was refused by an internal exception {kind} ({text or 'without a text'}), without a reason"
        elif outcome == "opened" and text:
            how = f"was opened, and then: {text}"
        if how:
            bad += 1
            known = of_note(note, file=note.detail["file"] or None, seen=text or None)
            findings.add(f"{where} {how}", rule=_rule("explained"), **known)
    figure = (
        f"{counts['refused']} refused with a reason, {counts['opened']} opened and used correctly"
        if not bad
        else f"{bad} bad"
    )
    table["hostile_config"] = {"verdict": "false" if bad else "true", "expected": {"explained": figure}, "hurt": 0}
