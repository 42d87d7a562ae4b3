"""Writes the Grafana dashboards in this folder, the rules for Kubernetes and docs/metrics.md.

Run `python dashboards/generate.py`; with `--check` it only lists the files that differ. A test runs the check. The
description of each panel is the question that it answers.
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

from kvtier.telemetry.prometheus import (
    BUILD_INFO,
    DEPRECATED_LABELS,
    DEPRECATED_NAMES,
    GAUGE_LABELS,
    GAUGES,
    INFO_LABELS,
    INFO_TEXT,
    MetricsObserver,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HEIGHT = 7
SOURCE = common.DataSourceRef("prometheus", "$datasource")
CHOSEN = 'job=~"$job",instance=~"$instance"'  # selects by the variables at the top of a dashboard
TIER = CHOSEN + ',tier=~"$tier"'


# --- queries ---


class Query(NamedTuple):
    """PromQL and the name of its lines. `@` stands for the selected series of a tier, `%` for those of a process."""

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        return self.expr.replace("@", TIER).replace("%", CHOSEN).replace("[rate]", "[$__rate_interval]")


def _over(function: str, by: str, expr: str) -> str:
    return f"{function} by ({by}) ({expr})" if by else f"{function}({expr})"


def _labels(by: str) -> str:
    """A line's name, from the labels that distinguish it."""
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else ""


def rate(series: str, by: str = "") -> str:
    return _over("sum", by, f"rate({series}[rate])")


def rates(series: str, by: str = "", legend: str = "") -> Query:
    """The rate of counters, a line for each value of the labels `by`."""
    return Query(rate(series, by), legend or _labels(by))


def levels(series: str, by: str = "", legend: str = "") -> Query:
    """The sum of gauges."""
    return Query(_over("sum", by, series), legend or _labels(by))


def highest(series: str, by: str = "", legend: str = "") -> Query:
    """The maximum of gauges."""
    return Query(_over("max", by, series), legend or _labels(by))


def quantile(q: float, metric: str, by: str, legend: str = "", chosen: str = "@") -> Query:
    """Of a histogram, named without its suffix."""
    return Query(f"histogram_quantile({q}, {rate(f'{metric}_bucket{{{chosen}}}', f'le, {by}')})", legend or _labels(by))


def quantiles(metric: str, by: str, what: str = "", chosen: str = "@") -> list[Query]:
    """The median and the 99th percentile of a histogram; `what` follows the labels in the lines' names."""
    names = [f"{_labels(by)}{what and ' '}{what} p{q * 100:g}" for q in (0.5, 0.99)]
    return [quantile(q, metric, by, name, chosen) for q, name in zip((0.5, 0.99), names, strict=True)]


def ratio(part: str, whole: str) -> str:
    """A ratio that is 0, not absent, while `whole` is 0."""
    return f"({part}) / (({whole}) > 0) or 0 * ({whole})"


LOADED = 'kvtier_blocks_total{@,direction="load",outcome="ok"}'
STORED = 'kvtier_blocks_total{@,direction="store",outcome="ok"}'
CROSS_PROCESS = "kvtier_cross_process_hit_blocks_total{@}"
SKIPPED = "kvtier_duplicate_stores_total{@}"
LATENCY = Query("sum by (le) (increase(kvtier_job_seconds_bucket{@}[rate]))", "{{le}}")


# --- panels ---


