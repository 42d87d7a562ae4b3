"""OpenTelemetry spans from events, written after the fact; a process that wants them calls `setup` once.

The only importer of opentelemetry. It touches no global provider, so an application's own tracing stays as it is.
Sampling is the caller's: a job whose `traceparent` is not sampled leaves no span, and OTEL_TRACES_SAMPLER decides the
rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from kvtier import __version__
from kvtier.config import ConfigError
from kvtier.events import BlockSetAside, CopyFinished, Event, Eviction, JobFinished, LookupBatch

TASK_EVENTS_MAX = 32
"""Tasks that a job's span tells one by one; its attribute kvtier.tasks holds their whole number."""

_PROPAGATOR = TraceContextTextMapPropagator()


class TracingObserver:
    """An `Observer` that writes spans to `provider` and owns it: `shutdown` flushes and ends it.

    A span costs about 0.1 ms; events of other types cost nothing. Times are this host's wall clock; a
    batch or a copy, whose event carries durations only, ends when its event came.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("kvtier", __version__)

    def on_event(self, event: Event, /) -> None:
        match event:
            case JobFinished():
                self._on_job(event)
            case LookupBatch():
                seconds = event.queue_seconds + event.probe_seconds
                span = self._start("lookup", seconds, tier=event.tier, keys=event.keys, hits=event.hits)
                span.add_event("probe started", timestamp=time.time_ns() - _ns(event.probe_seconds))
                span.end()
            case CopyFinished():
                name = f"copy_{event.direction}"
                span = self._start(name, event.seconds, job_id=event.job_id, blocks=event.blocks, bytes=event.bytes)
                if not event.ok:
                    span.set_status(Status(StatusCode.ERROR, "the device reported an error"))
                span.end()
            case Eviction():
                self._start("evict", 0, blocks=event.blocks, reason=event.reason).end()
            case BlockSetAside():
                span = self._start("set_aside", 0, tier=event.tier, reason=event.reason, path=event.path)
                span.set_status(Status(StatusCode.ERROR, event.reason))
                span.end()

    def shutdown(self) -> None:
        """Send what is left, then stop. Blocks for at most the exporter's timeout."""
        self._provider.shutdown()

    def _start(self, name: str, seconds: float, **attributes: AttributeValue) -> Span:
        named = {f"kvtier.{key}": value for key, value in attributes.items()}
        return self._tracer.start_span(f"kvtier.{name}", attributes=named, start_time=time.time_ns() - _ns(seconds))

    def _on_job(self, event: JobFinished) -> None:
        offset = time.time_ns() - time.monotonic_ns()  # taken once a job, so that one span never straddles a clock step
        attributes: dict[str, AttributeValue] = {
            "kvtier.tier": event.tier,
            "kvtier.job_id": event.job_id,
            "kvtier.request_id": event.req_id,
            "kvtier.blocks": event.blocks_ok,
            "kvtier.blocks_skipped": event.blocks_skipped,
            "kvtier.blocks_foreign": event.blocks_foreign,
            "kvtier.bytes": event.bytes_ok,
            "kvtier.tasks": len(event.tasks),
        }
        span = self._tracer.start_span(
            f"kvtier.{event.direction}",
            context=_PROPAGATOR.extract({"traceparent": event.traceparent or ""}),
            attributes=attributes,
            links=[Link(_context_of(link)) for link in event.links],  # the SDK drops invalid ones
            start_time=offset + _ns(event.submitted_seconds),
        )
        for task in event.tasks[:TASK_EVENTS_MAX]:
            detail: dict[str, AttributeValue] = {
                "kvtier.queue_seconds": task.started_seconds - task.enqueued_seconds,
                "kvtier.service_seconds": task.finished_seconds - task.started_seconds,
                "kvtier.bytes": task.bytes,
                "kvtier.depth": task.depth,
                "kvtier.thread": f"{task.group}-{task.thread}",
            }
            span.add_event("task started", detail, timestamp=offset + _ns(task.started_seconds))
        if event.failures:
            text = ", ".join(f"{reason}: {blocks} blocks" for reason, blocks in event.failures)
            span.set_status(Status(StatusCode.ERROR, text))
        span.end(offset + _ns(event.finished_seconds))


def setup(attributes: Mapping[str, AttributeValue], folder: Path | None = None) -> TracingObserver | None:
    """Tracing as the standard OTEL_* variables ask; without an endpoint into `folder`/spans-<pid>.jsonl; else None.

    `attributes` describe this process (run, root, ...); OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME override them.
    Raises `ConfigError` on an exporter or protocol other than OTLP over HTTP. The caller calls `shutdown` at its end.
    """
    exporter_name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter_name not in ("otlp", "none"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER is {exporter_name!r}; valid choices: otlp, none")
    if protocol not in (None, "", "http/protobuf"):
        raise ConfigError(f"the OTLP protocol is {protocol!r}; valid choices: http/protobuf")
    if exporter_name == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter: OTLPSpanExporter | ConsoleSpanExporter
    if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        exporter = OTLPSpanExporter()
    elif folder is not None:
        exporter = _JsonLines(folder / f"spans-{os.getpid()}.jsonl")
    else:
        return None
    given = Resource(
        {"service.name": "kvtier", "service.version": __version__, "process.pid": os.getpid(), **attributes}
    )
    provider = TracerProvider(resource=given.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return TracingObserver(provider)


class _JsonLines(ConsoleSpanExporter):
    """One span a line; the file is closed at shutdown."""

    def __init__(self, path: Path) -> None:
        super().__init__(out=open(path, "a", encoding="utf-8"), formatter=lambda span: span.to_json(indent=None) + "\n")

    def shutdown(self) -> None:
        self.out.close()


def _context_of(traceparent: str) -> SpanContext:
    return get_current_span(_PROPAGATOR.extract({"traceparent": traceparent})).get_span_context()


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
