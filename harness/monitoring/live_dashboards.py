"""The dashboards while a run lasts: starts Debian's server on a run's targets, and evaluates every panel and rule.

`make observe` and the tests call it. It starts Prometheus, and Grafana and Tempo if there is a container engine,
reports servers that it cannot start, and stops all of them. It gives no verdict.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.commands.clean import notice
from harness.commands.console import carry_out, say_results, say_table
from harness.core.history import Note, read_records
from harness.core.installation import DASHBOARDS
from harness.core.notes import Fault, Lifted, Phase
from harness.report.figures import MIB, duration
from harness.runner import Results
from harness.runtime.supervisor import Child
from harness.scenarios.load import SCENARIO, LoadOptions

DASHBOARD_FILES = ("overview.json", "load.json", "gpu.json", "rules.yml", "vllm-names.yml")
SCRAPE_SECONDS = 0.25
RATE_SCRAPES = 8
"""`$__rate_interval` in scrapes, when panels are evaluated. Grafana's own is 4, but a busy machine misses some."""
READY_SECONDS_MAX = 20.0
NOTES_MAX = 200
PROMETHEUS_PORT, GRAFANA_PORT, OTLP_PORT = 9090, 3000, 4318


class NoPrometheus(Exception):
    """Prometheus is not installed or does not start; the text is one sentence with the remedy."""


class NoDashboards(Exception):
    """This installation lacks dashboards or rules; the text is one sentence with the remedy."""


class QueryError(Exception):
    """Prometheus refused a query; the text is the server's."""


class Prometheus:
    """A server on 127.0.0.1, from `__enter__` to `__exit__`; all its files are below `folder`.

    It scrapes the targets of the `file_sd` files. Raises `NoPrometheus` if Debian's package is missing.
    """

    def __init__(self, folder: Path, port: int = 0, scrape_seconds: float = SCRAPE_SECONDS) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            raise NoPrometheus("prometheus is not installed; on Debian: apt-get install prometheus")
        self.address = f"http://127.0.0.1:{port or free_port()}"
        self._interval = f"{round(scrape_seconds * 1000)}ms"
        self._file_sd: list[str] = []
        self._folder = folder
        self._log_path = folder / "prometheus.log"
        self._command = [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.address.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ]

    def scrape(self, *file_sd: Path) -> None:
        """Also scrape the targets of these files, which need not exist yet; their folders must."""
        self._file_sd += [str(path.resolve()) for path in file_sd]
        self._write_config()
        self._popen.send_signal(signal.SIGHUP)

    def _write_config(self) -> None:
        config = {
            "global": {
                "scrape_interval": self._interval,
                "scrape_timeout": self._interval,
                "evaluation_interval": "1s",
            },
            "rule_files": [str(DASHBOARDS / "rules.yml"), str(DASHBOARDS / "vllm-names.yml")],
            "scrape_configs": [{"job_name": "kvtier", "file_sd_configs": [{"files": self._file_sd}]}]
            if self._file_sd
            else [],
        }
        (self._folder / "prometheus.yml").write_text(json.dumps(config, indent=1))  # JSON is YAML

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_config()
        with open(self._log_path, "wb") as log:
            self._popen = subprocess.Popen(self._command, stdout=log, stderr=log, process_group=0)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self._ready():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                words = self._log_path.read_text(errors="replace")[-2000:]
                self.__exit__()
                raise NoPrometheus(f"prometheus did not start: {words}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def get(self, path: str, **parameters: object) -> Any:
        """`data` of a response of the HTTP API. Raises `QueryError`."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(json.load(error).get("error", str(error))) from None

    def values(self, expr: str) -> dict[tuple[tuple[str, str], ...], float]:
        """An instant query now: labels (sorted pairs, no name) -> value."""
        found = self.get("query", query=expr)["result"]
        return {
            tuple(sorted((k, v) for k, v in series["metric"].items() if k != "__name__")): float(series["value"][1])
            for series in found
        }


class PanelValue(NamedTuple):
    """One query of a panel, evaluated over a run: its number of lines, and the last and highest of their values."""

    dashboard: str
    panel: str
    unit: str  # of its values; a heatmap's are counts
    legend: str
    expr: str
    lines: int
    last: float | None  # None: no line has a value, so the panel is empty
    highest: float | None
    error: str


def evaluate(
    prometheus: Prometheus, start: float, end: float, variables: Mapping[str, str], names: Sequence[str] = ()
) -> list[PanelValue]:
    """Evaluate every query of the dashboards (`names`; default: all) over [start, end], wall-clock seconds.

    `variables` are values of the dashboards' variables; the default of each is ".*".
    """
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        if names and path.stem not in names:
            continue
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                target = {**target, "expr": expand(target["expr"], end - start, variables)}
                found.append(_evaluate(prometheus, start, end, path.stem, panel, target))
    return found


def _evaluate(
    prometheus: Prometheus, start: float, end: float, dashboard: str, panel: dict[str, Any], target: dict[str, Any]
) -> PanelValue:
    step = max(SCRAPE_SECONDS, (end - start) / 200)
    unit = "none" if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]["unit"]
    query = (dashboard, panel["title"], unit, target["legendFormat"], target["expr"])
    try:
        lines = prometheus.get("query_range", query=target["expr"], start=start, end=end, step=step)["result"]
    except QueryError as error:
        return PanelValue(*query, 0, None, None, str(error))
    points = sorted((at, float(text)) for line in lines for at, text in line["values"])
    points = [(at, value) for at, value in points if math.isfinite(value)]
    last = points[-1][1] if points else None
    highest = max((value for _, value in points), default=None)
    return PanelValue(*query, len(lines), last, highest, "")


def expand(expr: str, range_seconds: float, variables: Mapping[str, str]) -> str:
    """A panel's query with Grafana's variables replaced, as Grafana replaces them."""
    known = {
        "__rate_interval": f"{round(SCRAPE_SECONDS * RATE_SCRAPES * 1000)}ms",
        "__range": f"{max(1, round(range_seconds))}s",
        **variables,
    }
    return re.sub(r"\$(\w+)", lambda match: known.get(match[1], ".*"), expr)


def unhealthy_rules(prometheus: Prometheus) -> list[str]:
    """Rules that Prometheus could not evaluate, with its error."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    return [f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}" for rule in rules if rule["health"] != "ok"]