class Panel(NamedTuple):
    """One panel. At `warn` and `bad` its value becomes yellow and red; with `low`, below them. `kind` is "lines",
    "stack", "stat" or "heatmap"."""

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
    Panel("Blocks loaded, by writer",
          "Do processes load blocks that other processes wrote? If so, they share the root.", "ops",
          [rates(CROSS_PROCESS, legend="written by another process"),
           Query(f"{rate(LOADED)} - {rate(CROSS_PROCESS)}", "written by the same process")], kind="stack"),
    Panel("Cross-process hit ratio",
          "Which share of the loaded blocks did another process write?", "percentunit",
          [Query(ratio(rate(CROSS_PROCESS), rate(LOADED)), "cross-process")], warn=0.01, bad=0.0001, low=True),
    Panel("Hit ratio by tier",
          "Which share of the blocks that are looked up in a tier does it have?", "percentunit",
          [Query(ratio(rate('kvtier_tier_lookups_total{@,outcome="hit"}', "tier"),
                       rate('kvtier_tier_lookups_total{@,outcome=~"hit|miss"}', "tier")), "{{tier}}")]),
    Panel("Seeds per folder",
          "Do all processes on a folder derive the same block hashes? With more than one seed, some share no block.",
          "none",
          [Query('count by (folder) (count by (folder, hash_algorithm, none_hash) (kvtier_build_info{%,folder!=""}))',
                 "{{folder}}")], bad=2, kind="stat"),
    Panel("Processes that store",
          "How many processes store blocks now?", "none",
          [Query(f"count({rate(STORED, 'job, instance')} > 0) or vector(0)", "storing")], kind="stat"),
    Panel("Duplicate stores skipped",
          "How many blocks are not stored again, since another writer had published them?", "ops",
          [rates(SKIPPED, "tier")]),
]  # fmt: skip

STARVATION = [
    Panel("Oldest waiting task",
          "Does a direction starve? The age of the oldest waiting task, the maximum of all processes.", "s",
          [highest("kvtier_queue_oldest_seconds{@}", "direction")], warn=1, bad=10),
    Panel("Wait in the queue",
          "How long does a task wait for a thread?", "s",
          quantiles("kvtier_queue_wait_seconds", "direction"), warn=1, bad=10),
    Panel("Tasks waiting",
          "Is there a backlog, and in which direction?", "none",
          [levels("kvtier_queue_tasks{@}", "direction")]),
    Panel("Bytes waiting",
          "How close are stores to the limit of their queue (store_queue_bytes_max)?", "bytes",
          [levels("kvtier_queue_bytes{@}", "direction")]),
    Panel("Tasks by direction and thread",
          "Do threads run tasks of the other direction when their own queue is empty?", "ops",
          [rates("kvtier_tasks_total{@}", "direction, thread_direction",
                 "{{direction}} by {{thread_direction}} threads")], kind="stack"),
    Panel("Busy threads",
          "Are threads of one direction idle while those of the other are busy?", "none",
          [levels("kvtier_threads_busy{@}", "direction", "prefer {{direction}}")]),
    Panel("Hung threads",
          "Do threads hang in a system call? Each is replaced by another, up to as many as the threads.", "none",
          [levels("kvtier_threads_hung{@}", "direction", "prefer {{direction}}")], bad=1),
    Panel("Thread deaths",
          "Did a background thread end by an exception? It is a bug in kvtier; restart the process.", "none",
          [highest("kvtier_thread_deaths_total{@}", "thread")], bad=1, kind="stat"),
    Panel("Refusals",
          "How many blocks does admission refuse, and how many promotions find no free slot?", "ops",
          [rates('kvtier_block_failures_total{@,reason=~"refused|backlog|full"}', "tier, reason",
                 "{{tier}}: stores, {{reason}}"),
           rates("kvtier_refused_promotion_blocks_total{@}", "tier", "{{tier}}: promotions")], warn=0.001, bad=10),
    Panel("Jobs in flight",
          "Do jobs end? A level that stays while 'Jobs by outcome' is 0 is a hang.", "none",
          [levels("kvtier_jobs_in_flight{@}", "tier")]),
    Panel("Oldest lookup",
          "Does a lookup wait for its answer? The age of the oldest lookup, the maximum of all processes.", "s",
          [highest("kvtier_lookup_oldest_seconds{@}", "tier")], warn=1, bad=10),
]  # fmt: skip

