"""Worker processes that carry out a scenario's orders (driver "commands"), and the block ids that it gives out.

Scenarios of several rounds use it. It records what goes wrong with a process as notes and judges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.core import notes
from harness.runtime.supervisor import Child, WorkerFailed
from harness.scenarios.base import Context

ORDER_SECONDS_MAX = 60.0
"""A process that has not carried out an order by then hangs, and is recorded as an error."""
BEGIN_SECONDS_MAX = 10.0
RENDEZVOUS_SECONDS = 0.02
"""How far ahead the common moment of an order lies, so that all have heard of it."""

Chain = list[int]


class WorkerGroup:
    """The processes of a scenario, by their number, in their present incarnation."""

    def __init__(self, context: Context, **arguments: Any) -> None:
        self.context = context
        self.members: dict[int, Child] = {}
        self._arguments = arguments
        self._orders = 0
        self._blocks = 0

    def start(self, processes: Iterable[int], env: Mapping[str, str | None] | None = None) -> None:
        """Start new processes and wait until they can be ordered about. Raises `WorkerFailed`."""
        fresh = {p: self.context.start(p, "commands", self._arguments, env, serve_metrics=True) for p in processes}
        self.context.workers.await_ready(fresh.values())
        self.context.workers.go(fresh.values())
        self.members.update(fresh)

    def restart(self, processes: Iterable[int]) -> list[int]:
        """Start the next incarnations; returns those that came up. One that does not is recorded as an error."""
        fresh = {p: self.context.workers.restart(self.members[p]) for p in processes}
        up = []
        for process, child in fresh.items():
            self.members[process] = child
            try:
                self.context.workers.await_ready([child])
            except WorkerFailed as error:
                if error.outside:
                    raise
                self.context.note(time.monotonic(), notes.Error(process=process), f"after its restart {error}")
            else:
                self.context.workers.go([child])
                up.append(process)
        return up

    def end(self, processes: Iterable[int]) -> None:
        """Let them end in good order."""
        leaving = [self.members[p] for p in processes]
        for child in leaving:
            child.send(stop=True)
        self.context.workers.wait(leaving, ORDER_SECONDS_MAX)

    def alive(self) -> list[int]:
        return [process for process, child in self.members.items() if child.alive]

    def chain(self, blocks: int) -> Chain:
        """Ids that nobody had before."""
        first = self._blocks
        self._blocks += blocks
        return list(range(first, first + blocks))

    def find(self, wanted: Mapping[int, Sequence[Chain]], at_once: int, asks: int = 1) -> None:
        """Each process looks for its chains, `at_once` of them at a time: more may not fit into its slots."""
        for first in range(0, max(map(len, wanted.values()), default=0), at_once):
            parts = {p: list(chains[first : first + at_once]) for p, chains in wanted.items()}
            self.do({p: {"find": part, "asks": asks} for p, part in parts.items() if part})

    def order(self, orders: Mapping[int, Mapping[str, Any]], together: bool = False) -> int:
        """Tell each process its part; `together`: all begin at one moment. Returns the order's number."""
        self._orders += 1
        at = time.monotonic() + RENDEZVOUS_SECONDS if together else None
        for process, what in orders.items():
            self.members[process].send(do={"number": self._orders, "at": at, **what})
        return self._orders

    def settle(
        self, number: int, processes: Iterable[int], also: Callable[[int], bool] = lambda process: False
    ) -> None:
        """Until each has carried out the order, has ended, or is `also`; one that hangs is recorded as an error."""
        waiting = list(processes)

        def done(process: int) -> bool:
            child = self.members[process]
            return not child.alive or child.counts.get("carried_out", 0) >= number or also(process)

        if not self.context.workers.until(lambda: all(map(done, waiting)), ORDER_SECONDS_MAX):
            for process in waiting:
                if not done(process):
                    text = f"process {process} did not carry out an order within {ORDER_SECONDS_MAX:g} s"
                    self.context.note(time.monotonic(), notes.Error(process=process), text)

    def await_begun(self, number: int, processes: Iterable[int]) -> None:
        """Until each has a job of the order in flight, has ended, or for `BEGIN_SECONDS_MAX`: some orders take none."""
        waiting = [self.members[p] for p in processes]
        self.context.workers.until(
            lambda: all(not child.alive or child.counts.get("begun", 0) >= number for child in waiting),
            BEGIN_SECONDS_MAX,
        )

    def do(self, orders: Mapping[int, Mapping[str, Any]], together: bool = False) -> None:
        """Order, and wait until it is done."""
        self.settle(self.order(orders, together), orders)
