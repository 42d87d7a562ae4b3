"""One process of a run, `python -m harness.runtime.worker`: drives one adapter and records what happens.

`supervisor` starts it and exchanges JSON lines with it. In: the instruction, then {"go": monotonic seconds},
{"stop": true}, or a message of its driver. Out: {"event": "ready" | "progress" | "done" | ...}. It judges nothing. When
stdin closes, because its parent ended, it stops as after {"stop": true}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import faulthandler
import importlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TextIO, TypeVar

import psutil

from harness.adapters import adapter_class
from harness.adapters.base import TierSetup
from harness.adapters.metric_meanings import scrape
from harness.core import notes
from harness.core.history import Gauge, HistoryLost, HistoryWriter, Note, Record, Start, Stop, in_words, note_of
from harness.core.run_files import process_label
from harness.runtime.process import claim_stdout

T = TypeVar("T")

SAMPLE_SECONDS = 0.02
"""Interval between samples of the tier's gauges. The parent receives their peaks between two records."""
GAUGE_SECONDS = 0.2
PROGRESS_SECONDS = 0.25
IDLE_SECONDS = 2.0
CANARY_SLEEP_SECONDS = 0.01
CANARY_LATE_SECONDS = 0.001
FDS_COUNTED_MAX = 1 << 16
ORPHAN_SECONDS_MAX = 10.0
"""A worker whose parent has ended is killed after this time."""
EXIT_BROKEN = 70
"""The tier or the driver raised an exception, which is in the history and on stderr."""
EXIT_IO = 74
"""The history could not be written."""


@dataclass(frozen=True)
class Instruction:
    """What a worker runs. `driver` names a module of `harness.drivers`; `arguments` are its keywords."""

    tier: str
    setup: TierSetup
    arguments: dict[str, Any] = field(default_factory=dict)
    driver: str = "replay"
    incarnation: int = 0

    @property
    def label(self) -> str:
        """Names this process in the run's files: "3", or "3.1" after its first restart."""
        return process_label(self.setup.process, self.incarnation)

    @property
    def history_path(self) -> Path:
        return Path(self.setup.run_dir) / f"history-{self.label}.jsonl"

    @property
    def stderr_name(self) -> str:
        return f"stderr-{self.label}.txt"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Instruction:
        values = json.loads(line)
        return cls(**{**values, "setup": TierSetup(**values["setup"])})


class Canary:
    """Measures scheduling noise: how late a thread of this process wakes up from a sleep of 10 ms.

    The thread takes the highest nice value of the process, because such a thread wakes up latest on a busy machine.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._notes: deque[Note] = deque(maxlen=1024)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        late: list[float] = []
        latest: list[tuple[float, float, float]] = []
        since, delay = time.monotonic(), _run_delay()
        accounted = delay is not None
        while True:
            before = time.monotonic()
            stopped = self._stop.wait(CANARY_SLEEP_SECONDS)
            now = time.monotonic()
            if not stopped:
                late.append(max(0.0, now - before - CANARY_SLEEP_SECONDS))
                if late[-1] > CANARY_LATE_SECONDS:
                    before_delay, delay = delay, _run_delay()
                    without_cpu = (delay or 0.0) - (before_delay or 0.0)
                    latest.append((now, round(late[-1], 6), round(min(late[-1], without_cpu), 6)))
            if late and (stopped or now - since >= 1.0):
                canary = notes.Canary(max(late), median(late), latest, accounted)
                self._notes.append(note_of(self._process, now, canary, "latest wake-up of this second"))
                late, latest, since, delay = [], [], now, _run_delay()
                _take_highest_nice_value()
            if stopped:
                return

    def take(self) -> list[Note]:
        """Notes since the last call."""
        return [self._notes.popleft() for _ in range(len(self._notes))]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _run_delay() -> float | None:
    """Seconds that this thread has been runnable without a CPU; None where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ran, waited, times = map(int, Path("/proc/thread-self/schedstat").read_bytes().split())
        return waited / 1e9 if ran or times else None  # zeros: it does not count
    return None


def _take_highest_nice_value() -> None:
    nice = []
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:  # no descriptor is free at present
        return
    for thread in threads:
        with contextlib.suppress(OSError):  # it has just ended
            nice.append(os.getpriority(os.PRIO_PROCESS, int(thread)))
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(nice))


