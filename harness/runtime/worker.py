"""One process of a run: `python -m harness.runtime.worker`, started by `launch`. Drives one adapter and writes what it
saw.

It speaks JSON lines. In: the instruction, then {"go": monotonic seconds}, {"stop": true}, or whatever its driver waits
for. Out: {"event": "ready" | "progress" | "done" | ...}. It never judges a run, and it never outlives its parent: when
stdin closes it stops as if told to.
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
from harness.core import notes
from harness.core.history import Gauge, HistoryLost, HistoryWriter, Note, Record, Start, Stop, in_words, note_of
from harness.core.run_files import process_label
from harness.runtime.process import claim_stdout

T = TypeVar("T")

SAMPLE_SECONDS = 0.02
"""How often the tier's gauges are looked at, so that the parent hears of peaks between two records."""
GAUGE_SECONDS = 0.2
PROGRESS_SECONDS = 0.25
CANARY_ASKS_SECONDS = 0.01
FDS_COUNTED_MAX = 1 << 16
ORPHAN_SECONDS_MAX = 10.0
"""How long a worker whose parent is gone may take to end in good order."""
EXIT_BROKEN = 70
"""The tier or the driver raised; what it said stands in the history and on stderr."""
EXIT_IO = 74
"""The history could not be written."""


@dataclass(frozen=True)
class Instruction:
    """All that a worker is told. `driver` names a module of `harness.drivers`; `arguments` are its keywords."""

    tier: str
    setup: TierSetup
    arguments: dict[str, Any] = field(default_factory=dict)
    driver: str = "replay"
    incarnation: int = 0

    @property
    def label(self) -> str:
        """How this process's files are called: "3", or "3.1" after its first restart."""
        return process_label(self.setup.process, self.incarnation)

    @property
    def history_path(self) -> Path:
        return Path(self.setup.run_dir) / f"history-{self.label}.jsonl"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Instruction:
        values = json.loads(line)
        return cls(**{**values, "setup": TierSetup(**values["setup"])})


class Canary:
    """Measures how late this process wakes up, as a yardstick of scheduling noise: a thread that asks for 10 ms.

    It is as nice as the nicest thread of the process, which wakes up later than others on a busy machine, on purpose.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._notes: deque[Note] = deque(maxlen=1024)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        late: list[float] = []
        since = time.monotonic()
        while True:
            before = time.monotonic()
            stopped = self._stop.wait(CANARY_ASKS_SECONDS)
            now = time.monotonic()
            if not stopped:
                late.append(max(0.0, now - before - CANARY_ASKS_SECONDS))
            if stopped or now - since >= 1.0:
                canary = notes.Canary(max(late, default=0.0), median(late) if late else 0.0)
                self._notes.append(note_of(self._process, now, canary, "latest wake-up of this second"))
                late, since = [], now
                _be_as_nice_as_any_thread()
            if stopped:
                return

    def take(self) -> list[Note]:
        """Notes since the last call."""
        return [self._notes.popleft() for _ in range(len(self._notes))]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _be_as_nice_as_any_thread() -> None:
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
    """The other end of stdin and stdout: what it says is queued, what we say is one JSON line."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self._source, self._sink = source, sink
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
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
            self._said.put(message)
        self.stop.set()
        self._said.put({"stop": True})
        time.sleep(ORPHAN_SECONDS_MAX)  # the process ends by itself meanwhile, and this thread with it
        os._exit(EXIT_BROKEN)

    def say(self, event: str, **values: Any) -> None:
        try:
            self._sink.write(json.dumps({"event": event, **values}, separators=(",", ":")) + "\n")
            self._sink.flush()
        except BrokenPipeError:
            self.stop.set()

    def heard(self, name: str) -> bool:
        """Whether a message that has `name` has come; others before it are dropped."""
        while not self._said.empty():
            if name in self._said.get():
                return True
        return False

    def hear(self, name: str) -> Any:
        """Wait for a message that has `name`, and return its value; None when told to stop instead. Others in between
        are dropped."""
        while not self.stop.is_set():
            message = self._said.get()
            if name in message:
                return message[name]
        return None


