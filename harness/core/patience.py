"""A limit of time of which one pause of the process uses up a part: a machine that stops is no tier that hangs."""

from __future__ import annotations

import time

LOOK_SECONDS_MAX = 0.5
"""Waiters look far more often. Between two looks no more than this counts, or a quarter of the limit if that is more: a
call that blocks belongs to what is waited for."""


class Patience:
    """Seconds for which something is waited for. `is_over` must be called again and again while waiting."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._look_seconds = seconds, max(LOOK_SECONDS_MAX, seconds / 4)
        self.renew()

    def renew(self) -> None:
        """Begin again, since something has moved."""
        self._left, self._looked_seconds = self._seconds, time.monotonic()

    def is_over(self) -> bool:
        now = time.monotonic()
        self._left -= min(now - self._looked_seconds, self._look_seconds)
        self._looked_seconds = now
        return self._left <= 0
