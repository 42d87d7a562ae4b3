"""Real child processes: they start or report a reason, are killed, paused, restarted, and end with their parent."""

from __future__ import annotations

import dataclasses
import errno
import os
import queue
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.adapters.base import TierSetup
from harness.core.history import History
from harness.core.installation import ROOT as REPOSITORY
from harness.core.installation import tracing_is_installed
from harness.runtime.supervisor import Child, WorkerFailed, Workers
from harness.runtime.worker import Instruction

BROKEN = "tests.tiering.harness.broken.tiers"
END_SECONDS_MAX = 30


def instruction(tmp_path: Path, tier: str = "memory", process: int = 0, **arguments: Any) -> Instruction:
    (tmp_path / "root").mkdir(exist_ok=True)
    options = {name: arguments.pop(name) for name in ("method", "how") if name in arguments}
    setup = TierSetup(
        str(tmp_path / "root"), 4096, 8, tokens_per_block=4, process=process, run_dir=str(tmp_path), options=options
    )
    # By default the second request lies an hour ahead: the worker stays up until it is stopped.
    requests = [[0.0, 0, [0, 1, 2]], [3600.0, 1, [0]]]
    return Instruction(tier, setup, {"requests": requests, "window": 1, **arguments})


def test_a_killed_worker_leaves_its_last_output_and_a_complete_history(tmp_path: Path) -> None:
    def kill_once_it_has_worked(children: Any) -> None:
        if children[0].alive and children[0].gauges:
            children[0].kill()

    with Workers(kill_once_it_has_worked) as workers:
        child = workers.start(instruction(tmp_path, f"{BROKEN}:NeverReports"))
        workers.await_ready([child])
        workers.go([child])
        workers.wait([child])
    assert (child.state, child.exit_code) == ("dead", -signal.SIGKILL)
    history = History.read(tmp_path)
    (stop,) = history.stops
    assert stop.exit_code == -signal.SIGKILL
    assert (stop.findings, stop.outside) == ([], ""), "the harness sent it"
    assert [(j.direction, j.blocks, j.outcome, j.results) for j in history.jobs] == [("store", [0, 1, 2], "info", 0)]


def test_a_signal_from_outside_differs_from_the_tiers_own(tmp_path: Path) -> None:
    def kill_the_first(children: Any) -> None:
        if children[0].alive and children[0].gauges:
            os.kill(children[0].pid, signal.SIGKILL)

    with Workers(kill_the_first) as workers:
        kills_itself = {"method": "lookup", "how": "kill"}
        children = [
            workers.start(instruction(tmp_path, f"{BROKEN}:NeverReports")),
            workers.start(instruction(tmp_path, "tests.tiering.harness.broken.adapters:Breaks", 1, **kills_itself)),
        ]
        workers.await_ready(children)
        workers.go(children)
        workers.wait(children)
    first, second = sorted(History.read(tmp_path).stops, key=lambda stop: stop.process)
    assert (first.exit_code, second.exit_code) == (-signal.SIGKILL, -signal.SIGKILL)
    assert "SIGKILL, which neither the tier nor the harness sent" in first.outside
    assert second.outside == ""


def test_what_the_operating_system_refuses_is_no_fault_of_the_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*arguments: Any, **keywords: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with Workers() as workers:
        workers.start(instruction(tmp_path))
        monkeypatch.setattr(subprocess, "Popen", no_more)
        with pytest.raises(WorkerFailed, match="process 1 could not be started: EAGAIN") as failure:
            workers.start(instruction(tmp_path, process=1))
    assert failure.value.outside


def test_an_interrupted_start_proves_nothing_about_the_tier(tmp_path: Path) -> None:
    with Workers() as workers:
        for process in range(3):
            workers.start(instruction(tmp_path, process=process))
        workers.broken_off = "the run was interrupted"
        for child in workers.children:
            child.kill()
    history = History.read(tmp_path)
    assert len(history.stops) == 3
    assert {stop.outside for stop in history.stops} == {"the harness ended it: the run was interrupted"}


def test_a_worker_that_hangs_in_its_constructor_is_reported_with_its_stacks(tmp_path: Path) -> None:
    hangs = {"method": "constructor", "how": "hang"}
    with Workers() as workers:
        child = workers.start(instruction(tmp_path, "tests.tiering.harness.broken.adapters:Breaks", **hangs))
        workers.until(lambda: child.makes_tier)
        with pytest.raises(WorkerFailed, match=r"not ready after 1 s.*\n(.*\n)*.*broken/adapters.py") as failure:
            workers.await_ready([child], seconds=1.0)
    assert failure.value.outside
    assert child.exit_code == -signal.SIGABRT


