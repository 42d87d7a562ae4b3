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

from kvtier.metrics import BUILD_INFO, GAUGES, INFO_LABELS, INFO_TEXT, MetricsObserver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COLUMNS, HEIGHT = 24, 7
SOURCE = common.DataSourceRef("prometheus", "$datasource")
CHOSEN = 'job=~"$job",instance=~"$instance"'  # what the variables at the top of a dashboard choose
TIER = CHOSEN + ',tier=~"$tier"'


class Query(NamedTuple):
    """PromQL and what its lines are called. `@` stands for the chosen series of a tier, `%` for those of a process."""

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        return self.expr.replace("@", TIER).replace("%", CHOSEN).replace("[rate]", "[$__rate_interval]")


class Panel(NamedTuple):
    """One panel. `bad` and `warn` are thresholds: at and above them the value is red or yellow; `low` turns that round,
    below them it is. `kind` is "lines", "stack", "stat" or "heatmap"."""

    title: str
    question: str
    unit: str
    queries: Sequence[Query]
    bad: float | None = None
    warn: float | None = None
    low: bool = False
    kind: str = "lines"
    span: int = 8


def quantiles(metric: str, by: str, legend: str) -> list[Query]:
    """The median and the 99th percentile of a histogram."""
    return [
        Query(
            f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{@}}[rate])))", f"{legend} p{q * 100:g}"
        )
        for q in (0.5, 0.99)
    ]


def ratio(part: str, whole: str) -> str:
    """A share that is 0, not missing, while there is nothing to share."""
    return f"({part}) / (({whole}) > 0) or 0 * ({whole})"


SHARING = [
    Panel(
        "Blocks read: whose were they",
        "Do processes use what others wrote? The band of other processes is the proof of sharing.",
        "ops",
        [
            Query("sum(rate(kvtier_foreign_block_hits_total{@}[rate]))", "written by another process"),
            Query(
                'sum(rate(kvtier_blocks_total{@,direction="load",outcome="ok"}[rate]))'
                " - sum(rate(kvtier_foreign_block_hits_total{@}[rate]))",
                "written by itself",
            ),
        ],
        kind="stack",
    ),
    Panel(
        "Share of loads that another process wrote",
        "What would be lost if each process kept its blocks to itself?",
        "percentunit",
        [
            Query(
                ratio(
                    "sum(rate(kvtier_foreign_block_hits_total{@}[rate]))",
                    'sum(rate(kvtier_blocks_total{@,direction="load",outcome="ok"}[rate]))',
                ),
                "from others",
            )
        ],
        warn=0.01,
        bad=0.0001,
        low=True,
    ),
    Panel(
        "Hit ratio by tier",
        "How often does a tier have the block that it is asked for?",
        "percentunit",
        [
            Query(
                ratio(
                    'sum by (tier) (rate(kvtier_tier_lookups_total{@,outcome="hit"}[rate]))',
                    'sum by (tier) (rate(kvtier_tier_lookups_total{@,outcome=~"hit|miss"}[rate]))',
                ),
                "{{tier}}",
            )
        ],
    ),
    Panel(
        "Seeds per folder",
        "Do all who use a folder derive the same names? More than 1 means that somebody shares nothing, in silence.",
        "none",
        [
            Query(
                'count by (folder) (count by (folder, hash_algorithm, none_hash) (kvtier_build_info{%,folder!=""}))',
                "{{folder}}",
            )
        ],
        bad=2,
        kind="stat",
    ),
    Panel(
        "Processes that store",
        "How many write to the shared root at this moment?",
        "none",
        [
            Query(
                'count(sum by (job, instance) (rate(kvtier_blocks_total{@,direction="store",outcome="ok"}[rate])) > 0)'
                " or vector(0)",
                "storing",
            )
        ],
        kind="stat",
    ),
    Panel(
        "Duplicate stores skipped",
        "How much work is done twice? Blocks offered for storing that another writer had already published.",
        "ops",
        [Query("sum by (tier) (rate(kvtier_duplicate_stores_total{@}[rate]))", "{{tier}}")],
    ),
]