class RunExporter(Collector):
    """The harness's own metrics of a run: requests and blocks by worker, and the run's phases and faults.

    Its `on_start` and `on_tick` are those of `run`. It serves from construction to `close`; `targets_path` has its
    address.
    """

    def __init__(self, targets_path: Path) -> None:
        self._children: Sequence[Child] = ()
        self._notes_path: Path | None = None
        registry = CollectorRegistry()
        registry.register(self)
        self._server, _ = prometheus_client.start_http_server(0, "127.0.0.1", registry)
        labels = {"job": "harness", "instance": "harness"}
        target = {"targets": [f"127.0.0.1:{self._server.server_port}"], "labels": labels}
        targets_path.write_text(json.dumps([target]))

    def on_start(self, options: object, run_dir: Path, traffic: str) -> None:
        self._notes_path = run_dir / "history-harness.jsonl"

    def on_tick(self, children: Sequence[Child]) -> None:
        self._children = tuple(children)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        done = CounterMetricFamily(
            "harness_done", "Requests and blocks of a process so far.", labels=("process", "what")
        )
        for child in self._children:
            for what, count in child.counts.items():
                done.add_metric((child.label, what), count)
        yield done
        total = CounterMetricFamily("harness_notes", "Phases begun, faults injected and lifted.", labels=("kind",))
        when = GaugeMetricFamily(
            "harness_note_time_seconds", "Time of a phase or fault, wall clock.", labels=("kind", "text")
        )
        notes = self._notes()
        for kind in (Phase, Fault, Lifted):
            total.add_metric((kind.__name__.lower(),), sum(note.is_a(kind) for note in notes))
        offset = time.time() - time.monotonic()
        for note in notes[-NOTES_MAX:]:
            when.add_metric((note.kind, note.text), offset + note.monotonic_seconds)
        yield from (total, when)

    def _notes(self) -> list[Note]:
        if self._notes_path is None or not self._notes_path.exists():
            return []
        return [record for record in read_records(self._notes_path) if isinstance(record, Note)]


