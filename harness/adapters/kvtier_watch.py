"""What is to be seen of kvtier from outside a worker: /metrics, spans, and what of both stays in the run folder.

The kvtier adapters make one `Watch` where the run asks for it. It samples, since sampling is the caller's affair; it
changes nothing about the tier.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from harness.adapters.base import TierSetup
from kvtier.events import Event, FanOut, JobFinished, RequestFinished
from kvtier.metrics import Gauges, MetricsObserver, serve

LAST_SCRAPE_SECONDS_MAX = 3.0
"""A process that is being scraped waits so long for one scrape after its last job, so that no count is lost."""


class Watch:
    """Serves `/metrics` on 127.0.0.1 (`setup.serve_metrics`), writes spans of every `setup.trace_every`-th request.

    `sources` and `info` are `MetricsObserver`'s. Spans go where the OTEL_* variables say, else into the run folder.
    """

    def __init__(
        self, setup: TierSetup, events: FanOut, sources: Mapping[str, Gauges], info: Mapping[str, str]
    ) -> None:
        self.address: str | None = None
        self._events = events
        self._run_dir = Path(setup.run_dir)
        self._every = setup.trace_every
        self._requests = 0
        self._scrapes = _Scrapes()
        self._windows = Windows(setup.watch_windows) if setup.watch_windows else None
        watchers = events if self._windows is None else self._windows.watchers
        if self._windows is not None:
            events.add(self._windows)
        self._registry: CollectorRegistry | None = None
        self._spans = None
        if setup.serve_metrics:
            self._registry = CollectorRegistry()
            self._registry.register(self._scrapes)
            ProcessCollector(registry=self._registry)
            watchers.add(MetricsObserver(self._registry, sources, info))
            self._server, port = serve(self._registry)
            self.address = f"127.0.0.1:{port}"
        if self._every:
            from kvtier import tracing

            attributes = {"kvtier.run": self._run_dir.name, "kvtier.root": setup.root_dir}
            instance = {"service.instance.id": f"process-{setup.process}"}
            self._spans = tracing.setup({**attributes, **instance}, self._run_dir)
            if self._spans is not None:
                watchers.add(self._spans)

    def traceparent(self, req_id: str) -> str | None:
        """A new request's trace context. Its ids derive from the run and the request, so that anybody can find it."""
        if self._spans is None or not (self._windows is None or self._windows.watched()):
            return None
        self._requests += 1
        sampled = self._requests % self._every == 0
        name = hashlib.blake2b(f"{self._run_dir.name}/{req_id}".encode(), digest_size=24).hexdigest()
        return f"00-{name[:32]}-{name[32:]}-{sampled:02x}"

    def request_finished(self, req_id: str, traceparent: str | None, started_seconds: float) -> None:
        """Its span, of which all others of the request are parts."""
        if traceparent is not None and traceparent.endswith("1"):
            now = time.monotonic()
            self._events.on_event(RequestFinished(req_id, started_seconds, now, None, own_traceparent=traceparent))

    def close(self) -> None:
        """Wait for a last scrape if somebody scrapes; keep the final figures; stop serving; flush the spans."""
        if self._windows is not None:
            (self._run_dir / f"windows-{os.getpid()}.json").write_text(json.dumps(self._windows.rows))
        if self._registry is not None:
            self._scrapes.await_last(LAST_SCRAPE_SECONDS_MAX)
            path = self._run_dir / f"metrics-{os.getpid()}.openmetrics"
            path.write_bytes(generate_latest(self._registry))  # type: ignore[no-untyped-call]
            self._server.shutdown()
            self._server.server_close()
        if self._spans is not None:
            self._spans.shutdown()


class Windows:
    """Hands events on to `watchers` in every other window of `seconds`, the same ones in all processes of a machine.

    `rows`: of each window that is over, whether it was watched, how long it really was, the processor time of this
    process in it, and the blocks that its jobs stored and loaded.
    """

    def __init__(self, seconds: float) -> None:
        self.watchers = FanOut()
        self.rows: list[tuple[bool, float, float, int, int]] = []
        self._seconds, self._blocks = seconds, {"store": 0, "load": 0}
        self._number, self._began, self._cpu = self._now()

    def _now(self) -> tuple[int, float, float]:
        now = time.monotonic()
        return int(now // self._seconds), now, time.process_time()

    def watched(self) -> bool:
        return int(time.monotonic() // self._seconds) % 2 == 0

    def on_event(self, event: Event) -> None:
        number, now, cpu = self._now()
        if number != self._number:
            moved = self._blocks["store"], self._blocks["load"]
            self.rows.append((self._number % 2 == 0, now - self._began, cpu - self._cpu, *moved))
            self._number, self._began, self._cpu, self._blocks = number, now, cpu, dict.fromkeys(self._blocks, 0)
        if isinstance(event, JobFinished):
            self._blocks[event.direction] += event.blocks_ok
        if number % 2 == 0:
            self.watchers.on_event(event)


class _Scrapes(Collector):
    """Counts scrapes as they begin; registered first, so that all that follows in a scrape is as late as its count."""

    def __init__(self) -> None:
        self._begun = 0
        self._more = threading.Condition()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._more:
            self._begun += 1
            self._more.notify_all()
        return ()

    def await_last(self, seconds: float) -> None:
        """Two more begin, so one that began after now has been answered; at once when nobody has scraped twice."""
        with self._more:
            begun = self._begun
            if begun >= 2:
                self._more.wait_for(lambda: self._begun >= begun + 2, seconds)
