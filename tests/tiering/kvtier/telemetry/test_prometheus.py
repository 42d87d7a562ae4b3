"""kvtier.telemetry.prometheus: what a scrape returns after given events, also over HTTP."""

from __future__ import annotations

import itertools
import mmap
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kvtier.base import ReqContext, TransferJob
from kvtier.config import CapacityConfig, CpuTierConfig, FsTierConfig, RunConfig
from kvtier.cpu.manager import CPUOffloadingManager
from kvtier.events import (
    BlockQuarantined,
    Cascade,
    CopyFinished,
    Event,
    Eviction,
    FilesEvicted,
    JobFinished,
    Lookup,
    LookupBatch,
    Promotion,
    RequestFinished,
    TaskFact,
    ThreadDied,
    TierAnswers,
)
from kvtier.factory import open_fs_tier
from kvtier.hashing import BlockHash, make_offload_key
from kvtier.manager import TieringOffloadingManager
from kvtier.telemetry.prometheus import GAUGES, Gauges, MetricsObserver, Patient, serve_metrics

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def job(direction: str = "load", **changes: object) -> JobFinished:
    task = TaskFact(direction, "store", 3, 8192, 2, 10.0, 10.25, 10.75)  # type: ignore[arg-type]
    event = JobFinished("fs", direction, 7, "r1", 2, 0, 0, (), 8192, 9.5, 11.5, (task,), None, ())  # type: ignore[arg-type]
    return event._replace(**changes)  # type: ignore[arg-type]


def gauge(tier: str, direction: str = "") -> dict[str, str]:
    """The labels of a gauge; `class` is the deprecated name of `direction`."""
    return {"tier": tier, "direction": direction, "class": direction}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def observer(registry: CollectorRegistry) -> MetricsObserver:
    return MetricsObserver(registry, {"fs": dict})


def test_a_job_counts_its_blocks_bytes_and_times(registry: CollectorRegistry, observer: MetricsObserver) -> None:
    observer.on_event(job())
    way = {"tier": "fs", "direction": "load"}
    value = registry.get_sample_value
    assert value("kvtier_jobs_total", {**way, "outcome": "ok"}) == 1
    assert value("kvtier_blocks_total", {**way, "outcome": "ok"}) == 2
    assert value("kvtier_transferred_bytes_total", way) == 8192
    assert value("kvtier_tasks_total", {**way, "thread_direction": "store", "group": "store"}) == 1
    assert value("kvtier_queue_wait_seconds_sum", way) == 0.25
    assert value("kvtier_service_seconds_sum", way) == 0.5
    assert value("kvtier_job_seconds_sum", way) == 2.0
    assert value("kvtier_jobs_total", {**way, "direction": "store", "outcome": "ok"}) == 0


def test_failures_count_by_reason_and_corruption_apart(registry: CollectorRegistry, observer: MetricsObserver) -> None:
    observer.on_event(job(failures=(("EIO", 3), ("checksum", 2), ("an undeclared reason", 1))))
    observer.on_event(job(blocks_ok=0, bytes_ok=0, failures=(("refused", 4),)))
    way = {"tier": "fs", "direction": "load"}
    value = registry.get_sample_value
    for reason, blocks in (("EIO", 3), ("checksum", 2), ("refused", 4), ("other", 1)):
        assert value("kvtier_block_failures_total", {**way, "reason": reason}) == blocks
    assert value("kvtier_corrupt_blocks_total", {"tier": "fs", "reason": "checksum"}) == 2
    assert value("kvtier_corrupt_blocks_total", {"tier": "fs", "reason": "key"}) == 0
    assert value("kvtier_corrupt_blocks_total", {"tier": "fs", "reason": "EIO"}) is None
    assert value("kvtier_jobs_total", {**way, "outcome": "partial"}) == 1
    assert value("kvtier_jobs_total", {**way, "outcome": "failed"}) == 1
    assert value("kvtier_blocks_total", {**way, "outcome": "failed"}) == 10


def test_cross_process_hits_and_duplicate_stores_count(registry: CollectorRegistry, observer: MetricsObserver) -> None:
    observer.on_event(job("store", blocks_skipped=2))
    observer.on_event(job("load", blocks_cross_process=1, blocks_unverified=3))
    assert registry.get_sample_value("kvtier_duplicate_stores_total", {"tier": "fs"}) == 2
    assert registry.get_sample_value("kvtier_cross_process_hit_blocks_total", {"tier": "fs"}) == 1
    assert registry.get_sample_value("kvtier_unverified_blocks_total", {"tier": "fs"}) == 3


