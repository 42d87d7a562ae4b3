"""A right tier whose schedule the harness does not see."""

from __future__ import annotations

from harness.adapters.kvtier import KvtierAdapter
from harness.core.history import Task


class HidesItsSchedule(KvtierAdapter):
    """kvtier without its tasks."""

    exposes_schedule = False

    def tasks(self) -> list[Task]:
        super().tasks()
        return []
