"""Evictions that the tier reported, as explanations of blocks that were stored and are not found."""

from __future__ import annotations

from harness.core import notes
from harness.core.history import History


class Evictions:
    """Blocks that the tier reported evicted; each explains the loss of one block."""

    def __init__(self, history: History) -> None:
        evicted = (note.detail for note in history.notes if note.is_a(notes.Evicted))
        self._left = [[one["started_seconds"], one["finished_seconds"], one["blocks"]] for one in evicted]
        self._explained: set[int] = set()

    def explain(self, block: int, stored_seconds: float, until_seconds: float) -> bool:
        """Whether the block may have been evicted between its store and then."""
        if block in self._explained:
            return True
        for one in self._left:
            if one[1] >= stored_seconds and one[0] <= until_seconds and one[2] > 0:
                one[2] -= 1
                self._explained.add(block)
                return True
        return False
