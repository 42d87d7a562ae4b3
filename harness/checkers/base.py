"""What every checker declares and returns, and questions about a history that several of them share.

No clock, no files. A checker's module declares `RULES`, what it judges, and has a function `check(history) -> Verdict`.
Values of a verdict: "true" is pass, "false" fail, "unknown" inconclusive. The docstrings of checkers say what is
judged, what is not covered, and when a verdict is inconclusive.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.findings import FINDINGS_MAX, About, Finding, Findings, Rule
from harness.core.history import History, Job, Note, Stop
from harness.core.run_files import process_label

Value = Literal["true", "false", "unknown"]

__all__ = ["FINDINGS_MAX", "About", "Finding", "Findings", "Rule", "Value", "Verdict"]


class Verdict(NamedTuple):
    """One checker's word on a run. `figure` is the one thing that decided it, in words with numbers.

    "true": looked and found right; "false": found wrong; "unknown": the history does not hold enough to say (an empty
    or vacuous history is never "true"). `findings` are `Findings.list()`: 20 at most and then how many more, and
    doubts; a plain sentence among them is a doubt.
    """

    name: str
    value: Value
    figure: str
    findings: Sequence[str]
    data: dict[str, Any]


class Life(NamedTuple):
    """One incarnation of one process. `exit_code` is None when nothing says how it ended; then `end_seconds` is inf."""

    process: int
    incarnation: int
    start_seconds: float
    end_seconds: float
    exit_code: int | None

    @property
    def ended_well(self) -> bool:
        return self.exit_code == 0


class Lives:
    """Which incarnation of its process a record belongs to: the last that had started by then."""

    def __init__(self, history: History) -> None:
        stops = {(s.process, s.incarnation): s for s in history.stops}
        starts = {(s.process, s.incarnation): s.monotonic_seconds for s in history.starts}
        self._by_process: dict[int, list[Life]] = {}
        for process, incarnation in sorted(stops.keys() | starts.keys()):
            stop = stops.get((process, incarnation))
            life = Life(
                process,
                incarnation,
                starts.get((process, incarnation), -math.inf),
                stop.monotonic_seconds if stop else math.inf,
                stop.exit_code if stop else None,
            )
            self._by_process.setdefault(process, []).append(life)

    def all(self) -> list[Life]:
        return [life for lives in self._by_process.values() for life in lives]

    def at(self, process: int, seconds: float) -> Life:
        lives = self._by_process.get(process, [])
        started = [life for life in lives if life.start_seconds <= seconds]
        return started[-1] if started else lives[0] if lives else Life(process, 0, -math.inf, math.inf, None)


def worst_canary_seconds(history: History, process: int) -> float | None:
    """The latest that a thread of this process woke up, beyond what it had asked for; None if nobody measured it."""
    return max(canary_seconds(history, process), default=None)


def canary_seconds(history: History, process: int) -> list[float]:
    """How late a probe thread of this process woke up, the worst of each second or so."""
    return [float(n.detail["late_seconds"]) for n in history.notes if n.is_a(notes.Canary) and n.process == process]


def first_fault_seconds(history: History) -> float:
    """When the first fault was injected; inf if the run had none. What fails afterwards may be its consequence."""
    return min((n.monotonic_seconds for n in history.notes if n.is_a(notes.Fault)), default=math.inf)


def was_meant_to_die(history: History, process: int) -> bool:
    """Whether a fault was aimed at this process, by the note's process or by its detail."""
    return any(n.is_a(notes.Fault) and process in (n.process, n.detail.get("process")) for n in history.notes)