STARVATION = [
    Panel(
        "Oldest waiting task",
        "Does anybody starve? The age of the oldest task of each class in any process.",
        "s",
        [Query("max by (class) (kvtier_queue_oldest_seconds{@})", "{{class}}")],
        warn=1,
        bad=10,
    ),
    Panel(
        "Wait in the queue",
        "How long does a task wait for a thread?",
        "s",
        quantiles("kvtier_queue_wait_seconds", "direction", "{{direction}}"),
        warn=1,
        bad=10,
    ),
    Panel(
        "Tasks waiting",
        "Is there a backlog, and of which class?",
        "none",
        [Query("sum by (class) (kvtier_queue_tasks{@})", "{{class}}")],
    ),
    Panel(
        "Bytes waiting",
        "How near are stores to the limit of their queue?",
        "bytes",
        [Query("sum by (class) (kvtier_queue_bytes{@})", "{{class}}")],
    ),
    Panel(
        "Who serves whom",
        "Do threads help the other class when their own has nothing? Tasks by class and by the group that ran them.",
        "ops",
        [
            Query(
                "sum by (direction, group) (rate(kvtier_tasks_total{@}[rate]))",
                "{{direction}} by {{group}} threads",
            )
        ],
        kind="stack",
    ),
    Panel(
        "Threads at work",
        "Is a group idle while the other is busy?",
        "none",
        [Query("sum by (class) (kvtier_threads_busy{@})", "prefer {{class}}")],
    ),
    Panel(
        "Refusals",
        "Does the tier turn work away? Stores beyond a limit, and promotions without a free slot.",
        "ops",
        [
            Query(
                'sum by (tier, reason) (rate(kvtier_block_failures_total{@,reason=~"refused|backlog|full"}[rate]))',
                "{{tier}}: stores, {{reason}}",
            ),
            Query("sum by (tier) (rate(kvtier_refused_promotion_blocks_total{@}[rate]))", "{{tier}}: promotions"),
        ],
        warn=0.001,
        bad=10,
    ),
    Panel(
        "Jobs in flight",
        "Does work move at all? A level that stays while no job ends is a hang.",
        "none",
        [
            Query("sum by (tier) (kvtier_jobs_in_flight{@})", "{{tier}} in flight"),
            Query("sum by (tier) (rate(kvtier_jobs_total{@}[rate]))", "{{tier}} ended per second"),
        ],
    ),
]

INTEGRITY = [
    Panel(
        "Corrupt blocks",
        "Was a file found that is not the block it should be? Each was a miss, never data, and is in quarantine.",
        "none",
        [Query("sum by (reason) (increase(kvtier_corrupt_blocks_total{@}[$__range]))", "{{reason}}")],
        bad=0.5,
        kind="stat",
    ),
    Panel(
        "Jobs by outcome",
        "Do jobs succeed? Partial: some blocks failed, the others are good.",
        "ops",
        [
            Query(
                "sum by (direction, outcome) (rate(kvtier_jobs_total{@}[rate]))",
                "{{direction}} {{outcome}}",
            )
        ],
    ),
    Panel(
        "Failed blocks by reason",
        "What does the file system say when it fails?",
        "ops",
        [
            Query(
                "sum by (direction, reason) (rate(kvtier_block_failures_total{@}[rate]))",
                "{{direction}} {{reason}}",
            )
        ],
        bad=0.001,
    ),
    Panel(
        "Blocks taken unverified",
        "How much is loaded from files without a trailer (vLLM's own), which nothing can check?",
        "ops",
        [Query("sum by (tier) (rate(kvtier_unverified_blocks_total{@}[rate]))", "{{tier}}")],
        warn=0.001,
    ),
]

DEVICE = [
    Panel(
        "Bytes moved",
        "How near is the device to its limit? Compare with what `kvtier-harness` measured as its ceiling.",
        "Bps",
        [Query("sum by (direction) (rate(kvtier_transferred_bytes_total{@}[rate]))", "{{direction}}")],
    ),
    Panel(
        "Time on a thread",
        "How long does the device take for one task of at most task_bytes_max?",
        "s",
        quantiles("kvtier_service_seconds", "direction", "{{direction}}"),
        warn=0.5,
        bad=5,
    ),
    Panel(
        "Job latency",
        "How long from submission to the end of a job? A point opens the trace of that very job.",
        "s",
        [Query("sum by (le) (increase(kvtier_job_seconds_bucket{@}[rate]))", "{{le}}")],
        kind="heatmap",
    ),
    Panel(
        "Oldest I/O in flight",
        "Does a system call hang? It is the age of the oldest task that a thread has taken.",
        "s",
        [Query("max by (class) (kvtier_running_oldest_seconds{@})", "{{class}}")],
        warn=5,
        bad=30,
    ),
    Panel(
        "I/O in flight",
        "How deep is the device's queue from here?",
        "none",
        [Query("sum by (class) (kvtier_running_tasks{@})", "{{class}}")],
    ),
    Panel(
        "Free space",
        "Will the next blocks fit?",
        "percentunit",
        [
            Query(
                "min by (tier) (kvtier_file_system_free_bytes{@} / kvtier_file_system_size_bytes{@})",
                "{{tier}}",
            )
        ],
        warn=0.2,
        bad=0.1,
        low=True,
    ),
    Panel(
        "Files evicted",
        "Does the root outgrow its limits? Blocks that these processes removed, by the limit that was passed.",
        "ops",
        [Query("sum by (tier, reason) (rate(kvtier_evicted_files_total{@}[rate]))", "{{tier}} {{reason}}")],
    ),
    Panel(
        "Blocks published",
        "How many blocks have these processes put into the root since they began? (`kvtier inspect` counts the files.)",
        "none",
        [
            Query(
                'sum(kvtier_blocks_total{@,direction="store",outcome="ok"}) - sum(kvtier_duplicate_stores_total{@})',
                "published",
            )
        ],
    ),
    Panel(
        "Existence probes",
        "How long does a lookup take, from the end of its step to the answer?",
        "s",
        quantiles("kvtier_lookup_queue_seconds", "tier", "{{tier}} wait")
        + quantiles("kvtier_lookup_probe_seconds", "tier", "{{tier}} probe"),
        warn=0.1,
        bad=1,
    ),
]

