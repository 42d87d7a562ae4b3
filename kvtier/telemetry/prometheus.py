"""Prometheus metrics from events and gauges: a process makes one `MetricsObserver` and serves its registry.

The only importer of prometheus_client. Registers nothing at import, and nothing outside the given registry. Label
values are closed sets (tier, direction, outcome, reason), never a key, a path or a request.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
from collections import Counter as Counts
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvtier import __version__
from kvtier.events import (
    BlockQuarantined,
    Cascade,
    CopyFinished,
    CorruptReason,
    Direction,
    Event,
    Eviction,
    EvictionReason,
    FileEvictionReason,
    FilesEvicted,
    JobFinished,
    Lookup,
    LookupBatch,
    Promotion,
    RequestFinished,
    ThreadDied,
    ThreadRole,
    TierAnswers,
)
from kvtier.fs.admission import REFUSAL_REASONS

logger = logging.getLogger(__name__)

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
CORRUPT_REASONS: frozenset[str] = frozenset(get_args(CorruptReason))
FAILURE_REASONS = CORRUPT_REASONS.union(REFUSAL_REASONS, ("shutdown", "replaced"), errno.errorcode.values())
SECONDS_BUCKETS = tuple(float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2.5, 5))
"""10 us to 50 s, three a decade: enough to separate a memory copy, a device, and a device that hangs."""
AGE_BUCKETS = tuple(float(hours * 3600) for hours in (1 / 60, 1 / 12, 1 / 4, 1, 4, 12, 24, 72, 168, 336, 720, 2160))
"""A minute to a quarter of a year."""

SOURCE_SECONDS_MAX = 0.2
"""The longest wait of a scrape for a source that may hang."""

EVENTS_TOGETHER = 64
"""Events are counted in batches of this size, or by the next scrape. One by one they cost three to eight times as much,
since block I/O empties the CPU caches in between."""

# Only a sampled trace is an exemplar: the others are not stored.
_SAMPLED = re.compile(r"00-(?P<trace_id>[0-9a-f]{32})-(?P<span_id>[0-9a-f]{16})-[0-9a-f][13579bdf]")
Gauges = Callable[[], Mapping[str, float]]

GAUGES: Mapping[str, tuple[str, str]] = {
    "queue": ("queue_tasks", "Tasks waiting."),
    "queue_bytes": ("queue_bytes", "Bytes of the tasks waiting."),
    "oldest_seconds": ("queue_oldest_seconds", "Age of the oldest waiting task; 0 when none waits."),
    "running": ("running_tasks", "Tasks on a thread: I/O in flight."),
    "running_oldest_seconds": ("running_oldest_seconds", "Age of the oldest I/O in flight; 0 when there is none."),
    "threads_busy": ("threads_busy", "Threads that run a task, by the direction that they prefer."),
    "threads_hung": (
        "threads_hung",
        "Threads whose I/O hangs and that were replaced, by the direction that they prefer.",
    ),
    "jobs_in_flight": ("jobs_in_flight", "Jobs submitted and not yet reported."),
    "lookup_oldest_seconds": (
        "lookup_oldest_seconds",
        "Age of the oldest lookup without an answer; 0 when none waits.",
    ),
    "requests": ("requests", "Requests that the manager knows."),
    "slots_free": ("slots_free", "Slots of the CPU tier without a block."),
    "slots_writing": ("slots_writing", "Slots being filled: their blocks are HIT_PENDING."),
    "slots_pinned": ("slots_pinned", "Slots being read."),
    "slots_evictable": ("slots_evictable", "Slots whose blocks are not in use now."),
    "pending_oldest_seconds": ("pending_oldest_seconds", "Longest time for which a block has been HIT_PENDING."),
    "root_bytes": ("root_bytes", "Bytes of blocks under a root with a limit, as last measured."),
    "root_files": ("root_files", "Block files under a root with a limit, as last measured."),
    "root_limit_bytes": ("root_limit_bytes", "The root's limit: max_bytes of its capacity; absent without one."),
    "file_system_free_bytes": ("file_system_free_bytes", "Free in the root's file system; absent while it hangs."),
    "file_system_size_bytes": ("file_system_size_bytes", "Size of the root's file system; absent while it hangs."),
}
"""Word of the tiers' `gauges()` -> name without `kvtier_`, text. A word that is not listed becomes kvtier_<word>."""