class Parent:
    """The parent, at the other end of stdin and stdout. Its messages are queued until the driver takes them."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self._source, self._sink = source, sink
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.stop = threading.Event()

    def instruction(self) -> Instruction:
        instruction = Instruction.from_json(self._source.readline())
        threading.Thread(target=self._listen, name="parent", daemon=True).start()
        return instruction

    def _listen(self) -> None:
        for line in self._source:
            message = json.loads(line)
            if message.get("stop"):
                self.stop.set()
            self._messages.put(message)
        self.stop.set()
        self._messages.put({"stop": True})
        time.sleep(ORPHAN_SECONDS_MAX)  # by then the process has usually ended, and this thread with it
        os._exit(EXIT_BROKEN)

    def send(self, event: str, **values: Any) -> None:
        try:
            self._sink.write(json.dumps({"event": event, **values}, separators=(",", ":")) + "\n")
            self._sink.flush()
        except BrokenPipeError:
            self.stop.set()

    def received(self, name: str) -> bool:
        """Whether a message that has `name` has come; others before it are dropped."""
        while not self._messages.empty():
            if name in self._messages.get():
                return True
        return False

    def receive(self, name: str, idle: Callable[[], None] = lambda: None) -> Any:
        """Wait for a message that has `name`, and return its value; None after {"stop"}. Others are dropped. `idle` is
        called every few seconds of waiting, so that a worker without an order need not seem to hang."""
        while not self.stop.is_set():
            try:
                message = self._messages.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                idle()
                continue
            if name in message:
                return message[name]
        return None


class Worker:
    """A driver's surroundings: the adapter, the history, the parent, and counts.

    A driver calls `tick()` in every pass of its loop, which writes gauges, tasks and progress when they are due.
    """

    def __init__(self, instruction: Instruction, parent: Parent) -> None:
        self.instruction = instruction
        self.parent = parent
        self.setup = dataclasses.replace(instruction.setup, incarnation=instruction.incarnation)
        self.process = instruction.setup.process
        self.started_seconds = time.monotonic()
        self.counts: dict[str, float] = {}
        self.pinned_slots = 0
        self._history = HistoryWriter(instruction.history_path)
        self._me = psutil.Process()
        self._canary = Canary(self.process)
        self._driver = importlib.import_module(f"harness.drivers.{instruction.driver}")
        if hasattr(self._driver, "before_tier"):  # steps of an application before it makes its tier
            self._driver.before_tier(**instruction.arguments)
        tier = adapter_class(instruction.tier)
        self._errors: set[str] = set()
        self._exit_code = 0
        parent.send("making")
        self._fds_before = self._open_fds()  # the tier must close every descriptor that it opens from here on
        self.adapter = tier(self.setup)
        self._sample_due = self._gauge_due = self._progress_due = 0.0
        self._tick_seconds, self._longest_pass_seconds = time.monotonic(), 0.0
        self._peaks: dict[str, float] = {}

    def write(self, *records: Record) -> None:
        """Append to the history and flush it to the kernel, so that a SIGKILL of this process loses no record."""
        self._history.write(*records)
        self._history.flush()

    def end_canary(self) -> None:
        """Measure no scheduling noise from here on: its records would be memory that grows."""
        self._canary.close()

    def alive(self) -> None:
        """Report to the parent that this process waits for its next order."""
        self.parent.send("progress", counts=self.counts, gauges={})

    def note(self, about: notes.About, text: str = "") -> None:
        self.write(note_of(self.process, time.monotonic(), about, text))

    def tick(self) -> None:
        now = time.monotonic()
        self._longest_pass_seconds = max(self._longest_pass_seconds, now - self._tick_seconds)
        self._tick_seconds = now
        self.write(*self.adapter.tasks())
        if now < self._sample_due:
            return
        self.note_evictions()
        self._sample_due = now + SAMPLE_SECONDS
        gauges = {name: float(value) for name, value in self.adapter.gauges().items()}
        self._peaks = {name: max(value, self._peaks.get(name, value)) for name, value in gauges.items()}
        if now >= self._gauge_due:
            self._gauge_due = now + GAUGE_SECONDS
            own = {**self._own_gauges(), "longest_pass_seconds": self._longest_pass_seconds}
            self.write(Gauge(self.process, now, {**gauges, **own, **self.counts}), *self._canary.take())
            self._longest_pass_seconds = 0.0
        if now >= self._progress_due:
            self._progress_due = now + PROGRESS_SECONDS
            self.parent.send("progress", counts=self.counts, gauges=self._peaks)
            self._peaks = {}

    def note_evictions(self) -> None:
        """Record what the tier has evicted since the last call; a lost block may be explained by it."""
        for eviction in self.adapter.evictions():
            self.note(notes.Evicted(**eviction._asdict()))

    def _open_fds(self) -> int:
        try:
            return self._me.num_fds()
        except OSError:  # no descriptor is free to read /proc; psutil's count includes the one that it opens
            return 1 + sum(map(_is_open, range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], FDS_COUNTED_MAX))))

    def _own_gauges(self) -> dict[str, float]:
        with contextlib.suppress(OSError), self._me.oneshot():
            return {
                "fds": float(self._me.num_fds()),
                "rss_bytes": float(self._me.memory_info().rss),
                "threads": float(self._me.num_threads()),
                "cpu_seconds": sum(self._me.cpu_times()[:2]),
            }
        return {}  # no descriptor is free to read /proc

    def drive(self) -> None:
        """Run the driver named by the instruction between {"ready"} and the end."""
        digest, address = self.adapter.none_hash_digest(), self.adapter.metrics_address()
        setup = self.setup
        detail = {
            "python": sys.version.split()[0],
            "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED"),
            "metrics_address": address,
            "driver": self.instruction.driver,
            "model_name": setup.model_name,
            "read_threads": setup.n_read_threads,
            "write_threads": setup.n_write_threads,
            "runs_in_submit": self.adapter.runs_in_submit,
            "keeps_in_memory": self.adapter.keeps_in_memory,
            "bookkeeping": list(self.adapter.bookkeeping),
            "fds_max": _limit(resource.RLIMIT_NOFILE),
            "address_space_max": _limit(resource.RLIMIT_AS),
        }
        what = (self.process, self.instruction.incarnation, os.getpid(), self.instruction.tier, digest)
        self.write(Start(*what, time.monotonic(), time.time(), detail))
        self.parent.send("ready", none_hash_digest=digest, metrics_address=address)
        self._driver.drive(self, **self.instruction.arguments)

    def broke(self, error: Exception) -> None:
        """Record an exception of the tier or the driver, once; the exit code is `EXIT_BROKEN` from now on."""
        self._exit_code = EXIT_BROKEN
        text = f"{type(error).__name__}: {error}"
        if text not in self._errors:
            self._errors.add(text)
            traceback.print_exception(error)
            self.note(notes.Error(**_refusal(error)), text)

    def _attempt(self, part: Callable[[], T], otherwise: T) -> T:
        """One step of the tier's end. Its exception is recorded, and the next step runs all the same."""
        try:
            return part()
        except HistoryLost:
            raise
        except Exception as error:
            self.broke(error)
            return otherwise

    def _scrape(self) -> None:
        """Record what the tier's own endpoint says, where the adapter says what that means."""
        address, meanings = self.adapter.metrics_address(), self.adapter.metric_meanings()
        if address and meanings:
            try:
                values = scrape(address, meanings)
            except OSError:  # no descriptor is free
                return
            self.note(notes.Scraped(values), "the tier's endpoint")

    def close(self) -> int:
        """The orderly end: the tier's own findings and counts, its close, and the Stop record with what leaked."""
        no_findings: list[str] = []
        no_counts: dict[str, float] = {}
        findings = self._attempt(lambda: list(self.adapter.findings()), no_findings)
        if counts := self._attempt(lambda: dict(self.adapter.counts()), no_counts):
            self.note(notes.Counts(counts=counts), "what the tier counted")
        self._attempt(self._scrape, None)
        self._attempt(self.adapter.close, None)
        self._sample_due = self._gauge_due = 0.0  # the last pass may have been the longest
        self._attempt(self.tick, None)
        self._canary.close()  # it opens a folder once a second, which would count as a leak
        leaked = self._open_fds() - self._fds_before
        stop = Stop(
            self.process,
            self.instruction.incarnation,
            time.monotonic(),
            self._exit_code,
            self.pinned_slots,
            max(0, leaked),
            findings,
        )
        self.write(*self._canary.take(), stop)
        self._history.close()
        return self._exit_code


