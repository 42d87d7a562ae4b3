"""A real worker process over right and broken tiers: what it records is what happened."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.adapters.base import TierSetup
from harness.core.history import History, HistoryLost
from harness.runtime import worker
from harness.runtime.supervisor import Child, Workers
from harness.runtime.worker import Canary, Instruction, Parent

BROKEN = "tests.tiering.harness.broken.tiers"
MUTANTS = "harness.mutants.wrong_results"
REQUESTS = [[0.0, 0, [0, 1, 2]], [0.0, 1, [0, 1, 3]], [0.0, 2, [4]], [0.0, 3, [0, 1, 2]]]


def replay(
    tmp_path: Path, tier: str, requests: list[list[Any]] = REQUESTS, slots: int = 8, window: int = 1, **arguments: Any
) -> tuple[History, Child]:
    """One worker, one replay to its end; the history that it left."""
    (tmp_path / "root").mkdir(exist_ok=True)
    setup = TierSetup(
        root_dir=str(tmp_path / "root"), block_bytes=4096, slots=slots, tokens_per_block=4, run_dir=str(tmp_path)
    )
    with Workers() as workers:
        child = workers.start(Instruction(tier, setup, {"requests": requests, "window": window, **arguments}))
        workers.await_ready([child])
        workers.go([child])
        workers.wait([child])
    return History.read(tmp_path), child


def test_hits_are_the_leading_blocks_that_were_stored_before(tmp_path: Path) -> None:
    history, child = replay(tmp_path, "memory")
    assert [(r.request, r.hit_blocks, r.outcome) for r in history.requests] == [
        (0, 0, "ok"),
        (1, 2, "ok"),
        (2, 0, "ok"),
        (3, 3, "ok"),
    ]
    assert [(j.direction, j.ok) for j in history.jobs] == [
        ("store", [0, 1, 2]),
        ("load", [0, 1]),
        ("store", [3]),
        ("store", [4]),
        ("load", [0, 1, 2]),
    ]
    assert all(j.results == 1 and not j.wrong and not j.failed for j in history.jobs)
    names = {n.block: n.name for n in history.names if n.block >= 0}  # the others are those of a second group
    assert sorted(names) == [0, 1, 2, 3, 4]
    assert set(names.values()) == {str(p.relative_to(tmp_path / "root")) for p in (tmp_path / "root").rglob("*.bin")}
    (start,), (stop,) = history.starts, history.stops
    assert start.pid == child.pid
    assert (stop.exit_code, stop.pinned_slots, stop.leaked_fds, stop.findings) == (0, 0, 0, [])
    assert history.gauges[-1].values["fds"] > 0
    assert any(n.kind == "canary" for n in history.notes)


def test_a_request_longer_than_the_slots_is_done_in_pieces(tmp_path: Path) -> None:
    long = [[0.0, number, list(range(11))] for number in range(2)]
    history, _ = replay(tmp_path, "memory", requests=long, slots=4, window=2)
    assert all(len(job.blocks) <= 2 for job in history.jobs)
    assert [r.outcome for r in history.requests] == ["ok", "ok"]
    assert history.stops[0].pinned_slots == 0


def test_latency_counts_from_the_intended_start(tmp_path: Path) -> None:
    history, _ = replay(tmp_path, "memory", requests=[[0.0, 0, [0]], [0.2, 1, [1]]])
    first, second = history.requests
    assert second.intended_seconds - first.intended_seconds == pytest.approx(0.2)
    assert all(r.intended_seconds <= r.started_seconds <= r.finished_seconds for r in history.requests)


def test_a_load_that_leaves_the_slot_alone_is_wrong_not_right(tmp_path: Path) -> None:
    history, _ = replay(tmp_path, f"{MUTANTS}:ReturnsStaleSlots")
    loads = [j for j in history.jobs if j.direction == "load"]
    assert loads
    assert all(len(j.wrong) == len(j.blocks) for j in loads)
    assert all(r.hit_blocks == 0 for r in history.requests)


def test_a_failed_load_is_computed_again_and_no_hit(tmp_path: Path) -> None:
    history, _ = replay(tmp_path, f"{BROKEN}:LoadsFail")
    assert [(j.direction, j.outcome, j.failed, j.ok) for j in history.jobs if j.request == 3] == [
        ("load", "fail", [0, 1, 2], []),
        ("store", "ok", [], [0, 1, 2]),
    ]
    assert [r.hit_blocks for r in history.requests] == [0, 0, 0, 0]


def test_a_job_without_result_is_info_and_keeps_its_slots(tmp_path: Path) -> None:
    history, _ = replay(tmp_path, f"{BROKEN}:NeverReports", stall_seconds_max=0.3)
    assert [(j.outcome, j.results) for j in history.jobs] == [("info", 0)]
    assert history.requests[0].outcome == "info"
    assert history.stops[0].pinned_slots == 3
    assert any(n.kind == "error" and "nothing moved" in n.text for n in history.notes)


def test_a_second_result_is_recorded(tmp_path: Path) -> None:
    history, _ = replay(tmp_path, f"{MUTANTS}:ReportsTwice")
    assert len(history.jobs) == 5
    errors = [n for n in history.notes if n.kind == "error"]
    assert sorted(n.detail["job_id"] for n in errors) == [0, 1, 2, 3, 4]
    assert all("2 results" in n.text for n in errors)


def test_a_tier_that_raises_ends_the_worker_with_all_records(tmp_path: Path) -> None:
    history, child = replay(tmp_path, f"{BROKEN}:Raises")
    assert child.state == "dead"
    assert history.stops[0].exit_code == child.exit_code == 70
    assert [n.text for n in history.notes if n.kind == "error"] == ["RuntimeError: the tier fell over"]
    assert "the tier fell over" in child.last_output()
    assert [j.job_id for j in history.jobs if j.outcome == "info"] == [2]


def test_a_history_that_is_lost_at_the_scrape_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape that fails is left out; a history that cannot be written is reported."""

    def unreadable(*_: Any) -> dict[str, float]:
        raise OSError(errno.EMFILE, "Too many open files")

    def lost(*_: Any) -> None:
        raise HistoryLost(errno.ENOSPC, "No space left on device", "history-0.jsonl")

    adapter = SimpleNamespace(metrics_address=lambda: "127.0.0.1:9", metric_meanings=lambda: ["some"])
    about: Any = SimpleNamespace(adapter=adapter, note=lost)
    monkeypatch.setattr(worker, "scrape", unreadable)
    worker.Worker._scrape(about)
    monkeypatch.setattr(worker, "scrape", lambda *_: {"jobs (load)": 1.0})
    with pytest.raises(HistoryLost):
        worker.Worker._scrape(about)


