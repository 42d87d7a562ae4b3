"""Writes the Grafana dashboards beside it, the rules for Kubernetes and docs/metrics.md; a test says when what is
committed is not what it writes.

Run `python dashboards/generate.py`; with `--check` it only says what differs. Each panel states its question.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from kvtier.telemetry.prometheus import BUILD_INFO, GAUGES, INFO_LABELS, INFO_TEXT, MetricsObserver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HEIGHT = 7
SOURCE = common.DataSourceRef("prometheus", "$datasource")
CHOSEN = 'job=~"$job",instance=~"$instance"'  # what the variables at the top of a dashboard choose
TIER = CHOSEN + ',tier=~"$tier"'


# --- queries ---


class Query(NamedTuple):
    """PromQL and what its lines are called. `@` stands for the chosen series of a tier, `%` for those of a process."""

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        return self.expr.replace("@", TIER).replace("%", CHOSEN).replace("[rate]", "[$__rate_interval]")


def _over(function: str, by: str, expr: str) -> str:
    return f"{function} by ({by}) ({expr})" if by else f"{function}({expr})"


def _labels(by: str) -> str:
    """A line's name from the labels that tell it from the others."""
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else ""


def rate(series: str, by: str = "") -> str:
    return _over("sum", by, f"rate({series}[rate])")


def rates(series: str, by: str = "", legend: str = "") -> Query:
    """How fast counters grow, a line for each value of the labels `by`."""
    return Query(rate(series, by), legend or _labels(by))


def levels(series: str, by: str = "", legend: str = "") -> Query:
    """The sum of gauges."""
    return Query(_over("sum", by, series), legend or _labels(by))


def highest(series: str, by: str = "", legend: str = "") -> Query:
    """The worst of gauges."""
    return Query(_over("max", by, series), legend or _labels(by))


def quantile(q: float, metric: str, by: str, legend: str = "", chosen: str = "@") -> Query:
    """Of a histogram, named without its suffix."""
    return Query(f"histogram_quantile({q}, {rate(f'{metric}_bucket{{{chosen}}}', f'le, {by}')})", legend or _labels(by))


def quantiles(metric: str, by: str, what: str = "", chosen: str = "@") -> list[Query]:
    """The median and the 99th percentile of a histogram; `what` follows the labels in the lines' names."""
    names = [f"{_labels(by)}{what and ' '}{what} p{q * 100:g}" for q in (0.5, 0.99)]
    return [quantile(q, metric, by, name, chosen) for q, name in zip((0.5, 0.99), names, strict=True)]


def ratio(part: str, whole: str) -> str:
    """A share that is 0, not missing, while there is nothing to share."""
    return f"({part}) / (({whole}) > 0) or 0 * ({whole})"


LOADED = 'kvtier_blocks_total{@,direction="load",outcome="ok"}'
STORED = 'kvtier_blocks_total{@,direction="store",outcome="ok"}'
FOREIGN = "kvtier_cross_process_hit_blocks_total{@}"
SKIPPED = "kvtier_duplicate_stores_total{@}"
LATENCY = Query("sum by (le) (increase(kvtier_job_seconds_bucket{@}[rate]))", "{{le}}")


# --- panels ---


class Panel(NamedTuple):
    """One panel. `bad` and `warn` are thresholds: at and above them the value is red or yellow; `low` turns that round,
    below them it is. `kind` is "lines", "stack", "stat" or "heatmap"."""

    title: str
    question: str
    unit: str
    queries: Sequence[Query]
    warn: float | None = None
    bad: float | None = None
    low: bool = False
    kind: str = "lines"
    span: int = 8


