"""The kernel's account of the workers: how long their threads were runnable and got no CPU, and when no thread ran.

`Accounting` is a thread of the harness's own process. It samples `/proc/PID/task/TID/schedstat` (CPU time, run delay)
of every worker of this machine, which neither stops a worker nor takes its interpreter's lock. A sample of a thread is
one read of an open file, about 1 us; beyond its share of the descriptors it opens a file for each sample. What is
notable goes to `history-accounting.jsonl`: `Sampled` of each process, once, then notes `Delayed` of it, and `Pressure`
of the whole machine. Workers in another PID namespace have no such notes.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from harness.core import notes
from harness.core.history import HistoryLost, HistoryWriter, Note, note_of

SAMPLE_SECONDS = 0.01
THREADS_SECONDS = 0.1
"""Interval at which new threads of a worker are looked for."""
PRESSURE_SECONDS = 0.25
DELAY_SECONDS_MIN = 0.0005
"""A shorter run delay within one sample is not written."""
DESCRIPTORS_SHARE = 4
"""Of the descriptors that this process may have, the account takes one in so many."""
STOOD_SAMPLES = 3
"""The canary of a worker runs every 10 ms. A process without CPU time in so many samples in a row was stopped, or none
of its threads got a CPU."""


class Watched(NamedTuple):
    """A worker: its number and its process id."""

    process: int
    pid: int


class _Descriptors:
    """How many files may stay open: the run needs others, and its workers may have thousands of threads."""

    def __init__(self) -> None:
        self._free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTORS_SHARE

    def take(self, path: str) -> int:
        """A descriptor, or -1: the file is to be opened for each read. Raises `OSError`."""
        if self._free <= 0:
            os.stat(path)
            return -1
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._free -= 1
        return file

    def give_back(self, file: int) -> None:
        if file >= 0:
            os.close(file)
            self._free += 1


class _Threads:
    """The threads of one process, by files on their schedstat that stay open, as far as there are descriptors."""

    def __init__(self, pid: int, descriptors: _Descriptors) -> None:
        self._folder = f"/proc/{pid}/task"
        self._descriptors = descriptors
        self._files: dict[str, int] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._look_due = 0.0

    def sample(self, now: float) -> tuple[float, dict[str, tuple[float, float]]]:
        """CPU seconds of all threads together, and by thread each notable run delay and the CPU seconds, since the last
        call.

        Raises `OSError` when the process has ended."""
        if now >= self._look_due:
            self._look_due = now + THREADS_SECONDS
            self._look()
        cpu, delays = 0, {}
        for thread, file in list(self._files.items()):
            try:
                ran, waited, _ = map(int, self._read(thread, file).split())
            except (OSError, ValueError):  # it has ended
                self._forget(thread)
                continue
            before = self._last.get(thread, (ran, waited))
            cpu += ran - before[0]
            if (delay := (waited - before[1]) / 1e9) >= DELAY_SECONDS_MIN:
                delays[thread] = round(delay, 6), (ran - before[0]) / 1e9
            self._last[thread] = ran, waited
        return cpu / 1e9, delays

    def _look(self) -> None:
        threads = os.listdir(self._folder)
        for gone in self._files.keys() - set(threads):
            self._forget(gone)
        for thread in threads:
            if thread not in self._files:
                with suppress(OSError):
                    self._files[thread] = self._descriptors.take(f"{self._folder}/{thread}/schedstat")

    def _read(self, thread: str, file: int) -> bytes:
        if file >= 0:
            return os.pread(file, 64, 0)
        with open(f"{self._folder}/{thread}/schedstat", "rb", buffering=0) as opened:
            return opened.read(64)

    def _forget(self, thread: str) -> None:
        self._descriptors.give_back(self._files.pop(thread))
        self._last.pop(thread, None)

    def __len__(self) -> int:
        return len(self._files)

    def close(self) -> None:
        for thread in list(self._files):
            self._forget(thread)


class _Process:
    """What was sampled of one worker, and since when it has not run."""

    def __init__(self, watched: Watched, now: float, descriptors: _Descriptors) -> None:
        self.watched = watched
        self.threads = _Threads(watched.pid, descriptors)
        self._sampled_seconds = now
        self._without_cpu: list[float] = []  # beginnings of samples in a row

    def sample(self, now: float) -> list[Note]:
        """Notes of the time since the last sample. Raises `OSError` when the process has ended."""
        cpu_seconds, delays = self.threads.sample(now)
        since, self._sampled_seconds = self._sampled_seconds, now
        found = []
        if delays:
            # The kernel books a delay when it ends, and it may have begun before the last sample.
            longest = max(delay for delay, _ in delays.values())
            delayed = notes.Delayed(since - longest, longest, threads=delays)
            found.append(note_of(self.watched.process, now, delayed))
        self._without_cpu = [] if cpu_seconds else [*self._without_cpu, since]
        if len(self._without_cpu) >= STOOD_SAMPLES:
            began = self._without_cpu[0]
            found.append(note_of(self.watched.process, now, notes.Delayed(began, now - began, stopped=True)))
            self._without_cpu = self._without_cpu[-STOOD_SAMPLES + 1 :]
        return found


class Accounting:
    """Samples the workers that `workers()` names, from the call of the constructor until `close`.

    Records are on `clock`."""

    def __init__(
        self,
        run_dir: Path,
        workers: Callable[[], Iterable[Watched]],
        name: str = "accounting",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers, self._clock = workers, clock
        self._processes: dict[Watched, _Process] = {}
        self._descriptors = _Descriptors()
        self._pressure = _Pressure(clock())
        self._stop = threading.Event()
        self._path = run_dir / f"history-{name}.jsonl"
        self._thread = threading.Thread(target=self._run, name="accounting", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pressure_due = self._clock() + PRESSURE_SECONDS
        # When the evidence is lost, it ends here; rules that need it become inconclusive.
        with suppress(HistoryLost), closing(HistoryWriter(self._path)) as writer:
            while not self._stop.wait(SAMPLE_SECONDS):
                now, workers = self._clock(), list(self._workers())
                for over in self._processes.keys() - set(workers):
                    self._forget(over)
                found = [note for watched in workers for note in self._sample(watched, now)]
                if now >= pressure_due:
                    pressure_due = now + PRESSURE_SECONDS
                    found += self._pressure.sample(now)
                    writer.write(*found)
                    writer.flush()
                elif found:
                    writer.write(*found)
        for watched in list(self._processes):
            self._forget(watched)

    def _sample(self, watched: Watched, now: float) -> list[Note]:
        process = self._processes.get(watched)
        try:
            if process is None:
                process = self._processes[watched] = _Process(watched, now, self._descriptors)
                process.threads.sample(now)
                return [note_of(watched.process, now, notes.Sampled(watched.pid))] if len(process.threads) else []
            return process.sample(now)
        except OSError:  # it has ended, or /proc does not show it
            self._forget(watched)
            return []

    def _forget(self, watched: Watched) -> None:
        """Give its descriptors back to the run."""
        self._processes.pop(watched).threads.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class _Pressure:
    """Time lost on the whole machine: stolen by the hypervisor, and stalls by the kernel's pressure accounting."""

    def __init__(self, now: float) -> None:
        self._last = _lost()
        self._seconds = now

    def sample(self, now: float) -> list[Note]:
        """One note of the time since the last call, if anything was lost."""
        lost = _lost()
        gone = {name: round(value - self._last.get(name, value), 6) for name, value in lost.items()}
        since, self._last, self._seconds = self._seconds, lost, now
        if not any(value > 0 for value in gone.values()):
            return []
        return [note_of(-1, now, notes.Pressure(since, **{name: max(0.0, value) for name, value in gone.items()}))]


def _lost() -> dict[str, float]:
    """Seconds since boot; without the names that this kernel does not know."""
    values = {}
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        values["steal_seconds"] = int(fields[8]) / os.sysconf("SC_CLK_TCK")
    for name in ("cpu", "io", "memory"):
        with suppress(OSError, ValueError, IndexError):
            some = Path(f"/proc/pressure/{name}").read_text().split("\n", 1)[0]
            values[f"{name}_seconds"] = int(some.rpartition("=")[2]) / 1e6
    return values