INTEGRITY = [
    Panel("Corrupt blocks",
          "How many files were not the block of their name? Each load of one was a miss.", "none",
          [Query("sum by (reason) (increase(kvtier_corrupt_blocks_total{@}[$__range]))", "{{reason}}")],
          bad=0.5, kind="stat"),
    Panel("Quarantined blocks",
          "How many damaged files were moved to quarantine, and how many could not be moved (left)?", "none",
          [Query("sum by (outcome) (increase(kvtier_quarantined_blocks_total{@}[$__range]))", "{{outcome}}")],
          bad=0.5, kind="stat"),
    Panel("Jobs by outcome",
          "Do jobs succeed? Partial: some blocks failed, the others are good.", "ops",
          [rates("kvtier_jobs_total{@}", "direction, outcome")]),
    Panel("Failed blocks by reason",
          "Which errors does the file system return, and which blocks are refused?", "ops",
          [rates("kvtier_block_failures_total{@}", "direction, reason")], bad=0.001),
    Panel("Load failure ratio",
          "Which share of the blocks to load fails?", "percentunit",
          [Query(ratio(rate('kvtier_blocks_total{@,direction="load",outcome="failed"}', "tier"),
                       rate('kvtier_blocks_total{@,direction="load"}', "tier")), "{{tier}}")], warn=0.01, bad=0.05),
    Panel("Unverified blocks",
          "How many blocks are loaded from files without a trailer (written by vLLM), which nothing can verify?", "ops",
          [rates("kvtier_unverified_blocks_total{@}", "tier")], warn=0.001),
]  # fmt: skip

BYTES_MOVED = Panel(
    "Bytes moved",
    "How close is the device to its limit? Compare with the ceiling that `kvtier-harness` measures.",
    "Bps",
    [rates("kvtier_transferred_bytes_total{@}", "direction")],
)

DEVICE = [
    BYTES_MOVED,
    Panel("Time on a thread",
          "How long does the device take for one task of at most task_bytes_max?", "s",
          quantiles("kvtier_service_seconds", "direction"), warn=0.5, bad=5),
    Panel("Job latency",
          "How long does a job take from its submission? A point opens the trace of that job.", "s",
          [LATENCY], kind="heatmap"),
    Panel("Oldest I/O in flight",
          "Does a system call hang? The age of the oldest running task, the maximum of all processes.", "s",
          [highest("kvtier_running_oldest_seconds{@}", "direction")], warn=5, bad=30),
    Panel("I/O in flight",
          "How many tasks are on a thread?", "none",
          [levels("kvtier_running_tasks{@}", "direction")]),
    Panel("Existence probes",
          "How long does a lookup take, from the end of its step to the answer?", "s",
          [*quantiles("kvtier_lookup_queue_seconds", "tier", "wait"),
           *quantiles("kvtier_lookup_probe_seconds", "tier", "probe")], warn=0.1, bad=1),
    Panel("Blocks published",
          "How many blocks have these processes added to the root since they started? (`kvtier inspect` counts files.)",
          "none",
          [Query(f"sum({STORED}) - sum({SKIPPED})", "published")]),
]  # fmt: skip

CAPACITY = [
    Panel("Root size and limit",
          "How full is the root? Bytes of its blocks, as last measured, and its max_bytes.", "bytes",
          [highest("kvtier_root_bytes{@}", "tier", "{{tier}}: blocks"),
           highest("kvtier_root_limit_bytes{@}", "tier", "{{tier}}: limit")]),
    Panel("Root size, share of the limit",
          "How close is the root to its limit? Eviction begins at high_water (default 95 %).", "percentunit",
          [Query("max by (tier) (kvtier_root_bytes{@} / kvtier_root_limit_bytes{@})", "{{tier}}")], warn=0.95, bad=1),
    Panel("Files in the root",
          "How many block files does the root hold, as last measured?", "none",
          [highest("kvtier_root_files{@}", "tier")]),
    Panel("Free space",
          "Which share of the root's file system is free?", "percentunit",
          [Query("min by (tier) (kvtier_file_system_free_bytes{@} / kvtier_file_system_size_bytes{@})", "{{tier}}")],
          warn=0.2, bad=0.1, low=True),
    Panel("Files evicted",
          "How many blocks do these processes evict from the root, by the limit that was exceeded?", "ops",
          [rates("kvtier_evicted_files_total{@}", "tier, reason"),
           rates("kvtier_evicted_then_wanted_blocks_total{@}", "tier", "{{tier}}: looked up again")]),
    Panel("Age at eviction",
          "Is the root large enough? The time since the last use of evicted blocks; minutes mean that it is too small.",
          "s",
          quantiles("kvtier_evicted_file_age_seconds", "tier")),
]  # fmt: skip