def test_a_stopped_worker_ends_in_good_order(tmp_path: Path) -> None:
    with Workers() as workers:
        children = [workers.start(instruction(tmp_path, process=p)) for p in range(2)]
        workers.await_ready(children)
        workers.go(children)
    assert [c.exit_code for c in children] == [0, 0]
    assert sorted(s.exit_code for s in History.read(tmp_path).stops) == [0, 0]


class Clock:
    """The parent's clock: it jumps, or runs `rate` times as fast from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._began, self._ahead, self._rate = time.monotonic(), 0.0, 1.0
        for module in ("harness.runtime.supervisor", "harness.core.patience"):
            monkeypatch.setattr(f"{module}.time", self)
        self.time = time.time

    def monotonic(self) -> float:
        now = time.monotonic()
        return now + self._ahead + (now - self._began) * (self._rate - 1)

    def jump(self, seconds: float) -> None:
        self._ahead += seconds

    def run(self, rate: float) -> None:
        self._began, self._rate = time.monotonic(), rate


def test_time_in_which_the_harness_did_not_look_is_no_silence_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, stopped = Clock(monkeypatch), []

    def stop_once(children: Any) -> None:
        """As when the harness is stopped, while its workers are not."""
        if not stopped and children[0].state == "running":
            stopped.append(clock.jump(1000))

    with Workers(stop_once) as workers:
        child = workers.start(instruction(tmp_path))
        workers.await_ready([child])
        workers.go([child])
        heard = child.message_seconds
        assert workers.until(lambda: bool(stopped) and child.message_seconds > heard + 1000.1, seconds=60), (
            "its own pause does not count against a limit either"
        )
        assert child.alive
    assert child.exit_code == 0


def test_a_silent_worker_that_somebody_stopped_is_no_fault_of_the_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Workers() as workers:
        child = workers.start(instruction(tmp_path))
        workers.await_ready([child])
        workers.go([child])
        os.kill(child.pid, signal.SIGSTOP)
        clock.run(rate=200)
        workers.wait([child])
        clock.run(rate=1)
    (stop,) = History.read(tmp_path).stops
    assert "it was stopped by a signal that neither the tier nor the harness sent" in stop.outside


class NoProcess:
    """Stands for a worker's process: it records its signals."""

    def __init__(self, pid: int = 0, is_here: bool = False) -> None:
        self.pid, self.is_here, self.signals = pid, is_here, list[int]()

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def child(self, instruction: Instruction) -> Child:
        placement: Any = SimpleNamespace(start=lambda *_: self)
        return Child(instruction, queue.SimpleQueue(), {}, sys.executable, placement)


@pytest.mark.parametrize("seconds", [2, 20])
def test_a_hung_worker_is_killed_also_where_each_look_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """One long pass of the parent pardons a worker that is silent during it; many such passes do not."""
    monkeypatch.setattr("harness.runtime.supervisor.LOOK_SECONDS", 0.001)
    clock, ticks = Clock(monkeypatch), []

    def slow(_: Any) -> None:
        ticks.append(clock.jump(seconds))
        assert len(ticks) < 50, "it is never killed"

    workers, process = Workers(slow), NoProcess()
    workers.children.append(child := process.child(instruction(tmp_path)))
    child.state = "running"
    assert workers.until(lambda: signal.SIGKILL in process.signals)
    assert process.signals[0] == signal.SIGABRT, "it printed its stacks"
    ticks.clear()
    assert not Workers(slow).until(lambda: False, seconds=60), "limits end as well"


def test_workers_that_send_messages_live_where_each_look_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, ticks = Clock(monkeypatch), []

    def slow(children: Any) -> None:
        ticks.append(clock.jump(20))
        for child in children:
            workers._events.put((child, {"event": "progress", "counts": {}, "gauges": {}}))

    workers, processes = Workers(slow), [NoProcess() for _ in range(10)]
    workers.children += [process.child(instruction(tmp_path)) for process in processes]
    for child in workers.children:
        child.state = "running"
    workers.until(lambda: len(ticks) == 20)
    assert not any(process.signals for process in processes)


def test_the_pid_of_a_worker_elsewhere_names_no_process_of_this_machine(tmp_path: Path) -> None:
    stopped = subprocess.Popen(["sleep", "60"])
    try:
        stopped.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        for is_here in (True, False):
            assert NoProcess(stopped.pid, is_here).child(instruction(tmp_path)).was_stopped_by_others() == is_here
    finally:
        stopped.kill()
        stopped.wait()


