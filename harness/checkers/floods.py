"""Whether single jobs of each direction end while a flood of other jobs runs; judged by submits and results alone.

A *phase* is a flood of jobs of one direction or one size, kept deeper than the tier's threads, and a *probe*: one block
at a time, the next after the last has ended. For each phase:
1. A probe of the other direction must end before the flood does. None ended while the flood finished at least
   `FLOOD_FACTOR` * threads jobs: starvation, whatever the schedule.
2. While one call of the device hangs (notes "hang" to "lifted"), jobs of both directions continue to end. A host that
   is cut off from its volume (detail "cut") can end no job well. Instead:
   - no lookup waits longer than `hung_seconds_max` (option);
   - no task waits longer behind fewer hung tasks of its direction than there are threads of it, since the other
     direction then holds these threads;
   - a tier that reports hung threads (gauges "*_threads_hung") reports one within that time, never more than there are
     threads, and none at the end;
   - the jobs end after the host is back, and then both directions succeed in the same process.
3. A probe waits for blocks of the other direction, not for whole jobs. Behind jobs that are `size` times larger its
   mean wait may grow by the square root of `size`. Judged for sizes at least `SIZE_FACTOR_MIN` apart, both floods
   deeper than the threads, and growth above the longest unloaded life.
4. A flood slows a probe down no more than its own blocks. If its blocks take `s` seconds of a thread each, a probe may
   take on average `SERVICE_FACTOR` times `s` plus its unloaded life times the slowdown of the flood's own blocks.
5. Two processes use one root with different models: neither model's probes take `SERVICE_FACTOR` times as long as the
   other's.
A job is charged with the time until the last poll that did not return it. Each flood is repeated. Rules 1 and 3 to 5
fail if broken in each repetition, and are inconclusive if broken in most. Rules 3 to 5 do not apply to jobs that run
inside their submit. The wait of a probe in the flood's own direction is reported, not judged.

Not covered: hangs of a tier that runs jobs inside `submit`; the scenario leaves them out.

unknown: no phase, no flood that was deeper than the threads, or a phase in which no job of the flood ended.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

from harness.checkers.base import Findings, Rule, Value, Verdict, milliseconds
from harness.checkers.evidence import (
    HELD_FACTOR,
    NOT_EACH_TIME,
    UNMEASURED_SECONDS,
    confirmed,
    device_seconds,
    least_life,
    most_life,
)
from harness.core import notes
from harness.core.history import Direction, History, Job, Note

FLOOD_FACTOR = 4
CLASSES: tuple[Direction, Direction] = ("load", "store")
SIZE_FACTOR_MIN = 32
"""Sizes that are nearer to each other cannot be separated from noise."""
SERVICE_FACTOR = 8
"""How much longer than expected a probe may take on average."""

STARVED = Rule(
    "floods/starved",
    "Single blocks of one direction end during a flood of the other direction.",
    f"a flood of which fewer than {FLOOD_FACTOR} jobs for each thread ended, or that lasted at most {HELD_FACTOR} "
    f"times the typical device call; {NOT_EACH_TIME}",
)
HANG = Rule(
    "floods/hang",
    "Jobs of both directions continue to end while one call of the device hangs.",
    "as many jobs as there are threads, if none that was submitted during the hang ended",
)
CUT_OFF = Rule(
    "floods/cut-off",
    "A process whose host is cut off from its volume answers lookups, replaces hung threads and recovers.",
    "the seconds that the option `hung_seconds_max` allows",
)
HEAD_OF_LINE = Rule(
    "floods/head-of-line",
    "A single block waits for blocks of the other direction, not for whole jobs.",
    "a mean wait that grows by at most the square root of the factor by which the jobs are larger; growth by at most "
    f"the longest unloaded life; {NOT_EACH_TIME}",
)
SERVICE = Rule(
    "floods/loaded-service",
    "A flood slows single blocks of the other direction down no more than its own blocks.",
    f"on average {SERVICE_FACTOR} times as much, since threads share CPUs and the interpreter's lock; {HELD_FACTOR} "
    f"times the typical device call; {NOT_EACH_TIME}",
)
MODEL = Rule(
    "floods/model-held-back",
    "Single blocks of one model get through the same floods as those of another model that uses the same root.",
    f"on average {SERVICE_FACTOR} times as long, or the longest unloaded life of the faster model; {NOT_EACH_TIME}",
)
RULES = (STARVED, HANG, CUT_OFF, HEAD_OF_LINE, SERVICE, MODEL)


def check(history: History) -> Verdict:
    """Judges `jobs` (tags 2 * number: the flood, 2 * number + 1: probes) and `notes` "flood", "hang", "lifted"."""
    findings = Findings(RULES)
    by_tag: dict[tuple[int, int], list[Job]] = defaultdict(list)
    for job in history.jobs:
        by_tag[job.process, job.request].append(job)
    details = {s.process: s.detail for s in history.starts}
    in_submit = bool(details) and all(d.get("runs_in_submit") for d in details.values())
    unloaded = {process: _unloaded(process, history, by_tag) for process in details}
    phases: list[dict[str, Any]] = []
    for note in (n for n in history.notes if n.is_a(notes.Flood)):
        detail = details.get(note.process, {})
        threads = int(detail.get("read_threads") or 0) + int(detail.get("write_threads") or 0)
        number = note.detail["number"]
        phase = _measure(note, by_tag[note.process, 2 * number + 1], by_tag[note.process, 2 * number])
        split = f"{detail.get('read_threads')}+{detail.get('write_threads')}"
        phase |= {"process": note.process, "split": split, "threads": threads}
        phase |= {"deep": in_submit or phase["jobs_ahead"] > threads}
        phases.append(phase | _expected(phase, unloaded.get(note.process, {})))
        if not phase["flood_ended"]:
            findings.doubt(f"{_called(phase)}: nothing of the flood ended in {milliseconds(phase['seconds'])}")
    spread_seconds = device_seconds(history, otherwise=UNMEASURED_SECONDS / HELD_FACTOR)
    _judge_starved(phases, findings, spread_seconds)
    if not in_submit:  # a job that runs inside its submit waits for no other
        _judge_head_of_line(phases, unloaded, findings)
        _judge_service(phases, findings, spread_seconds)
        _judge_models(phases, details, findings)
    hangs = [note for note in history.notes if note.is_a(notes.Hang)]
    cuts = [_judge_cut(note, history, findings) for note in hangs if note.detail.get("cut")]
    hung = [_judge_hang(note, history, findings) for note in hangs if not note.detail.get("cut")]
    cut_off = {(cut["process"], cut["number"]) for cut in cuts}
    crossed = [p for p in phases if p["probe"] != p["flood"]]
    skipped = [n.text for n in history.notes if n.is_a(notes.Skipped)]
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    why = ""
    if not findings and not crossed:
        value, why = "unknown", "no phase in which one class flooded the other; "
    elif not findings and not any(p["deep"] for p in crossed):
        value, why = "unknown", "no flood was deeper than the threads; "
    undisturbed = (p for p in crossed if (p["process"], p["number"]) not in cut_off)
    worst = max(undisturbed, key=lambda p: p["longest_gap_seconds"], default=None)
    deep = sum(p["deep"] for p in crossed)
    through = f"{sum(p['probes_ended'] for p in crossed)} probes through {len(crossed)} floods"
    parts = [f"{why}{through}, {deep} of them of more jobs than threads as a rule"]
    if worst:
        parts.append(
            f"longest without an end of the probes' class {milliseconds(worst['longest_gap_seconds'])} "
            f"({worst['split']} threads, {worst['probe']}s behind {worst['flood']} jobs of "
            f"{worst['flood_blocks']} blocks)"
        )
    lines = _own_class(phases)
    parts += [f"in its own class: {line}" for line in lines.values()]
    if hung:
        parts.append(f"{len(hung)} hung calls survived" if not findings else f"{len(hung)} hung calls")
    if cuts:
        slowest = {name: milliseconds(max(cut[name] for cut in cuts)) for name in ("answer_seconds", "again_seconds")}
        parts.append(
            f"{len(cuts)} processes were cut off in a flood: {max(cut['threads_hung'] for cut in cuts):g} threads of a "
            f"class replaced at a time, answers to lookups in {slowest['answer_seconds']} at most, both classes again "
            f"{slowest['again_seconds']} after the heal"
        )
    parts += [f"skipped: {text}" for text in skipped]
    data = {"phases": phases, "own_class": lines, "hangs": hung, "cuts": cuts, "skipped": skipped}
    return Verdict("floods", value, "; ".join(parts), findings.list(), data)


def _called(phase: Mapping[str, Any]) -> str:
    return (
        f"process {phase['process']} ({phase['split']} threads), {phase['probe']}s through a flood of "
        f"{phase['flood']} jobs of {phase['flood_blocks']} blocks"
    )


class _Unloaded(NamedTuple):
    """Lives of single blocks with nothing else in flight, in seconds."""

    mean: float
    longest: float


def _unloaded(process: int, history: History, by_tag: Mapping[tuple[int, int], list[Job]]) -> dict[str, _Unloaded]:
    """By direction, of a process that measured it."""
    found = {}
    for note in history.notes:
        if note.is_a(notes.Unloaded) and note.process == process:
            jobs = [j for j in by_tag.get((process, note.detail["tag"]), ()) if j.results]
            if jobs:
                mean = fmean(map(least_life, jobs))
                found[note.detail["direction"]] = _Unloaded(mean, max(map(most_life, jobs)))
    return found


def _measure(note: Note, probes: list[Job], flood: list[Job]) -> dict[str, Any]:
    """Numbers of one phase. Only what ended before the flood was over counts as having got through it."""
    began, over = note.detail["began_seconds"], note.detail["over_seconds"]
    through = sorted(j.finished_seconds for j in probes if j.results and j.finished_seconds <= over)
    stamps = [began, *through, over]
    waits = [j for j in probes if j.results]
    ended = [j for j in flood if j.results and j.finished_seconds <= over]
    lives = {
        "probe_mean_seconds": fmean(map(most_life, waits)) if waits else None,
        "probe_least_seconds": fmean(map(least_life, waits)) if waits else None,
        "probe_median_seconds": median(map(most_life, waits)) if waits else None,
        "probe_longest_seconds": max(map(most_life, waits), default=None),
    }
    return {
        **{name: note.detail[name] for name in ("number", "probe", "flood", "flood_blocks", "jobs_ahead")},
        "repetition": note.detail.get("repetition"),
        "seconds": over - began,
        "over_seconds": over,
        "probes_ended": len(through),
        "flood_ended": len(ended),
        "blocks_ended": sum(len(j.blocks) for j in ended),
        **lives,
        "longest_gap_seconds": max(b - a for a, b in pairwise(stamps)),
    }


def _expected(phase: Mapping[str, Any], unloaded: Mapping[str, _Unloaded]) -> dict[str, Any]:
    """Rule 4: what a probe takes on average where the flood slows it down as much as it slows itself down."""
    flood, probe = unloaded.get(phase["flood"]), unloaded.get(phase["probe"])
    if flood is None or probe is None or not phase["blocks_ended"] or not flood.mean:
        return {"expected_seconds": None}
    # Little's law: at most all threads are busy with blocks of the flood.
    service_seconds = phase["threads"] * phase["seconds"] / phase["blocks_ended"]
    slower = max(1.0, service_seconds / flood.mean)
    return {"expected_seconds": service_seconds + slower * probe.mean, "unloaded_longest_seconds": probe.longest}


def _repetitions(phases: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The crossed floods, those of one kind in one process together."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for phase in phases:
        if phase["probe"] != phase["flood"]:
            again = () if phase["repetition"] is not None else (phase["number"],)
            kind = (phase["process"], phase["split"], phase["probe"], phase["flood"], phase["flood_blocks"], *again)
            alike[kind].append(phase)
    return list(alike.values())


def _conclude(text: str, rule: Rule, phase: Mapping[str, Any], times: int, of: int, findings: Findings) -> None:
    """A finding if it came again in each repetition, a doubt if in most of them."""
    match confirmed(times, of):
        case "yes":
            whole = f"{text} (in {times} of {of} repetitions)" if of > 1 else text
            findings.add(whole, rule=rule, seconds=phase["over_seconds"], process=phase["process"])
        case "unsure":
            findings.doubt(f"{text}, but only in {times} of {of} repetitions", rule=rule, process=phase["process"])


def _judge_starved(phases: list[dict[str, Any]], findings: Findings, spread_seconds: float) -> None:
    """Rule 1."""
    for repetitions in _repetitions(phases):
        starved = [p for p in repetitions if not p["probes_ended"]]
        certain = [
            p
            for p in starved
            if p["flood_ended"] >= FLOOD_FACTOR * p["threads"] and p["seconds"] > HELD_FACTOR * spread_seconds
        ]
        if certain:
            worst = max(certain, key=lambda p: float(p["seconds"]))
            text = (
                f"{_called(worst)}: none ended in {milliseconds(worst['seconds'])}, while {worst['flood_ended']} jobs "
                "of the flood did: starved"
            )
            _conclude(text, STARVED, worst, len(certain), len(repetitions), findings)
        if len(certain) < len(starved) and confirmed(len(starved), len(repetitions)) != "no":
            worst = starved[0]
            text = f"{_called(worst)}: none ended, and few of the flood ({worst['flood_ended']})"
            findings.doubt(text, rule=STARVED, process=worst["process"])


def _judge_service(phases: list[dict[str, Any]], findings: Findings, spread_seconds: float) -> None:
    """Rule 4, for floods of single blocks: larger jobs are rule 3's."""
    for repetitions in _repetitions(
        p for p in phases if p["flood_blocks"] == 1 and p["deep"] and p["repetition"] is not None
    ):
        judged = [p for p in repetitions if p["expected_seconds"] and p["probe_least_seconds"]]
        slow = [
            p
            for p in judged
            if p["probe_least_seconds"]
            > max(SERVICE_FACTOR * p["expected_seconds"], p["unloaded_longest_seconds"], HELD_FACTOR * spread_seconds)
        ]
        if slow:
            least = min(slow, key=lambda p: float(p["probe_least_seconds"] / p["expected_seconds"]))
            text = (
                f"{_called(least)}: one took {milliseconds(least['probe_least_seconds'])} (mean), which is "
                f"{least['probe_least_seconds'] / least['expected_seconds']:.0f} times what the flood's own slowdown "
                f"explains; {SERVICE_FACTOR} times are allowed"
            )
            _conclude(text, SERVICE, least, len(slow), len(judged), findings)


