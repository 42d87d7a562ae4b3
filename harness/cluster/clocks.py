"""The monotonic clock of another node: how far it is behind rank 0's, and the largest error of that figure.

A sample is one round trip: sent at `sent`, answered by rank 0 at `theirs`, received at `received`. The true difference
lies within half the round trip of its middle. Workers of a node use the first estimate for the whole run, so that their
records are on rank 0's clock; later samples bound how far clocks have drifted from it.
"""

from __future__ import annotations

import math

FIRST_SAMPLES = 16
WINDOW_SAMPLES = 10
"""The best of so many samples in a row counts: one with a short round trip."""


class ClockDifference:
    """Rank 0's clock minus this node's. `ahead_ns` is fixed by `fix`."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []  # difference and half the round trip, seconds
        self.ahead_ns = 0
        self.bound_seconds = math.inf
        self._best_seconds = math.inf
        self._count = 0

    def first(self, sent: float, theirs: float, received: float) -> None:
        """A sample before any worker is started."""
        self._samples.append((theirs - (sent + received) / 2, (received - sent) / 2))

    def fix(self) -> None:
        """Take the sample with the shortest round trip."""
        difference, half = min(self._samples, key=lambda sample: sample[1])
        self.ahead_ns, self.bound_seconds = round(difference * 1e9), half

    def renew(self, sent: float, theirs: float, received: float) -> None:
        """A sample while workers run."""
        difference, half = theirs - (sent + received) / 2, (received - sent) / 2
        self._best_seconds = min(self._best_seconds, abs(difference - self.ahead_ns * 1e-9) + half)
        self._count += 1
        if self._count % WINDOW_SAMPLES == 0:
            self.bound_seconds = max(self.bound_seconds, self._best_seconds)
            self._best_seconds = math.inf