DEPRECATED_NAMES = {
    "cross_process_hit_blocks": "foreign_block_hits",
    "quarantined_blocks": "set_aside_blocks",
    "threads_hung": "threads_lost",
}
"""Name -> its former name, which has the same values for one release. Without `kvtier_` and suffix."""

DEPRECATED_LABELS = {"direction": "class", "thread_direction": "group"}
"""Label -> its former name, which the gauges or kvtier_tasks_total carry too for one release, with the same value."""

GAUGE_LABELS = ("tier", "direction", DEPRECATED_LABELS["direction"])
BUILD_INFO = "kvtier_build_info"
INFO_LABELS = ("version", "folder", "hash_algorithm", "none_hash", "block_bytes", "integrity", "io")
INFO_TEXT = (
    "1; what processes must have in common to share, and how I/O is done. `none_hash`: 8 digits of the seed's digest."
)


class MetricsObserver:
    """An `Observer` that counts events, and reads the tiers' gauges at scrape.

    `sources` maps a tier's name ("cpu" for the primary tier, ...) to its `gauges`; a tier may be added later. Series of
    the secondary tiers start at zero, so that the first failure is an increase. `info` are labels of
    `kvtier_build_info`. A job costs some 10 us and 4 us a task, paid in batches of `EVENTS_TOGETHER` events; a scrape
    is exact. A second observer on the same registry raises ValueError. A source that may hang goes in as a `Patient`.
    `counter_type` and `histogram_type` take prometheus_client's arguments, for a process with another metrics library.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        sources: Mapping[str, Gauges] | None = None,
        info: Mapping[str, str] | None = None,
        counter_type: Callable[..., Any] = Counter,
        histogram_type: Callable[..., Any] = Histogram,
    ) -> None:
        def counter(name: str, text: str, *labels: str) -> Any:
            made = counter_type(f"kvtier_{name}", text, labels, registry=registry)
            if old := DEPRECATED_NAMES.get(name):
                self._deprecated[made] = counter_type(f"kvtier_{old}", _successor(name), labels, registry=registry)
            return made

        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS_BUCKETS) -> Any:
            return histogram_type(f"kvtier_{name}", text, labels, registry=registry, buckets=buckets)

        self._waiting: deque[tuple[Callable[[Any], None], Event]] = deque()
        self._counting = threading.Lock()  # the scheduler's thread and scrapes may come together
        # (counter, *label values) -> amount, of the events that are being counted
        self._sums: defaultdict[tuple[Any, ...], float] = defaultdict(float)
        self._deprecated: dict[Any, Any] = {}  # counter -> the counter of its deprecated name
        # First, so that everything after it in a scrape includes the events before it.
        registry.register(_StateCollector(sources if sources is not None else {}, self._count))
        way = ("tier", "direction")
        self._jobs = counter("jobs", "Jobs ended; partial: some blocks failed.", *way, "outcome")
        self._blocks = counter("blocks", "Blocks of ended jobs.", *way, "outcome")
        self._bytes = counter("transferred_bytes", "Bytes of blocks stored or loaded.", *way)
        failures = "Blocks that failed or were refused, by errno name or other reason."
        self._failures = counter("block_failures", failures, *way, "reason")
        self._corrupt = counter("corrupt_blocks", "Damaged files found: not the block of their name.", "tier", "reason")
        self._quarantined = counter(
            "quarantined_blocks", "Damaged files: moved to quarantine, or left.", "tier", "reason", "outcome"
        )
        self._duplicates = counter(
            "duplicate_stores", "Blocks not stored again, since another writer had published them.", "tier"
        )
        self._cross_process_hits = counter(
            "cross_process_hit_blocks", "Loaded blocks that another process wrote.", "tier"
        )
        self._unverified = counter(
            "unverified_blocks", "Loaded blocks without a trailer, which nothing verifies.", "tier"
        )
        by_thread = ("thread_direction", DEPRECATED_LABELS["thread_direction"])
        self._tasks = counter("tasks", "Tasks ended, by the direction that their thread prefers.", *way, *by_thread)
        self._queue_wait = histogram("queue_wait_seconds", "Wait of a task in its queue.", *way)
        self._service = histogram("service_seconds", "Time of a task on its thread.", *way)
        self._job_latency = histogram("job_seconds", "Time from a job's submission to the end of its last task.", *way)
        self._answers = counter("tier_lookups", "Final answers of a tier, and retries, by outcome.", "tier", "outcome")
        self._lookup_keys = counter("lookup_keys", "Blocks probed in secondary tiers.", "tier", "outcome")
        self._lookup_wait = histogram("lookup_queue_seconds", "Wait of a lookup batch for its thread.", "tier")
        self._lookup_probe = histogram("lookup_probe_seconds", "Time of a lookup batch on its thread.", "tier")
        self._lookups = counter("lookup_blocks", "Answers of the manager, per block and lookup.", "outcome")
        self._promoted = counter("promoted_blocks", "Blocks sent from a secondary tier to the CPU tier.", "tier")
        self._refused = counter("refused_promotion_blocks", "Blocks not promoted, since no slot was free.", "tier")
        self._cascaded = counter("cascaded_blocks", "Blocks sent from the CPU tier to a secondary tier.", "tier")
        self._evicted = counter("evicted_blocks", "Blocks that left the CPU tier.", "reason")
        self._files_evicted = counter("evicted_files", "Blocks evicted from the root.", "tier", "reason")
        self._files_evicted_bytes = counter("evicted_file_bytes", "Bytes evicted from the root.", "tier", "reason")
        age = "Time since the last use of evicted files, of up to 100 files a round."
        self._evicted_age = histogram("evicted_file_age_seconds", age, "tier", buckets=AGE_BUCKETS)
        again = "Misses of blocks that this process had evicted from the root shortly before."
        self._evicted_wanted = counter("evicted_then_wanted_blocks", again, "tier")
        self._deaths = counter("thread_deaths", "Threads that ended by an exception, which is a bug.", "tier", "thread")
        self._copies = counter("copies", "Copies between GPU and CPU that ended.", "direction", "outcome")
        self._copy_blocks = counter("copy_blocks", "Blocks copied between GPU and CPU.", "direction")
        self._copy_bytes = counter("copy_bytes", "Bytes copied between GPU and CPU.", "direction")
        self._copy_seconds = histogram("copy_seconds", "Duration of a copy between GPU and CPU.", "direction")
        Info(BUILD_INFO.removesuffix("_info"), INFO_TEXT, registry=registry).info(
            {"version": __version__, **(info or {})}
        )
        self._child = lru_cache(maxsize=1 << 12)(self._new_child)
        self._handlers: dict[type, Callable[[Any], None]] = {
            JobFinished: self._on_job,
            LookupBatch: self._on_lookup_batch,
            BlockQuarantined: self._on_quarantined,
            Lookup: self._on_lookup,
            TierAnswers: self._on_answers,
            Promotion: self._on_promotion,
            Cascade: lambda event: self._add(self._cascaded, event.blocks, event.tier),
            Eviction: lambda event: self._add(self._evicted, event.blocks, event.reason),
            FilesEvicted: self._on_files_evicted,
            ThreadDied: lambda event: self._add(self._deaths, 1, event.tier, event.thread),
            CopyFinished: self._on_copy,
            RequestFinished: lambda event: None,
        }
        self._start_at_zero([tier for tier in sources or () if tier != "cpu"])

    def on_event(self, event: Event, /) -> None:
        self._waiting.append((self._handlers[type(event)], event))
        if len(self._waiting) >= EVENTS_TOGETHER:
            self._count()

    def _new_child(self, metric: Any, *values: str) -> Any:
        if deprecated := self._deprecated.get(metric):
            self._child(deprecated, *values)  # both series begin together
        return metric.labels(*values)

    def _count(self) -> None:
        with self._counting:
            while self._waiting:
                handler, event = self._waiting.popleft()
                handler(event)
            for (metric, *values), amount in self._sums.items():
                self._child(metric, *values).inc(amount)
                if deprecated := self._deprecated.get(metric):
                    self._child(deprecated, *values).inc(amount)
            self._sums.clear()

    def _start_at_zero(self, tiers: Iterable[str]) -> None:
        for tier in tiers:
            for counter in (
                self._duplicates,
                self._cross_process_hits,
                self._unverified,
                self._promoted,
                self._refused,
                self._cascaded,
                self._evicted_wanted,
                self._evicted_age,
            ):
                self._child(counter, tier)
            for reason in sorted(CORRUPT_REASONS):
                self._child(self._corrupt, tier, reason)
                self._child(self._quarantined, tier, reason, "moved")
            for outcome in ("hit", "miss"):
                self._child(self._lookup_keys, tier, outcome)
            for outcome in ("hit", "miss", "retry"):
                self._child(self._answers, tier, outcome)
            for histogram in (self._lookup_wait, self._lookup_probe):
                self._child(histogram, tier)
            for direction in DIRECTIONS:
                for metric in (self._bytes, self._queue_wait, self._service, self._job_latency):
                    self._child(metric, tier, direction)
                for outcome in ("ok", "partial", "failed"):
                    self._child(self._jobs, tier, direction, outcome)
                for outcome in ("ok", "failed"):
                    self._child(self._blocks, tier, direction, outcome)
                for prefers in DIRECTIONS:
                    self._child(self._tasks, tier, direction, prefers, prefers)
            for reason in REFUSAL_REASONS:
                self._child(self._failures, tier, "store", reason)
            for role in get_args(ThreadRole):
                self._child(self._deaths, tier, role)
            for reason in get_args(FileEvictionReason):
                self._child(self._files_evicted, tier, reason)
                self._child(self._files_evicted_bytes, tier, reason)
        for reason in get_args(EvictionReason):
            self._child(self._evicted, reason)
        for outcome in ("hit", "hit_pending", "miss", "retry"):
            self._child(self._lookups, outcome)
        for direction in DIRECTIONS:
            for metric in (self._copy_blocks, self._copy_bytes, self._copy_seconds):
                self._child(metric, direction)
            for outcome in ("ok", "failed"):
                self._child(self._copies, direction, outcome)

    def _add(self, metric: Counter, amount: float, *labels: str) -> None:
        if amount:
            self._sums[metric, *labels] += amount

    def _on_job(self, event: JobFinished) -> None:
        way = (event.tier, event.direction)
        failed = sum(blocks for _, blocks in event.failures)
        outcome = "ok" if not failed else "partial" if event.blocks_ok else "failed"
        self._add(self._jobs, 1, *way, outcome)
        self._add(self._blocks, event.blocks_ok, *way, "ok")
        self._add(self._blocks, failed, *way, "failed")
        self._add(self._bytes, event.bytes_ok, *way)
        self._add(self._duplicates, event.blocks_skipped, event.tier)
        self._add(self._cross_process_hits, event.blocks_cross_process, event.tier)
        self._add(self._unverified, event.blocks_unverified, event.tier)
        for reason, blocks in event.failures:
            self._add(self._failures, blocks, *way, _known(reason, FAILURE_REASONS))
            if reason in CORRUPT_REASONS:
                self._add(self._corrupt, blocks, event.tier, reason)
        trace = _exemplar(event.own_traceparent)
        self._child(self._job_latency, *way).observe(event.finished_seconds - event.submitted_seconds, trace)
        waits = sorted(task.started_seconds - task.enqueued_seconds for task in event.tasks)
        services = sorted(task.finished_seconds - task.started_seconds for task in event.tasks)
        for metric, seconds in ((self._queue_wait, waits), (self._service, services)):
            child = self._child(metric, *way)
            for one in seconds[:-1]:
                child.observe(one)
            for one in seconds[-1:]:  # an exemplar doubles the cost, so only the slowest task has one
                child.observe(one, trace)
        for prefers, tasks in Counts(task.thread_direction for task in event.tasks).items():
            self._add(self._tasks, tasks, *way, prefers, prefers)

    def _on_lookup_batch(self, event: LookupBatch) -> None:
        self._add(self._lookup_keys, event.hits, event.tier, "hit")
        self._add(self._lookup_keys, event.keys - event.hits, event.tier, "miss")
        self._child(self._lookup_wait, event.tier).observe(event.started_seconds - event.sent_seconds)
        self._child(self._lookup_probe, event.tier).observe(event.finished_seconds - event.started_seconds)

    def _on_answers(self, event: TierAnswers) -> None:
        for outcome, blocks in (("hit", event.hits), ("miss", event.misses), ("retry", event.retries)):
            self._add(self._answers, blocks, event.tier, outcome)
        self._add(self._evicted_wanted, event.evicted, event.tier)

    def _on_quarantined(self, event: BlockQuarantined) -> None:
        reason = _known(event.reason, FAILURE_REASONS)
        self._add(self._quarantined, 1, event.tier, reason, "moved" if event.path else "left")

    def _on_lookup(self, event: Lookup) -> None:
        self._add(self._lookups, event.hits, "hit")
        self._add(self._lookups, event.hits_pending, "hit_pending")
        self._add(self._lookups, event.misses, "miss")
        self._add(self._lookups, event.retries, "retry")

    def _on_promotion(self, event: Promotion) -> None:
        self._add(self._promoted, event.blocks, event.tier)
        self._add(self._refused, event.refused, event.tier)

    def _on_files_evicted(self, event: FilesEvicted) -> None:
        self._add(self._files_evicted, event.blocks, event.tier, event.reason)
        self._add(self._files_evicted_bytes, event.bytes, event.tier, event.reason)
        age = self._child(self._evicted_age, event.tier)
        for seconds in event.ages_seconds:
            age.observe(seconds)

    def _on_copy(self, event: CopyFinished) -> None:
        self._add(self._copies, 1, event.direction, "ok" if event.ok else "failed")
        if event.ok:
            self._add(self._copy_blocks, event.blocks, event.direction)
            self._add(self._copy_bytes, event.bytes, event.direction)
            self._child(self._copy_seconds, event.direction).observe(event.seconds)


class _StateCollector(Collector):
    """Reads every source at scrape, after a call of `before`.

    "load_queue" of tier "fs" becomes kvtier_queue_tasks{tier="fs",direction="load",class="load"}.
    """

    def __init__(self, sources: Mapping[str, Gauges], before: Callable[[], None]) -> None:
        self._sources, self._before = sources, before

    def describe(self) -> Iterable[Metric]:
        return ()  # without it, registering would already read the sources

    def collect(self) -> Iterable[Metric]:
        self._before()
        families: dict[str, GaugeMetricFamily] = {}
        for tier, gauges in self._sources.items():
            for key, value in gauges().items():
                direction, _, word = key.partition("_")
                if direction not in DIRECTIONS or not word:
                    direction, word = "", key  # an empty label is no label
                name, text = GAUGES.get(word, (word, f"Present state: {word.replace('_', ' ')}."))
                both = {name: text}
                if old := DEPRECATED_NAMES.get(name):
                    both[old] = _successor(name)
                for name, text in both.items():
                    family = families.get(name)
                    if family is None:
                        family = families[name] = GaugeMetricFamily(f"kvtier_{name}", text, labels=GAUGE_LABELS)
                    family.add_metric((tier, direction, direction), value)
        return families.values()


class Patient:
    """A source that may hang or raise OSError, read on a thread of its own.

    A late answer is empty, so that a scrape has all other metrics while a device hangs. An answer holds for
    `keep_seconds`. With `seconds_max` 0 a call never waits, and the first one returns nothing.
    """

    def __init__(self, ask: Gauges, seconds_max: float = SOURCE_SECONDS_MAX, keep_seconds: float = 0.0) -> None:
        self._ask, self._seconds_max, self._keep_seconds = ask, seconds_max, keep_seconds
        self._asked_seconds = 0.0
        self._answer: Mapping[str, float] = {}
        self._bug_logged = False
        self._lock = threading.Lock()  # scrapes may come together
        self._thread: threading.Thread | None = None

    def __call__(self) -> Mapping[str, float]:
        with self._lock:
            old = time.monotonic() - self._asked_seconds >= self._keep_seconds
            if self._thread is None or (old and not self._thread.is_alive()):
                self._answer, self._asked_seconds = {}, time.monotonic()
                self._thread = threading.Thread(target=self._run, name="kvtier_source", daemon=True)
                self._thread.start()
        self._thread.join(self._seconds_max)
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except OSError:
            pass  # of the device
        except Exception:
            if not self._bug_logged:
                logger.exception("gauges are absent: %r raised, which is a bug in kvtier; report it", self._ask)
            self._bug_logged = True


def serve_metrics(registry: CollectorRegistry, address: str = "127.0.0.1", port: int = 0) -> tuple[WSGIServer, int]:
    """Serve /metrics from a daemon thread; port 0 takes a free one. Returns the server and its port.

    To stop it, call `shutdown()`, then `server_close()`, which waits for answers under way.
    """
    server, _ = start_http_server(port, address, registry)
    server.daemon_threads = False  # type: ignore[attr-defined]  # else an answer outlives the server, and its descriptor
    return server, server.server_port


def _successor(name: str) -> str:
    """The text of the deprecated name of `name`."""
    return f"Deprecated name of kvtier_{name}, with the same values."


def _known(reason: str, reasons: frozenset[str]) -> str:
    return reason if reason in reasons else "other"


def _exemplar(traceparent: str | None) -> dict[str, str] | None:
    match = _SAMPLED.fullmatch(traceparent or "")
    return match.groupdict() if match else None
