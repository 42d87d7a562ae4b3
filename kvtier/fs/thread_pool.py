"""`DualQueueThreadPool`: two queues and two groups of threads, so that neither direction starves. It knows no tier.

Threads of a group take tasks of their own direction first, and of the other only while their own queue is empty. So
while a load waits, each read-priority thread that becomes free takes a load. A load with d loads ahead of it waits for
at most ceil((d + 1) / n_read_threads) turns of those threads, and each turn is one task, bounded in bytes. The same
holds for stores with the groups exchanged. docs/starvation-bound.md derives it.

A thread whose task runs for longer than `hung_seconds` is hung: a watchdog thread starts another of its group in its
place, at most as many at a time as the group has threads. A hung thread ends once its task has ended. Its job has no
result until then, so that its memory is not reused while a late transfer may still reach it.

One thread calls the pool. Its own threads touch only the queues and what a task closes over. No I/O under the lock.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kvtier.background import BackgroundThreads
from kvtier.events import Direction, TaskFact

logger = logging.getLogger(__name__)

LOOKS = 8
"""How often in `hung_seconds` the watchdog looks for hung threads."""
READ_NICE_OFFSET = 3
"""The nice offset of read-priority threads above write-priority ones. A store sleeps on the device and needs a core for
moments. Loads from memory keep every core busy, and those of many processes would leave none to a store."""

OTHER: Mapping[Direction, Direction] = {"load": "store", "store": "load"}

Work = tuple[Callable[[], Any], int]
"""What to run on some thread, and the bytes it moves."""


class Cancelled(Exception):
    """Stands where a task's result would be, with the reason: the task was taken from the queue and never ran."""


class Completion(NamedTuple):
    """A job's end. `results[i]` is what task i returned, or the exception that stood in its way; `facts` has one entry
    per task that ran, in the order in which they ended."""

    job_id: int
    direction: Direction
    results: tuple[Any, ...]
    facts: tuple[TaskFact, ...]


class _Job:
    __slots__ = ("direction", "facts", "job_id", "pending", "results")

    def __init__(self, job_id: int, direction: Direction, tasks: int) -> None:
        self.job_id = job_id
        self.direction = direction
        self.pending = tasks
        self.results: list[Any] = [None] * tasks
        self.facts: list[TaskFact] = []


class Task(NamedTuple):
    """A queued piece of a job: its position in the job, and the state of its queue when it was enqueued."""

    job: Any
    position: int
    run: Callable[[], Any]
    direction: Direction
    bytes: int
    depth: int
    enqueued_seconds: float


class DualQueue:
    """The schedule itself, without threads or clock: which group takes which task, and which group a new task wakes.

    Not thread-safe: the pool calls it under its lock, tests call it with a clock of their own.
    """

    def __init__(self, n_read_threads: int, n_write_threads: int) -> None:
        self.threads: Mapping[Direction, int] = {"load": n_read_threads, "store": n_write_threads}
        self.tasks: Mapping[Direction, deque[Task]] = {"load": deque(), "store": deque()}
        self.bytes: dict[Direction, int] = {"load": 0, "store": 0}
        self.idle: dict[Direction, int] = {"load": 0, "store": 0}  # waiting threads that no task has woken yet

    def push(self, task: Task) -> Direction | None:
        """Enqueue; returns the group of which one idle thread must be woken (its own first), None when none is idle."""
        self.tasks[task.direction].append(task)
        self.bytes[task.direction] += task.bytes
        for group in (task.direction, OTHER[task.direction]):
            if self.idle[group]:
                self.idle[group] -= 1
                return group
        return None

    def pop(self, group: Direction) -> Task | None:
        """The next task for a thread of `group`: the oldest of its own direction, else of the other, else None."""
        for direction in (group, OTHER[group]):
            if self.tasks[direction]:
                task = self.tasks[direction].popleft()
                self.bytes[direction] -= task.bytes
                return task
        return None


