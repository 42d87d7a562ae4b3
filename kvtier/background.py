"""`BackgroundThreads`: starts the daemon threads of one tier and records the exceptions that ended them.

A thread handles every error that it expects. An exception that ends one is a bug: it is logged with its traceback, and
the tier raises from the next call that depends on that thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from kvtier.config import KvtierError
from kvtier.events import ThreadRole

logger = logging.getLogger(__name__)


class ThreadDeath(NamedTuple):
    """A thread ended by an exception; `error` is its type and text."""

    role: ThreadRole
    error: str


class BackgroundThreads:
    """Any thread may call `start`; `check` and `take_deaths` are the scheduler's."""

    def __init__(self) -> None:
        self.deaths: list[ThreadDeath] = []
        self._taken = 0

    def start(
        self, role: ThreadRole, name: str, work: Callable[[], None], on_death: Callable[[], None] | None = None
    ) -> threading.Thread:
        """Run `work` on a new thread; when it raises, its death is kept, then `on_death` is called on that thread."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                logger.critical("thread %s died: this is a bug in kvtier", name, exc_info=True)
                self.deaths.append(ThreadDeath(role, f"{type(error).__name__}: {error}"))
                if on_death is not None:
                    on_death()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def check(self, *roles: ThreadRole) -> None:
        """Raises `KvtierError` when a thread of one of these roles has died."""
        for death in self.deaths:
            if death.role in roles:
                raise KvtierError(
                    f"a {death.role} thread died ({death.error}), which is a bug in kvtier; restart this process, the "
                    "traceback is in its log"
                )

    def take_deaths(self) -> list[ThreadDeath]:
        """Those since the last call."""
        deaths = self.deaths[self._taken :]
        self._taken += len(deaths)
        return deaths