class Worker:
    """What a driver is given: the adapter, the history, the parent, and accounts that are kept while it runs.

    A driver calls `tick()` in every pass of its loop; that writes gauges, tasks and progress when they are due.
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
        if hasattr(self._driver, "before_tier"):  # what an application does before it makes its tier
            self._driver.before_tier(**instruction.arguments)
        tier = adapter_class(instruction.tier)
        self._errors: set[str] = set()
        self._exit_code = 0
        parent.say("making")
        self._fds_before = self._open_fds()  # all that the tier opens from here on it must close
        self.adapter = tier(self.setup)
        self._sample_due = self._gauge_due = self._progress_due = 0.0
        self._tick_seconds, self._longest_pass_seconds = time.monotonic(), 0.0
        self._peaks: dict[str, float] = {}

    def write(self, *records: Record) -> None:
        """Append to the history and hand it to the kernel: what was written survives a SIGKILL of this process."""
        self._history.write(*records)
        self._history.flush()

    def note(self, about: notes.About, text: str = "") -> None:
        self.write(note_of(self.process, time.monotonic(), about, text))

    def tick(self) -> None:
        now = time.monotonic()
        self._longest_pass_seconds = max(self._longest_pass_seconds, now - self._tick_seconds)
        self._tick_seconds = now
        self.write(*self.adapter.tasks())
        if now < self._sample_due:
            return
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
            self.parent.say("progress", counts=self.counts, gauges=self._peaks)
            self._peaks = {}

    def _open_fds(self) -> int:
        try:
            return self._me.num_fds()
        except OSError:  # no descriptor is free to read /proc; the one that reading takes counts there
            return 1 + sum(map(_is_open, range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], FDS_COUNTED_MAX))))

    def _own_gauges(self) -> dict[str, float]:
        with contextlib.suppress(OSError), self._me.oneshot():
            return {
                "fds": float(self._me.num_fds()),
                "rss_bytes": float(self._me.memory_info().rss),
                "threads": float(self._me.num_threads()),
                "cpu_seconds": sum(self._me.cpu_times()[:2]),
            }
        return {}  # no descriptor is free to look at /proc

    def drive(self) -> None:
        """Run the driver named by the instruction between {"ready"} and the end."""
        digest, address = self.adapter.none_hash_digest(), self.adapter.metrics_address()
        setup = self.setup
        detail = {
            "python": sys.version.split()[0],
            "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED"),
            "metrics_address": address,
            "driver": self.instruction.driver,
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
        self.parent.say("ready", none_hash_digest=digest, metrics_address=address)
        self._driver.drive(self, **self.instruction.arguments)

    def broke(self, error: Exception) -> None:
        """Record what the tier or the driver raised, once; the exit code is `EXIT_BROKEN` from now on."""
        self._exit_code = EXIT_BROKEN
        text = f"{type(error).__name__}: {error}"
        if text not in self._errors:
            self._errors.add(text)
            traceback.print_exception(error)
            self.note(notes.Error(**_refusal(error)), text)

    def _ask(self, part: Callable[[], T], otherwise: T) -> T:
        """One question to the tier at its end; what it raises does not keep the others from being put."""
        try:
            return part()
        except HistoryLost:
            raise
        except Exception as error:
            self.broke(error)
            return otherwise

    def close(self) -> int:
        """The end in good order: what the tier finds wrong with itself, descriptors, slots, and the Stop record."""
        no_findings: list[str] = []
        no_counts: dict[str, float] = {}
        findings = self._ask(lambda: list(self.adapter.findings()), no_findings)
        if counts := self._ask(lambda: dict(self.adapter.counts()), no_counts):
            self.note(notes.Counts(counts=counts), "what the tier counted")
        self._ask(self.adapter.close, None)
        self._sample_due = self._gauge_due = 0.0  # the last pass may have been the longest
        self._ask(self.tick, None)
        self._canary.close()  # it opens a folder once a second, which would count
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
    """What the operating system refused, if that is what the error says: {"errno", "path"}."""
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        return {"errno": "ENOMEM" if isinstance(error, MemoryError) else "EAGAIN", "path": ""}
    if isinstance(error, OSError) and error.errno:
        return {"errno": errno.errorcode.get(error.errno, str(error.errno)), "path": str(error.filename or "")}
    return {}


def _announce_own_signals(parent: Parent) -> None:
    """Python code of this process that sends it a signal says so first: nothing else tells its parent who did."""
    me = os.getpid()

    def announcing(function: Callable[..., Any], is_me: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if is_me(*arguments[:-1]):
                parent.say("signal", number=int(arguments[-1]))
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
        parent.say("outside", text=f"its history could not be written: {in_words(error)}")
        os._exit(EXIT_IO)  # threads of the tier may still run


def _work(instruction: Instruction, parent: Parent) -> int:
    try:
        worker = Worker(instruction, parent)
    except HistoryLost:
        raise
    except Exception as error:
        parent.say("failed", text=str(error) or type(error).__name__)
        traceback.print_exc()
        return EXIT_BROKEN
    try:
        worker.drive()
    except HistoryLost:
        raise
    except Exception as error:
        worker.broke(error)
    exit_code = worker.close()
    parent.say("done", counts=worker.counts, exit_code=exit_code)
    return exit_code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    code = main()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code)