def _limit(which: int) -> int | None:
    """The soft limit; None where there is none."""
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _refusal(error: Exception) -> dict[str, Any]:
    """What the operating system refused, if it caused the error: {"errno", "path"}."""
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        return {"errno": "ENOMEM" if isinstance(error, MemoryError) else "EAGAIN", "path": ""}
    if isinstance(error, OSError) and error.errno:
        return {"errno": errno.errorcode.get(error.errno, str(error.errno)), "path": str(error.filename or "")}
    return {}


def _announce_own_signals(parent: Parent) -> None:
    """Report each signal that Python code of this process sends to it. The parent cannot know the sender otherwise."""
    me = os.getpid()

    def announcing(function: Callable[..., Any], is_me: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if is_me(*arguments[:-1]):
                parent.send("signal", number=int(arguments[-1]))
            return function(*arguments)

        return call

    wrapped: tuple[tuple[Any, str, Callable[..., bool]], ...] = (
        (os, "kill", lambda pid: pid in (0, me, -me)),  # it leads a process group of its own
        (os, "killpg", lambda group: group in (0, me)),
        (signal, "raise_signal", lambda: True),
        (signal, "pthread_kill", lambda thread: True),
    )
    for module, name, is_me in wrapped:
        setattr(module, name, announcing(getattr(module, name), is_me))


def main() -> int:
    sink = claim_stdout()
    faulthandler.enable()
    parent = Parent(sys.stdin, sink)
    instruction = parent.instruction()
    _announce_own_signals(parent)
    try:
        return _work(instruction, parent)
    except HistoryLost as error:
        parent.send("outside", text=f"its history could not be written: {in_words(error)}")
        os._exit(EXIT_IO)  # threads of the tier may still run


def _work(instruction: Instruction, parent: Parent) -> int:
    try:
        worker = Worker(instruction, parent)
    except HistoryLost:
        raise
    except Exception as error:
        parent.send("failed", text=str(error) or type(error).__name__)
        traceback.print_exc()
        return EXIT_BROKEN
    try:
        worker.drive()
    except HistoryLost:
        raise
    except Exception as error:
        worker.broke(error)
    exit_code = worker.close()
    parent.send("done", counts=worker.counts, exit_code=exit_code)
    return exit_code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    code = main()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code)
