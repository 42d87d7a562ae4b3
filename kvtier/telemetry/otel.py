"""OpenTelemetry spans from events, written after the events: a process calls `setup_tracing` once.

The only importer of opentelemetry. It uses no global provider, so an application's own tracing is unaffected. The
caller samples: an event whose `traceparent` is not sampled makes no span and costs nothing. OTEL_TRACES_SAMPLER decides
on events without a `traceparent`.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from heapq import nlargest
from pathlib import Path

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped, unused-ignore]
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from kvtier import __version__
from kvtier.config import ConfigError
from kvtier.events import (
    BlockQuarantined,
    CopyFinished,
    Event,
    Eviction,
    FilesEvicted,
    JobFinished,
    LookupBatch,
    RequestFinished,
    TaskFact,
)

logger = logging.getLogger(__name__)

TASK_EVENTS_MAX = 4
"""Tasks of a job that its span has as events: those with the longest wait plus service. All of them would be most of a
span's cost. The attribute kvtier.tasks holds the number of all tasks."""

# W3C Trace Context, version 00. Parsed here, since the SDK's parser takes as long as the rest of a link.
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_Note = tuple[str, float, Mapping[str, AttributeValue] | None]  # name, time, attributes


class PromisedIds(RandomIdGenerator):
    """Gives the next span the ids promised for it: the blocks of a store carry them before its span is written."""

    promised: SpanContext | None = None

    def generate_span_id(self) -> int:
        promised, self.promised = self.promised, None
        return promised.span_id if promised and promised.is_valid else super().generate_span_id()

    def generate_trace_id(self) -> int:
        return self.promised.trace_id if self.promised and self.promised.is_valid else super().generate_trace_id()


class TracingObserver:
    """An `Observer` that writes spans to `provider` and owns it: `shutdown` flushes and ends it.

    A span costs 0.1 to 0.3 ms; events of other types, and of requests that are not sampled, cost nothing. Times are
    this host's wall clock. `provider` must use `ids`, else the links of loads do not match the spans of stores.
    Evictions of one step, request and reason are one span, which the next event of another type ends.
    """

    spans_lost = 0
    """Spans that the destination did not take; it is logged once."""

    def __init__(self, provider: TracerProvider, ids: PromisedIds) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("kvtier", __version__)
        # (reason, traceparent) -> blocks, first and last time
        self._evictions: dict[tuple[str, str | None], tuple[int, float, float]] = {}

    def on_event(self, event: Event, /) -> None:
        if self._evictions and not isinstance(event, Eviction):
            self._write_evictions()
        if _unsampled(getattr(event, "traceparent", None)):
            return
        now = time.monotonic()
        match event:
            case JobFinished():
                self._on_job(event)
            case RequestFinished():
                times = event.started_seconds, event.finished_seconds
                detail: dict[str, AttributeValue] = {"request_id": event.req_id}
                name = "request" if event.own_traceparent else "offload"  # the manager's part lies in the request
                self._write(name, *times, detail, event.traceparent, own=event.own_traceparent)
            case LookupBatch():
                detail = {"tier": event.tier, "keys": event.keys, "hits": event.hits}
                notes = [("probe started", event.started_seconds, None)]
                self._write("lookup", event.sent_seconds, event.finished_seconds, detail, event.traceparent, notes)
            case CopyFinished():
                detail = {"job_id": event.job_id, "blocks": event.blocks, "bytes": event.bytes}
                ended, error = event.finished_seconds, "" if event.ok else "the device reported an error"
                self._write(f"copy_{event.direction}", ended - event.seconds, ended, detail, None, error=error)
            case Eviction():
                key = event.reason, event.traceparent
                blocks, first, _ = self._evictions.get(key, (0, now, now))
                self._evictions[key] = blocks + event.blocks, first, now
            case FilesEvicted():
                detail = {"tier": event.tier, "blocks": event.blocks, "bytes": event.bytes, "reason": event.reason}
                self._write("evict_files", now, now, detail, None)
            case BlockQuarantined():
                detail = {"tier": event.tier, "reason": event.reason, "path": event.path}
                self._write("quarantine", now, now, detail, None, error=event.reason)

    def on_lost(self, spans: int) -> None:
        """Count spans that were not taken. The exporter's thread calls it."""
        if not self.spans_lost:
            logger.warning("spans are lost: the endpoint in OTEL_EXPORTER_OTLP_ENDPOINT does not take them")
        self.spans_lost += spans

    def shutdown(self) -> None:
        """Send the remaining spans, then stop. Blocks for at most the exporter's timeout."""
        self._write_evictions()
        self._provider.shutdown()

    def _write_evictions(self) -> None:
        for (reason, traceparent), (blocks, first, last) in self._evictions.items():
            self._write("evict", first, last, {"blocks": blocks, "reason": reason}, traceparent)
        self._evictions.clear()

    def _on_job(self, event: JobFinished) -> None:
        notes: list[_Note] = [
            (
                "task started",
                task.started_seconds,
                {
                    "queue_seconds": task.started_seconds - task.enqueued_seconds,
                    "service_seconds": task.finished_seconds - task.started_seconds,
                    "bytes": task.bytes,
                    "depth": task.depth,
                    "thread": f"{task.thread_direction}-{task.thread}",
                },
            )
            for task in _slowest(event.tasks)
        ]
        detail: dict[str, AttributeValue] = {
            "tier": event.tier,
            "job_id": event.job_id,
            "request_id": event.req_id,
            "blocks": event.blocks_ok,
            "blocks_skipped": event.blocks_skipped,
            "blocks_cross_process": event.blocks_cross_process,
            "bytes": event.bytes_ok,
            "tasks": len(event.tasks),
        }
        self._write(
            event.direction,
            event.submitted_seconds,
            event.finished_seconds,
            detail,
            event.traceparent,
            notes,
            ", ".join(f"{reason}: {blocks} blocks" for reason, blocks in event.failures),
            event.own_traceparent,
            event.links,
        )

    def _write(
        self,
        name: str,
        started_seconds: float,
        finished_seconds: float,
        attributes: Mapping[str, AttributeValue],
        parent: str | None,
        notes: Sequence[_Note] = (),
        error: str = "",
        own: str | None = None,
        links: Sequence[str] = (),
    ) -> None:
        """Write one span below the context `parent`, with the identity `own` if one was promised."""
        context = set_span_in_context(NonRecordingSpan(_context_of(parent))) if parent else Context()
        offset = time.time_ns() - time.monotonic_ns()  # taken once, so that no span straddles a clock step
        self._ids.promised = _context_of(own) if own else None
        span = self._tracer.start_span(
            f"kvtier.{name}",
            context=context,
            attributes=_named(attributes),
            links=[Link(_context_of(link)) for link in links],  # the SDK drops invalid ones
            start_time=offset + _ns(started_seconds),
        )
        for text, seconds, detail in notes:
            span.add_event(text, _named(detail or {}), timestamp=offset + _ns(seconds))
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(offset + _ns(finished_seconds))