SLOTS = Panel(
    "Slots",
    "What are the CPU tier's slots in use for?",
    "none",
    [levels(f"kvtier_slots_{state}{{@}}", legend=state) for state in ("pinned", "writing", "evictable", "free")],
    kind="stack",
)
CPU_EVICTIONS = Panel(
    "CPU tier evictions",
    "Is the CPU tier too small? Blocks evicted from it, by reason; more slots reduce those of `capacity`.",
    "ops",
    [rates("kvtier_evicted_blocks_total{%}", "reason")],
)

CPU_TIER = [
    SLOTS,
    Panel("Lookups by outcome",
          "What does the manager answer? After hit_pending and retry a request asks again in its next step.", "ops",
          [rates("kvtier_lookup_blocks_total{%}", "outcome")]),
    Panel("Promotions and cascades",
          "How many blocks move between the CPU tier and the secondary tiers?", "ops",
          [rates("kvtier_promoted_blocks_total{@}", "tier", "promoted from {{tier}}"),
           rates("kvtier_cascaded_blocks_total{@}", "tier", "cascaded to {{tier}}")]),
    CPU_EVICTIONS,
    Panel("Oldest HIT_PENDING",
          "For how long has a block been HIT_PENDING, at most?", "s",
          [highest("kvtier_pending_oldest_seconds{@}", legend="oldest")], warn=1, bad=10),
    Panel("Requests known",
          "Do requests end? A level that only rises is a leak.", "none",
          [levels("kvtier_requests{@}", "instance")]),
]  # fmt: skip

TRAFFIC = [
    Panel("Requests",
          "Do all processes finish requests? Counted by the harness.", "ops",
          [rates('harness_done_total{%,what="requests"}', "process", "process {{process}}")]),
    Panel("Hit ratio of the traffic",
          "Which share of the blocks of all requests came out of the tier, verified? The report shows its bounds.",
          "percentunit",
          [Query(ratio(rate('harness_done_total{%,what="hits"}'), rate('harness_done_total{%,what="refs"}')), "hits")]),
    Panel("Wrong blocks",
          "How many loads returned bytes that are not the key's? Any is a fail.", "none",
          [levels('harness_done_total{%,what="wrong"}', legend="wrong")], bad=1, kind="stat", span=4),
    Panel("Faults in force",
          "How many injected faults are in force now?", "none",
          [Query('sum(harness_notes_total{%,kind="fault"}) - sum(harness_notes_total{%,kind="lifted"})', "faults")],
          warn=1, kind="stat", span=4),
]  # fmt: skip

PER_PROCESS = [
    Panel("Bytes moved per process",
          "Do all processes get their share of the device?", "Bps",
          [rates("kvtier_transferred_bytes_total{@}", "instance, direction")], span=12),
    Panel("Oldest waiting task per process",
          "Does a process starve, and in which direction?", "s",
          [highest("kvtier_queue_oldest_seconds{@}", "instance, direction")], warn=1, bad=10, span=12),
    Panel("Job latency",
          "Which jobs were slow? A point opens that job's trace, which links to the store that wrote the block.", "s",
          [LATENCY], kind="heatmap", span=12),
    Panel("Job latency per process, 99th percentile",
          "Is one process slower than the others?", "s",
          [quantile(0.99, "kvtier_job_seconds", "instance, direction")], warn=1, bad=10, span=12),
    Panel("Cross-process hits per process",
          "How many blocks of other processes does each process load?", "ops",
          [rates(CROSS_PROCESS, "instance")]),
    Panel("Blocks stored per process",
          "How many blocks does each process store?", "ops",
          [rates(STORED, "instance")]),
    Panel("Tasks waiting per process",
          "Which process has a backlog?", "none",
          [levels("kvtier_queue_tasks{@}", "instance, direction")]),
]  # fmt: skip

PROCESSES = [
    Panel("CPU time per process",
          "How many cores does each process use?", "none",
          [rates("process_cpu_seconds_total{%}", "instance")]),
    Panel("Memory per process",
          "Does the memory of a process grow?", "bytes",
          [levels("process_resident_memory_bytes{%}", "instance")]),
    Panel("Open descriptors per process",
          "Do descriptors leak?", "none",
          [levels("process_open_fds{%}", "instance")]),
]  # fmt: skip

