"""Whether a call of the scheduler's thread waits for I/O, grows with the root, or holds Python's lock.

Part of `nonblocking`.

The scenario times calls in windows (notes `Calls`), in each condition `REPETITIONS` times. A rule is broken if it is
broken in each repetition, since a pause of the machine does not come again.
1. Each call of the device is delayed: more calls take as long as that delay than the windows without delay explain, and
   more than one in `SHARE`.
2. The root has many files: the median of a kind of call is more than `GROWTH_FACTOR` times that with few files.
3. Nothing is delayed: the median of a kind of call is longer than the delay of condition 1, or its median CPU time is.
4. The canary has a CPU and waits `LOCK_SECONDS` or longer for the interpreter's lock, `LOCK_TIMES` times in a window.
Of a tier that runs jobs inside `submit` (the reference tier) only rule 2 is judged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from harness.checkers.base import Findings, Rule, milliseconds
from harness.checkers.evidence import NOT_EACH_TIME, Hindrance, confirmed, is_accounted, late_wake_ups
from harness.core import notes
from harness.core.history import History

SHARE = 20
GROWTH_FACTOR = 4
GROWTH_SECONDS_MIN = 0.0005
LOCK_SECONDS = 0.02
LOCK_TIMES = 3

WAITS = Rule(
    "nonblocking/waits-for-device",
    "No call of the scheduler's thread waits for the device.",
    f"one call in {SHARE}, or 3 standard deviations above the share that takes as long without the delay; "
    f"{NOT_EACH_TIME}",
)
GROWS = Rule(
    "nonblocking/grows-with-root",
    "The time of a call of the scheduler's thread does not grow with the number of files under the root.",
    f"a median of at most {GROWTH_FACTOR} times that with few files, or {GROWTH_SECONDS_MIN * 1000:g} ms more; "
    f"{NOT_EACH_TIME}",
)
LONG = Rule(
    "nonblocking/long-call",
    "The median time of each kind of call of the scheduler's thread is short.",
    f"a median below the delay that the run adds to calls of the device; hindered time, not CPU time of the call; "
    f"{NOT_EACH_TIME}",
)
LOCK = Rule(
    "nonblocking/holds-lock",
    "The tier does not hold the interpreter's lock for long.",
    f"waits of other threads below {LOCK_SECONDS * 1000:g} ms (4 of Python's switch intervals), and fewer than "
    f"{LOCK_TIMES} longer ones in a window; time in which the waiting thread had no CPU; {NOT_EACH_TIME}",
)
RULES = (WAITS, GROWS, LONG, LOCK)

Windows = Mapping[str, Sequence[Mapping[str, Any]]]


def judge_calls(history: History, findings: Findings, in_submit: set[int]) -> list[str]:
    """Adds findings and doubts; returns what was measured, in words."""
    by_call: dict[tuple[int, str], dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for note in history.notes:
        if note.is_a(notes.Calls):
            by_call[note.process, note.detail["call"]][note.detail["condition"]].append(note.detail)
    for (process, call), windows in by_call.items():
        if process not in in_submit:
            _judge_waits(process, call, windows, findings)
            _judge_length(process, call, windows, findings, Hindrance(history, process))
        _judge_growth(process, call, windows, findings)
    for process in {process for process, _ in by_call} - in_submit:
        _judge_lock(process, history, findings)
    if not by_call:
        return []
    worst = {
        call: max(float(w["median_seconds"]) for each in windows.values() for w in each)
        for (_, call), windows in by_call.items()
    }
    listed = ", ".join(f"{call} {milliseconds(seconds)}" for call, seconds in sorted(worst.items()))
    skipped = [f"skipped: {n.text}" for n in history.notes if n.is_a(notes.Skipped)]
    return [f"largest medians of a window: {listed}", *skipped]


def _conclude(text: str, rule: Rule, process: int, times: int, of: int, findings: Findings) -> None:
    match confirmed(times, of):
        case "yes":
            findings.add(f"{text} (in {times} of {of} repetitions)", rule=rule, process=process)
        case "unsure":
            findings.doubt(f"{text}, but only in {times} of {of} repetitions", rule=rule, process=process)


def _judge_waits(process: int, call: str, windows: Windows, findings: Findings) -> None:
    quiet, delayed = windows.get("quiet", ()), windows.get("delayed", ())
    if not quiet or not delayed:
        return
    share = sum(w["slow"] for w in quiet) / sum(w["made"] for w in quiet)
    waited = []
    for window in delayed:
        expected = share * window["made"]
        most = max(window["made"] / SHARE, expected + 3 * math.sqrt(expected))
        waited.append(window["slow"] > most)
    if any(waited):
        slow, count = sum(w["slow"] for w in delayed), sum(w["made"] for w in delayed)
        delay_seconds = delayed[0]["delay_seconds"]
        text = (
            f"process {process}: {slow} of {count} calls of {call} took {milliseconds(delay_seconds)} or longer while "
            f"each call of the device took so much longer, and {share:.1%} did otherwise; it waits for the device"
        )
        _conclude(text, WAITS, process, sum(waited), len(waited), findings)


def _judge_growth(process: int, call: str, windows: Windows, findings: Findings) -> None:
    small, large = windows.get("quiet", ()), windows.get("large", ())
    if not small or not large:
        return
    least = median(w["median_seconds"] for w in small)
    most = max(GROWTH_FACTOR * least, least + GROWTH_SECONDS_MIN)
    grown = [w["median_seconds"] > most for w in large]
    if any(grown):
        files = large[0]["files"]
        smallest = min(w["median_seconds"] for w in large)
        text = (
            f"process {process}: a {call} takes {milliseconds(smallest)} or more (medians) with {files} files more "
            f"under the root, and {milliseconds(least)} without; it grows with the root"
        )
        _conclude(text, GROWS, process, sum(grown), len(grown), findings)


def _judge_length(process: int, call: str, windows: Windows, findings: Findings, hindrance: Hindrance) -> None:
    quiet = windows.get("quiet", ())
    long, unsure = [], 0
    for window in quiet:
        if window["median_seconds"] >= window["delay_seconds"]:
            began, over = window["began_seconds"], window["over_seconds"]
            share = hindrance.free_seconds(began, over) / (over - began)
            computes = window.get("cpu_seconds", 0.0) >= window["delay_seconds"]  # whatever hindered the process
            if computes or window["median_seconds"] * share >= window["delay_seconds"]:
                long.append(window)
            else:
                unsure += 1
    if long or unsure:
        typical = milliseconds(median(w["median_seconds"] for w in quiet))
        text = f"process {process}: half of the calls of {call} take {typical} or longer"
        if len(long) == len(quiet):
            _conclude(text, LONG, process, len(long), len(quiet), findings)
        elif 2 * (len(long) + unsure) > len(quiet):
            findings.doubt(f"{text}, but the process was hindered", rule=LONG, process=process)


def _judge_lock(process: int, history: History, findings: Findings) -> None:
    hindrance = Hindrance(history, process)
    waits = [
        (woke, seconds)
        for due, woke, late, delay in late_wake_ups(history, process)
        if (seconds := late - max(delay, hindrance.delayed_seconds(due, woke))) >= LOCK_SECONDS
    ]
    spans = sorted(
        {
            (n.detail["began_seconds"], n.detail["over_seconds"])
            for n in history.notes
            if n.process == process and n.is_a(notes.Calls)
        }
    )
    held = [[s for woke, s in waits if began <= woke <= over] for began, over in spans]
    times = sum(len(each) >= LOCK_TIMES for each in held)
    if times:
        longest = max(max(each, default=0.0) for each in held)
        if not is_accounted(history, process):
            text = (
                f"process {process}: a thread waited {milliseconds(longest)} for the interpreter's lock or for a CPU; "
                "no account says how much of it without a CPU"
            )
            return findings.doubt(text, rule=LOCK, process=process)
        text = (
            f"process {process}: a thread that had a CPU waited {milliseconds(longest)} for the interpreter's lock, "
            f"and {LOCK_SECONDS * 1000:g} ms or longer {sum(map(len, held))} times"
        )
        _conclude(text, LOCK, process, times, len(spans), findings)