def test_every_other_event_has_its_series(registry: CollectorRegistry, observer: MetricsObserver) -> None:
    for event in (
        LookupBatch("fs", 10, 4, 1.0, 1.5, 1.75),
        TierAnswers("fs", 1, 2, 3, 1),
        RequestFinished("r1", 1.0, 2.0, None),
        BlockQuarantined("fs", "size", "/quarantine/x"),
        BlockQuarantined("fs", "size", ""),
        Lookup("r1", 1, 2, 3, 4),
        Promotion("fs", "r1", 5, 6),
        Cascade("fs", "r1", 7),
        Eviction(8, "capacity"),
        FilesEvicted("fs", "max_bytes", 11, 1100, (60.0, 7200.0), 1.0, 2.0),
        ThreadDied("fs", "capacity", "AttributeError: x"),
        CopyFinished("store", 1, 9, 900, 0.125, True),
        CopyFinished("store", 2, 9, 900, 0.125, False),
    ):
        observer.on_event(event)
    expected = {
        ("lookup_keys_total", ("tier", "fs"), ("outcome", "hit")): 4,
        ("lookup_keys_total", ("tier", "fs"), ("outcome", "miss")): 6,
        ("lookup_queue_seconds_sum", ("tier", "fs")): 0.5,
        ("lookup_probe_seconds_sum", ("tier", "fs")): 0.25,
        ("quarantined_blocks_total", ("tier", "fs"), ("reason", "size"), ("outcome", "moved")): 1,
        ("quarantined_blocks_total", ("tier", "fs"), ("reason", "size"), ("outcome", "left")): 1,
        ("tier_lookups_total", ("tier", "fs"), ("outcome", "hit")): 1,
        ("tier_lookups_total", ("tier", "fs"), ("outcome", "miss")): 2,
        ("tier_lookups_total", ("tier", "fs"), ("outcome", "retry")): 3,
        ("lookup_blocks_total", ("outcome", "hit")): 1,
        ("lookup_blocks_total", ("outcome", "hit_pending")): 2,
        ("lookup_blocks_total", ("outcome", "miss")): 3,
        ("lookup_blocks_total", ("outcome", "retry")): 4,
        ("promoted_blocks_total", ("tier", "fs")): 5,
        ("refused_promotion_blocks_total", ("tier", "fs")): 6,
        ("cascaded_blocks_total", ("tier", "fs")): 7,
        ("evicted_blocks_total", ("reason", "capacity")): 8,
        ("evicted_files_total", ("tier", "fs"), ("reason", "max_bytes")): 11,
        ("evicted_file_age_seconds_sum", ("tier", "fs")): 7260,
        ("evicted_then_wanted_blocks_total", ("tier", "fs")): 1,
        ("evicted_file_bytes_total", ("tier", "fs"), ("reason", "max_bytes")): 1100,
        ("thread_deaths_total", ("tier", "fs"), ("thread", "capacity")): 1,
        ("copies_total", ("direction", "store"), ("outcome", "ok")): 1,
        ("copies_total", ("direction", "store"), ("outcome", "failed")): 1,
        ("copy_blocks_total", ("direction", "store")): 9,
        ("copy_bytes_total", ("direction", "store")): 900,
        ("copy_seconds_sum", ("direction", "store")): 0.125,
    }
    got = {key: registry.get_sample_value(f"kvtier_{key[0]}", dict(key[1:])) for key in expected}
    assert got == expected


def test_gauges_are_read_at_scrape_from_every_source(registry: CollectorRegistry) -> None:
    state = {"load_queue": 3.0, "store_queue": 4.0, "load_oldest_seconds": 1.5, "jobs_in_flight": 2.0, "load_": 9.0}
    MetricsObserver(registry, {"fs": lambda: state, "cpu": lambda: {"slots_free": 11.0}})
    value = registry.get_sample_value
    assert value("kvtier_queue_tasks", gauge("fs", "load")) == 3
    assert value("kvtier_queue_tasks", gauge("fs", "store")) == 4
    assert value("kvtier_queue_oldest_seconds", gauge("fs", "load")) == 1.5
    assert value("kvtier_jobs_in_flight", gauge("fs")) == 2
    assert value("kvtier_slots_free", gauge("cpu")) == 11
    state["load_queue"] = 0.0
    assert value("kvtier_queue_tasks", gauge("fs", "load")) == 0


DEPRECATED = {
    "kvtier_foreign_block_hits": "kvtier_cross_process_hit_blocks",
    "kvtier_set_aside_blocks": "kvtier_quarantined_blocks",
    "kvtier_threads_lost": "kvtier_threads_hung",
}


