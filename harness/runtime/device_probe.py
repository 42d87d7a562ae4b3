"""The device under a root, measured while a run lasts: a thread of the harness stores, reads and removes one block.

What these calls take beside the traffic is the device's own spread, with which waits are compared. Scenarios whose
verdicts need it use `device_probe`; about 3 % of the time is spent in its calls. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from harness.core import notes
from harness.core.run_root import device_folder

PAUSE_SECONDS = 0.02
NOTE_SECONDS = 0.5
LONG_SECONDS = 0.25
"""A device of which nothing is known may take so long for a call (`checkers.evidence.UNMEASURED_SECONDS` for a job)."""


class _Probe:
    """One block that is stored, read and removed again and again."""

    def __init__(self, folder: Path, block_bytes: int) -> None:
        self._memory = mmap.mmap(-1, block_bytes)
        self._memory.write(os.urandom(block_bytes))
        self._unnamed, self._name = f"{folder}/new", f"{folder}/block"
        self.took: list[tuple[float, str]] = []
        self._rounds = 0

    def round(self) -> None:
        """Raises `OSError` where a call fails."""
        self._timed("write", self._write)
        self._timed("rename", lambda: os.rename(self._unnamed, self._name))
        self._timed("read", self._read)
        self._timed("unlink", lambda: os.unlink(self._name))
        self._rounds += 1

    def says_something(self) -> bool:
        """Whether the calls show what the device takes. A device that has refused each at once shows nothing."""
        return bool(self.took) and (self._rounds > 0 or max(self.took)[0] >= LONG_SECONDS)

    def note(self, since: float) -> notes.Device:
        """What was measured since then."""
        longest, call = max(self.took)
        return notes.Device(since, longest, median(took for took, _ in self.took), call)

    def _timed(self, call: str, do: Callable[[], None]) -> None:
        before = time.monotonic()
        try:
            do()
        finally:
            self.took.append((time.monotonic() - before, call))

    def _open(self, path: str, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC, 0o600)
        except OSError:  # a file system without O_DIRECT
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def _write(self) -> None:
        file = self._open(self._unnamed, os.O_CREAT | os.O_WRONLY)
        try:
            os.pwritev(file, [self._memory], 0)
        finally:
            os.close(file)

    def _read(self) -> None:
        file = self._open(self._name, os.O_RDONLY)
        try:
            os.preadv(file, [self._memory], 0)
        finally:
            os.close(file)


@contextlib.contextmanager
def device_probe(root_dir: Path, block_bytes: int, note: Callable[[float, notes.Device], None]) -> Iterator[None]:
    """Measure the device of a run's root until the block ends; then `note` takes a `Device` of each half second.

    Its folder lies beside the root, which belongs to the tier.

    A device that refuses a call (full, read-only, gone) is not measured from then on. A call that is refused counts
    too, since it may have taken long; one that is refused at once in the first round does not."""
    stop = threading.Event()
    measured: list[tuple[float, notes.Device]] = []

    def run() -> None:
        place = device_folder(root_dir)
        with contextlib.suppress(OSError):
            place.mkdir()
            probe = _Probe(place, block_bytes)
            since, is_over = time.monotonic(), False
            try:
                while not is_over:  # once more when the run is over: it may have lasted no longer than the pause
                    is_over = stop.wait(PAUSE_SECONDS)
                    probe.round()
                    if (now := time.monotonic()) - since >= NOTE_SECONDS:
                        measured.append((now, probe.note(since)))
                        since, probe.took = now, []
            finally:
                if probe.says_something():
                    measured.append((time.monotonic(), probe.note(since)))
        shutil.rmtree(place, ignore_errors=True)

    thread = threading.Thread(target=run, name="device probe", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for seconds, device in measured:
            note(seconds, device)
