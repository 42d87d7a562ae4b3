"""Does the tier keep each promise that its engine relies on?

Covers what the driver "contract" wrote down (notes "promise"): a promise that was begun and never ended killed or hung
its process, and is broken. Not covered: several processes, floods, crashes, faults.

false, too: a process that died by itself outside a promise, or an error that it noted.

unknown: no promise was asked for, or the process was stopped before the last.
"""

from __future__ import annotations

import math
from typing import Any

from harness.checkers.base import About, Finding, Findings, Value, Verdict, called, grouped, of_note, unexplained_ends
from harness.checkers.shortages import Shortages
from harness.core import notes
from harness.core.history import History


def check(history: History) -> Verdict:
    """Judges notes "promise" and "error"."""
    findings = Findings()
    promises: dict[str, dict[str, Any]] = {}
    times: dict[str, tuple[float, float]] = {}
    shortages = Shortages(history)
    for note in sorted((n for n in history.notes if n.is_a(notes.Promise)), key=lambda n: n.monotonic_seconds):
        if note.detail["outcome"] == "begun":
            why = "its process died or hung in it"
            promises[note.text] = {"promise": note.detail["words"], "kept": "false", "why": why, "seconds": None}
            times[note.text] = (note.monotonic_seconds, math.inf)
        else:
            kept = "true" if note.detail["outcome"] == "kept" else "false"
            times[note.text] = (times[note.text][0], note.monotonic_seconds)
            promises[note.text] |= {"kept": kept, "why": note.detail["why"], "seconds": note.detail["seconds"]}
    for name, promise in promises.items():
        if promise["kept"] != "true" and (short := shortages.of_time(*times[name])):
            findings.doubt(f"{name}: {promise['why']} ({short})", seconds=times[name][0])
        elif promise["kept"] != "true":
            text = f"{name}: {promise['why']} (promise: {promise['promise']})"
            begun, ended = times[name]
            findings.add(text, seconds=ended if math.isfinite(ended) else begun, expected=promise["promise"])
    ends, outside = unexplained_ends(history)
    if len(ends) > sum(p["seconds"] is None for p in promises.values()):  # not each of them in a promise
        for text in grouped(ends):
            findings.add(text)
    errors = (n for n in history.notes if n.is_a(notes.Error) and n.process >= 0 and not shortages.of_error(n))
    for text in grouped(((called(n.process), Finding(n.text, About(**of_note(n)))) for n in errors), colon=True):
        findings.add(text)
    for text in grouped(outside, colon=True):
        findings.doubt(text)
    kept = sum(p["kept"] == "true" for p in promises.values())
    value: Value = "false" if findings else "unknown" if findings.doubts or not promises else "true"
    figure = f"{kept} of {len(promises)} promises were kept" if promises else "no promise was asked for"
    return Verdict("contract", value, figure, findings.list(), {"promises": list(promises.values())})