class DualQueueThreadPool:
    """Runs jobs of tasks on the read-priority and write-priority threads that `queue` is made for (each >= 1).

    Nothing is refused: the caller bounds what it submits. The write-priority threads have a nice value above the
    process's by `thread_nice`, the read-priority ones by `READ_NICE_OFFSET` more, so that an engine's own threads get
    the cores first.
    """

    def __init__(
        self,
        queue: DualQueue,
        thread_name_prefix: str = "kvtier",
        hung_seconds: float = math.inf,
        thread_nice: int = 0,
        background: BackgroundThreads | None = None,
    ) -> None:
        assert min(queue.threads.values()) >= 1, queue.threads
        assert hung_seconds > 0, hung_seconds
        self._queue = queue
        self._lock = threading.Lock()
        # Only the thread that holds the turnstile waits for the lock. Without it a lock convoy forms: all threads wait
        # for the lock, its holder for Python's own lock, and the caller of `submit` behind them.
        self._turnstile = threading.Lock()
        # A condition per group, so that a task wakes exactly the one thread that will take it.
        self._wake = {direction: threading.Condition(self._lock) for direction in OTHER}
        self._all_done = threading.Condition(self._lock)
        self._jobs_in_flight = 0
        self._running: dict[int, tuple[Direction, Direction, float]] = {}  # by thread: group, task's direction, start
        self._stopping = False
        self._finished: deque[Completion] = deque()
        self._hung_seconds = hung_seconds
        self._thread_nice = thread_nice
        self._hung: dict[int, Direction] = {}  # replaced threads whose task still runs: their group
        self._thread_name_prefix, self._numbers = thread_name_prefix, itertools.count()
        self._background = background or BackgroundThreads()
        self._thread_died = False
        self._threads: list[threading.Thread] = []
        for group, threads in self._queue.threads.items():
            for _ in range(threads):
                self._start_thread(group)
        self._ended = threading.Event()
        self._watchdog = None
        if hung_seconds < math.inf:
            self._watchdog = self._background.start("watchdog", f"{thread_name_prefix}_watchdog", self._watch)

    def __repr__(self) -> str:
        """A status line; takes no lock, so the numbers may be of different moments."""
        tasks, running = self._queue.tasks, list(self._running.values())
        parts = (
            f"{direction}s {len(tasks[direction])} queued, {sum(ours == direction for _, ours, _ in running)} running"
            for direction in OTHER
        )
        threads = f"{self._queue.threads['load']}+{self._queue.threads['store']} threads, {len(self._hung)} hung"
        return f"<DualQueueThreadPool: {', '.join(parts)}; {threads}; {self._jobs_in_flight} jobs in flight>"

    def _start_thread(self, group: Direction) -> None:
        number = next(self._numbers)
        name, work = f"{self._thread_name_prefix}_{group}_{number}", functools.partial(self._work, group, number)
        self._threads.append(self._background.start(group, name, work, self._on_death))

    def _on_death(self) -> None:
        with self._lock:
            self._thread_died = True
            self._all_done.notify_all()

    def submit(self, job_id: int, direction: Direction, works: Sequence[Work]) -> None:
        """Enqueue a job and return at once. Exactly one `Completion` will follow, also for a job without tasks, or one
        that a shutdown overtakes."""
        job = _Job(job_id, direction, len(works))
        with self._lock:
            self._jobs_in_flight += 1
            if self._stopping:
                job.results = [Cancelled("shutdown")] * len(works)
            if self._stopping or not works:
                self._complete(job)
                return
            now = time.monotonic()
            for index, (run, task_bytes) in enumerate(works):
                depth = len(self._queue.tasks[direction])
                group = self._queue.push(Task(job, index, run, direction, task_bytes, depth, now))
                if group is not None:
                    self._wake[group].notify()

    def get_finished(self) -> list[Completion]:
        """Completions since the last call, in the order in which jobs ended. Takes no lock: one caller, atomic pops."""
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def _watch(self) -> None:
        while not self._ended.wait(self._hung_seconds / LOOKS):
            with self._lock:
                try:
                    self._replace_hung(time.monotonic())
                except RuntimeError as error:  # no more threads may be started: tried again at the next look
                    logger.warning("a hung thread cannot be replaced (%s); raise the limit of threads", error)

    def _replace_hung(self, now: float) -> None:
        for thread, (group, direction, since) in self._running.items():
            hung = sum(other == group for other in self._hung.values())
            if thread not in self._hung and now - since > self._hung_seconds and hung < self._queue.threads[group]:
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                self._start_thread(group)
                self._hung[thread] = group
                age = now - since
                logger.debug("thread %d (%s) replaced: its %s task runs for %.1f s", thread, group, direction, age)

    def queued_bytes(self, direction: Direction) -> int:
        """Bytes of one direction that no thread has taken yet."""
        return self._queue.bytes[direction]

    def oldest_seconds(self, direction: Direction) -> float:
        """How long the oldest task of one direction has waited; 0 when there is none."""
        try:
            return time.monotonic() - self._queue.tasks[direction][0].enqueued_seconds
        except IndexError:
            return 0.0

    def cancel_newest(self, direction: Direction, bytes_max: int, reason: str) -> None:
        """Cancel queued tasks of one direction, the newest first, until no more than `bytes_max` wait."""
        with self._lock:
            self._cancel_newest(direction, bytes_max, reason)

    def _cancel_newest(self, direction: Direction, bytes_max: int, reason: str) -> None:
        tasks, waiting = self._queue.tasks[direction], self._queue.bytes
        while tasks and waiting[direction] > bytes_max:
            task = tasks.pop()
            waiting[direction] -= task.bytes
            self._record(task, Cancelled(reason))

    def idle_threads(self) -> int:
        """Threads that wait for a task."""
        return sum(self._queue.idle.values())

    def wait_idle(self, timeout_seconds: float | None = None) -> bool:
        """Block until no job is in flight; False when the time ran out, or a thread has died, whose job may not end."""
        with self._lock:
            self._all_done.wait_for(lambda: self._jobs_in_flight == 0 or self._thread_died, timeout_seconds)
            return self._jobs_in_flight == 0

    def gauges(self) -> dict[str, float]:
        """Tasks and bytes queued, age of the oldest, tasks running, age of the oldest, by direction; threads busy (hung
        ones too) and hung, by group."""
        now = time.monotonic()
        values: dict[str, float] = {}
        with self._lock:
            for direction, tasks in self._queue.tasks.items():
                values[f"{direction}_queue"] = len(tasks)
                values[f"{direction}_queue_bytes"] = self._queue.bytes[direction]
                values[f"{direction}_oldest_seconds"] = now - tasks[0].enqueued_seconds if tasks else 0.0
                running = [since for _, ours, since in self._running.values() if ours == direction]
                values[f"{direction}_running"] = len(running)
                values[f"{direction}_running_oldest_seconds"] = now - min(running) if running else 0.0
                values[f"{direction}_threads_busy"] = sum(group == direction for group, _, _ in self._running.values())
                values[f"{direction}_threads_hung"] = sum(group == direction for group in self._hung.values())
        return values

    def shutdown(self) -> None:
        """Cancel what is queued, let running tasks end, join all threads. Every job has its `Completion` afterwards."""
        with self._lock:
            self._stopping = True
            for direction in OTHER:
                self._cancel_newest(direction, -1, "shutdown")
            for condition in self._wake.values():
                condition.notify_all()
        self._ended.set()
        if self._watchdog:
            self._watchdog.join()
        for thread in self._threads:
            thread.join()

    def _work(self, group: Direction, thread: int) -> None:
        try:
            nice = os.getpriority(os.PRIO_PROCESS, 0) + self._thread_nice + (READ_NICE_OFFSET if group == "load" else 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)  # of this thread alone, on Linux
        except OSError as error:  # a sandbox may refuse it; the tier works without it
            logger.debug("thread_nice has no effect: %s", error)
        queue, wake = self._queue, self._wake[group]
        task: Task | None = None
        result: Any = None
        while True:
            with self._turnstile:
                self._lock.acquire()
            try:
                if task is not None:
                    del self._running[thread]
                    self._record(task, result)
                    if self._hung.pop(thread, None):
                        return  # it was replaced
                while (task := queue.pop(group)) is None:
                    if self._stopping:
                        return
                    queue.idle[group] += 1  # `push` takes it back
                    wake.wait()
                started = time.monotonic()  # under the lock: the order of starts is the order of the schedule
                self._running[thread] = group, task.direction, started
            finally:
                self._lock.release()
            try:
                result = task.run()
            except BaseException as error:
                result = error
            ended = time.monotonic()
            queued = task.direction, group, thread, task.bytes, task.depth, task.enqueued_seconds
            # A list's append is atomic, and the job's last task is recorded before it is read.
            task.job.facts.append(TaskFact(*queued, started, ended))

    def _record(self, task: Task, result: Any) -> None:
        job = task.job
        job.results[task.position] = result
        job.pending -= 1
        if job.pending == 0:
            self._complete(job)

    def _complete(self, job: _Job) -> None:
        self._finished.append(Completion(job.job_id, job.direction, tuple(job.results), tuple(job.facts)))
        self._jobs_in_flight -= 1
        if self._jobs_in_flight == 0:
            self._all_done.notify_all()