CPU_TIER = [
    Panel(
        "Slots",
        "What is the CPU tier doing with its memory?",
        "none",
        [Query(f"sum(kvtier_slots_{state}{{@}})", state) for state in ("pinned", "writing", "evictable", "free")],
        kind="stack",
    ),
    Panel(
        "Answers to lookups",
        "What does a request hear? Pending and retry mean: ask again next step.",
        "ops",
        [Query("sum by (outcome) (rate(kvtier_lookup_blocks_total{%}[rate]))", "{{outcome}}")],
    ),
    Panel(
        "Promotions and cascades",
        "How much moves between the CPU tier and the tiers behind it?",
        "ops",
        [
            Query("sum by (tier) (rate(kvtier_promoted_blocks_total{@}[rate]))", "promoted from {{tier}}"),
            Query("sum by (tier) (rate(kvtier_cascaded_blocks_total{@}[rate]))", "cascaded to {{tier}}"),
        ],
    ),
    Panel(
        "Blocks that left",
        "Is the CPU tier too small? Evictions by reason; capacity is the one that more slots would cure.",
        "ops",
        [Query("sum by (reason) (rate(kvtier_evicted_blocks_total{%}[rate]))", "{{reason}}")],
    ),
    Panel(
        "Oldest HIT_PENDING",
        "For how long has somebody been told to wait for a block?",
        "s",
        [Query("max(kvtier_pending_oldest_seconds{@})", "oldest")],
        warn=1,
        bad=10,
    ),
    Panel(
        "Requests known",
        "Do requests end? A level that only rises is a leak.",
        "none",
        [Query("sum by (instance) (kvtier_requests{@})", "{{instance}}")],
    ),
]

PER_PROCESS = [
    Panel(
        "Bytes moved per process",
        "Do all processes get their part of the device?",
        "Bps",
        [
            Query(
                "sum by (instance, direction) (rate(kvtier_transferred_bytes_total{@}[rate]))",
                "{{instance}} {{direction}}",
            )
        ],
        span=12,
    ),
    Panel(
        "Oldest waiting task per process",
        "Which process starves, and in which class?",
        "s",
        [Query("max by (instance, class) (kvtier_queue_oldest_seconds{@})", "{{instance}} {{class}}")],
        warn=1,
        bad=10,
        span=12,
    ),
    Panel(
        "Job latency",
        "Which jobs were slow? A point opens that job's trace, and from there the store that wrote the block.",
        "s",
        [Query("sum by (le) (increase(kvtier_job_seconds_bucket{@}[rate]))", "{{le}}")],
        kind="heatmap",
        span=12,
    ),
    Panel(
        "Job latency per process, 99th percentile",
        "Is one process slower than the others?",
        "s",
        [
            Query(
                "histogram_quantile(0.99, sum by (le, instance, direction) (rate(kvtier_job_seconds_bucket{@}[rate])))",
                "{{instance}} {{direction}}",
            )
        ],
        warn=1,
        bad=10,
        span=12,
    ),
    Panel(
        "Blocks that another process wrote, per process",
        "Who profits from the others?",
        "ops",
        [Query("sum by (instance) (rate(kvtier_foreign_block_hits_total{@}[rate]))", "{{instance}}")],
    ),
    Panel(
        "Blocks stored per process",
        "Who writes what the others read?",
        "ops",
        [
            Query(
                'sum by (instance) (rate(kvtier_blocks_total{@,direction="store",outcome="ok"}[rate]))',
                "{{instance}}",
            )
        ],
    ),
    Panel(
        "Tasks waiting per process",
        "Where is the backlog?",
        "none",
        [Query("sum by (instance, class) (kvtier_queue_tasks{@})", "{{instance}} {{class}}")],
    ),
]