def test_a_deprecated_metric_equals_its_successor_from_the_first_scrape_on(registry: CollectorRegistry) -> None:
    state = {"load_threads_hung": 1.0, "store_threads_hung": 0.0}
    observer = MetricsObserver(registry, {"fs": lambda: state})

    def values(name: str) -> dict[tuple[tuple[str, str], ...], float]:
        families = {
            family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())
        }
        samples = [sample for sample in families[name].samples if not sample.name.endswith("_created")]
        return {tuple(sorted(sample.labels.items())): sample.value for sample in samples}

    at_first = {old: values(old) for old in DEPRECATED}
    assert at_first == {old: values(new) for old, new in DEPRECATED.items()}
    assert all(at_first.values())
    observer.on_event(job(blocks_cross_process=3))
    observer.on_event(BlockQuarantined("fs", "size", "/quarantine/x"))
    observer.on_event(BlockQuarantined("fs", "EIO", ""))
    state["store_threads_hung"] = 2.0
    for old, new in DEPRECATED.items():
        assert values(old) == values(new) != at_first[old], old


def test_a_deprecated_label_equals_direction(registry: CollectorRegistry, observer: MetricsObserver) -> None:
    MetricsObserver(other := CollectorRegistry(), {"fs": lambda: {"load_queue": 3.0, "jobs_in_flight": 2.0}})
    observer.on_event(job())
    samples = [sample for r in (registry, other) for family in r.collect() for sample in family.samples]
    labels = [sample.labels for sample in samples]
    tasks = [(given["thread_direction"], given["group"]) for given in labels if "group" in given]
    gauges = [(given["direction"], given["class"]) for given in labels if "class" in given]
    assert sorted(set(tasks)) == [("load", "load"), ("store", "store")]
    assert sorted(set(gauges)) == [("", ""), ("load", "load")]


def test_registering_reads_no_source() -> None:
    def gauges() -> dict[str, float]:
        raise AssertionError("read before any scrape")

    MetricsObserver(CollectorRegistry(), {"fs": gauges})


def test_every_gauge_of_the_tiers_is_described(tmp_path: Path) -> None:
    cpu = CPUOffloadingManager(CpuTierConfig(2, 4096))
    config = FsTierConfig(str(tmp_path), 4096, capacity=CapacityConfig(max_bytes=1 << 20))
    tier = open_fs_tier(config, RunConfig("m"), cpu.view)
    while "root_bytes" not in tier.gauges():  # not measured yet
        threading.Event().wait(0.001)
    limit = tier.gauges()["root_limit_bytes"]
    words = {*tier.gauges(), *tier.space(), *TieringOffloadingManager(cpu, [tier]).gauges()}
    tier.shutdown()
    assert {word.removeprefix("load_").removeprefix("store_") for word in words} == set(GAUGES)
    assert limit == 1 << 20


def test_a_source_that_hangs_or_fails_returns_nothing() -> None:
    go = threading.Event()

    def hangs() -> dict[str, float]:
        go.wait()
        return {"free": 1.0}

    def fails() -> dict[str, float]:
        raise OSError(5, "the device is gone")

    patient = Patient(hangs, seconds_max=0.01)
    assert patient() == {}
    assert patient() == {}, "still the first call: at most one thread hangs"
    assert len([thread for thread in threading.enumerate() if thread.name == "kvtier_source"]) == 1
    go.set()
    patient = Patient(hangs, seconds_max=10)
    assert patient() == {"free": 1.0}
    assert Patient(fails)() == {}


@pytest.mark.parametrize(("keep_seconds", "answers"), [(0.0, [1.0, 2.0, 3.0]), (1e6, [1.0, 1.0, 1.0])])
def test_an_answer_holds_for_keep_seconds(keep_seconds: float, answers: list[float]) -> None:
    numbers = itertools.count(1.0)
    patient = Patient(lambda: {"free": next(numbers)}, seconds_max=10, keep_seconds=keep_seconds)
    assert [patient()["free"] for _ in range(3)] == answers


def test_slow_jobs_carry_their_trace_as_exemplar(registry: CollectorRegistry, observer: MetricsObserver) -> None:
    observer.on_event(job(own_traceparent=TRACE))
    observer.on_event(job(own_traceparent="not a traceparent, and rather long: " + "-".join("x" * 200)))
    observer.on_event(job(own_traceparent=TRACE.replace("0af7", "ffff")[:-2] + "00"))  # not sampled, so not stored
    text = generate_openmetrics(registry).decode()
    lines = [line for line in text.splitlines() if "trace_id" in line]
    assert {line.split("{")[0] for line in lines} == {
        f"kvtier_{name}_seconds_bucket" for name in ("job", "queue_wait", "service")
    }
    assert all('trace_id="0af7651916cd43dd8448eb211c80319c"' in line for line in lines)