COPIES = [
    Panel("Bytes copied between GPU and CPU",
          "How much of the bus do the copies use?", "Bps",
          [rates("kvtier_copy_bytes_total{%}", "instance, direction")]),
    Panel("Duration of a copy",
          "Are copies long enough to delay the model?", "s",
          quantiles("kvtier_copy_seconds", "direction", chosen="%"), warn=0.05, bad=0.5),
    Panel("Rate during copies",
          "Do copies reach the rate of the bus? Pageable memory and small runs slow them down.", "Bps",
          [Query(f"{rate('kvtier_copy_bytes_total{%}', 'instance, direction')}"
                 f" / ({rate('kvtier_copy_seconds_sum{%}', 'instance, direction')} > 0)",
                 "{{instance}} {{direction}}")]),
    Panel("Copies by outcome",
          "Does the device report errors?", "ops",
          [rates("kvtier_copies_total{%}", "direction, outcome")]),
]  # fmt: skip

ON_HOST = '{Hostname=~"$host"}'
NODE = [
    Panel("GPU utilisation",
          "Does the GPU wait for blocks? (DCGM exporter)", "percent",
          [Query(f"DCGM_FI_DEV_GPU_UTIL{ON_HOST}", "{{Hostname}} GPU {{gpu}}")]),
    Panel("GPU memory",
          "How much GPU memory is in use, the KV cache included? (DCGM exporter)", "mbytes",
          [Query(f"DCGM_FI_DEV_FB_USED{ON_HOST}", "{{Hostname}} GPU {{gpu}}")]),
    Panel("Bus",
          "How much of the bus do all users together use? (DCGM exporter with profiling metrics)", "Bps",
          [Query(f"DCGM_FI_PROF_PCIE_TX_BYTES{ON_HOST}", "{{Hostname}} GPU {{gpu}} to host"),
           Query(f"DCGM_FI_PROF_PCIE_RX_BYTES{ON_HOST}", "{{Hostname}} GPU {{gpu}} from host")]),
    Panel("Disk utilisation",
          "Is a disk of the host the limit? (node exporter)", "percentunit",
          [Query("rate(node_disk_io_time_seconds_total[rate])"
                 ' * on (job, instance) group_left (nodename) node_uname_info{nodename=~"$host"}',
                 "{{nodename}} {{device}}")], warn=0.8, bad=0.95),
]  # fmt: skip


class Page(NamedTuple):
    """One dashboard: rows of panels by their titles. `live`: of a run under way, whose phases and faults are marked;
    `hosts`: with a variable that selects hosts."""

    title: str
    description: str
    rows: dict[str, list[Panel]]
    live: bool = False
    hosts: bool = False


DASHBOARDS = {
    "overview": Page(
        "kvtier: overview",
        "Sharing, starvation, integrity, device, capacity and CPU tier of all processes.",
        {
            "Sharing": SHARING,
            "Starvation": STARVATION,
            "Integrity": INTEGRITY,
            "Device": DEVICE,
            "Capacity": CAPACITY,
            "CPU tier": CPU_TIER,
        },
    ),
    "load": Page(
        "kvtier: load run",
        "One run of the harness by process, with its phases and faults as annotations.",
        {"Traffic": TRAFFIC, "Per process": PER_PROCESS, "Processes": PROCESSES},
        live=True,
    ),
    "gpu": Page(
        "kvtier: GPU node",
        "Copies between GPU and CPU tier, and the metrics of the node's exporters.",
        {"Copies": COPIES, "CPU tier and files": [SLOTS, CPU_EVICTIONS, BYTES_MOVED], "Node": NODE},
        hosts=True,
    ),
}


# --- as Grafana's JSON ---


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
        legend = common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE).show_legend(True)
        made.legend(legend.placement(common.LegendPlacement.BOTTOM).calcs(["lastNotNull", "mean", "max"]))
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
    if page.hosts:
        made.with_variable(_variable("host", "Host", "label_values(node_uname_info, nodename)"))
    others = builder.DashboardLink("kvtier dashboards").type(model.DashboardLinkType.DASHBOARDS).tags(["kvtier"])
    made.link(others.keep_time(True).include_vars(True).as_dropdown(False))
    if page.live:
        made.annotation(_annotation("Phases", "phase", "blue"))
        made.annotation(_annotation("Faults", "fault|lifted", "red"))
    for row, panels in page.rows.items():
        made.with_row(builder.Row(row))
        for panel in panels:
            made.with_panel(_panel(panel))
    tree = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for number, panel in enumerate(tree["panels"], 1):
        panel["id"] = number  # else Grafana assigns ids, and links to a panel do not last
    for variable in tree["templating"]["list"]:
        for key in [key for key in variable if key.startswith("auto")]:
            del variable[key]  # the SDK writes interval variables' options into every variable
    for item in (*tree["annotations"].get("list", ()), *tree["links"]):
        del item["placement"]  # unknown to the Grafana of compose.yaml, and hides the item in a menu
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