PROCESS = [
    Panel(
        "Bytes moved per process",
        "Do all processes get their part of the device?",
        "Bps",
        [
            Query(
                "sum by (instance, direction) (rate(kvtier_transferred_bytes_total{@}[rate]))",
                "{{instance}} {{direction}}",
            )
        ],
        span=12,
    ),
    Panel(
        "Oldest waiting task per process",
        "Which process starves, and in which class?",
        "s",
        [Query("max by (instance, class) (kvtier_queue_oldest_seconds{@})", "{{instance}} {{class}}")],
        warn=1,
        bad=10,
        span=12,
    ),
    Panel(
        "Job latency",
        "Which jobs were slow? A point opens that job's trace, and from there the store that wrote the block.",
        "s",
        [Query("sum by (le) (increase(kvtier_job_seconds_bucket{@}[rate]))", "{{le}}")],
        kind="heatmap",
        span=12,
    ),
    Panel(
        "Job latency per process, 99th percentile",
        "Is one process slower than the others?",
        "s",
        [
            Query(
                "histogram_quantile(0.99, sum by (le, instance, direction) (rate(kvtier_job_seconds_bucket{@}[rate])))",
                "{{instance}} {{direction}}",
            )
        ],
        warn=1,
        bad=10,
        span=12,
    ),
    Panel(
        "Blocks that another process wrote, per process",
        "Who profits from the others?",
        "ops",
        [Query("sum by (instance) (rate(kvtier_foreign_block_hits_total{@}[rate]))", "{{instance}}")],
    ),
    Panel(
        "Blocks stored per process",
        "Who writes what the others read?",
        "ops",
        [
            Query(
                'sum by (instance) (rate(kvtier_blocks_total{@,direction="store",outcome="ok"}[rate]))',
                "{{instance}}",
            )
        ],
    ),
    Panel(
        "Tasks waiting per process",
        "Where is the backlog?",
        "none",
        [Query("sum by (instance, class) (kvtier_queue_tasks{@})", "{{instance}} {{class}}")],
    ),
]

HARNESS = [
    Panel(
        "Requests",
        "Does the traffic run, and do all processes take part? As the harness counts them.",
        "ops",
        [Query('sum by (process) (rate(harness_done_total{%,what="requests"}[rate]))', "process {{process}}")],
    ),
    Panel(
        "Hit ratio of the traffic",
        "How much of what requests asked for came out of the cache, verified? The report sets it between its oracles.",
        "percentunit",
        [
            Query(
                ratio(
                    'sum(rate(harness_done_total{%,what="hits"}[rate]))',
                    'sum(rate(harness_done_total{%,what="refs"}[rate]))',
                ),
                "hits",
            )
        ],
    ),
    Panel(
        "Wrong blocks",
        "Did a load ever bring a byte that is not the key's? It must never.",
        "none",
        [Query('sum(harness_done_total{%,what="wrong"})', "wrong")],
        bad=1,
        kind="stat",
        span=4,
    ),
    Panel(
        "Faults in force",
        "What does the harness do to the tier just now?",
        "none",
        [Query('sum(harness_notes_total{%,kind="fault"}) - sum(harness_notes_total{%,kind="lifted"})', "faults")],
        warn=1,
        kind="stat",
        span=4,
    ),
]

PROCESS = [
    Panel(
        "Processor time per process",
        "How many cores does a process use?",
        "none",
        [Query("sum by (instance) (rate(process_cpu_seconds_total{%}[rate]))", "{{instance}}")],
    ),
    Panel(
        "Memory per process",
        "Does memory grow?",
        "bytes",
        [Query("sum by (instance) (process_resident_memory_bytes{%})", "{{instance}}")],
    ),
    Panel(
        "Open descriptors per process",
        "Do descriptors leak?",
        "none",
        [Query("sum by (instance) (process_open_fds{%})", "{{instance}}")],
    ),
]