SHARING = [
    Panel("Blocks read: whose were they",
          "Do processes use what others wrote? The band of other processes is the proof of sharing.", "ops",
          [rates(FOREIGN, legend="written by another process"),
           Query(f"{rate(LOADED)} - {rate(FOREIGN)}", "written by itself")], kind="stack"),
    Panel("Share of loads that another process wrote",
          "What would be lost if each process kept its blocks to itself?", "percentunit",
          [Query(ratio(rate(FOREIGN), rate(LOADED)), "from others")], warn=0.01, bad=0.0001, low=True),
    Panel("Hit ratio by tier",
          "How often does a tier have the block that it is asked for?", "percentunit",
          [Query(ratio(rate('kvtier_tier_lookups_total{@,outcome="hit"}', "tier"),
                       rate('kvtier_tier_lookups_total{@,outcome=~"hit|miss"}', "tier")), "{{tier}}")]),
    Panel("Seeds per folder",
          "Do all who use a folder derive the same names? More than 1 means that somebody shares nothing, in silence.",
          "none",
          [Query('count by (folder) (count by (folder, hash_algorithm, none_hash) (kvtier_build_info{%,folder!=""}))',
                 "{{folder}}")], bad=2, kind="stat"),
    Panel("Processes that store",
          "How many write to the shared root at this moment?", "none",
          [Query(f"count({rate(STORED, 'job, instance')} > 0) or vector(0)", "storing")], kind="stat"),
    Panel("Duplicate stores skipped",
          "How much work is done twice? Blocks offered for storing that another writer had already published.", "ops",
          [rates(SKIPPED, "tier")]),
]  # fmt: skip

STARVATION = [
    Panel("Oldest waiting task",
          "Does anybody starve? The age of the oldest task of each class in any process.", "s",
          [highest("kvtier_queue_oldest_seconds{@}", "class")], warn=1, bad=10),
    Panel("Wait in the queue",
          "How long does a task wait for a thread?", "s",
          quantiles("kvtier_queue_wait_seconds", "direction"), warn=1, bad=10),
    Panel("Tasks waiting",
          "Is there a backlog, and of which class?", "none",
          [levels("kvtier_queue_tasks{@}", "class")]),
    Panel("Bytes waiting",
          "How near are stores to the limit of their queue?", "bytes",
          [levels("kvtier_queue_bytes{@}", "class")]),
    Panel("Who serves whom",
          "Do threads help the other class when their own has nothing? Tasks by class and by the group that ran them.",
          "ops",
          [rates("kvtier_tasks_total{@}", "direction, group", "{{direction}} by {{group}} threads")], kind="stack"),
    Panel("Threads at work",
          "Is a group idle while the other is busy?", "none",
          [levels("kvtier_threads_busy{@}", "class", "prefer {{class}}")]),
    Panel("Refusals",
          "Does the tier turn work away? Stores beyond a limit, and promotions without a free slot.", "ops",
          [rates('kvtier_block_failures_total{@,reason=~"refused|backlog|full"}', "tier, reason",
                 "{{tier}}: stores, {{reason}}"),
           rates("kvtier_refused_promotion_blocks_total{@}", "tier", "{{tier}}: promotions")], warn=0.001, bad=10),
    Panel("Jobs in flight",
          "Does work move at all? A level that stays while no job ends is a hang.", "none",
          [levels("kvtier_jobs_in_flight{@}", "tier", "{{tier}} in flight"),
           rates("kvtier_jobs_total{@}", "tier", "{{tier}} ended per second")]),
]  # fmt: skip

INTEGRITY = [
    Panel("Corrupt blocks",
          "Was a file found that is not the block it should be? Each was a miss, never data, and is in quarantine.",
          "none",
          [Query("sum by (reason) (increase(kvtier_corrupt_blocks_total{@}[$__range]))", "{{reason}}")],
          bad=0.5, kind="stat"),
    Panel("Jobs by outcome",
          "Do jobs succeed? Partial: some blocks failed, the others are good.", "ops",
          [rates("kvtier_jobs_total{@}", "direction, outcome")]),
    Panel("Failed blocks by reason",
          "What does the file system say when it fails?", "ops",
          [rates("kvtier_block_failures_total{@}", "direction, reason")], bad=0.001),
    Panel("Blocks taken unverified",
          "How much is loaded from files without a trailer (vLLM's own), which nothing can check?", "ops",
          [rates("kvtier_unverified_blocks_total{@}", "tier")], warn=0.001),
]  # fmt: skip