def test_leaks_and_the_tiers_own_findings_reach_the_stop_record(tmp_path: Path) -> None:
    history, _ = replay(tmp_path, f"{BROKEN}:Leaks")
    assert (history.stops[0].leaked_fds, history.stops[0].findings) == (1, ["1 descriptor is open"])


def test_what_the_worker_itself_has_open_is_no_leak_of_the_tier(tmp_path: Path) -> None:
    history, _ = replay(tmp_path, f"{BROKEN}:EndsAsTheCanaryLooks")
    assert history.stops[0].leaked_fds == 0


def test_a_tier_that_prints_does_not_garble_the_protocol(tmp_path: Path) -> None:
    _, child = replay(tmp_path, f"{BROKEN}:Chatty")
    assert child.state == "done"
    assert child.counts["requests"] == 4
    assert "looking up" in child.last_output()


def test_a_canary_that_measured_nothing_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CANARY_SLEEP_SECONDS", 600.0)
    canary = Canary(0)
    canary.close()
    assert canary.take() == [], "a wake-up delay of 0 would be a measurement"


@pytest.mark.parametrize(("delay", "accounted"), [(None, False), (0.5, True)])
def test_a_canary_says_whether_the_kernel_counts_the_time_without_a_cpu(
    monkeypatch: pytest.MonkeyPatch, delay: float | None, accounted: bool
) -> None:
    calls, woke = itertools.count(), threading.Event()

    def run_delay() -> float | None:
        if next(calls):  # the first is made before the first sleep
            woke.set()
        return delay

    monkeypatch.setattr(worker, "_run_delay", run_delay)
    monkeypatch.setattr(worker, "CANARY_LATE_SECONDS", -1.0)
    canary = Canary(0)
    assert woke.wait(30)
    canary.close()
    assert [note.detail.get("accounted", True) for note in canary.take()] == [accounted]


def test_the_canary_gives_way_to_others_as_a_tiers_threads_do() -> None:
    done, nice = threading.Event(), threading.Event()

    def threads_of_a_tier() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # the highest: no other thread has more
        nice.set()
        done.wait(30)

    with contextlib.ExitStack() as ends:
        thread = threading.Thread(target=threads_of_a_tier)
        thread.start()
        ends.callback(thread.join)
        ends.callback(done.set)
        assert nice.wait(30)
        canary, notes = Canary(0), 0
        ends.callback(canary.close)
        (ident,) = (t.native_id for t in threading.enumerate() if t.name == "canary" and t.native_id)
        while os.getpriority(os.PRIO_PROCESS, ident) != 19 and notes < 3:  # it looks once a second
            notes += len(canary.take())
            os.sched_yield()
        assert os.getpriority(os.PRIO_PROCESS, ident) == 19
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19, "only the canary"


def test_a_worker_that_waits_for_an_order_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.01)
    parent = Parent(io.StringIO(), io.StringIO())
    parent._messages.put({"other": 1})
    waits: list[int] = []

    def idle() -> None:
        waits.append(1)
        if len(waits) == 3:
            parent._messages.put({"do": {"number": 7}})

    assert parent.receive("do", idle) == {"number": 7}
    assert len(waits) == 3