class _Described:
    """A metric that records its name, text and labels, to list what `MetricsObserver` makes."""

    def __init__(self, kind: str, rows: list[tuple[str, str, tuple[str, ...], str]]) -> None:
        self._kind, self._rows = kind, rows

    def __call__(self, name: str, text: str, labels: Sequence[str], **_: object) -> _Described:
        suffix = "_total" if self._kind == "counter" else ""
        self._rows.append((name + suffix, self._kind, tuple(labels), text))
        return _Described(self._kind, self._rows)

    def labels(self, *_: str) -> _Described:
        return self


class _NoRegistry:
    def register(self, collector: object) -> None:
        return


def metric_rows() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Every metric of kvtier but deprecated names: name, type, labels, text."""
    rows: list[tuple[str, str, tuple[str, ...], str]] = []
    nowhere: Any = _NoRegistry()
    MetricsObserver(nowhere, counter_type=_Described("counter", rows), histogram_type=_Described("histogram", rows))
    rows += [(f"kvtier_{name}", "gauge", GAUGE_LABELS, text) for name, text in GAUGES.values()]
    rows.append((BUILD_INFO, "gauge", INFO_LABELS, INFO_TEXT))
    return [row for row in rows if _stem(row[0]) not in DEPRECATED_NAMES.values()]


def _stem(name: str) -> str:
    return name.removeprefix("kvtier_").removesuffix("_total")


def metrics_page() -> str:
    """docs/metrics.md."""
    text, lines, deprecated = (HERE / "metrics.head.md").read_text(), [], []
    for name, kind, labels, what in metric_rows():
        shown = [label for label in labels if label not in DEPRECATED_LABELS.values()]
        lines.append(f"| `{name}` | {kind} | {', '.join(shown)} | {what} |")
        if old := DEPRECATED_NAMES.get(_stem(name)):
            deprecated.append(f"| metric `{name.replace(_stem(name), old)}` | `{name}` |")
    deprecated.append(f"| label `{DEPRECATED_LABELS['direction']}` of the gauges | `direction` |")
    group = DEPRECATED_LABELS["thread_direction"]
    deprecated.append(f"| label `{group}` of `kvtier_tasks_total` | `thread_direction` |")
    rules = yaml.safe_load((HERE / "vllm-names.yml").read_text())["groups"][0]["rules"]
    names = [f"| `{rule['record']}` | `{' '.join(rule['expr'].split())}` |" for rule in rules]
    for place, table in (("metrics", lines), ("deprecated names", deprecated), ("vllm names", names)):
        text = text.replace(f"{{{{{place}}}}}", "\n".join(table))
    return text


def kubernetes_rules() -> str:
    """rules.yml as an object of the Prometheus operator."""
    rules: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "kvtier", "labels": {"app.kubernetes.io/part-of": "kvtier"}},
        "spec": yaml.safe_load((HERE / "rules.yml").read_text()),
    }
    return "# Written by generate.py from rules.yml.\n" + yaml.safe_dump(rules, sort_keys=False, width=120)


def files() -> dict[Path, str]:
    """Generated file -> its text."""
    made = {HERE / f"{name}.json": dashboard(name) for name in DASHBOARDS}
    made[HERE / "kubernetes" / "prometheusrule.yaml"] = kubernetes_rules()
    made[ROOT / "docs" / "metrics.md"] = metrics_page()
    return made


def main() -> int:
    different = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        print(
            "\n".join(
                f"{path.relative_to(ROOT)} differs from the generated text; run: python dashboards/generate.py"
                for path in different
            ),
            end="",
        )
        return bool(different)
    for path, text in files().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
