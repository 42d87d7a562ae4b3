"""Whether a run leaves temp files, pinned slots, leaked descriptors or contradictions in the tier's own state.

Judged: every file under the root at the end that is neither a block's name, nor one of the tier's declared own files,
nor quarantined; and each process's Stop record: pinned slots, descriptors beyond those at its start, findings of the
tier's own checks, and an exit code that shows an error.

- A process that a fault was meant to kill (a "fault" note) is excused from its exit code and from what only a living
  process can report. Of temp files it may leave as many as the note says ("files_left_max"), where the file system has
  no unnamed files.
- Where no process named a block, only file names with "tmp", "temp" or ".part" count as temp files.

Not covered: memory, threads, files outside the root, unexpected block files (determinism).

false: a leftover, or a process that ended by itself. unknown: no process recorded its end, or something outside the
tier ended one before it could clean up: an operator, the OOM killer, a resource limit, an interrupted run.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from harness.checkers.base import (
    Findings,
    Rule,
    Value,
    Verdict,
    bookkeeping,
    called,
    grouped,
    is_bookkeeping,
    is_quarantined,
    of_stop,
    unexplained_ends,
    was_meant_to_die,
)
from harness.core import notes
from harness.core.history import History

FILES = Rule(
    "leftovers/files",
    "At the end the root holds block files, the tier's declared own files, and files in quarantine, nothing else.",
    "temp files of killed processes, where the file system has no unnamed files: at most as many as the fault states",
)
SLOTS = Rule("leftovers/slots", "A process that ends without an error has no slot pinned by a job.")
DESCRIPTORS = Rule("leftovers/descriptors", "A process closes every descriptor that its tier opened.")
OWN_CHECKS = Rule("leftovers/own-checks", "The tier's own checks find nothing wrong at the end.")
ENDS = Rule("leftovers/ends", "No process ends by itself with an error or a signal.")
RULES = (FILES, SLOTS, DESCRIPTORS, OWN_CHECKS, ENDS)


_TEMP = re.compile(r"tmp|temp|\.part", re.IGNORECASE)


def check(history: History) -> Verdict:
    """Judges `files`, `stops`, `starts` and `names`."""
    findings = Findings(RULES)
    suffixes = {PurePosixPath(name.name).suffix for name in history.names}
    names = {name.name for name in history.names}
    # A process that was killed where files cannot be without a name may leave its temp files: so many at most.
    temp_files_allowed = sum(int(n.detail.get("files_left_max", 0)) for n in history.notes if n.is_a(notes.Fault))
    temp_files = 0
    ends, outside = unexplained_ends(history)
    for doubt in grouped(outside, colon=True):
        findings.doubt(doubt)
    own = bookkeeping(history)
    for path in history.files:
        if is_bookkeeping(path, own) or path in names:
            continue
        name = PurePosixPath(path)
        if _TEMP.search(name.name) or (suffixes and name.suffix not in suffixes):
            temp_files += 1
            if temp_files > temp_files_allowed:
                # A process that something outside ended could not remove its own.
                (findings.doubt if outside else findings.add)(f"{path} was left under the root", rule=FILES, file=path)
    pinned = leaked = excused = 0
    for stop in history.stops:
        who = f"process {called(stop.process, stop.incarnation)}"
        if stop.exit_code and (stop.outside or was_meant_to_die(history, stop.process)):
            excused += 1
            continue
        if stop.pinned_slots:
            findings.add(f"{who} ended with {stop.pinned_slots} slots still pinned", rule=SLOTS, **of_stop(stop))
        if stop.leaked_fds:
            text = f"{who} ended with {stop.leaked_fds} more descriptors than it began with"
            findings.add(text, rule=DESCRIPTORS, **of_stop(stop))
        for text in stop.findings:
            findings.add(f"{who}: {text}", rule=OWN_CHECKS, **of_stop(stop))
        pinned += stop.pinned_slots
        leaked += stop.leaked_fds
    for end in grouped(ends):
        findings.add(end, rule=ENDS)
    judged = len(history.stops) - excused
    value: Value = "false" if findings else "unknown" if findings.doubts or not judged else "true"
    figure = (
        f"{temp_files} temp files among {len(history.files)} files, {pinned} pinned slots and {leaked} leaked "
        f"descriptors in {judged} processes, {findings.count} findings"
    )
    data = {
        "files": len(history.files),
        "temp_files": temp_files,
        "quarantined": sum(map(is_quarantined, history.files)),
        "pinned_slots": pinned,
        "leaked_fds": leaked,
        "processes": judged,
        "meant_to_die": excused,
    }
    return Verdict("leftovers", value, figure, findings.list(), data)
