"""After a power loss: is every block that loads correct and, where stores wait for the device, is none missing?

Covers each case (notes "power"): blocks that the writer had reported stored before the power failed, how many of them
the reader found and loaded correctly, how many were refused as damaged (a failed load), and how many were missing.
Wrong bytes that were served are findings, in every case; missing or damaged ones only where the store had waited.

unknown: no case; a case in which nothing had been reported; no case in which the power failed in the middle of a store.
"""

from __future__ import annotations

from typing import Any

from harness.checkers.base import Findings, Rule, Value, Verdict, of_note
from harness.core import notes
from harness.core.history import History

BYTES = Rule(
    "power_loss/bytes",
    "After a power loss no block loads with a wrong byte.",
    "nothing, on the file systems that the scenario makes: ext4 and XFS",
)
DURABLE = Rule("power_loss/durable", "A block whose store waited for the device is there after a power loss.")
RULES = (BYTES, DURABLE)


def check(history: History) -> Verdict:
    """Judges notes "power" and `jobs`."""
    findings = Findings(RULES)
    for note in (n for n in history.notes if n.is_a(notes.Skipped)):
        findings.doubt(note.text)
    rows: list[dict[str, Any]] = []
    in_the_middle = 0
    for note in (n for n in history.notes if n.is_a(notes.Power)):
        case, failed_seconds = note.detail, note.monotonic_seconds
        stores = [j for j in history.jobs if j.process == case["writer"] and j.direction == "store"]
        loads = [j for j in history.jobs if j.process == case["reader"] and j.direction == "load"]
        reported = {b for j in stores if j.finished_seconds < failed_seconds for b in j.ok}
        in_the_middle += any(j.submitted_seconds < case["found_seconds"] < j.finished_seconds for j in stores)
        wrong = {b for j in loads for b, _ in j.wrong}
        right = {b for j in loads for b in j.ok} - wrong
        damaged = {b for j in loads for b in j.failed}
        row = {
            "failure": case["failure"],
            "file_system": case["file_system"],
            "way": case["way"],
            "reported": len(reported),
            "present": len(reported & right),
            "damaged": len(reported & damaged),
            "missing": len(reported - right - damaged - wrong),
            "wrong": len(wrong),
        }
        rows.append(row)
        if wrong:
            text = f"{note.text}: {len(wrong)} blocks were served with wrong bytes"
            findings.add(text, rule=BYTES, **of_note(note, process=case["reader"], block=min(wrong)))
        if case["durable"] and len(reported & right) < len(reported):
            findings.add(
                f"{note.text}: {len(reported) - len(reported & right)} of {len(reported)} durable blocks are lost",
                rule=DURABLE,
                **of_note(note, process=case["writer"], block=min(reported - right)),
            )
        if not reported:
            findings.doubt(f"{note.text}: nothing had been reported stored")
    if not rows:
        findings.doubt("the power never failed")
    elif not in_the_middle:
        findings.doubt("the power never failed in the middle of a store")
    value: Value = "false" if findings else "unknown" if findings.doubts else "true"
    total = {name: sum(row[name] for row in rows) for name in ("reported", "present", "missing", "damaged", "wrong")}
    doubts = "; ".join([*findings.doubts, ""]) if findings.doubts else ""
    figure = (
        f"{doubts}{len(rows)} cases, {total['reported']} blocks reported stored, "
        f"{total['present']} present, {total['missing']} missing, {total['damaged']} damaged and refused, "
        f"{total['wrong']} wrong"
    )
    return Verdict("power_loss", value, figure, findings.list(), {"cases": rows, "in_the_middle": in_the_middle})
