"""Whether the tier is right in each explored order of its processes' system calls.

Judged: the programs that the driver "interleavings" explored (notes "explored"). After each schedule: the results of
the operations, the files, and a next process that opens the root, loads each block, stores it and loads it again.

Not covered: programs that were not run, orders of memory accesses within a process, power loss.

unknown: no program was run, system calls cannot be stopped here, or a limit ended a program before all of its schedules
(or all with a given number of preemptions) were run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.checkers.base import Findings, Rule, Value, Verdict, called, grouped, unexplained_ends
from harness.core import notes
from harness.core.history import History

_TEXTS = {
    "wrong bytes": "No load returns bytes that are not its block's.",
    "results": "Each job of a living process gets exactly one result.",
    "failed store": "A store fails in no process.",
    "failed load": "A block that nothing removes or damages is loaded.",
    "lookup": "A lookup finds a block that is there and that nothing removes, and none that no process stores.",
    "lost store": "A block that was reported stored is loaded by the next process.",
    "raised": "No operation raises an exception, and no process dies by itself.",
    "stuck": "Each living process comes to its end, also when another was killed.",
    "refused opening": "Processes with the same hash seed open the root; of two with different hash seeds one does.",
    "two seeds": "Processes with different hash seeds never both open the root.",
    "left over": "No file is left but blocks, the tier's own and quarantined ones.",
    "evicted too much": "Eviction leaves as many blocks as its limit allows.",
    "next process": "The next process opens the root, stores each block, loads it, and evicts.",
}
_TOLERATED = {
    "lost store": "A store that finds a damaged file of the right size leaves it; the next load quarantines it and is "
    "a miss. The report counts such schedules.",
    "left over": "What a killed process left may stay until the tier's garbage collection, if it has one, removes it.",
}
RULES = tuple(
    Rule(f"interleavings/{kind.replace(' ', '-')}", text, _TOLERATED.get(kind, "")) for kind, text in _TEXTS.items()
)
_RULE_OF: Mapping[str, Rule] = dict(zip(_TEXTS, RULES, strict=True))
KINDS = tuple(_TEXTS)
"""A violation's sentence begins with one of these and a colon."""


def check(history: History) -> Verdict:
    """Judges notes "explored", "counterexample", "skipped", "unfit" and "error"."""
    findings = Findings(RULES)
    explored = [note.detail for note in history.notes if note.is_a(notes.Explored)]
    for note in history.notes:
        if note.is_a(notes.Counterexample):
            for text in note.detail["texts"]:
                shown = _named(text, note.detail)
                findings.add(shown, _RULE_OF[text.partition(":")[0]], file=note.detail["file"] or None)
        elif note.is_a(notes.Unfit):
            findings.doubt(note.text)
        elif note.is_a(notes.Error):
            findings.doubt(f"process {called(note.process)}: {note.text}")
    for one in explored:
        if not one["complete"] and not one["violating"]:
            findings.doubt(f"{one['program']}: not all schedules were run: {one['incomplete']}")
    ends, outside = unexplained_ends(history)
    for text in grouped([*ends, *outside]):
        findings.doubt(text)
    value: Value = "false" if findings else "unknown" if findings.doubts or not explored else "true"
    programs = {one["program"]: _row(one) for one in explored}
    data = {"programs": list(programs.values()), "by design": _by_design(explored)}
    data["not run"] = {note.text: 1 for note in history.notes if note.is_a(notes.Skipped)}
    return Verdict("interleavings", value, _figure(explored), findings.list(), data)


def _named(text: str, detail: Mapping[str, Any]) -> str:
    """A violation as a sentence that can be read alone."""
    kind, _, what = text.partition(": ")
    return f"{kind}: {what} (program {detail['program']!r}, {len(detail['trace'])} calls; {detail['file']} has them)"


def _figure(explored: list[dict[str, Any]]) -> str:
    if not explored:
        return "no program was run"
    schedules, violating = sum(e["schedules"] for e in explored), sum(e["violating"] for e in explored)
    whole = sum(e["complete"] and e["preemptions_max"] is None for e in explored)
    bounded = sum(e["complete"] and e["preemptions_max"] is not None for e in explored)
    parts = [f"all schedules of {whole} programs" if whole else ""]
    if bounded:
        bounds = sorted({e["preemptions_max"] for e in explored if e["preemptions_max"] is not None})
        parts.append(f"all with at most {' or '.join(map(str, bounds))} preemptions of {bounded}")
    parts.append(f"a part of those of {len(explored) - whole - bounded}" if len(explored) > whole + bounded else "")
    kills = "with one kill at any call" if any(e["kills"] for e in explored) else "without kills"
    return f"{schedules} schedules {kills}: {', '.join(filter(None, parts))}; {violating} violate a rule"


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of programs."""
    bound = one["preemptions_max"]
    return {
        "program": one["program"],
        "processes": one["processes"],
        "kills": one["kills"],
        "schedules": one["schedules"],
        "all of them": ("yes" if bound is None else f"up to {bound} preemptions") if one["complete"] else "no",
        "final states": one["states"],
        "violating": one["violating"],
        "seconds": one["seconds"],
    }


def _by_design(explored: list[dict[str, Any]]) -> dict[str, int]:
    """Schedules after which something is so that a rule tolerates, by what it is."""
    counts: dict[str, int] = {}
    for one in explored:
        for what, schedules in one["excused"].items():
            counts[what] = counts.get(what, 0) + schedules
    return counts


def slug(text: str) -> str:
    """A program as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()