BYTES_MOVED = Panel(
    "Bytes moved",
    "How near is the device to its limit? Compare with what `kvtier-harness` measured as its ceiling.",
    "Bps",
    [rates("kvtier_transferred_bytes_total{@}", "direction")],
)

DEVICE = [
    BYTES_MOVED,
    Panel("Time on a thread",
          "How long does the device take for one task of at most task_bytes_max?", "s",
          quantiles("kvtier_service_seconds", "direction"), warn=0.5, bad=5),
    Panel("Job latency",
          "How long from submission to the end of a job? A point opens the trace of that very job.", "s",
          [LATENCY], kind="heatmap"),
    Panel("Oldest I/O in flight",
          "Does a system call hang? It is the age of the oldest task that a thread has taken.", "s",
          [highest("kvtier_running_oldest_seconds{@}", "class")], warn=5, bad=30),
    Panel("I/O in flight",
          "How deep is the device's queue from here?", "none",
          [levels("kvtier_running_tasks{@}", "class")]),
    Panel("Free space",
          "Will the next blocks fit?", "percentunit",
          [Query("min by (tier) (kvtier_file_system_free_bytes{@} / kvtier_file_system_size_bytes{@})", "{{tier}}")],
          warn=0.2, bad=0.1, low=True),
    Panel("Files evicted",
          "Does the root outgrow its limits? Blocks that these processes removed, by the limit that was passed.", "ops",
          [rates("kvtier_evicted_files_total{@}", "tier, reason"),
           rates("kvtier_evicted_then_wanted_blocks_total{@}", "tier", "wanted again")]),
    Panel("Age at eviction",
          "Is the root large enough? For how long evicted blocks had not been used: minutes are too few.", "s",
          quantiles("kvtier_evicted_file_age_seconds", "tier")),
    Panel("Blocks published",
          "How many blocks have these processes put into the root since they began? (`kvtier inspect` counts files.)",
          "none",
          [Query(f"sum({STORED}) - sum({SKIPPED})", "published")]),
    Panel("Existence probes",
          "How long does a lookup take, from the end of its step to the answer?", "s",
          [*quantiles("kvtier_lookup_queue_seconds", "tier", "wait"),
           *quantiles("kvtier_lookup_probe_seconds", "tier", "probe")], warn=0.1, bad=1),
]  # fmt: skip

SLOTS = Panel(
    "Slots",
    "What is the CPU tier doing with its memory?",
    "none",
    [levels(f"kvtier_slots_{state}{{@}}", legend=state) for state in ("pinned", "writing", "evictable", "free")],
    kind="stack",
)
BLOCKS_THAT_LEFT = Panel(
    "Blocks that left",
    "Is the CPU tier too small? Evictions by reason; capacity is the one that more slots would cure.",
    "ops",
    [rates("kvtier_evicted_blocks_total{%}", "reason")],
)

CPU_TIER = [
    SLOTS,
    Panel("Answers to lookups",
          "What does a request hear? Pending and retry mean: ask again next step.", "ops",
          [rates("kvtier_lookup_blocks_total{%}", "outcome")]),
    Panel("Promotions and cascades",
          "How much moves between the CPU tier and the tiers behind it?", "ops",
          [rates("kvtier_promoted_blocks_total{@}", "tier", "promoted from {{tier}}"),
           rates("kvtier_cascaded_blocks_total{@}", "tier", "cascaded to {{tier}}")]),
    BLOCKS_THAT_LEFT,
    Panel("Oldest HIT_PENDING",
          "For how long has somebody been told to wait for a block?", "s",
          [highest("kvtier_pending_oldest_seconds{@}", legend="oldest")], warn=1, bad=10),
    Panel("Requests known",
          "Do requests end? A level that only rises is a leak.", "none",
          [levels("kvtier_requests{@}", "instance")]),
]  # fmt: skip