class Viewers:
    """Grafana and Tempo in containers, from `__enter__` to `__exit__`; `why_not` is the reason if they do not run."""

    def __init__(self, prometheus_address: str, runs_dir: Path) -> None:
        self.why_not = ""
        self._environment = {**os.environ, "PROMETHEUS_URL": prometheus_address, "RUNS_DIR": str(runs_dir.resolve())}
        self._compose: list[str] = []
        for engine in ("docker", "podman"):
            if shutil.which(engine) and _succeeds(engine, "info") and _succeeds(engine, "compose", "version"):
                self._compose = [engine, "compose", "-f", str(DASHBOARDS / "compose.yaml")]
                break
        else:
            self.why_not = "there is no container engine (docker or podman with compose)"

    def __enter__(self) -> Self:
        if self._compose:
            started = subprocess.run(
                [*self._compose, "up", "--detach", "--quiet-pull", "grafana", "tempo"],
                env=self._environment,
                capture_output=True,
                text=True,
            )
            if started.returncode:
                self.why_not = f"`{' '.join(self._compose)} up` failed: {started.stderr.strip()[-500:]}"
        return self

    def __exit__(self, *_: object) -> None:
        if self._compose:
            subprocess.run([*self._compose, "down"], env=self._environment, capture_output=True)


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def free_port(preferred: int = 0) -> int:
    """`preferred` if it is free, else another free port of 127.0.0.1."""
    for port in (preferred, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise AssertionError("unreachable")


def in_words(value: float | None, unit: str) -> str:
    """A panel's value with its unit; "nothing" if no line has a value."""
    if value is None:
        return "nothing"
    match unit:
        case "s":
            return duration(value)
        case "percentunit" | "percent":
            return f"{value * (100 if unit == 'percentunit' else 1):.1f} %"
        case "bytes" | "Bps":
            return f"{value / MIB:,.1f} MiB{'/s' if unit == 'Bps' else ''}"
        case "ops":
            return f"{value:,.4g}/s"
        case _:
            return f"{value:,.4g}" + {"none": "", "mbytes": " MiB"}.get(unit, f" {unit}")


def show(values: Sequence[PanelValue], console: Console) -> None:
    """Print a line per query: its panel, legend, number of lines, and last and highest value."""
    table = Table("dashboard", "panel", "legend", "lines", "last", "highest", box=None, padding=(0, 2, 0, 0))
    seen: tuple[str, str] = ("", "")
    for value in values:
        where = (value.dashboard if value.dashboard != seen[0] else "", value.panel if value[:2] != seen else "")
        last, highest = (in_words(v, value.unit) for v in (value.last, value.highest))
        words = (
            *where,
            value.legend.replace("{{", "<").replace("}}", ">"),
            f"{value.lines}",
            last,
            value.error or highest,
        )
        table.add_row(*map(escape, words), style="yellow" if value.last is None or value.error else None)
        seen = value[:2]
    say_table(table, console)
    dead = sorted({value.panel for value in values if value.last is None})
    if dead:
        console.print(
            f"panels without data: {escape(', '.join(dead))} (those of a GPU node need its exporters)",
            soft_wrap=True,
        )


def check_dashboards() -> None:
    """Raises `NoDashboards` when a dashboard or rule file is absent: without it, no alert would fire."""
    absent = [name for name in DASHBOARD_FILES if not (DASHBOARDS / name).is_file()]
    if absent:
        raise NoDashboards(f"{DASHBOARDS} has no {', '.join(absent)}; install kvtier again, from a complete wheel")


def observe(options: LoadOptions, runs_dir: Path, console: Console, wait: bool) -> Results:
    """Make a load run with Prometheus, and Grafana and Tempo if they start, then print the values of every panel.

    With `wait` the servers run until Enter. Raises `NoDashboards`, `NoPrometheus`, and the errors of `run`.
    """
    check_dashboards()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtier-observe-")))
        prometheus = stack.enter_context(Prometheus(folder, free_port(PROMETHEUS_PORT)))
        exporter = RunExporter(folder / "harness.json")
        stack.callback(exporter.close)
        prometheus.scrape(folder / "harness.json")
        viewers = stack.enter_context(Viewers(prometheus.address, runs_dir))
        console.print(f"Prometheus  {prometheus.address}")
        if viewers.why_not:
            console.print(
                f"Grafana and Tempo are not started: {escape(viewers.why_not)}. To see the dashboards, import "
                f"{DASHBOARDS}/*.json into a Grafana that reads {prometheus.address}. To see the traces, set "
                "OTEL_EXPORTER_OTLP_ENDPOINT to a receiver, or import spans-*.jsonl (OTLP-JSON) of the run's folder.",
                soft_wrap=True,
            )
        else:
            os.environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{OTLP_PORT}")
            console.print(f"Grafana     http://127.0.0.1:{GRAFANA_PORT}/d/kvtier-overview")

        def on_start(run_dir: Path) -> None:
            exporter.on_start(options, run_dir, "")
            prometheus.scrape(run_dir / "file_sd.json")

        start = time.time()
        notice(options.root_dir)
        results = carry_out(
            SCENARIO, options, runs_dir, console, False, lambda r: say_results(r, console), on_start, exporter.on_tick
        )
        show(evaluate(prometheus, start, time.time(), {}), console)
        for problem in unhealthy_rules(prometheus):
            console.print(f"[red]rule {escape(problem)}[/]", soft_wrap=True)
        firing = [alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]
        for alert in firing:
            name, words = alert["labels"]["alertname"], alert["annotations"]
            console.print(
                f"[red]{name}[/]: {escape(words['summary'])}. See {escape(words['runbook_url'])}.", soft_wrap=True
            )
        console.print(f"{len(firing)} alert{'s' if len(firing) != 1 else ''} firing")
        console.print(f"{Path(results.run_dir) / 'report.html'}", soft_wrap=True, markup=False)
        if wait:
            console.input("Press Enter to stop the servers. ")
    return results
