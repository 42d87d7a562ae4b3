"""A real Prometheus on real load runs: every panel has data, every rule evaluates, and counts equal the history's.

There are two runs. One has the file-system tier alone. The other has the whole stack with a CPU tier that is too small
for its traffic, so it has all series but those of a GPU node. A synthetic target has those.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from harness.core.history import History
from harness.monitoring.live_dashboards import (
    DASHBOARDS,
    PanelValue,
    Prometheus,
    RunExporter,
    evaluate,
    unhealthy_rules,
)
from harness.runner import EXIT_CODES, Results, run
from harness.scenarios.load import SCENARIO, LoadOptions
from kvtier.events import CopyFinished, FilesEvicted
from kvtier.telemetry.prometheus import MetricsObserver, serve_metrics

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="PANELS AND RULES ARE NOT CHECKED: apt-get install prometheus"
)

ROOT = Path(__file__).parents[4]
# Prometheus takes up new targets every five seconds, so the runs are longer than that.
SMALL = {"processes": 2, "seconds": 8.0, "seed": 7, "block_bytes": 65536, "read_threads": 2, "write_threads": 2}
ONLY_ON_A_GPU_NODE = {
    "Duration of a copy",
    "Rate during copies",
    "GPU utilisation",
    "GPU memory",
    "Bus",
    "Disk utilisation",
}
EVERYDAY = {"KvtierDiskNearlyFull"}  # depends on the disk of the test machine


class _GpuNode(Collector):
    """The metrics of a GPU node's exporters, and a copy in each direction at every scrape."""

    def __init__(self, observer: MetricsObserver) -> None:
        self._observer = observer
        self._scrapes = 0

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        self._scrapes += 1
        for direction in ("load", "store"):
            copy = CopyFinished(direction, self._scrapes, 4, 4 << 20, 0.001, True)  # type: ignore[arg-type]
            self._observer.on_event(copy)
        for name in ("GPU_UTIL", "FB_USED"):
            family = GaugeMetricFamily(f"DCGM_FI_DEV_{name}", "synthetic", labels=("gpu", "Hostname"))
            family.add_metric(("0", "node-a"), 50)
            yield family
        for name in ("TX", "RX"):
            family = GaugeMetricFamily(f"DCGM_FI_PROF_PCIE_{name}_BYTES", "synthetic", labels=("gpu", "Hostname"))
            family.add_metric(("0", "node-a"), 1e9)
            yield family
        busy = CounterMetricFamily("node_disk_io_time_seconds", "synthetic", labels=("device",))
        busy.add_metric(("vda",), 0.1 * self._scrapes)
        yield busy
        host = GaugeMetricFamily("node_uname_info", "synthetic", labels=("nodename",))
        host.add_metric(("node-a",), 1)
        yield host


ROOT_GAUGES = {"root_bytes": 900.0, "root_files": 9.0, "root_limit_bytes": 1000.0}


class _Evictor(Collector):
    """A process that evicts a file at every scrape, from a root with a limit: the runs' roots have none."""

    def __init__(self, observer: MetricsObserver) -> None:
        self._observer = observer

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        now = time.monotonic()
        self._observer.on_event(FilesEvicted("fs", "max_bytes", 1, 65536, (60.0,), now, now))
        return iter(())