def _judge_models(phases: list[dict[str, Any]], details: Mapping[int, Mapping[str, Any]], findings: Findings) -> None:
    """Rule 5."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    models = {process: str(detail.get("model_name", "")) for process, detail in details.items()}
    usual = models.get(min(models, default=0), "")
    for phase in phases:
        if models.get(phase["process"], usual) != usual and phase["expected_seconds"] and phase["probe_least_seconds"]:
            alike[phase["probe"], phase["flood"], phase["repetition"]].append(phase)
    slower: dict[tuple[str, str, int], list[tuple[float, str]]] = defaultdict(list)
    of: Counter[tuple[str, str]] = Counter()
    for (probe, flood, _), mine in alike.items():
        slow, fast = (choose(mine, key=lambda p: float(p["probe_least_seconds"])) for choose in (max, min))
        of[probe, flood] += 1
        most = max(SERVICE_FACTOR * fast["probe_mean_seconds"], fast["unloaded_longest_seconds"])
        if slow["probe_least_seconds"] > most:
            text = (
                f"a 1-block {probe} of model {models[slow['process']]!r} takes "
                f"{milliseconds(slow['probe_least_seconds'])} (mean) through {flood}s, one of model "
                f"{models[fast['process']]!r} at the same time {milliseconds(fast['probe_mean_seconds'])}"
            )
            slower[probe, flood, slow["process"]].append((slow["probe_least_seconds"], text))
    for (probe, flood, process), found in slower.items():
        last = max(p["over_seconds"] for p in phases if p["process"] == process)
        about = {"process": process, "over_seconds": last}
        _conclude(max(found)[1], MODEL, about, len(found), of[probe, flood], findings)


def _judge_hang(note: Note, history: History, findings: Findings) -> dict[str, Any]:
    """Rule 2, from the moment that the call hung until it was let go."""
    process, lifted = note.detail["process"], _lifted(note, history)
    threads = sum(_threads(process, history).values())
    mine = [j for j in history.jobs if j.process == process and j.results]
    during = [j for j in mine if note.monotonic_seconds < j.finished_seconds < lifted]
    ended = {direction: sum(j.direction == direction for j in during) for direction in CLASSES}
    begun = {j.direction for j in during if j.submitted_seconds > note.monotonic_seconds}
    seconds = lifted - note.monotonic_seconds
    for direction, count in ended.items():
        # So many may have been under way when the call hung; one more has begun since.
        if direction not in begun and count <= threads:
            findings.add(
                f"process {process}: while {note.text}, no {direction} submitted during the hang ended in "
                f"{milliseconds(seconds)}, and {count} of those before",
                rule=HANG,
                seconds=note.monotonic_seconds,
                process=process,
            )
    return {"process": process, "what": note.text, "seconds": seconds, "ended": ended}


def _lifted(note: Note, history: History) -> float:
    """The end of the event that `note` records; infinity if it never ended."""
    since = note.monotonic_seconds
    lifted = (n.monotonic_seconds for n in history.notes if n.is_a(notes.Lifted) and n.monotonic_seconds > since)
    return min(lifted, default=math.inf)


def _threads(process: int, history: History) -> dict[str, int]:
    """Of each class."""
    detail = next((s.detail for s in history.starts if s.process == process), {})
    return {"load": int(detail.get("read_threads") or 0), "store": int(detail.get("write_threads") or 0)}


def _judge_cut(note: Note, history: History, findings: Findings) -> dict[str, Any]:
    """Rule 2 for a process whose host was cut off."""
    process, number, since = note.detail["process"], note.detail["number"], note.monotonic_seconds
    bound = float(history.options.get("hung_seconds_max", 15.0))
    until, who = _lifted(note, history), f"process {process}, while {note.text}"

    def found(text: str, seconds: float = since) -> None:
        findings.add(text, rule=CUT_OFF, seconds=seconds, process=process)

    phases = [n.detail for n in history.notes if n.process == process and n.is_a(notes.Flood)]
    phase = next((p for p in phases if p["number"] == number), {"answer_seconds": math.inf, "settled": False})
    if phase["answer_seconds"] > bound:
        found(f"{who}: a lookup had no answer for {milliseconds(phase['answer_seconds'])}")
    if not phase["settled"]:
        found(f"{who}: not all of its jobs had ended by the end of the phase")
    threads = _threads(process, history)
    tasks = [t for t in history.tasks if t.process == process and t.finished_seconds > since]
    gauges = [g for g in history.gauges if g.process == process]
    shown = any("load_threads_hung" in g.values for g in gauges)
    for task in tasks:
        came, began = max(task.enqueued_seconds, since), max(task.started_seconds, since)
        if min(task.started_seconds, until) - came > bound:
            hung = sum(
                t.direction == task.direction and t.started_seconds <= came + bound < t.finished_seconds for t in tasks
            )
            if hung < threads[task.direction]:
                found(
                    f"{who}: a {task.direction} waited {milliseconds(min(task.started_seconds, until) - came)} for a "
                    f"thread, with {hung} hung {task.direction}s for {threads[task.direction]} threads of its class"
                )
        if shown and min(task.finished_seconds, until) - began > bound:
            name = f"{task.group}_threads_hung"
            if not any(began <= g.monotonic_seconds <= began + bound and g.values.get(name) for g in gauges):
                found(f"{who}: a {task.direction} hung, and its thread was not replaced in {milliseconds(bound)}")
    lost = {c: [g.values.get(f"{c}_threads_hung", 0.0) for g in gauges] or [0.0] for c in CLASSES}
    again = {
        c: min(
            (
                j.finished_seconds - until
                for j in history.jobs
                if j.process == process and j.direction == c and j.outcome == "ok" and j.submitted_seconds > until
            ),
            default=math.inf,
        )
        for c in CLASSES
    }
    for direction in CLASSES:
        if max(lost[direction]) > threads[direction]:
            found(f"{who}: {max(lost[direction]):g} threads hung at a time, of {threads[direction]}")
        if lost[direction][-1]:
            found(f"{who}: {lost[direction][-1]:g} threads of {direction}s had not come back at the end")
        if math.isinf(again[direction]):
            found(f"{who}: no {direction} of a job begun after the heal succeeded")
    if any(stop.process == process and stop.exit_code for stop in history.stops):
        found(f"{who}: its process ended")
    return {
        "process": process,
        "number": number,
        "what": note.text,
        "seconds": until - since,
        "answer_seconds": phase["answer_seconds"],
        "threads_hung": max(*lost["load"], *lost["store"]),
        "again_seconds": max(again.values()),
    }


def _judge_head_of_line(
    phases: list[dict[str, Any]],
    unloaded: Mapping[int, Mapping[str, _Unloaded]],
    findings: Findings,
) -> None:
    """Rule 3: the largest flood of a class, against the largest that is `SIZE_FACTOR_MIN` times smaller."""
    alike: dict[tuple[int, str, str], list[dict[str, Any]]] = defaultdict(list)
    for phase in phases:
        if phase["probe"] != phase["flood"] and phase["deep"] and phase["probe_mean_seconds"]:
            alike[phase["process"], phase["split"], phase["flood"]].append(phase)
    for (process, split, flood), mine in alike.items():
        large_blocks = max(p["flood_blocks"] for p in mine)
        smaller = [p["flood_blocks"] for p in mine if p["flood_blocks"] * SIZE_FACTOR_MIN <= large_blocks]
        if not smaller:
            continue
        large = [p for p in mine if p["flood_blocks"] == large_blocks]
        small = {p["repetition"]: p for p in mine if p["flood_blocks"] == max(smaller)}
        size = large_blocks / max(smaller)
        broken = []
        pairs = [(p, small[p["repetition"]]) for p in large if p["repetition"] in small]
        if len(pairs) < len(small):
            continue  # was not repeated as often
        for ahead, behind in pairs:
            grown = ahead["probe_least_seconds"] / behind["probe_mean_seconds"]
            more_seconds = ahead["probe_least_seconds"] - behind["probe_mean_seconds"]
            spread = unloaded.get(process, {}).get(ahead["probe"])
            if grown > math.sqrt(size) and more_seconds > (spread.longest if spread else 0.0):
                broken.append((grown, ahead, behind))
        if broken:
            grown, ahead, behind = min(broken, key=lambda b: float(b[0]))
            text = (
                f"process {process} ({split} threads): a 1-block {ahead['probe']} takes "
                f"{milliseconds(ahead['probe_least_seconds'])} (mean; up to "
                f"{milliseconds(ahead['probe_longest_seconds'])}) behind {flood} jobs of {ahead['flood_blocks']} "
                f"blocks, and {milliseconds(behind['probe_mean_seconds'])} behind {flood} jobs of "
                f"{behind['flood_blocks']}: {grown:.0f} times, more than the root of {size:.0f}; it waits for whole "
                "jobs"
            )
            _conclude(text, HEAD_OF_LINE, ahead, len(broken), len(pairs), findings)


def _own_class(phases: list[dict[str, Any]]) -> dict[str, str]:
    """What a one-block job waits behind large jobs of its own class, in words, by class: the worst split."""
    lines = {}
    for direction in ("load", "store"):
        own = [
            p
            for p in phases
            if p["probe"] == p["flood"] == direction and p["flood_blocks"] > 1 and p["probe_longest_seconds"]
        ]
        if own:
            worst = max(own, key=lambda p: p["probe_longest_seconds"])
            lines[direction] = (
                f"a 1-block {direction} took up to {milliseconds(worst['probe_longest_seconds'])} (median "
                f"{milliseconds(worst['probe_median_seconds'])}) behind {worst['jobs_ahead']} jobs of "
                f"{worst['flood_blocks']} blocks of its class ({worst['split']} threads)"
            )
    return lines