def test_an_error_in_the_block_leaves_no_child(tmp_path: Path) -> None:
    children = []

    def fall_over() -> None:
        with Workers() as workers:
            children.extend(workers.start(instruction(tmp_path, process=p)) for p in range(2))
            workers.await_ready(children)
            raise RuntimeError("the scenario fell over")

    with pytest.raises(RuntimeError):
        fall_over()
    assert not any(psutil.pid_exists(child.pid) for child in children)


def test_a_tier_that_refuses_is_quoted_in_one_sentence(tmp_path: Path) -> None:
    with Workers() as workers:
        child = workers.start(instruction(tmp_path, f"{BROKEN}:Refuses"))
        with pytest.raises(WorkerFailed, match="process 0 did not come up: block_bytes is 4096") as failure:
            workers.await_ready([child])
    assert "\n" not in str(failure.value)


def test_a_worker_that_dies_at_its_start_is_reported_with_its_last_output(tmp_path: Path) -> None:
    with Workers() as workers:
        child = workers.start(instruction(tmp_path, f"{BROKEN}:Exits"))
        with pytest.raises(WorkerFailed, match=r"ended with exit code 3\ngoodbye cruel world"):
            workers.await_ready([child])


def test_a_restart_is_the_next_incarnation_with_job_ids_of_its_own(tmp_path: Path) -> None:
    with Workers() as workers:
        first = workers.start(instruction(tmp_path, requests=[[0.0, 0, [0, 1, 2]]]))
        workers.await_ready([first])
        workers.go([first])
        workers.wait([first])
        second = workers.restart(first, {"KVTIER_TEST": "7"})
        workers.await_ready([second])
        assert psutil.Process(second.pid).environ()["KVTIER_TEST"] == "7"
        workers.go([second])
        workers.wait([second])
    history = History.read(tmp_path)
    assert sorted((s.incarnation, s.pid) for s in history.starts) == [(0, first.pid), (1, second.pid)]
    assert len({j.job_id for j in history.jobs}) == len(history.jobs) == 2
    assert (tmp_path / "history-0.1.jsonl").exists()


def test_all_files_of_a_process_carry_its_label(tmp_path: Path) -> None:
    """Also those that the tier's adapter writes: final metrics, windows, and spans where tracing is installed."""
    watched = instruction(tmp_path, "kvtier", requests=[[0.0, 0, [0, 1, 2]]])
    setup = dataclasses.replace(watched.setup, serve_metrics=True, trace_every=1, watch_windows=0.05)
    with Workers() as workers:
        first = workers.start(dataclasses.replace(watched, setup=setup))
        workers.await_ready([first])
        workers.go([first])
        workers.wait([first])
        second = workers.restart(first)
        workers.await_ready([second])
        workers.go([second])
        workers.wait([second])
    kinds = ["history-{}.jsonl", "stderr-{}.txt", "metrics-{}.openmetrics", "windows-{}.json"]
    kinds += ["spans-{}.jsonl"] * tracing_is_installed()
    named = {kind.format(label) for kind in kinds for label in ("0", "0.1")}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == named | {"file_sd.json"}


def test_the_environment_of_each_child_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTIER_TEST", "3")
    environments: list[dict[str, str | None]] = [{}, {"KVTIER_TEST": "0"}, {"KVTIER_TEST": None}]
    with Workers() as workers:
        children = [workers.start(instruction(tmp_path, process=p), env) for p, env in enumerate(environments)]
        workers.await_ready(children)
        seen = [psutil.Process(child.pid).environ().get("KVTIER_TEST") for child in children]
    assert seen == ["3", "0", None]


def test_a_paused_worker_does_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    with Workers() as workers:
        child = workers.start(instruction(tmp_path, requests=[[0.0, 0, [0]]]))
        workers.await_ready([child])
        child.pause()
        workers.go([child])
        workers.wait([child], seconds=0.5)
        assert child.state == "running"
        assert psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
        child.resume()
        workers.wait([child])
        assert child.state == "done"


@pytest.mark.parametrize("started", [False, True])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, started: bool) -> None:
    script = f"""
        import sys, pathlib
        sys.path.insert(0, {str(REPOSITORY)!r})
        from harness.runtime.supervisor import Workers
        from harness.runtime.worker import Instruction
        with Workers() as workers:
            child = workers.start(Instruction.from_json(sys.stdin.readline()))
            workers.await_ready([child])
            if {started}:
                workers.go([child])
            print(child.pid, flush=True)
            workers.wait([child])
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(instruction(tmp_path).to_json() + "\n")
        parent.stdin.flush()
        worker = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            parent.wait()
            assert select.select([worker], [], [], END_SECONDS_MAX)[0], "the worker outlived its parent"
        finally:
            os.close(worker)
    assert History.read(tmp_path).stops[0].exit_code == 0