class Watched:
    """The server, both runs, and the values of the panels during them."""

    def __init__(self, prometheus: Prometheus, fs: Results, stack_code: int, panels: list[PanelValue]) -> None:
        self.prometheus, self.fs, self.stack_code, self.panels = prometheus, fs, stack_code, panels
        self.history = History.read(Path(fs.run_dir))

    def total(self, metric: str, labels: str = "") -> float:
        """The last value of each process of the first run, summed."""
        name = Path(self.fs.run_dir).name
        values = self.prometheus.values(f'last_over_time({metric}{{run="{name}"{labels and ","}{labels}}}[10m])')
        assert values, f"{metric}: no series"
        return sum(values.values())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("observe")
    with ExitStack() as stack:
        prometheus = stack.enter_context(Prometheus(folder / "prometheus"))
        exporter = RunExporter(folder / "harness.json")
        stack.callback(exporter.close)
        for kind, job in ((_GpuNode, "synthetic"), (_Evictor, "kvtier")):
            registry = CollectorRegistry()
            registry.register(kind(MetricsObserver(registry, {"fs": lambda: ROOT_GAUGES} if kind is _Evictor else {})))
            server, port = serve_metrics(registry)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            target = {"targets": [f"127.0.0.1:{port}"], "labels": {"job": job, "instance": kind.__name__}}
            (folder / f"{job}.json").write_text(json.dumps([target]))
        prometheus.scrape(folder / "harness.json", folder / "synthetic.json", folder / "kvtier.json")

        def on_start(chosen: object, run_dir: Path, traffic: str) -> None:
            exporter.on_start(chosen, run_dir, traffic)
            prometheus.scrape(run_dir / "file_sd.json")

        start = time.time()
        options = [text for name, value in SMALL.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        options += ["--tier", "kvtier-stack", "--tier-option", "cpu_chunks=128", "--runs-dir", str(folder / "stack")]
        other = subprocess.Popen([sys.executable, "-m", "harness", "run", "load", "--quiet", *options], cwd=ROOT)
        stack.callback(other.wait)
        stack.callback(other.terminate)
        until(lambda: any(folder.glob("stack/*/root")))
        prometheus.scrape(*(path.parent / "file_sd.json" for path in folder.glob("stack/*/root")))
        fs = run(SCENARIO, LoadOptions(**SMALL, trace_every=1), folder / "runs", on_start, exporter.on_tick)
        wanted = {"requests": fs.totals["requests"], "hits": fs.totals["hit_blocks"]}
        query = 'sum by (what) (harness_done_total{what=~"requests|hits"})'
        until(lambda: {dict(labels)["what"]: n for labels, n in prometheus.values(query).items()} == wanted)
        stack_code = other.wait(timeout=60)
        end = time.time()
        panels = evaluate(prometheus, start, end, {"job": "kvtier|harness"}, ["overview", "load"])
        panels += evaluate(prometheus, start, end, {}, ["gpu"])
        yield Watched(prometheus, fs, stack_code, panels)


def spans_of(run_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every span of a run's OTLP-JSON files, with the instance id of its process."""
    for path in run_dir.glob("spans-*.jsonl"):
        for request in map(json.loads, path.read_text().splitlines()):
            for of_process in request["resourceSpans"]:
                values = {pair["key"]: pair["value"] for pair in of_process["resource"]["attributes"]}
                for span in of_process["scopeSpans"][0]["spans"]:
                    yield values["service.instance.id"]["stringValue"], span


def until(satisfied: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition of other processes."""
    deadline = time.monotonic() + seconds
    while not satisfied():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)  # between looks, until the deadline


def test_the_observed_runs_pass(watched: Watched) -> None:
    others = [(v["name"], v["figure"], v["findings"]) for v in watched.fs.verdicts if v["value"] != "true"]
    assert (watched.fs.verdict, others) == ("true", [])
    assert watched.stack_code == EXIT_CODES["true"]


def test_every_panel_has_data_and_no_query_is_refused(watched: Watched) -> None:
    on_disk = [json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")]
    targets = sum(len(panel.get("targets", ())) for dashboard in on_disk for panel in dashboard["panels"])
    assert len(watched.panels) == targets > 70
    assert [(p.panel, p.error) for p in watched.panels if p.error] == []
    assert [(p.dashboard, p.panel, p.expr) for p in watched.panels if p.last is None] == []


def test_only_panels_of_a_gpu_node_need_the_synthetic_target(watched: Watched) -> None:
    end = time.time()
    real = evaluate(watched.prometheus, end - 60, end, {"job": "kvtier|harness"})
    dead = {p.panel for p in real if p.last is None}
    # No variable excludes the exporters of the node.
    assert dead | {"GPU utilisation", "GPU memory", "Bus", "Disk utilisation"} == ONLY_ON_A_GPU_NODE


def test_panels_show_the_activity_of_the_runs(watched: Watched) -> None:
    """Above zero where a healthy run has activity, and zero where it has none."""
    highest = defaultdict(float)
    for panel in watched.panels:
        highest[panel.panel] = max(highest[panel.panel], panel.highest or 0)
    for title in (
        "Blocks loaded, by writer",
        "Cross-process hit ratio",
        "Hit ratio by tier",
        "Wait in the queue",
        "Tasks by direction and thread",
        "Bytes moved",
        "Time on a thread",
        "Job latency",
        "Existence probes",
        "Slots",
        "Promotions and cascades",
        "CPU tier evictions",
        "Lookups by outcome",
        "Requests",
        "Hit ratio of the traffic",
        "CPU time per process",
        "Open descriptors per process",
        "Free space",
        "Root size and limit",
    ):
        assert highest[title] > 0, title
    assert highest["Processes that store"] == 2
    assert highest["Seeds per folder"] == 1
    for title in (
        "Corrupt blocks",
        "Quarantined blocks",
        "Hung threads",
        "Thread deaths",
        "Load failure ratio",
        "Unverified blocks",
        "Wrong blocks",
        "Faults in force",
    ):
        assert highest[title] == 0, title


def test_phases_of_the_run_are_marked(watched: Watched) -> None:
    (marks,) = (
        mark["expr"]
        for mark in json.loads((DASHBOARDS / "load.json").read_text())["annotations"]["list"]
        if mark["name"] == "Phases"
    )
    found = {dict(labels)["text"]: value / 1000 for labels, value in watched.prometheus.values(marks).items()}
    assert {"traffic starts", "traffic ended"} <= set(found)
    requests = watched.history.requests
    last_end = max(request.wall_seconds for request in requests)
    assert found["traffic starts"] < last_end
    assert found["traffic ended"] == pytest.approx(last_end, abs=30)


def test_counts_equal_those_of_the_history(watched: Watched) -> None:
    jobs = watched.history.jobs
    for direction in ("load", "store"):
        mine = [job for job in jobs if job.direction == direction]
        way = f'direction="{direction}"'
        assert watched.total("kvtier_jobs_total", way) == len(mine)
        assert watched.total("kvtier_blocks_total", way + ',outcome="ok"') == sum(len(job.ok) for job in mine)
        assert watched.total("kvtier_blocks_total", way + ',outcome="failed"') == sum(len(job.failed) for job in mine)
        assert watched.total("kvtier_transferred_bytes_total", way) == sum(job.bytes_ok for job in mine)
        tasks = [task for task in watched.history.tasks if task.direction == direction]
        assert watched.total("kvtier_tasks_total", way) == len(tasks)
        assert watched.total("kvtier_queue_wait_seconds_count", way) == len(tasks)
        waited = sum(task.started_seconds - task.enqueued_seconds for task in tasks)
        assert watched.total("kvtier_queue_wait_seconds_sum", way) == pytest.approx(waited)
    hits = sum(request.hit_blocks for request in watched.history.requests)
    assert watched.total("kvtier_blocks_total", 'direction="load",outcome="ok"') == hits
    assert hits == watched.fs.totals["hit_blocks"], "the fixture waits until the harness's endpoint has them"


def test_published_blocks_are_on_disk_and_other_processes_stored_the_shared_ones(watched: Watched) -> None:
    published = watched.total("kvtier_blocks_total", 'direction="store",outcome="ok"')
    published -= watched.total("kvtier_duplicate_stores_total")
    assert published == sum(name.endswith(".bin") for name in watched.history.files)
    stored: dict[int, set[int]] = defaultdict(set)
    for job in watched.history.jobs:
        if job.direction == "store":
            stored[job.process].update(job.ok)
    loads = [(job.process, block) for job in watched.history.jobs if job.direction == "load" for block in job.ok]
    never_mine = sum(block not in stored[process] for process, block in loads)
    others = sum(any(block in stored[p] for p in stored if p != process) for process, block in loads)
    assert 0 < never_mine <= watched.total("kvtier_cross_process_hit_blocks_total") <= others


def test_every_rule_evaluates_and_a_healthy_run_has_no_alert(watched: Watched) -> None:
    assert unhealthy_rules(watched.prometheus) == []
    alerts = watched.prometheus.get("alerts")["alerts"]
    assert {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"} <= EVERYDAY
    found = watched.prometheus.values("job:kvtier_cross_process_hits:ratio_rate5m")
    assert all(0 < value < 1 for value in found.values())


def test_vllms_names_have_the_same_values(watched: Watched) -> None:
    for name, metric, labels in (
        ("read_bytes_total", "kvtier_transferred_bytes_total", 'direction="load"'),
        ("write_bytes_total", "kvtier_transferred_bytes_total", 'direction="store"'),
        ("chunk_hits_total", "kvtier_tier_lookups_total", 'outcome="hit"'),
        ("promotion_latency_seconds_count", "kvtier_job_seconds_count", 'direction="load"'),
    ):
        # Recorded once a second: the last record may be a scrape older than the last scrape.
        last = watched.total(f"vllm:kv_offload_tiering_{name}")
        assert 0 < last <= watched.total(metric, labels), name


def test_an_exemplar_is_the_trace_of_its_job(watched: Watched) -> None:
    spans = {(span["traceId"], span["spanId"]): span for _, span in spans_of(Path(watched.fs.run_dir))}
    found = 0
    for text in (path.read_text() for path in Path(watched.fs.run_dir).glob("metrics-*.openmetrics")):
        for span_id, trace_id in re.findall(r'kvtier_job_seconds_bucket.*# {span_id="(\w+)",trace_id="(\w+)"}', text):
            assert spans[trace_id, span_id]["name"] in ("kvtier.load", "kvtier.store")
            found += 1
    assert found > 4
    kept = watched.prometheus.get(
        "query_exemplars", query="kvtier_job_seconds_bucket", start=time.time() - 120, end=time.time()
    )
    ids = {(e["labels"]["trace_id"], e["labels"]["span_id"]) for series in kept for e in series["exemplars"]}
    assert ids & set(spans)


def test_loads_link_to_the_stores_of_other_processes(watched: Watched) -> None:
    """Every request of that run is traced, so each link of a load leads to a span; some lead to another process."""
    spans = {span["spanId"]: (process, span) for process, span in spans_of(Path(watched.fs.run_dir))}
    links = [
        (process, *spans[link["spanId"]])
        for process, span in spans.values()
        if span["name"] == "kvtier.load"
        for link in span.get("links", ())
    ]
    assert links
    assert all(store["name"] == "kvtier.store" for _, _, store in links)
    assert any(loader != writer for loader, writer, _ in links)
    requests = [span for _, span in spans.values() if span["name"] == "kvtier.request"]
    assert len(requests) == len(watched.history.requests)
    parts = [span for _, span in spans.values() if span["name"] in ("kvtier.load", "kvtier.store")]
    assert {span["parentSpanId"] for span in parts} <= {span["spanId"] for span in requests}