COPIES = [
    Panel(
        "Bytes copied between GPU and CPU",
        "How much does offloading ask of the bus?",
        "Bps",
        [Query("sum by (instance, direction) (rate(kvtier_copy_bytes_total{%}[rate]))", "{{instance}} {{direction}}")],
    ),
    Panel(
        "Time of a copy",
        "Does a copy delay the model?",
        "s",
        [
            Query(
                f"histogram_quantile({q}, sum by (le, direction) (rate(kvtier_copy_seconds_bucket{{%}}[rate])))",
                f"{{{{direction}}}} p{q * 100:g}",
            )
            for q in (0.5, 0.99)
        ],
        warn=0.05,
        bad=0.5,
    ),
    Panel(
        "Rate while copying",
        "Does a copy get the bus's full rate, or do pageable memory or small runs slow it down?",
        "Bps",
        [
            Query(
                "sum by (instance, direction) (rate(kvtier_copy_bytes_total{%}[rate]))"
                " / (sum by (instance, direction) (rate(kvtier_copy_seconds_sum{%}[rate])) > 0)",
                "{{instance}} {{direction}}",
            )
        ],
    ),
    Panel(
        "Copies by outcome",
        "Does the device report errors?",
        "ops",
        [Query("sum by (direction, outcome) (rate(kvtier_copies_total{%}[rate]))", "{{direction}} {{outcome}}")],
    ),
]

GPU = [
    Panel(
        "GPU at work",
        "Is the GPU waiting for blocks? (DCGM exporter)",
        "percent",
        [Query("DCGM_FI_DEV_GPU_UTIL", "GPU {{gpu}}")],
    ),
    Panel(
        "GPU memory",
        "How much is the KV cache's? (DCGM exporter)",
        "decmbytes",
        [Query("DCGM_FI_DEV_FB_USED", "GPU {{gpu}}")],
    ),
    Panel(
        "Bus",
        "How much of the bus is in use, by all? (DCGM exporter with profiling metrics)",
        "Bps",
        [
            Query("DCGM_FI_PROF_PCIE_TX_BYTES", "GPU {{gpu}} to host"),
            Query("DCGM_FI_PROF_PCIE_RX_BYTES", "GPU {{gpu}} from host"),
        ],
    ),
    Panel(
        "Disks of the node",
        "Is the node's disk the limit? (node exporter)",
        "percentunit",
        [Query("rate(node_disk_io_time_seconds_total[rate])", "{{device}}")],
        warn=0.8,
        bad=0.95,
    ),
]

GPU_SLOTS = [CPU_TIER[0], CPU_TIER[3], DEVICE[0]]

DASHBOARDS: dict[str, tuple[str, str, list[tuple[str, list[Panel]]]]] = {
    "overview": (
        "kvtier: is it healthy",
        "Sharing, starvation, integrity, device: one row each, the worst first.",
        [
            ("Sharing", SHARING),
            ("Starvation", STARVATION),
            ("Integrity", INTEGRITY),
            ("Device", DEVICE),
            ("CPU tier", CPU_TIER),
        ],
    ),
    "load": (
        "kvtier: a load run",
        "One run of the harness, process by process, with its phases and faults as annotations.",
        [("Traffic", HARNESS), ("Per process", PER_PROCESS), ("Processes", PROCESS)],
    ),
    "gpu": (
        "kvtier: a GPU node",
        "Copies between GPU and CPU tier beside what the node's exporters say.",
        [("Copies", COPIES), ("CPU tier and files", GPU_SLOTS), ("Node", GPU)],
    ),
}


def panels(name: str) -> list[Panel]:
    """All panels of a dashboard."""
    return [panel for _, row in DASHBOARDS[name][2] for panel in row]


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
    title, description, rows = DASHBOARDS[name]
    made = builder.Dashboard(title).uid(f"kvtier-{name}").description(description).tags(["kvtier"])
    made.time("now-15m" if name == "load" else "now-1h", "now").refresh("5s" if name == "load" else "30s")
    made.tooltip(model.DashboardCursorSync.CROSSHAIR).timezone("browser").readonly()
    made.with_variable(builder.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made.with_variable(_variable("job", "Job", "label_values(kvtier_build_info, job)"))
    made.with_variable(_variable("instance", "Process", 'label_values(kvtier_build_info{job=~"$job"}, instance)'))
    made.with_variable(_variable("tier", "Tier", 'label_values(kvtier_jobs_in_flight{job=~"$job"}, tier)'))
    if name == "load":
        made.annotation(_annotation("Phases", "phase", "blue"))
        made.annotation(_annotation("Faults", "fault|lifted", "red"))
    for row_title, row in rows:
        made.with_row(builder.Row(row_title))
        for panel in row:
            made.with_panel(_panel(panel))
    tree = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for number, panel in enumerate(tree["panels"], 1):
        panel["id"] = number  # else Grafana gives ids of its own, and links to a panel do not last
    for variable in tree["templating"]["list"]:
        for key in [key for key in variable if key.startswith("auto")]:
            del variable[key]  # the SDK writes interval variables' options into every variable
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
