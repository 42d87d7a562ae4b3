"""The schedule under generated arrivals and a clock of its own, and the pool with real threads."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.events import Direction
from kvtier.fs.thread_pool import OTHER, READ_NICE_OFFSET, Cancelled, DualQueue, DualQueueThreadPool, Task

BLOCK = 4096
DIRECTIONS: tuple[Direction, ...] = ("load", "store")


@dataclass
class Simulation:
    """Threads and clock for a `DualQueue`: a woken thread takes at once, a task lasts as long as it states."""

    queue: DualQueue
    now: float = 0.0
    busy: list[tuple[float, Direction]] = field(default_factory=list)
    starts: list[tuple[Task, float, Direction]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue.idle.update(self.queue.threads)

    def take(self, group: Direction) -> None:
        task = self.queue.pop(group)
        if task is None:
            self.queue.idle[group] += 1
            return
        self.starts.append((task, self.now, group))
        self.busy.append((self.now + task.run(), group))

    def run_until(self, then: float) -> None:
        while self.busy and min(self.busy)[0] <= then:
            self.now, group = min(self.busy)
            self.busy.remove((self.now, group))
            self.take(group)
        self.now = max(self.now, then) if math.isfinite(then) else self.now

    def arrive(self, direction: Direction, service: float) -> None:
        depth = len(self.queue.tasks[direction])
        group = self.queue.push(Task(None, 0, lambda: service, direction, BLOCK, depth, self.now))
        if group is not None:
            self.take(group)


ARRIVALS = st.lists(
    st.tuples(st.sampled_from(DIRECTIONS), st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=120
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), ARRIVALS)
def test_schedule(n_read: int, n_write: int, arrivals: list[tuple[Direction, int, int]]) -> None:
    """FIFO in class, own class first, work-conserving, everything served, overtaking and waiting bounded."""
    simulation = Simulation(DualQueue(n_read, n_write))
    for direction, gap, service in arrivals:
        simulation.run_until(simulation.now + gap)
        simulation.arrive(direction, service)
        waiting = sum(map(len, simulation.queue.tasks.values()))
        idle = sum(simulation.queue.idle.values())
        assert not (waiting and idle), "work-conserving: nothing waits while a thread of either group is idle"
    simulation.run_until(math.inf)

    starts = simulation.starts
    assert len(starts) == len(arrivals)
    longest = max(service for _, _, service in arrivals)
    for direction in DIRECTIONS:
        mine = [(task, at) for task, at, _ in starts if task.direction == direction]
        assert [task.enqueued_seconds for task, _ in mine] == sorted(task.enqueued_seconds for task, _ in mine)
        threads = simulation.queue.threads[direction]
        for task, started in mine:
            bound = math.ceil((task.depth + 1) / threads) * longest
            assert started - task.enqueued_seconds <= bound
            overtakers = [
                group
                for other, at, group in starts
                if other.direction != direction and task.enqueued_seconds < at < started
            ]
            assert direction not in overtakers, "a group never takes the other class while its own waits"
            assert len(overtakers) <= simulation.queue.threads[OTHER[direction]] * (bound + 1)


def make_pool(n_read: int = 2, n_write: int = 2, **options: Any) -> DualQueueThreadPool:
    return DualQueueThreadPool(DualQueue(n_read, n_write), **options)


class Gate:
    """A task that waits until the test opens it; `entered` counts threads inside."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self) -> str:
        self.entered.release()
        assert self.open.wait(30)
        return "passed"


@pytest.fixture
def pool() -> Any:
    pool = make_pool()
    yield pool
    pool.shutdown()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_job_gets_one_completion_with_results_in_order(pool: DualQueueThreadPool, direction: Direction) -> None:
    for job_id in range(50):
        pool.submit(job_id, direction, [(lambda i=i: i * i, BLOCK) for i in range(job_id % 7)])  # type: ignore[misc]
    assert pool.wait_idle(30)
    finished = {c.job_id: c for c in pool.get_finished()}
    assert sorted(finished) == list(range(50))
    for job_id, completion in finished.items():
        assert completion.results == tuple(i * i for i in range(job_id % 7))
        assert len(completion.facts) == job_id % 7
        for fact in completion.facts:
            assert fact.enqueued_seconds <= fact.started_seconds <= fact.finished_seconds
    assert pool.get_finished() == []


