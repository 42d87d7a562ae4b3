"""What a rule on times may charge to a tier: the bounds of a job's life, and how long a process was hindered.

- A result arrives between two polls. The tier is charged with the time until the first of them.
- A thread that is runnable without a CPU, waits for the interpreter's lock, or is stopped is not idle. The kernel
  (notes `Delayed`, `Pressure`) and the canary measure such time; it is never charged.
- A deviation is a finding only if it comes `REPETITIONS` times: a defect repeats, a pause of the machine does not.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from statistics import median
from typing import Literal

from harness.core import notes
from harness.core.history import History, Job

REPETITIONS = 3
"""So often a situation is repeated by a scenario, and so often a rule of time must be broken for a finding."""

IDLE_CPU = 0.01
"""The share of a CPU that a thread may take in a time in which it idled: for wake-ups that found nothing to do.

Measured on kvtier's threads beside 20 to 25 runnable threads on 2 cores: idle ones took 0.31 % at most in 22,000
windows of 50 ms, 0.06 % in windows of 200 ms; of working ones half took more than 1.4 %. Three times the highest."""

IDLE_CPU_SECONDS = 0.0005
"""So much a thread may take that idled for less than 50 ms: the same share of the shortest windows measured."""

HELD_FACTOR = 4
"""How many times the device's longest call a wait must exceed: a job is more than one call."""

UNMEASURED_SECONDS = 1.0
"""What a wait must exceed where neither the device nor an unloaded life was measured."""

NOT_EACH_TIME = "a deviation that does not come in each repetition of the same situation"
"""A tolerance of rules that `confirmed` judges."""

Confirmed = Literal["yes", "unsure", "no"]


def least_life(job: Job) -> float:
    """Seconds from a job's submit to the last poll that did not return it: the tier's own for certain."""
    return (job.absent_seconds or job.finished_seconds) - job.submitted_seconds


def most_life(job: Job) -> float:
    """Seconds from a job's submit to the poll that returned it, which may have come late."""
    return job.finished_seconds - job.submitted_seconds


def confirmed(times: int, repetitions: int) -> Confirmed:
    """Whether a rule that was broken in so many of the repetitions of one situation is broken: in all of them yes, in
    more than half of them unsure, else no."""
    if times == repetitions and times:
        return "yes"
    return "unsure" if 2 * times > repetitions else "no"


def device_seconds(history: History, otherwise: float = 0.0) -> float:
    """The longest call of the device probe within half a second, in a typical one; `otherwise` if nobody measured."""
    return median([float(n.detail["longest_seconds"]) for n in history.notes if n.is_a(notes.Device)] or [otherwise])


class Hindrance:
    """Time in which threads of one process could not run, by the kernel's account and by the canary."""

    def __init__(self, history: History, process: int) -> None:
        self._delays = _Spans(_delays(history, process))
        self._stops = _Spans(_delays(history, process, with_threads=False))
        threads = _thread_delays(history, process)
        self._threads = list(threads.values())
        # The number of the main thread is the process's. It is the scheduler's, which makes all calls.
        pids = {f"{s.pid}" for s in history.starts if s.process == process}
        mine = [threads[pid] for pid in pids & threads.keys()]
        self.knows_scheduler = bool(mine) and len(mine) == len(pids)
        self._scheduler = mine
        self._wake_ups = late = list(late_wake_ups(history, process))
        self._late = _Spans((begin, end, seconds) for begin, end, seconds, _ in late)
        self._locks = _Spans((begin, end, seconds - delay) for begin, end, seconds, delay in late)
        self._machine = _Spans(
            (n.detail["from_seconds"], n.monotonic_seconds, _lost(n.detail))
            for n in history.notes
            if n.is_a(notes.Pressure)
        )

    def seconds(self, begin: float, end: float) -> float:
        """The most that one thread of the process may have been hindered between these moments: without a CPU, then
        without the interpreter's lock."""
        own = self._delays.within(begin, end) + self._locks.within(begin, end)
        own = max(own, self._late.within(begin, end))  # samples may be missing: of the last moments of a process, say
        return min(end - begin, own + self._machine.within(begin, end))

    def scheduler_seconds(self, begin: float, end: float) -> float:
        """The most that the scheduler's thread was hindered between these moments; where the kernel's account does not
        name that thread, any thread (`knows_scheduler`)."""
        if not self.knows_scheduler:
            return self.seconds(begin, end)
        return min(end - begin, self.scheduler_delayed_seconds(begin, end) + self._locks.within(begin, end))

    def scheduler_delayed_seconds(self, begin: float, end: float) -> float:
        """The most that the scheduler's thread was without a CPU between these moments, or that the machine lost: the
        interpreter's lock, for which another thread waited, may have been its own."""
        own = sum(delays.within(begin, end) for delays in self._scheduler)
        lost = own + self._stops.within(begin, end) + self._machine.within(begin, end)
        return min(end - begin, lost)

    def unexplained_seconds(self) -> float:
        """The longest part of a late wake-up of the canary that the kernel's account does not explain."""
        waits = (late - max(delay, self.delayed_seconds(due, woke)) for due, woke, late, delay in self._wake_ups)
        return max(waits, default=0.0)

    def delayed_seconds(self, begin: float, end: float) -> float:
        """The most that one thread was without a CPU between these moments, or that the machine lost."""
        lost = self._delays.within(begin, end) + self._machine.within(begin, end)
        return min(end - begin, lost)

    def idle_seconds(self, begin: float, end: float) -> float:
        """The part of the time between these moments for which no single thread that may have idled was hindered.

        A thread that was free in that time took no task, so its CPU time is small: the delays of busy siblings do not
        count, and those of several threads are not added up."""
        most = max(IDLE_CPU * (end - begin), IDLE_CPU_SECONDS)
        idle = [delays for delays in self._threads if delays.cpu_seconds(begin, end) <= most]
        waited = max((delays.within(begin, end) for delays in idle), default=0.0)
        lost = waited + self._stops.within(begin, end) + self._locks.within(begin, end)
        return max(0.0, end - begin - lost - self._machine.within(begin, end))

    def free_seconds(self, begin: float, end: float) -> float:
        """The part of the time between these moments in which nothing hindered the process: what a tier is charged
        with."""
        return end - begin - self.seconds(begin, end)


