"""Metrics and spans of kvtier in a worker: /metrics while it runs, and files in the run folder.

The kvtier adapters make one `Watch` if the run has metrics or traces. It samples the requests to trace, as the caller
of a tier does. The tier is unchanged.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from harness.adapters.base import TierSetup
from harness.core.installation import tracing_is_installed
from harness.core.run_files import trace_ids
from kvtier import Event, FanOut, Gauges, JobFinished, MetricsObserver, RequestFinished, serve_metrics

T = TypeVar("T")

LAST_SCRAPE_SECONDS_MAX = 3.0
"""The longest wait of a scraped process for one scrape after its last job, so that Prometheus has the final counts."""


class Watch:
    """Serves `/metrics` on 127.0.0.1 (`setup.serve_metrics`), writes spans of every `setup.trace_every`-th request.

    `sources` and `info` are those of `MetricsObserver`. Spans go to the endpoint of the OTEL_* variables, else into
    the run folder.
    """

    def __init__(
        self, setup: TierSetup, events: FanOut, sources: Mapping[str, Gauges], info: Mapping[str, str]
    ) -> None:
        self.address: str | None = None
        self._events = events
        self._run_dir, self._label = Path(setup.run_dir), setup.label
        self._has_run_dir = bool(setup.run_dir)  # benchmarks have none
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
            disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of a scrape, and not used
            self._registry = CollectorRegistry()
            self._registry.register(self._scrapes)
            ProcessCollector(registry=self._registry)
            watchers.add(MetricsObserver(self._registry, sources, info))
            self._server, port = serve_metrics(self._registry)
            if self._windows is not None:
                self._windows.pay_for_scrapes(self._server)
            self.address = f"127.0.0.1:{port}"
        if self._every and tracing_is_installed():
            from kvtier import setup_tracing

            attributes = {"kvtier.run": self._run_dir.name, "kvtier.root": setup.root_dir}
            instance = {"service.instance.id": f"process-{self._label}"}
            self._spans = setup_tracing({**attributes, **instance}, self._run_dir)
            with suppress(FileNotFoundError):  # spans go to an endpoint
                (self._run_dir / f"spans-{os.getpid()}.jsonl").rename(self._run_dir / f"spans-{self._label}.jsonl")
            if self._spans is not None:
                watchers.add(self._spans)

    def traceparent(self, req_id: str) -> str | None:
        """A new request's trace context. Its ids derive from the run and the request, so they can be recomputed."""
        if self._windows is not None:
            return self._windows.paid(self._new_traceparent, req_id) if self._windows.watched() else None
        return self._new_traceparent(req_id)

    def _new_traceparent(self, req_id: str) -> str | None:
        if self._spans is None:
            return None
        self._requests += 1
        sampled = self._requests % self._every == 0
        trace_id, span_id = trace_ids(self._run_dir.name, req_id)
        return f"00-{trace_id}-{span_id}-{sampled:02x}"

    def request_finished(self, req_id: str, traceparent: str | None, started_seconds: float) -> None:
        """Emit the request's span, the parent of its other spans."""
        if traceparent is not None and traceparent.endswith("1"):
            now = time.monotonic()
            self._events.on_event(RequestFinished(req_id, started_seconds, now, None, own_traceparent=traceparent))

    def close(self) -> None:
        """Wait for a last scrape if there is a scraper, write the final metrics, stop serving, flush the spans."""
        if self._windows is not None:
            (self._run_dir / f"windows-{self._label}.json").write_text(json.dumps(self._windows.rows))
        if self._registry is not None:
            self._scrapes.await_last(LAST_SCRAPE_SECONDS_MAX)
            if self._has_run_dir:
                path = self._run_dir / f"metrics-{self._label}.openmetrics"
                path.write_bytes(generate_latest(self._registry))  # type: ignore[no-untyped-call]
            self._server.shutdown()
            self._server.server_close()
        if self._spans is not None:
            self._spans.shutdown()


def is_watched(monotonic_seconds: float, window_seconds: float) -> bool:
    """Whether this moment lies in a watched window; the same in all processes of a machine."""
    return monotonic_seconds // window_seconds % 2 == 0


class Windows:
    """Passes events to `watchers` in every second window of `seconds`.

    `rows` has, of each finished window: whether it was watched, its real length, the CPU time of this process, the part
    of that for observing (events, trace contexts, scrapes, the export of spans), and the blocks stored and loaded.
    """

    def __init__(self, seconds: float) -> None:
        self.watchers = FanOut()
        self.rows: list[tuple[bool, float, float, float, int, int]] = []
        self._seconds, self._blocks = seconds, {"store": 0, "load": 0}
        self._began, self._cpu = time.monotonic(), time.process_time()
        self._paid = self._spent = 0.0

    def paid(self, call: Callable[..., T], *arguments: object) -> T:
        """Return `call(*arguments)`, and count its CPU time as spent on observing."""
        before = time.thread_time()
        try:
            return call(*arguments)
        finally:
            self._paid += time.thread_time() - before  # races with other threads: one update in thousands is lost

    def pay_for_scrapes(self, server: WSGIServer) -> None:
        """Count the CPU time of `server`'s threads too."""
        answer = server.process_request_thread  # type: ignore[attr-defined]
        server.process_request_thread = functools.partial(self.paid, answer)  # type: ignore[attr-defined]

    def _spent_until_now(self) -> float:
        """CPU seconds spent on observing so far; the threads that export spans have clocks of their own."""
        exporters = [thread.ident for thread in threading.enumerate() if thread.name.startswith("OtelBatch")]
        return self._paid + sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in exporters if ident)

    def watched(self) -> bool:
        return is_watched(time.monotonic(), self._seconds)

    def on_event(self, event: Event) -> None:
        now = time.monotonic()
        if now // self._seconds != self._began // self._seconds:
            cpu, spent, watched = time.process_time(), self._spent_until_now(), is_watched(self._began, self._seconds)
            moved = self._blocks["store"], self._blocks["load"]
            self.rows.append((watched, now - self._began, cpu - self._cpu, spent - self._spent, *moved))
            self._began, self._cpu, self._spent, self._blocks = now, cpu, spent, dict.fromkeys(self._blocks, 0)
        if isinstance(event, JobFinished):
            self._blocks[event.direction] += event.blocks_ok
        if is_watched(now, self._seconds):
            self.paid(self.watchers.on_event, event)


class _Scrapes(Collector):
    """Counts scrapes as they begin. Registered first: the other metrics of a scrape are read after its count."""

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
        """Wait until two more scrapes begin: then one that began after this call has ended. Returns at once if there
        were fewer than two scrapes."""
        with self._more:
            begun = self._begun
            if begun >= 2:
                self._more.wait_for(lambda: self._begun >= begun + 2, seconds)
