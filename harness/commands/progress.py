"""What a person sees while a run goes on: a live table on a terminal, a plain line every few seconds elsewhere.

The command line makes one and hands its `tick` to the run; it reads workers' counts and decides nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.runtime.supervisor import Child

RATE_SECONDS = 2.0
"""Rates shown are over this long."""
LINE_SECONDS = 5.0


class Progress:
    """A context manager; `quiet` shows nothing at all. Output that cannot be written ends the progress, not the run."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self.quiet = console, quiet
        self._started_seconds = time.monotonic()
        self._samples: dict[str, deque[tuple[float, float]]] = {}
        self._line_due = 0.0  # the first line comes when traffic starts
        self._peaks = (0.0, 0.0)  # tasks queued, oldest waiter's seconds: the largest since the last line
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live and not self.quiet:
            self._show(self._live.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._live:
            self._show(self._live.stop)

    def line(self, text: str) -> None:
        """A line, or several, with rich's markup."""
        if not self.quiet:
            self._show(lambda: self._console.print(text, soft_wrap=True))

    def stage(self, text: str) -> None:
        """What happens when the workers have ended."""
        if self.quiet:
            return
        live = self._live
        if live:
            self._show(lambda: live.update(Text(text), refresh=True))
        else:
            self._show(lambda: self._console.print(text, highlight=False))

    def _show(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, SystemExit):  # rich answers a broken pipe with SystemExit
            self.quiet = True

    def tick(self, children: Sequence[Child]) -> None:
        if self.quiet:
            return
        rates = {child.label: self._mib_per_second(child) for child in children}
        if live := self._live:
            self._show(lambda: live.update(self._table(children, rates), refresh=True))
            return
        queued, oldest_seconds = sum(map(_queued, children)), max(map(_oldest_seconds, children), default=0.0)
        self._peaks = (max(self._peaks[0], queued), max(self._peaks[1], oldest_seconds))
        if time.monotonic() >= self._line_due and any(child.state == "running" for child in children):
            self._line_due = time.monotonic() + LINE_SECONDS
            line = self._line(children, sum(rates.values()))
            self._show(lambda: self._console.print(line, highlight=False, soft_wrap=True))
            self._peaks = (0.0, 0.0)

    def _mib_per_second(self, child: Child) -> float:
        now = time.monotonic()
        moved = child.counts.get("loaded_bytes", 0) + child.counts.get("stored_bytes", 0)
        samples = self._samples.setdefault(child.label, deque(((now, 0.0),)))
        samples.append((now, moved))
        while len(samples) > 2 and samples[1][0] < now - RATE_SECONDS:
            samples.popleft()
        seconds = now - samples[0][0]
        return (moved - samples[0][1]) / seconds / (1 << 20) if seconds > 0 else 0.0

    def _table(self, children: Sequence[Child], rates: dict[str, float]) -> Table:
        table = Table(
            box=None, pad_edge=False, title=f"{time.monotonic() - self._started_seconds:.0f} s", title_justify="left"
        )
        for name in ("process", "state", "requests", "stores", "loads", "hits", "MiB/s", "queue", "oldest"):
            table.add_column(name, justify="left" if name in ("process", "state") else "right")
        for child in children:
            count = child.counts
            table.add_row(
                child.label,
                child.state,
                *(f"{count.get(name, 0):,.0f}" for name in ("requests", "stores", "loads")),
                f"{_hit_ratio([child]):.0%}",
                f"{rates[child.label]:,.0f}",
                f"{_queued(child):.0f}",
                f"{_oldest_seconds(child) * 1000:.0f} ms",
            )
        return table

    def _line(self, children: Sequence[Child], rate: float) -> str:
        sums = {name: sum(c.counts.get(name, 0) for c in children) for name in ("requests", "stores", "loads")}
        alive = sum(child.alive for child in children)
        parts = [
            f"{time.monotonic() - self._started_seconds:4.0f} s",
            f"{alive} process{'es' if alive != 1 else ''}",
            *(f"{value:,.0f} {name}" for name, value in sums.items()),
            f"{_hit_ratio(children):.0%} hits",
            f"{rate:,.0f} MiB/s",
            f"queue <= {self._peaks[0]:.0f}",
            f"oldest <= {self._peaks[1] * 1000:.0f} ms",
        ]
        return "  ".join(parts)


def _hit_ratio(children: Sequence[Child]) -> float:
    refs = sum(c.counts.get("refs", 0) for c in children)
    return sum(c.counts.get("hits", 0) for c in children) / refs if refs else 0.0


def _queued(child: Child) -> float:
    return child.gauges.get("load_queue", 0) + child.gauges.get("store_queue", 0)


def _oldest_seconds(child: Child) -> float:
    return max(child.gauges.get("load_oldest_seconds", 0), child.gauges.get("store_oldest_seconds", 0))
