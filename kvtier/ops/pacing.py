"""`DutyCycle`: how much of the time eviction works. Background eviction works in time slices of 0.1 ms, each followed
by a pause nine times as long, a duty cycle of 10 %; urgent eviction works without pauses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from kvtier.ops.catalog import BlockFile

Pacing = Literal["background", "urgent"]

PAUSE_PER_WORK = 9.0
SLICE_SECONDS = 0.0001  # shorter than a load would have to wait for a core
SLICE_PAUSE_SECONDS_MAX = 1.0  # also after a call that hung


class DutyCycle:
    """Paces the work of one thread, and ends it: `stopped` may be set by any thread, and is read by the work itself."""

    def __init__(self, is_urgent: Callable[[], bool]) -> None:
        self.stopped = False
        self._is_urgent = is_urgent
        self._slice_began_seconds = 0.0

    def begin(self) -> None:
        """The first time slice begins now."""
        self._slice_began_seconds = time.monotonic()

    def pause(self) -> None:
        """Pause if the time slice is over, in proportion to its length."""
        worked = time.monotonic() - self._slice_began_seconds
        if worked > SLICE_SECONDS:
            if not self._is_urgent():
                time.sleep(min(SLICE_PAUSE_SECONDS_MAX, PAUSE_PER_WORK * worked))
            self._slice_began_seconds = time.monotonic()

    def over(self, blocks: Iterable[BlockFile]) -> Iterator[BlockFile]:
        """The same blocks, with pauses between them."""
        for block in blocks:
            yield block
            self.pause()