def test_a_raising_task_fails_alone(pool: DualQueueThreadPool) -> None:
    def bad() -> None:
        raise ValueError("bad block")

    pool.submit(1, "store", [(lambda: "a", BLOCK), (bad, BLOCK), (lambda: "c", BLOCK)])
    assert pool.wait_idle(30)
    first, second, third = pool.get_finished()[0].results
    assert (first, third) == ("a", "c")
    assert isinstance(second, ValueError)


@pytest.mark.parametrize("hung", DIRECTIONS)
def test_a_hung_class_does_not_stop_the_other(hung: Direction) -> None:
    """All threads may take hung tasks of one class except those that the other class keeps busy: with a hung task on
    every thread of its own group, the other class still runs on the other group's threads."""
    pool, gate = make_pool(1, 1), Gate()
    pool.submit(1, hung, [(gate, BLOCK)])
    assert gate.entered.acquire(timeout=30)
    pool.submit(2, OTHER[hung], [(lambda: "ran", BLOCK)] * 20)
    while not (finished := pool.get_finished()):
        assert not gate.open.is_set()
        threading.Event().wait(0.001)
    assert finished[0].job_id == 2
    gate.open.set()
    pool.shutdown()


class Pipe:
    """Tasks that hang in a real read until as many bytes are written."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def __call__(self) -> bytes:
        return os.read(self.reader, 1)

    def let_go(self, tasks: int) -> None:
        os.write(self.writer, bytes(tasks))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


def collect(pool: DualQueueThreadPool, jobs: int) -> dict[int, tuple[Any, ...]]:
    """Results by job, as soon as there are so many; hung threads are replaced during this."""
    results: dict[int, tuple[Any, ...]] = {}
    deadline = time.monotonic() + 30
    while len(results) < jobs:
        results |= {c.job_id: c.results for c in pool.get_finished()}
        assert time.monotonic() < deadline, results
        threading.Event().wait(0.001)
    return results


def lost(pool: DualQueueThreadPool) -> tuple[float, float]:
    gauges = pool.gauges()
    return gauges["load_threads_hung"], gauges["store_threads_hung"]


def threads_of(pool: DualQueueThreadPool) -> int:
    return sum(thread.is_alive() for thread in pool._threads)


@pytest.mark.parametrize("hung", DIRECTIONS)
def test_calls_that_hang_on_all_threads_do_not_take_any_class_down(hung: Direction, pipe: Pipe) -> None:
    pool = make_pool(2, 1, hung_seconds=0.02)
    pool.submit(1, hung, [(pipe, BLOCK)] * 3)
    pool.submit(2, hung, [(lambda: "ran", BLOCK)] * 5)
    pool.submit(3, OTHER[hung], [(lambda: "ran", BLOCK)] * 5)
    assert collect(pool, 2) == {2: ("ran",) * 5, 3: ("ran",) * 5}, "and none for the job that hangs"
    assert sum(lost(pool)) >= 1
    assert pool.gauges()[f"{hung}_running_oldest_seconds"] > 0.02
    pipe.let_go(3)
    assert collect(pool, 1) == {1: (b"\0",) * 3}
    pool.submit(4, hung, [(lambda: "ran", BLOCK)] * 9)
    collect(pool, 1)
    assert lost(pool) == (0, 0)
    pool.shutdown()


def test_a_hung_thread_is_replaced_without_a_poll(pipe: Pipe) -> None:
    """An engine that waits in `drain_jobs`, or that is idle, polls nothing."""
    before = set(threading.enumerate())
    pool, ran = make_pool(1, 1, hung_seconds=0.02), threading.Event()
    pool.submit(1, "load", [(pipe, BLOCK)] * 2)
    pool.submit(2, "load", [(ran.set, BLOCK)])
    assert ran.wait(30)
    assert re.search(r": loads 0 queued, [23] running, .*; 1\+1 threads, [12] hung; [12] jobs in flight>", repr(pool))
    pipe.let_go(2)
    assert pool.wait_idle(30)
    pool.shutdown()
    assert set(threading.enumerate()) <= before


def test_a_thread_that_cannot_be_started_is_started_later(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool, ran, refused = make_pool(1, 1, hung_seconds=0.02), threading.Event(), threading.Event()

    def refuse(*_: object) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        pool.submit(1, "load", [(pipe, BLOCK)] * 2)
        pool.submit(2, "load", [(ran.set, BLOCK)])
        assert refused.wait(30)
    assert ran.wait(30)
    pipe.let_go(2)
    assert pool.wait_idle(30)
    pool.shutdown()
    assert "a hung thread cannot be replaced (can't start new thread)" in caplog.text


def test_no_more_threads_are_replaced_than_a_group_has_and_those_that_come_back_end(pipe: Pipe) -> None:
    """Every thread and every replacement hangs: the pool has twice its threads and no more, and as many as at first
    when all have come back."""
    pool = make_pool(2, 1, hung_seconds=0.02)
    pool.submit(1, "load", [(pipe, BLOCK)] * 20)
    deadline = time.monotonic() + 30
    while pool.gauges()["load_running"] < 6:
        assert pool.get_finished() == []
        assert time.monotonic() < deadline
    looks_end = time.monotonic() + 0.1  # five times what would lose another
    while time.monotonic() < looks_end:
        assert pool.get_finished() == []
    assert (threads_of(pool), lost(pool), pool.gauges()["load_queue"]) == (6, (2, 1), 14)
    pipe.let_go(20)
    assert collect(pool, 1) == {1: (b"\0",) * 20}
    while threads_of(pool) > 3:
        assert time.monotonic() < deadline
    assert lost(pool) == (0, 0)
    pool.submit(2, "store", [(lambda: "ran", BLOCK)] * 9)
    assert collect(pool, 1) == {2: ("ran",) * 9}
    pool.shutdown()
    assert threads_of(pool) == 0


def test_a_large_job_uses_all_threads() -> None:
    pool, gate = make_pool(3, 2), Gate()
    pool.submit(1, "load", [(gate, BLOCK)] * 5)
    for _ in range(5):
        assert gate.entered.acquire(timeout=30), "five threads, five tasks of one job: all at once"
    assert pool.gauges()["load_threads_busy"] == 3
    assert pool.gauges()["store_threads_busy"] == 2
    gate.open.set()
    pool.shutdown()


def test_shutdown_gives_each_job_its_result() -> None:
    pool, gate = make_pool(1, 1), Gate()
    pool.submit(0, "load", [(gate, BLOCK)] * 2)
    for _ in range(2):
        assert gate.entered.acquire(timeout=30)
    for job_id in range(1, 9):
        pool.submit(job_id, DIRECTIONS[job_id % 2], [(lambda: "never", BLOCK)] * 3)
    stopper = threading.Thread(target=pool.shutdown)
    stopper.start()
    gate.open.set()
    stopper.join(30)
    pool.submit(9, "load", [(lambda: "never", BLOCK)])
    results = {c.job_id: c.results for c in pool.get_finished()}
    assert sorted(results) == list(range(10))
    assert results[0] == ("passed", "passed")
    for job_id in range(1, 10):
        assert all(isinstance(result, Cancelled) for result in results[job_id])
    assert pool.wait_idle(0)


def test_oldest_waiter_ages_and_queues_empty() -> None:
    pool, gate = make_pool(1, 1), Gate()
    pool.submit(0, "load", [(gate, BLOCK)] * 2)
    for _ in range(2):
        assert gate.entered.acquire(timeout=30)
    pool.submit(1, "store", [(lambda: None, BLOCK)])
    first = pool.gauges()
    second = pool.gauges()
    assert 0 < first["store_oldest_seconds"] < second["store_oldest_seconds"]
    assert first["store_queue"] == 1
    assert first["load_oldest_seconds"] == 0
    gate.open.set()
    pool.shutdown()


def test_no_wake_up_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task wakes at most one thread: among 32 idle threads, n single-task jobs cause at most n wake-ups."""
    wakes = 0
    original: Callable[..., Any] = threading.Condition.notify

    def counting(self: threading.Condition, n: int = 1) -> Any:
        nonlocal wakes
        wakes += n
        return original(self, n)

    pool = make_pool(16, 16)
    monkeypatch.setattr(threading.Condition, "notify", counting)
    for job_id in range(40):
        pool.submit(job_id, "load", [(lambda: None, BLOCK)])
    assert pool.wait_idle(30)
    monkeypatch.undo()
    assert wakes <= 40 + 40  # one for each task, and at most one `all done` for each job
    pool.shutdown()