def test_each_event_counts_once_under_concurrent_scrapes(
    registry: CollectorRegistry, observer: MetricsObserver
) -> None:
    done = threading.Event()
    errors: list[BaseException] = []

    def scrape() -> None:
        try:
            while not done.is_set():
                generate_latest(registry)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5000):
        observer.on_event(Cascade("fs", "r1", 1))
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert registry.get_sample_value("kvtier_cascaded_blocks_total", {"tier": "fs"}) == 5000


def test_every_kind_of_event_is_known(observer: MetricsObserver) -> None:
    """An unknown one would end all metrics of the process: an observer that raises is dropped."""
    assert set(get_args(Event)) == set(observer._handlers)


def test_names_follow_prometheus_conventions(registry: CollectorRegistry, observer: MetricsObserver) -> None:
    observer.on_event(job())
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        if family.name.endswith("_created"):
            continue
        assert family.name.startswith("kvtier_")
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) <= {
                "tier",
                "direction",
                "outcome",
                "reason",
                "le",
                "class",
                "thread_direction",
                "group",
                "thread",
                "version",
            }
        assert family.type != "histogram" or family.name.endswith("_seconds")


def test_nothing_is_global_and_one_registry_takes_one_observer(registry: CollectorRegistry) -> None:
    MetricsObserver(registry, info={"hash_algorithm": "sha256"})
    MetricsObserver(CollectorRegistry())
    assert "kvtier" not in generate_latest(REGISTRY).decode()
    assert 'hash_algorithm="sha256"' in generate_latest(registry).decode()
    with pytest.raises(ValueError, match="Duplicated"):
        MetricsObserver(registry)


@pytest.fixture
def address(registry: CollectorRegistry) -> Iterator[str]:
    server, port = serve_metrics(registry)
    yield f"http://127.0.0.1:{port}/metrics"
    server.shutdown()
    server.server_close()


def test_serves_the_registry_over_http(address: str, observer: MetricsObserver) -> None:
    observer.on_event(job())
    with urllib.request.urlopen(address, timeout=10) as response:
        text = response.read().decode()
    assert 'kvtier_transferred_bytes_total{direction="load",tier="fs"} 8192.0' in text


def test_counts_of_a_real_tier_are_exact(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Two instances on one root: a block that one stored is a cross-process hit of the other."""
    keys = tuple(make_offload_key(BlockHash(bytes([number]) * 32), 0) for number in range(3))
    config, run = FsTierConfig(str(tmp_path), 4096, n_read_threads=1, n_write_threads=1), RunConfig("m")
    with mmap.mmap(-1, 4 * 4096) as memory:
        view = memoryview(memory).cast("B", (4, 4096))
        writer = open_fs_tier(config, run, view)
        writer.submit_store(TransferJob(1, keys, (0, 1, 2), False, ReqContext("r")))
        writer.drain_jobs()
        writer.shutdown()
        sources: dict[str, Gauges] = {}
        observer = MetricsObserver(registry, sources)
        tier = open_fs_tier(config, run, view, observer)
        sources["fs"] = tier.gauges
        tier.submit_store(TransferJob(1, keys[:1], (0,), False, ReqContext("r")))
        tier.submit_load(
            TransferJob(2, (*keys, make_offload_key(BlockHash(bytes(32)), 1)), (0, 1, 2, 3), True, ReqContext("r"))
        )
        tier.drain_jobs()
        assert len(list(tier.get_finished_jobs())) == 2
        value = registry.get_sample_value
        load, store = ({"tier": "fs", "direction": direction} for direction in ("load", "store"))
        assert value("kvtier_blocks_total", {**load, "outcome": "ok"}) == 3
        assert value("kvtier_block_failures_total", {**load, "reason": "ENOENT"}) == 1
        assert value("kvtier_transferred_bytes_total", load) == 3 * 4096
        assert value("kvtier_jobs_total", {**load, "outcome": "partial"}) == 1
        assert value("kvtier_cross_process_hit_blocks_total", {"tier": "fs"}) == 3
        assert value("kvtier_jobs_total", {**store, "outcome": "ok"}) == 1
        assert value("kvtier_duplicate_stores_total", {"tier": "fs"}) == 1
        assert value("kvtier_queue_tasks", gauge("fs", "load")) == 0
        tier.shutdown()
        view.release()
