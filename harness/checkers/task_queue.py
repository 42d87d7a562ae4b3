"""The tasks of one direction in one process, as a queue whose stamps can be counted; no clock, no files."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from harness.checkers.intervals import Interval, union
from harness.core.history import Task


@dataclass
class TaskQueue:
    """Tasks of one class in one process, first in first out, with the sorted stamps that counting needs."""

    tasks: list[Task]
    enqueued: list[float] = field(init=False)
    started: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.tasks.sort(key=lambda t: (t.enqueued_seconds, t.depth, t.started_seconds))
        self.enqueued = [t.enqueued_seconds for t in self.tasks]
        self.started = sorted(t.started_seconds for t in self.tasks)

    def waiting_at(self, seconds: float) -> int:
        """Tasks that had come before this moment and started after it; a tie counts as started."""
        return max(0, bisect_left(self.enqueued, seconds) - bisect_right(self.started, seconds))

    def longest_waiting_at(self, seconds: float) -> Task | None:
        """The one of them that had come first; for a finding."""
        came = self.tasks[: bisect_left(self.enqueued, seconds)]
        return next((t for t in came if t.started_seconds > seconds), None)

    def ahead_of(self, position: int) -> int:
        """Tasks ahead of the one at `position` when it came, counted, not as the tier said."""
        return max(0, position - bisect_right(self.started, self.enqueued[position]))

    def overtakes_of(self, task: Task) -> int:
        """Tasks of this class that came after `task`, which is of the other, and started before it."""
        return max(
            0, bisect_left(self.started, task.started_seconds) - bisect_right(self.enqueued, task.enqueued_seconds)
        )

    def waiting_intervals(self) -> list[Interval]:
        """When at least one task of this class waited: disjoint, in order."""
        return union((t.enqueued_seconds, t.started_seconds) for t in self.tasks)