TRAFFIC = [
    Panel("Requests",
          "Does the traffic run, and do all processes take part? As the harness counts them.", "ops",
          [rates('harness_done_total{%,what="requests"}', "process", "process {{process}}")]),
    Panel("Hit ratio of the traffic",
          "How much of what requests asked for came out of the cache, verified? The report shows its bounds.",
          "percentunit",
          [Query(ratio(rate('harness_done_total{%,what="hits"}'), rate('harness_done_total{%,what="refs"}')), "hits")]),
    Panel("Wrong blocks",
          "Did a load ever bring a byte that is not the key's? It must never.", "none",
          [levels('harness_done_total{%,what="wrong"}', legend="wrong")], bad=1, kind="stat", span=4),
    Panel("Faults in force",
          "What does the harness do to the tier just now?", "none",
          [Query('sum(harness_notes_total{%,kind="fault"}) - sum(harness_notes_total{%,kind="lifted"})', "faults")],
          warn=1, kind="stat", span=4),
]  # fmt: skip

PER_PROCESS = [
    Panel("Bytes moved per process",
          "Do all processes get their part of the device?", "Bps",
          [rates("kvtier_transferred_bytes_total{@}", "instance, direction")], span=12),
    Panel("Oldest waiting task per process",
          "Which process starves, and in which class?", "s",
          [highest("kvtier_queue_oldest_seconds{@}", "instance, class")], warn=1, bad=10, span=12),
    Panel("Job latency",
          "Which jobs were slow? A point opens that job's trace, and from there the store that wrote the block.", "s",
          [LATENCY], kind="heatmap", span=12),
    Panel("Job latency per process, 99th percentile",
          "Is one process slower than the others?", "s",
          [quantile(0.99, "kvtier_job_seconds", "instance, direction")], warn=1, bad=10, span=12),
    Panel("Blocks that another process wrote, per process",
          "Who profits from the others?", "ops",
          [rates(FOREIGN, "instance")]),
    Panel("Blocks stored per process",
          "Who writes what the others read?", "ops",
          [rates(STORED, "instance")]),
    Panel("Tasks waiting per process",
          "Where is the backlog?", "none",
          [levels("kvtier_queue_tasks{@}", "instance, class")]),
]  # fmt: skip

PROCESSES = [
    Panel("Processor time per process",
          "How many cores does a process use?", "none",
          [rates("process_cpu_seconds_total{%}", "instance")]),
    Panel("Memory per process",
          "Does memory grow?", "bytes",
          [levels("process_resident_memory_bytes{%}", "instance")]),
    Panel("Open descriptors per process",
          "Do descriptors leak?", "none",
          [levels("process_open_fds{%}", "instance")]),
]  # fmt: skip

COPIES = [
    Panel("Bytes copied between GPU and CPU",
          "How much does offloading ask of the bus?", "Bps",
          [rates("kvtier_copy_bytes_total{%}", "instance, direction")]),
    Panel("Time of a copy",
          "Does a copy delay the model?", "s",
          quantiles("kvtier_copy_seconds", "direction", chosen="%"), warn=0.05, bad=0.5),
    Panel("Rate while copying",
          "Does a copy get the bus's full rate, or do pageable memory or small runs slow it down?", "Bps",
          [Query(f"{rate('kvtier_copy_bytes_total{%}', 'instance, direction')}"
                 f" / ({rate('kvtier_copy_seconds_sum{%}', 'instance, direction')} > 0)",
                 "{{instance}} {{direction}}")]),
    Panel("Copies by outcome",
          "Does the device report errors?", "ops",
          [rates("kvtier_copies_total{%}", "direction, outcome")]),
]  # fmt: skip

NODE = [
    Panel("GPU at work",
          "Is the GPU waiting for blocks? (DCGM exporter)", "percent",
          [Query("DCGM_FI_DEV_GPU_UTIL", "GPU {{gpu}}")]),
    Panel("GPU memory",
          "How much is the KV cache's? (DCGM exporter)", "decmbytes",
          [Query("DCGM_FI_DEV_FB_USED", "GPU {{gpu}}")]),
    Panel("Bus",
          "How much of the bus is in use, by all? (DCGM exporter with profiling metrics)", "Bps",
          [Query("DCGM_FI_PROF_PCIE_TX_BYTES", "GPU {{gpu}} to host"),
           Query("DCGM_FI_PROF_PCIE_RX_BYTES", "GPU {{gpu}} from host")]),
    Panel("Disks of the node",
          "Is the node's disk the limit? (node exporter)", "percentunit",
          [Query("rate(node_disk_io_time_seconds_total[rate])", "{{device}}")], warn=0.8, bad=0.95),
]  # fmt: skip