def setup_tracing(attributes: Mapping[str, AttributeValue], folder: Path | None = None) -> TracingObserver | None:
    """Tracing as the OTEL_* variables configure it; without an endpoint to `folder`/spans-<pid>.jsonl; else None.

    Each line of that file is one ExportTraceServiceRequest in OTLP's JSON encoding, which collectors import.
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
    exporter: SpanExporter
    if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        exporter = OTLPSpanExporter()
    elif folder is not None:
        exporter = _OtlpJsonLines(folder / f"spans-{os.getpid()}.jsonl")
    else:
        return None
    given = Resource(
        {"service.name": "kvtier", "service.version": __version__, "process.pid": os.getpid(), **attributes}
    )
    ids, resource = PromisedIds(), given.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    observer = TracingObserver(provider, ids)
    provider.add_span_processor(BatchSpanProcessor(_Watched(exporter, observer)))
    return observer


class _Watched(SpanExporter):
    """An exporter that reports what its destination does not take."""

    def __init__(self, exporter: SpanExporter, observer: TracingObserver) -> None:
        self._exporter, self._observer = exporter, observer

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._observer.on_lost(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _OtlpJsonLines(SpanExporter):
    """Writes each batch as one line, an ExportTraceServiceRequest in OTLP's JSON encoding."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        request = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
        scopes = (scope for resource in request["resourceSpans"] for scope in resource["scopeSpans"])
        for span in (span for scope in scopes for span in scope["spans"]):
            for ids in (span, *span.get("links", ())):
                for name in ids.keys() & {"traceId", "spanId", "parentSpanId"}:  # OTLP has hex digits, protobuf base64
                    ids[name] = base64.b64decode(ids[name]).hex()
        self._file.write(json.dumps(request) + "\n")
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def _unsampled(traceparent: str | None) -> bool:
    """Whether it has version 00's form and an even flag. Most events have, so this must be cheap."""
    return traceparent is not None and len(traceparent) == 55 and traceparent[-1] in "02468ace"


def _context_of(traceparent: str) -> SpanContext:
    """An invalid context when the text, which comes from outside, has not version 00's form."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return INVALID_SPAN_CONTEXT
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def _slowest(tasks: Sequence[TaskFact]) -> list[TaskFact]:
    """The `TASK_EVENTS_MAX` longest tasks, in the order of their ends."""
    if len(tasks) <= TASK_EVENTS_MAX:
        return list(tasks)
    slowest = nlargest(TASK_EVENTS_MAX, tasks, key=lambda task: task.finished_seconds - task.enqueued_seconds)
    return sorted(slowest, key=lambda task: task.finished_seconds)


def _named(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {f"kvtier.{key}": value for key, value in attributes.items()}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