def unexplained_ends(history: History) -> tuple[list[tuple[str, Finding]], list[tuple[str, Finding]]]:
    """Processes that ended badly with no fault aimed at them, as (process, how) for `grouped`: those whose end is the
    tier's, then those that something outside the tier ended or that have no record of their end. Each `how` is a
    `Finding`."""
    tier: list[tuple[str, Finding]] = []
    outside: list[tuple[str, Finding]] = []
    shortages = Shortages(history)
    errors: dict[int, list[str]] = {}
    for note in history.notes:
        if note.is_a(notes.Error):
            errors.setdefault(note.process, []).append(shortages.of_error(note))
    for stop in history.stops:
        if not stop.exit_code or was_meant_to_die(history, stop.process):
            continue
        who, about = called(stop.process, stop.incarnation), About(**of_stop(stop))
        explained = errors.get(stop.process, [])
        if stop.outside:
            outside.append((who, Finding(stop.outside, about)))
        elif stop.exit_code > 0 and explained and all(explained):
            outside.append((who, Finding(f"it ended with {stop.exit_code} ({explained[0]})", about)))
        elif stop.exit_code < 0:
            name = signal.Signals(-stop.exit_code).name
            how = f"was ended by {name} (signal {-stop.exit_code}), and no fault was aimed at it"
            tier.append((who, Finding(how, about)))
        else:
            tier.append((who, Finding(f"ended with {stop.exit_code}, and no fault was aimed at it", about)))
    for life in Lives(history).all():
        if life.exit_code is None:
            about = About(process=life.process, incarnation=life.incarnation)
            outside.append((called(life.process, life.incarnation), Finding("has no record of its end", about)))
    return tier, outside


def of_job(job: Job, **more: Any) -> dict[str, Any]:
    """What a finding about a job knows, for `Findings.add`: its end is the moment, unless `more` has another."""
    known = {"seconds": job.finished_seconds, "process": job.process, "request": job.request, "job": job.job_id}
    return known | more


def of_note(note: Note, **more: Any) -> dict[str, Any]:
    """The same of a note."""
    known = {"seconds": note.monotonic_seconds, "process": note.process, "job": note.detail.get("job_id")}
    return known | more


def of_stop(stop: Stop, **more: Any) -> dict[str, Any]:
    """The same of a process's end."""
    known = {"seconds": stop.monotonic_seconds, "process": stop.process, "incarnation": stop.incarnation}
    return known | more


def called(process: int, incarnation: int = 0) -> str:
    """A process as its files call it: "3", or "3.1" after its first restart."""
    return process_label(process, incarnation)


def grouped(pairs: Iterable[tuple[str, str]], colon: bool = False) -> list[Finding]:
    """One sentence for each thing that happened, with all processes that it happened to, and the record of the first,
    where what happened is a `Finding`."""
    who: dict[str, list[str]] = {}
    for process, what in pairs:
        if process not in (named := who.setdefault(what, [])):
            named.append(process)
    return [
        Finding(
            f"process{'es' if len(named) > 1 else ''} {some(named)}{':' if colon else ''} {what}",
            what.about if isinstance(what, Finding) else None,
        )
        for what, named in who.items()
    ]


def milliseconds(seconds: float) -> str:
    """A duration for a person."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "0 %"


def some(values: Iterable[object], most: int = 5) -> str:
    """The first few of many, for a finding."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


_BOOKKEEPING_BEFORE = ("*.json", ".*-evictor")
"""Bookkeeping in a history that does not name it: an earlier version's, or that of a run in which no tier came up."""


def bookkeeping(history: History) -> tuple[str, ...]:
    """Globs of the names of the tier's own files, as its adapter declared them."""
    for start in history.starts:
        if "bookkeeping" in start.detail:
            return tuple(start.detail["bookkeeping"])
    return _BOOKKEEPING_BEFORE


def is_bookkeeping(path: str, globs: Iterable[str]) -> bool:
    """Whether a file under the root is no block: the tier's own (`Adapter.bookkeeping`), or quarantined."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(name, glob) for glob in globs) or is_quarantined(path)


def is_quarantined(path: str) -> bool:
    """A damaged file that was moved out of the way, so that somebody can look at it."""
    return "quarantine" in path.split("/")[:-1]
