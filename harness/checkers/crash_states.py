"""Whether the tier opens, serves correct bytes and stores again in every state of its files that a crash may leave.

Judged for each recorded phase and each way to store (notes "crashphase" and "crashstate"). A missing or refused block
is a finding only if its store had waited for the device. An exception of the tier is a finding, and so is a process
that ended with an error.

unknown: no phase was recorded, or a recording is incomplete.
"""

from __future__ import annotations

from typing import Any

from harness.checkers.base import (
    About,
    Finding,
    Findings,
    Rule,
    Value,
    Verdict,
    called,
    grouped,
    of_note,
    unexplained_ends,
)
from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.history import History

WRONG = Rule(
    "crash_states/right-bytes",
    "No state that a crash may leave lets the tier serve a wrong byte.",
    "nothing, within the chosen `rules` (default: the file system keeps the order of names and direct writes)",
)
LOST = Rule("crash_states/durable", "A store that waits for the device survives every crash after its result.")
REFUSED = Rule("crash_states/opens", "The tier opens every state that a crash may leave.")
STORES = Rule("crash_states/next-store", "What a crash lost or damaged can be stored again, and is then served.")
RULES = (WRONG, LOST, REFUSED, STORES)
_BROKEN = {"wrong": WRONG, "lost": LOST, "refused": REFUSED, "store": STORES, "silent": STORES}


def check(history: History) -> Verdict:
    """Judges notes "crashphase" and "crashstate"."""
    findings = Findings(RULES)
    for note in (n for n in history.notes if n.is_a(notes.Skipped)):
        findings.doubt(note.text)
    phases = [n.detail for n in history.notes if n.is_a(notes.CrashPhase)]
    counts = {(p["way"], p["phase"]): p for p in phases}
    shown: set[tuple[str, str, str]] = set()
    for note in (n for n in history.notes if n.is_a(notes.CrashState)):
        way, phase, outcome = note.detail["way"], note.detail["phase"], note.detail["outcome"]
        if (way, phase, outcome) in shown:
            continue
        shown.add((way, phase, outcome))
        how_many = ""
        if of := counts.get((way, phase)):
            how_many = f" in {of['outcomes'][outcome]} of {of['states']} states"
        rules = ", ".join(note.detail["rules"])
        text = f"{way}, {phase}{how_many}: {note.text}; {note.detail['crash']} ({rules})"
        findings.add(text, _BROKEN[outcome], **of_note(note, block=note.detail.get("block")))
    ends, outside = unexplained_ends(history)
    shortages = Shortages(history)
    errors = (n for n in history.notes if n.is_a(notes.Error) and not shortages.of_error(n))
    raised = grouped(((called(n.process), Finding(n.text, About(**of_note(n)))) for n in errors), colon=True)
    for text in [*raised, *([] if raised else grouped(ends))]:
        findings.add(text)
    for text in grouped(outside, colon=True):
        findings.doubt(text)
    if not phases:
        findings.doubt("no phase was recorded and judged")
    states = sum(p["states"] for p in phases)
    missing = sum(p["outcomes"].get("missing", 0) for p in phases)
    wrong = sum(p["outcomes"].get("wrong", 0) for p in phases)
    figure = (
        f"{len(phases)} phases, {sum(p['points'] for p in phases)} crash points, {states} states: {wrong} served wrong "
        f"bytes, {sum(p['outcomes'].get('lost', 0) for p in phases)} lost a durable block, {missing} lost a block of a "
        "store that does not wait"
    )
    doubts = "; ".join(map(str, findings.doubts))
    value: Value = "false" if findings else "unknown" if doubts else "true"
    data: dict[str, Any] = {"phases": phases}
    return Verdict("crash_states", value, f"{doubts}; {figure}" if doubts else figure, findings.list(), data)