class Page(NamedTuple):
    """One dashboard: rows of panels by their titles. `live`: of a run under way, whose phases and faults are marked."""

    title: str
    description: str
    rows: dict[str, list[Panel]]
    live: bool = False


DASHBOARDS = {
    "overview": Page(
        "kvtier: is it healthy",
        "Sharing, starvation, integrity, device: one row each, the worst first.",
        {"Sharing": SHARING, "Starvation": STARVATION, "Integrity": INTEGRITY, "Device": DEVICE, "CPU tier": CPU_TIER},
    ),
    "load": Page(
        "kvtier: a load run",
        "One run of the harness, process by process, with its phases and faults as annotations.",
        {"Traffic": TRAFFIC, "Per process": PER_PROCESS, "Processes": PROCESSES},
        live=True,
    ),
    "gpu": Page(
        "kvtier: a GPU node",
        "Copies between GPU and CPU tier beside what the node's exporters say.",
        {"Copies": COPIES, "CPU tier and files": [SLOTS, BLOCKS_THAT_LEFT, BYTES_MOVED], "Node": NODE},
    ),
}


# --- in Grafana's words ---


def _thresholds(panel: Panel) -> Any:
    if panel.low:
        steps = [("red", None), ("yellow", panel.bad), ("green", panel.warn)]
    else:
        steps = [("green", None), ("yellow", panel.warn), ("red", panel.bad)]
    made = [model.Threshold(value, colour) for colour, value in steps if value is not None or colour == steps[0][0]]
    return builder.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(made)


