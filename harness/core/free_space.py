"""What was free while a run lasted: samples of the file systems and the memory, and a reserve for the run's records.

What the operating system refused a tier (ENOSPC, EROFS, ENOMEM, ...) is believed only where the harness itself saw the
shortage; `run` starts the samples, `checkers.machine_refusals` reads them. It judges nothing.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.core.history import Note, note_of
from harness.core.limits import amount
from harness.core.notes import Room

SAMPLE_SECONDS = 0.05
MEMORY_SECONDS = 0.25
LOW_MEMORY = 0.02
"""Of all memory: less that is available is a shortage."""
LOW_FILES = 16
RESERVE_BYTES = 6 << 20
"""Room for verdicts and report, also when the disk is full at the end."""
CLOSE_SECONDS_MAX = 5.0
"""A file system that hangs answers no sample. After this time it is waited for no longer."""


class Reserve:
    """A file of `RESERVE_BYTES` in the run's folder, until it is released for what must be written at the end."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / ".reserve"
        file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, RESERVE_BYTES)
        finally:
            os.close(file)

    def release(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


@dataclass
class _Episode:
    """A time in which a place was short of something."""

    errno: str
    from_seconds: float
    until_seconds: float


@dataclass
class _Place:
    """A place and what was seen of it."""

    path: str
    seen_seconds: float
    least_free_bytes: int = -1
    episodes: list[_Episode] = field(default_factory=list)
    short_of: str = ""

    def see(self, now: float, free_bytes: int, short_of: str) -> None:
        """A shortage may have begun right after the sample before it, and have ended right before the one after it."""
        if self.least_free_bytes < 0 or free_bytes < self.least_free_bytes:
            self.least_free_bytes = free_bytes
        if self.short_of:
            self.episodes[-1].until_seconds = now
        if short_of and short_of != self.short_of:
            self.episodes.append(_Episode(short_of, self.seen_seconds, now))
        self.seen_seconds, self.short_of = now, short_of


class RoomWatch:
    """Samples the file systems of `places` and the memory on a thread of its own, until `close`.

    `low_bytes`: with less free a file system counts as full, since as much may be written and removed at any moment.
    """

    def __init__(self, places: Mapping[str, Path], low_bytes: int) -> None:
        self._low_bytes = low_bytes
        self._began, self._stop = time.monotonic(), threading.Event()
        self._places = {name: _Place(str(path), self._began) for name, path in places.items()}
        self._memory = _Place("memory", self._began)
        self._thread = threading.Thread(target=self._run, name="room", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        memory_due = 0.0
        is_last = False  # the last sample is taken when the run has ended: it may have lasted no longer than the wait
        while True:
            now = time.monotonic()
            for place in self._places.values():
                self._sample(place, now)
            if now >= memory_due:
                memory_due = now + MEMORY_SECONDS
                memory = psutil.virtual_memory()
                is_low = memory.available < LOW_MEMORY * memory.total
                self._memory.see(now, memory.available, "ENOMEM" if is_low else "")
            if is_last:
                return
            is_last = self._stop.wait(SAMPLE_SECONDS)

    def _sample(self, place: _Place, now: float) -> None:
        try:
            disk = os.statvfs(place.path)
        except OSError:
            return
        free = disk.f_bavail * disk.f_frsize
        short_of = ""
        if disk.f_flag & os.ST_RDONLY:
            short_of = "EROFS"
        elif free < self._low_bytes or (disk.f_files and disk.f_favail < LOW_FILES):
            short_of = "ENOSPC"
        place.see(now, free, short_of)

    def probe(self, name: str, size: int) -> None:
        """Write a file of `size` bytes at this place, and remove it: what is refused now (EDQUOT, EIO, ...) counts for
        the whole time, since no sample shows it."""
        place = self._places[name]
        path = os.path.join(place.path, f".probe-{os.urandom(8).hex()}")
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, bytes(size))
                os.fsync(file)
            finally:
                os.close(file)
                os.unlink(path)
        except OSError as error:
            if error.errno not in (None, errno.ENOENT):
                name_of = errno.errorcode.get(error.errno, str(error.errno))
                place.episodes.append(_Episode(name_of, self._began, time.monotonic()))

    def close(self) -> list[Note]:
        """End the samples. One note "room" per place with the least that was free, and one per shortage."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS_MAX)
        now, notes = time.monotonic(), []
        for name, place in {**self._places, "memory": self._memory}.items():
            room = Room(name, place.path, place.least_free_bytes)
            notes.append(note_of(-1, now, room, f"at least {amount(max(0, place.least_free_bytes))} free"))
            for episode in place.episodes:
                short = room._replace(**vars(episode))
                notes.append(note_of(-1, episode.from_seconds, short, f"short of room: {episode.errno}"))
        return notes
