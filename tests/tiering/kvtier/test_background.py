"""A background thread that dies is an event, a metric, a log entry, and an error of the next call that needs it."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry

import kvtier.fs.thread_pool
import kvtier.ops.evictor
from kvtier.base import LookupResult, ReqContext, ScheduleEndContext, TransferJob
from kvtier.config import FsTierConfig, KvtierError, RunConfig
from kvtier.events import FanOut, ThreadDied, ThreadRole
from kvtier.factory import open_fs_tier
from kvtier.fs.thread_pool import DualQueue, DualQueueThreadPool
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key
from kvtier.telemetry.prometheus import MetricsObserver, Patient

BLOCK = 4096
REQUEST = ReqContext("r")
BUG = "'str' object has no attribute 'low_water'"


def key(number: int) -> OffloadKey:
    return make_offload_key(BlockHash(number.to_bytes(32, "big")), 0)


def job(job_id: int, is_load: bool = False) -> TransferJob:
    return TransferJob(job_id, (key(1),), (0,), is_load, REQUEST)


def dies(*args: Any, **kwargs: Any) -> Any:
    raise AttributeError(BUG)


class Tier:
    """A tier with a capacity, whose events are kept and counted."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.deaths: list[ThreadDied] = []
        self.registry = CollectorRegistry()
        observer = FanOut(self, MetricsObserver(self.registry, {"fs": dict}))
        view = memoryview(mmap.mmap(-1, BLOCK)).cast("B", (1, BLOCK))
        config = FsTierConfig.from_mapping({"root_dir": root, "block_bytes": BLOCK, "capacity": "1GiB", **options})
        self.manager = open_fs_tier(config, RunConfig("m"), view, observer)

    def on_event(self, event: Any) -> None:
        if isinstance(event, ThreadDied):
            self.deaths.append(event)

    def counted(self) -> dict[str, float]:
        series = [one for family in self.registry.collect() for one in family.samples]
        return {s.labels["thread"]: s.value for s in series if s.name == "kvtier_thread_deaths_total"}

    def step(self) -> None:
        self.manager.on_schedule_end(ScheduleEndContext())

    def until_it_raises(self, call: Callable[[], Any]) -> str:
        try:
            while True:
                call()
                self.step()
        except KvtierError as error:
            return str(error)


def test_a_dead_capacity_thread_is_reported_and_ends_stores_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kvtier.ops.evictor, "folders", dies)
    with caplog.at_level(logging.CRITICAL):
        tier = Tier(tmp_path)
        tier.manager._quota._thread.join()  # type: ignore[union-attr]
    assert tier.counted() == dict.fromkeys(get_args(ThreadRole), 0), "series are there before the first"
    tier.step()
    tier.step()
    assert tier.deaths == [ThreadDied("fs", "capacity", f"AttributeError: {BUG}")]
    assert tier.counted() == {"capacity": 1, "lookup": 0, "load": 0, "store": 0, "watchdog": 0}
    (record,) = caplog.records
    assert record.message == "thread kvtier_capacity died: this is a bug in kvtier"
    assert record.exc_info
    for _ in range(2):
        with pytest.raises(KvtierError) as caught:
            tier.manager.submit_store(job(1))
        assert str(caught.value).startswith(
            f"a capacity thread died (AttributeError: {BUG}), which is a bug in kvtier;"
        )
    assert not tier.manager.has_pending_work(), "the job was not taken"

    tier.manager.submit_load(job(2, is_load=True))
    tier.manager.drain_jobs()
    (result,) = tier.manager.get_finished_jobs()
    assert result.job_id == 2, "loads do not depend on it"
    while tier.manager.lookup(key(2), REQUEST) is LookupResult.RETRY:
        tier.step()
    tier.manager.shutdown()


def test_a_dead_lookup_thread_ends_lookups_with_an_error(tmp_path: Path) -> None:
    tier = Tier(tmp_path)
    tier.manager.blockio.exists_many = dies  # type: ignore[method-assign]
    text = tier.until_it_raises(lambda: tier.manager.lookup(key(1), REQUEST))
    assert text.startswith(f"a lookup thread died (AttributeError: {BUG})")
    assert tier.deaths == [ThreadDied("fs", "lookup", f"AttributeError: {BUG}")]
    assert tier.counted()["lookup"] == 1
    tier.manager.shutdown()


@pytest.mark.parametrize("is_load", [True, False])
def test_a_dead_thread_of_the_pool_ends_waiting_and_new_jobs_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_load: bool
) -> None:
    tier = Tier(tmp_path, n_read_threads=2, n_write_threads=2, capacity=None)
    monkeypatch.setattr(kvtier.fs.thread_pool, "TaskFact", dies)
    submit = tier.manager.submit_load if is_load else tier.manager.submit_store
    submit(job(1, is_load))
    for call in (
        tier.manager.drain_jobs,
        tier.manager.get_finished_jobs,
        lambda: tier.manager.submit_load(job(2, is_load=True)),
        lambda: tier.manager.submit_store(job(3)),
    ):
        with pytest.raises(KvtierError, match=r"a (load|store) thread died \(AttributeError"):
            call()
    (death,) = tier.deaths
    assert death.thread in ("load", "store")
    assert tier.counted()[death.thread] == 1
    tier.manager.shutdown()


def test_whatever_a_task_raises_is_its_result_and_its_thread_goes_on() -> None:
    pool = DualQueueThreadPool(DualQueue(1, 1))

    def leaves() -> None:
        raise SystemExit(3)

    pool.submit(1, "load", [(leaves, 1)] * 4)
    assert pool.wait_idle()
    pool.submit(2, "load", [(lambda: "ran", 1)])
    assert pool.wait_idle()
    first, second = pool.get_finished()
    assert [type(result) for result in first.results] == [SystemExit] * 4
    assert second.results == ("ran",)
    pool.shutdown()


def test_gauges_that_raise_are_absent_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    patient = Patient(dies, seconds_max=10)
    with caplog.at_level(logging.ERROR):
        assert [patient() for _ in range(3)] == [{}] * 3
    (record,) = caplog.records
    assert record.message.startswith("gauges are absent")
    assert record.exc_info
