"""kvtier.telemetry.otel: spans in memory, in the file, and over real OTLP/HTTP."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_tracer_provider

from kvtier.config import ConfigError
from kvtier.events import (
    BlockQuarantined,
    Cascade,
    CopyFinished,
    Event,
    Eviction,
    JobFinished,
    LookupBatch,
    RequestFinished,
    TaskFact,
    child_traceparent,
)
from kvtier.telemetry.otel import TASK_EVENTS_MAX, PromisedIds, TracingObserver, setup_tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WRITER_TRACE, WRITER_SPAN = "11112222333344445555666677778888", "aaaabbbbccccdddd"


def traceparent(trace: str, span: str, flags: str = "01") -> str:
    return f"00-{trace}-{span}-{flags}"


def job(**changes: object) -> JobFinished:
    now = time.monotonic()
    task = TaskFact("load", "load", 3, 8192, 2, now - 2, now - 1.5, now - 0.5)
    event = JobFinished("fs", "load", 7, "r1", 2, 0, 1, (), 8192, now - 2, now - 0.5, (task,), None, ())
    return event._replace(**changes)  # type: ignore[arg-type]


def spans_of(*events: Event) -> list[ReadableSpan]:
    exporter, ids = InMemorySpanExporter(), PromisedIds()
    provider = TracerProvider(id_generator=ids)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = TracingObserver(provider, ids)
    for event in events:
        observer.on_event(event)
    observer.shutdown()
    return list(exporter.get_finished_spans())


def test_a_job_span_has_its_times_and_its_queue_wait() -> None:
    before = time.time_ns()
    (span,) = spans_of(job())
    after = time.time_ns()
    assert span.name == "kvtier.load"
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(1.5, abs=1e-6)
    slack = 1_000_000  # the clocks are read one after the other
    assert before - slack <= span.end_time + 500_000_000 <= after + slack
    (started,) = span.events
    assert started.attributes is not None
    assert started.attributes["kvtier.queue_seconds"] == pytest.approx(0.5)
    assert started.attributes["kvtier.service_seconds"] == pytest.approx(1.0)
    assert (started.timestamp - span.start_time) / 1e9 == pytest.approx(0.5, abs=1e-6)
    assert span.attributes is not None
    assert span.attributes["kvtier.blocks_cross_process"] == 1
    assert span.status.status_code is StatusCode.UNSET


def test_a_load_belongs_to_its_request_and_links_to_the_stores_that_wrote_its_blocks() -> None:
    (span,) = spans_of(
        job(traceparent=traceparent(TRACE, SPAN), links=(traceparent(WRITER_TRACE, WRITER_SPAN), "rubbish", ""))
    )
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    (link,) = span.links
    assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == (WRITER_TRACE, WRITER_SPAN)


@pytest.mark.parametrize("bad", [None, "", "rubbish", "00-0-0-01", traceparent("0" * 32, SPAN)])
def test_a_job_without_a_valid_context_starts_a_trace(bad: str | None) -> None:
    (span,) = spans_of(job(traceparent=bad))
    assert span.parent is None


def test_a_request_that_is_not_sampled_leaves_no_span() -> None:
    unsampled = traceparent(TRACE, SPAN, flags="00")
    events = (
        job(traceparent=unsampled, own_traceparent=child_traceparent(unsampled)),
        LookupBatch("fs", 10, 4, 1.0, 2.0, 3.0, unsampled),
        RequestFinished("r1", 1.0, 2.0, unsampled),
        Eviction(8, "capacity", unsampled),
    )
    assert spans_of(*events) == []


def test_a_job_span_has_the_identity_in_its_blocks_and_the_next_span_another() -> None:
    own = child_traceparent(traceparent(TRACE, SPAN))
    assert own is not None
    assert own[:36] == traceparent(TRACE, SPAN)[:36]
    assert own[36:52] != SPAN
    request = RequestFinished("r1", 1.0, 2.5, None, own_traceparent=traceparent(TRACE, SPAN))
    first, second, root = spans_of(
        job(traceparent=traceparent(TRACE, SPAN), own_traceparent=own),
        job(traceparent=traceparent(TRACE, SPAN)),
        request,
    )
    assert first.context is not None
    assert second.context is not None
    assert root.context is not None
    assert f"{first.context.span_id:016x}" == own[36:52]
    assert f"{second.context.span_id:016x}" not in (own[36:52], SPAN)
    assert (f"{root.context.trace_id:032x}", f"{root.context.span_id:016x}") == (TRACE, SPAN)
    assert root.parent is None
    assert root.start_time is not None
    assert root.end_time is not None
    assert root.end_time - root.start_time == 1_500_000_000


@pytest.mark.parametrize("parent", [None, "", "rubbish", traceparent(TRACE, SPAN) + "-and-more"])
def test_without_a_context_nothing_is_promised(parent: str | None) -> None:
    assert child_traceparent(parent) is None


def test_failures_are_errors_with_their_reasons() -> None:
    (span,) = spans_of(job(failures=(("EIO", 3), ("checksum", 1))))
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "EIO: 3 blocks, checksum: 1 blocks"


def test_a_job_span_has_a_bounded_number_of_tasks() -> None:
    event = job()
    slow = event.tasks[0]._replace(thread=77, finished_seconds=event.tasks[0].finished_seconds + 9)
    (span,) = spans_of(event._replace(tasks=(*event.tasks[:1] * (TASK_EVENTS_MAX + 4), slow)))
    assert len(span.events) == TASK_EVENTS_MAX
    assert "77" in str((span.events[-1].attributes or {})["kvtier.thread"]), "the slowest task is among the events"
    assert span.attributes is not None
    assert span.attributes["kvtier.tasks"] == TASK_EVENTS_MAX + 5


def test_every_other_traced_event_is_one_span() -> None:
    spans = spans_of(
        LookupBatch("fs", 10, 4, 10.0, 10.5, 10.75),
        CopyFinished("store", 1, 9, 900, 0.125, True, 20.0),
        CopyFinished("load", 2, 9, 900, 0.125, False, 20.0),
        Eviction(8, "capacity"),
        BlockQuarantined("fs", "size", "q/x"),
        Cascade("fs", "r1", 7),
        RequestFinished("r1", 1.0, 2.0, traceparent(TRACE, SPAN)),
    )
    names = ["lookup", "copy_store", "copy_load", "evict", "quarantine", "offload"]
    assert [span.name for span in spans] == [f"kvtier.{name}" for name in names]
    error = [span.name for span in spans if span.status.status_code is StatusCode.ERROR]
    assert error == ["kvtier.copy_load", "kvtier.quarantine"]
    assert spans[0].start_time is not None
    assert spans[0].end_time is not None
    assert spans[0].end_time - spans[0].start_time == 750_000_000
    assert spans[1].start_time is not None
    assert spans[1].end_time is not None
    assert spans[1].end_time - spans[1].start_time == 125_000_000


def test_evictions_of_one_step_request_and_reason_are_one_span() -> None:
    mine, other = traceparent(TRACE, SPAN), traceparent(WRITER_TRACE, WRITER_SPAN)
    step = [Eviction(1, "capacity", owner) for owner in (mine, other, mine, mine)] + [Eviction(5, "reset")]
    spans = spans_of(*step, Cascade("fs", "r1", 1), Eviction(2, "capacity", mine))
    found = [
        (span.parent and f"{span.parent.span_id:016x}", attributes["kvtier.reason"], attributes["kvtier.blocks"])
        for span in spans
        if (attributes := span.attributes)
    ]
    step_spans = [(SPAN, "capacity", 3), (WRITER_SPAN, "capacity", 1), (None, "reset", 5)]
    assert found == [*step_spans, (SPAN, "capacity", 2)]
    assert {span.name for span in spans} == {"kvtier.evict"}
    assert spans[0].start_time is not None
    assert spans[0].end_time is not None
    assert spans[0].start_time < spans[0].end_time, "from the first eviction to the last"


def test_the_request_and_the_managers_part_of_it_have_different_names() -> None:
    request = traceparent(TRACE, SPAN)
    part, whole = spans_of(
        RequestFinished("r1", 1.2, 2.4, request),
        RequestFinished("r1", 1.0, 2.5, None, own_traceparent=request),
    )
    assert (part.name, whole.name) == ("kvtier.offload", "kvtier.request")
    assert part.parent is not None
    assert whole.context is not None
    assert part.parent.span_id == whole.context.span_id


class Receiver(ThreadingHTTPServer):
    """A minimal OTLP/HTTP receiver."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[ExportTraceServiceRequest] = []


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Receiver)
        assert self.path == "/v1/traces"
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def test_every_span_reaches_a_real_receiver(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,kvtier.run=overridden")
    observer = setup_tracing({"kvtier.run": "42", "kvtier.root": "/kv"})
    assert observer is not None
    for number in range(700):
        observer.on_event(job(job_id=number, traceparent=traceparent(TRACE, SPAN)))
    observer.shutdown()
    got: list[int] = []
    for request in receiver.requests:
        (resource_spans,) = request.resource_spans
        resource = {a.key: a.value for a in resource_spans.resource.attributes}
        assert resource["service.name"].string_value == "kvtier"
        assert resource["kvtier.root"].string_value == "/kv"
        assert resource["kvtier.run"].string_value == "overridden"
        for span in resource_spans.scope_spans[0].spans:
            assert span.trace_id.hex() == TRACE
            got += [a.value.int_value for a in span.attributes if a.key == "kvtier.job_id"]
    assert sorted(got) == list(range(700))


def test_spans_that_the_endpoint_does_not_take_are_counted_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    observer = setup_tracing({})
    assert observer is not None
    for number in range(5):
        observer.on_event(job(job_id=number))
    observer.shutdown()
    assert observer.spans_lost == 5
    said = [record.message for record in caplog.records if record.name == "kvtier.telemetry.otel"]
    assert said == ["spans are lost: the endpoint in OTEL_EXPORTER_OTLP_ENDPOINT does not take them"]


def test_without_an_endpoint_spans_go_to_the_folder_as_otlp_json(tmp_path: Path) -> None:
    """As https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding: ids in hex digits, enums as numbers."""
    observer = setup_tracing({"kvtier.run": "42"}, tmp_path)
    assert observer is not None
    links = (traceparent(WRITER_TRACE, WRITER_SPAN),)
    for number in range(700):  # more than a batch
        observer.on_event(job(job_id=number, traceparent=traceparent(TRACE, SPAN), links=links, failures=(("EIO", 1),)))
    observer.shutdown()
    (path,) = tmp_path.iterdir()
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(requests) > 1
    spans = []
    for request in requests:
        assert list(request) == ["resourceSpans"]
        (of_process,) = request["resourceSpans"]
        assert {"key": "kvtier.run", "value": {"stringValue": "42"}} in of_process["resource"]["attributes"]
        (scope,) = of_process["scopeSpans"]
        spans += scope["spans"]
    values = [{pair["key"]: pair["value"] for pair in span["attributes"]} for span in spans]
    assert [value["kvtier.job_id"]["intValue"] for value in values] == [str(number) for number in range(700)]
    first = spans[0]
    assert (first["traceId"], first["parentSpanId"], len(first["spanId"])) == (TRACE, SPAN, 16)
    assert (first["links"][0]["traceId"], first["links"][0]["spanId"]) == (WRITER_TRACE, WRITER_SPAN)
    assert (first["kind"], first["status"]["code"]) == (1, 2)
    assert int(first["endTimeUnixNano"]) - int(first["startTimeUnixNano"]) == pytest.approx(1.5e9, abs=1e3)


def test_without_a_destination_there_is_no_tracing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup_tracing({}) is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert setup_tracing({}, tmp_path) is None
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert setup_tracing({}, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp, none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "http/protobuf"),
    ],
)
def test_an_unsupported_exporter_or_protocol_is_refused(
    name: str, value: str, valid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"'{value}'; valid choices: {valid}"):
        setup_tracing({})


def test_the_global_provider_is_unchanged(tmp_path: Path) -> None:
    before = get_tracer_provider()
    observer = setup_tracing({}, tmp_path)
    assert observer is not None
    observer.shutdown()
    assert get_tracer_provider() is before