def _panel(panel: Panel) -> Any:
    make: dict[str, Callable[[], Any]] = {"stat": stat.Panel, "heatmap": heatmap.Panel}
    made = make.get(panel.kind, timeseries.Panel)()
    made.title(panel.title).description(panel.question).unit(panel.unit).span(panel.span).height(HEIGHT)
    made.datasource(SOURCE).thresholds(_thresholds(panel))
    for query in panel.queries:
        target = prometheus.Dataquery().expr(query.promql).legend_format(query.legend)
        if panel.kind == "heatmap":
            target.format(PromQueryFormat.HEATMAP).exemplar(True)
        made.with_target(target)
    if panel.kind == "heatmap":
        made.y_axis(heatmap.YAxisConfig().unit(panel.unit))
    elif panel.kind == "stat":
        made.reduce_options(common_builder.ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        made.fill_opacity(20 if panel.kind == "stack" else 5).show_points(common.VisibilityMode.NEVER).min(0)
        made.tooltip(common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        if panel.kind == "stack":
            made.stacking(common_builder.StackingConfig().mode(common.StackingMode.NORMAL))
        if panel.bad is not None or panel.warn is not None:
            style = common_builder.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
            made.thresholds_style(style)
    return made


def _variable(name: str, label: str, query: str) -> Any:
    made = builder.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.NATURAL_ASC)
    return made.multi(True).include_all(True).all_value(".*").current(model.VariableOption(None, "All", "$__all"))


def _annotation(name: str, kinds: str, colour: str) -> Any:
    return (
        builder.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(colour)
        .expr(f'harness_note_time_seconds{{kind=~"{kinds}"}} * 1000')
        .use_value_for_time(True)
        .title_format("{{kind}}")
        .text_format("{{text}}")
        .step("1s")
    )


def dashboard(name: str) -> str:
    """The JSON text of a dashboard."""
    page = DASHBOARDS[name]
    made = builder.Dashboard(page.title).uid(f"kvtier-{name}").description(page.description).tags(["kvtier"])
    made.time("now-15m" if page.live else "now-1h", "now").refresh("5s" if page.live else "30s")
    made.tooltip(model.DashboardCursorSync.CROSSHAIR).timezone("browser").readonly()
    made.with_variable(builder.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made.with_variable(_variable("job", "Job", "label_values(kvtier_build_info, job)"))
    made.with_variable(_variable("instance", "Process", 'label_values(kvtier_build_info{job=~"$job"}, instance)'))
    made.with_variable(_variable("tier", "Tier", 'label_values(kvtier_jobs_in_flight{job=~"$job"}, tier)'))
    if page.live:
        made.annotation(_annotation("Phases", "phase", "blue"))
        made.annotation(_annotation("Faults", "fault|lifted", "red"))
    for row, panels in page.rows.items():
        made.with_row(builder.Row(row))
        for panel in panels:
            made.with_panel(_panel(panel))
    tree = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for number, panel in enumerate(tree["panels"], 1):
        panel["id"] = number  # else Grafana gives ids of its own, and links to a panel do not last
    for variable in tree["templating"]["list"]:
        for key in [key for key in variable if key.startswith("auto")]:
            del variable[key]  # the SDK writes interval variables' options into every variable
    for mark in tree["annotations"].get("list", ()):
        del mark["placement"]  # would hide its switch in a menu, and the Grafana of compose.yaml does not know it
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


class _Described:
    """Stands where a prometheus metric would, to learn its name, text and labels from the code that makes it."""

    def __init__(self, kind: str, rows: list[tuple[str, str, tuple[str, ...], str]]) -> None:
        self._kind, self._rows = kind, rows

    def __call__(self, name: str, text: str, labels: Sequence[str], **_: object) -> _Described:
        suffix = "_total" if self._kind == "counter" else ""
        self._rows.append((name + suffix, self._kind, tuple(labels), text))
        return self

    def labels(self, *_: str) -> _Described:
        return self


class _NoRegistry:
    def register(self, collector: object) -> None:
        return


def metric_rows() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Every metric of kvtier: name, type, labels, text."""
    rows: list[tuple[str, str, tuple[str, ...], str]] = []
    nowhere: Any = _NoRegistry()
    MetricsObserver(nowhere, counter_type=_Described("counter", rows), histogram_type=_Described("histogram", rows))
    rows += [(f"kvtier_{name}", "gauge", ("tier", "class"), text) for name, text in GAUGES.values()]
    return [*rows, (BUILD_INFO, "gauge", INFO_LABELS, INFO_TEXT)]


def metrics_page() -> str:
    """docs/metrics.md."""
    text = (HERE / "metrics.head.md").read_text()
    lines = [f"| `{name}` | {kind} | {', '.join(labels)} | {what} |" for name, kind, labels, what in metric_rows()]
    rules = yaml.safe_load((HERE / "vllm-names.yml").read_text())["groups"][0]["rules"]
    names = [f"| `{rule['record']}` | `{' '.join(rule['expr'].split())}` |" for rule in rules]
    return text.replace("{{metrics}}", "\n".join(lines)).replace("{{vllm names}}", "\n".join(names))


def kubernetes_rules() -> str:
    """rules.yml as the Prometheus operator takes it."""
    rules: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "kvtier", "labels": {"app.kubernetes.io/part-of": "kvtier"}},
        "spec": yaml.safe_load((HERE / "rules.yml").read_text()),
    }
    return "# Written by generate.py from rules.yml.\n" + yaml.safe_dump(rules, sort_keys=False, width=120)


def files() -> dict[Path, str]:
    """What is generated: file -> text."""
    made = {HERE / f"{name}.json": dashboard(name) for name in DASHBOARDS}
    made[HERE / "kubernetes" / "prometheusrule.yaml"] = kubernetes_rules()
    made[ROOT / "docs" / "metrics.md"] = metrics_page()
    return made


def main() -> int:
    different = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{path.relative_to(ROOT)} is not what is generated" for path in different), end="")
        return bool(different)
    for path, text in files().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
