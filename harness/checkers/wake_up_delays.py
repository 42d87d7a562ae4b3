"""How late a thread wakes on this machine at a given time, and which tasks waited then; for `starvation`.

The measure does not come from the tier. It is the canary, a thread of the harness in the same process that only sleeps
and wakes.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from itertools import accumulate

from harness.core.history import Note, Task

NOISE_FACTOR = 8.0
CLOCK_SECONDS = 1e-6
"""Stamps are floats of a nanosecond clock: sums of two of them may be off by less than this."""


class Noise:
    """What a hand-over may take at a given time, by the canary and by the tasks that ran then."""

    def __init__(self, canary: list[Note], tasks: list[Task]) -> None:
        late = [float(n.detail["late_seconds"]) for n in canary]
        ends = [n.monotonic_seconds for n in canary]
        # A note speaks of the time since the one before it.
        self._seconds = list(zip([-math.inf, *ends], ends, late, strict=False))
        by_start = sorted(tasks, key=lambda t: t.started_seconds)
        self._started = [t.started_seconds for t in by_start]
        self._finished = [t.finished_seconds for t in by_start]
        services = [t.finished_seconds - t.started_seconds for t in tasks]
        self._longest_service = max(services)
        # One interpreter runs one thread at a time: a woken one may have to let each other thread have its turn first.
        # The canary does not see that, since it asks for one turn, and a worker for several (wake-up, lock, task).
        self._turns_seconds = sys.getswitchinterval() * len({t.thread for t in tasks})
        self.least_seconds = max(NOISE_FACTOR * min(late, default=0.0), self._turns_seconds) + CLOCK_SECONDS
        longest = max(NOISE_FACTOR * max(late, default=0.0), self._longest_service, self._turns_seconds)
        self.most_seconds = longest + CLOCK_SECONDS

    def allowed_seconds(self, begin: float, end: float) -> float:
        """The largest of: one turn for each thread; the longest service time of tasks that ran in [begin, end]; and
        `NOISE_FACTOR` times the canary's lateness, of the quietest second that lies in it as a whole, for a thread that
        was awaited could have come then, else of the worst second that it touches."""
        within = [late for since, until, late in self._seconds if begin <= since and until <= end]
        touched = [late for since, until, late in self._seconds if since < end and begin < until]
        late = min(within) if within else max(touched, default=0.0)
        first = bisect_left(self._started, begin - self._longest_service)
        service = max(
            (
                self._finished[i] - self._started[i]
                for i in range(first, bisect_right(self._started, end))
                if self._finished[i] >= begin
            ),
            default=0.0,
        )
        return max(NOISE_FACTOR * late, service, self._turns_seconds) + CLOCK_SECONDS


class Waits:
    """Tasks of a class that waited for longer than `least_seconds`, found by when they did."""

    def __init__(self, tasks: list[Task], least_seconds: float) -> None:
        long = (t for t in tasks if t.started_seconds - t.enqueued_seconds > least_seconds)
        self._tasks = sorted(long, key=lambda t: t.enqueued_seconds)
        self._enqueued = [t.enqueued_seconds for t in self._tasks]
        self._started = list(accumulate((t.started_seconds for t in self._tasks), max))

    def during(self, begin: float, end: float) -> list[Task]:
        """Those that may have waited in [begin, end]."""
        return self._tasks[bisect_right(self._started, begin) : bisect_left(self._enqueued, end)]
