"""A limit of time that no pause of the process uses up: a machine that stops for a minute is no tier that hangs."""

from __future__ import annotations

import time

LOOK_SECONDS_MAX = 0.5
"""Waiters look far more often. Between two looks no more than this counts."""


class Patience:
    """Seconds for which something is waited for. `is_over` must be called again and again while waiting."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Begin again, since something has moved."""
        self._left, self._looked_seconds = self._seconds, time.monotonic()

    def is_over(self) -> bool:
        now = time.monotonic()
        self._left -= min(now - self._looked_seconds, LOOK_SECONDS_MAX)
        self._looked_seconds = now
        return self._left <= 0