def _delays(history: History, process: int, with_threads: bool = True) -> Iterable[tuple[float, float, float]]:
    """Of each sample the largest delay of a thread, and stops of the whole process; without the delays that
    `_thread_delays` has by thread, if not `with_threads`."""
    late = _Spans((begin, end, late) for begin, end, late, _ in late_wake_ups(history, process))
    for note in history.notes:
        if note.process == process and note.is_a(notes.Delayed):
            begin, end = float(note.detail["from_seconds"]), note.monotonic_seconds
            if not note.detail.get("stopped"):
                if note.detail.get("threads") and not with_threads:
                    continue
                yield begin, end, float(note.detail["seconds"])
            elif late.within(begin, end) > 0:  # else the samples are of another process than the canary's
                yield begin, end, end - begin


def _thread_delays(history: History, process: int) -> dict[str, _ThreadDelays]:
    """The delays of each thread. A delay is booked when it ends, so it may have begun as much before the sample."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for note in history.notes:
        if note.process == process and note.is_a(notes.Delayed):
            sampled = float(note.detail["from_seconds"]) + float(note.detail["seconds"])
            for thread, (delay, cpu) in note.detail.get("threads", {}).items():
                found.setdefault(thread, []).append((sampled, note.monotonic_seconds, delay, cpu))
    return {thread: _ThreadDelays(samples) for thread, samples in found.items()}


def late_wake_ups(history: History, process: int) -> Iterable[tuple[float, float, float, float]]:
    """Of each late wake-up of the canary: when it was due, when it came, how late, and its own run delay in that."""
    for note in history.notes:
        if note.process == process and note.is_a(notes.Canary):
            for woke, late, delay in note.detail.get("latest", ()):
                yield woke - late, woke, late, delay


def is_accounted(history: History, process: int) -> bool:
    """Whether the kernel says how long the process's threads were runnable without a CPU: by its own canary, and by
    samples of each of its incarnations."""
    mine = [n for n in history.notes if n.process == process]
    sampled = {n.detail["pid"] for n in mine if n.is_a(notes.Sampled)}
    started = {s.pid for s in history.starts if s.process == process}
    return started <= sampled and all(n.detail.get("accounted", True) for n in mine if n.is_a(notes.Canary))


def _lost(detail: dict[str, float]) -> float:
    return detail.get("steal_seconds", 0.0) + detail.get("memory_seconds", 0.0)


class _Spans:
    """Spans of time, in each of which some seconds were lost."""

    def __init__(self, spans: Iterable[tuple[float, float, float]]) -> None:
        self._spans = sorted(spans, key=lambda span: span[1])
        self._ends = [end for _, end, _ in self._spans]
        self._longest = max((end - begin for begin, end, _ in self._spans), default=0.0)

    def within(self, begin: float, end: float) -> float:
        """At most so many seconds were lost between these moments."""
        lost, place = 0.0, bisect_left(self._ends, begin)
        while place < len(self._spans) and self._spans[place][1] - self._longest <= end:
            since, until, seconds = self._spans[place]
            lost += max(0.0, min(seconds, min(until, end) - max(since, begin)))
            place += 1
        return min(lost, end - begin) if math.isfinite(end - begin) else lost


class _ThreadDelays(_Spans):
    """The run delays of one thread by sample, and its CPU time in those samples."""

    def __init__(self, samples: list[tuple[float, float, float, float]]) -> None:
        super().__init__((since - delay, until, delay) for since, until, delay, _ in samples)
        self._samples = samples

    def cpu_seconds(self, begin: float, end: float) -> float:
        """Of the samples that lie between these moments as a whole: at their edges the thread may have had a task."""
        inside = (cpu for since, until, _, cpu in self._samples if begin <= since and until <= end)
        return sum(inside)
