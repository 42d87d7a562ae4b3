"""A tier that fails in one method of its adapter: by its options it raises, ends its process, or hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.adapters.base import TierSetup
from harness.adapters.reference import MemoryAdapter

METHODS = (
    *("constructor", "view", "keys", "none_hash_digest", "file_name", "other_group", "lookup", "submit_store"),
    *("submit_load", "poll", "step", "request_started", "request_finished", "short_of_room", "drain", "close"),
    *("gauges", "tasks", "evictions", "counts", "instance_id", "findings", "metrics_address"),
)
MESSAGE = "the tier fell over"
TRACE = "broke"
"""A file in the run's folder, made when the method is reached."""


def _raise() -> None:
    raise RuntimeError(MESSAGE)


WAYS: dict[str, Callable[[], object]] = {
    "raise": _raise,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: threading.Event().wait(),
}


class Breaks(MemoryAdapter):
    """Every call of the option `method` (one of `METHODS`) fails as the option `how` (one of `WAYS`) says."""

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        """Takes any: the tests set them."""

    def __init__(self, setup: TierSetup) -> None:
        self.setup = setup
        self._called("constructor")
        super().__init__(setup)

    def _called(self, method: str) -> None:
        if self.setup.options["method"] == method:
            Path(self.setup.run_dir, TRACE).touch()
            WAYS[self.setup.options["how"]]()

    @property
    def view(self) -> memoryview:
        self._called("view")
        return super().view


def _overridden(name: str) -> Callable[..., Any]:
    def method(self: Breaks, *arguments: Any, **keywords: Any) -> Any:
        self._called(name)
        return getattr(super(Breaks, self), name)(*arguments, **keywords)

    return method


for _name in METHODS:
    if _name not in ("constructor", "view"):
        setattr(Breaks, _name, _overridden(_name))


class KeepsLimit(Breaks):
    """The same tier with `keeps_limit`, so that the scenario "capacity" runs on it."""

    keeps_limit = True