def test_blocked_threads_wake_for_work_that_arrives_one_by_one() -> None:
    """No lost wake-up: each of many hand-overs to an idle pool is taken up."""
    pool = make_pool(2, 2)
    for job_id in range(500):
        pool.submit(job_id, DIRECTIONS[job_id % 2], [(lambda: None, BLOCK)])
        assert pool.wait_idle(30), f"hand-over {job_id} was lost"
    pool.shutdown()


def test_a_sandbox_that_refuses_priorities_does_not_end_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "setpriority", refused)
    pool = make_pool(1, 1, thread_nice=3)
    pool.submit(1, "store", [(lambda: "done", 1)])
    pool.wait_idle()
    assert [completion.results for completion in pool.get_finished()] == [("done",)]
    pool.shutdown()


def test_threads_have_lower_priority_than_their_process_and_those_that_prefer_loads_most() -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    pool = make_pool(2, 2, thread_nice=3)
    all_run = threading.Barrier(4)

    def own_priority() -> int:
        all_run.wait(30)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    pool.submit(1, "load", [(own_priority, 1)] * 4)
    assert pool.wait_idle(30)
    (completion,) = pool.get_finished()
    of_stores, of_loads = min(19, mine + 3), min(19, mine + 3 + READ_NICE_OFFSET)
    assert sorted(completion.results) == [of_stores, of_stores, of_loads, of_loads]
    assert os.getpriority(os.PRIO_PROCESS, threading.main_thread().native_id or 0) == mine
    pool.shutdown()


def test_a_submit_does_not_stand_in_line_behind_the_threads() -> None:
    """Threads that give Python's lock away in each task, as those do that read files, form a line at any lock of
    theirs: each that gets it waits for Python's before it goes on. Who submits may wait for Python's lock, but not in
    that line: `sleep(0)`, which takes Python's lock once, is the measure. (In the line: 15 times as long.)"""
    block = bytes(1 << 16)

    def task() -> None:
        for _ in range(4):
            hashlib.sha256(block)
            sum(range(2000))

    pool = make_pool(16, 16)
    for job_id in range(400):  # the line forms while these arrive, and stays
        pool.submit(job_id, "load", [(task, 1)] * 32)
    asked = submitted = 0.0
    for job_id in range(400, 500):
        before = time.perf_counter()
        time.sleep(0)
        began = time.perf_counter()
        pool.submit(job_id, "store", [(task, 1)])
        ended = time.perf_counter()
        asked, submitted = asked + began - before, submitted + ended - began
    assert pool.gauges()["load_queue"] > 0, "the threads had nothing to do, so nothing was measured"
    pool.shutdown()
    assert submitted < asked
