"""Behaviour of a volume without any tier: what its files support, and how soon one host sees another's changes.

`measure` sends requests; `python -m harness.hosts.volume_behaviour FOLDER` answers them on each host.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.hosts.base import Host, Volume
from harness.runtime.process import ChildEnded, JsonProcess, claim_stdout, serve

FILE_BYTES = 1 << 20
FILES = 48
SEEN_SECONDS_MAX = 40.0
REPEATS = 3
POLL_SECONDS = 0.005
END_SECONDS_MAX = 2 * SEEN_SECONDS_MAX


class Hand:
    """Operations in one folder; each method answers one request."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = mmap.mmap(-1, FILE_BYTES)
        self._buffer[:] = os.urandom(FILE_BYTES)

    def publish(self, name: str) -> float:
        """A file of two pages under its name, as a tier would; returns when (wall seconds)."""
        temp = self._folder / f".{name}"
        temp.write_bytes(bytes(8192))
        temp.rename(self._folder / name)
        return time.time()

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()

    def sees(self, name: str) -> bool:
        return (self._folder / name).exists()

    def await_seen(self, name: str, seen: bool, again: bool) -> float | None:
        """Seconds until the name is there (or gone, `seen` false); `again`: its folder is opened before each look."""
        began = time.monotonic()
        while time.monotonic() - began < SEEN_SECONDS_MAX:
            if again:
                os.close(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))
            if self.sees(name) is seen:
                return time.monotonic() - began
            time.sleep(POLL_SECONDS)
        return None

    def abilities(self) -> dict[str, str]:
        """ "yes", or the name of the errno."""
        return {
            "O_DIRECT": self._try(self._direct),
            "unaligned O_DIRECT read": self._try(self._unaligned),
            "O_TMPFILE": self._try(lambda: os.close(os.open(self._folder, os.O_TMPFILE | os.O_WRONLY))),
            "link": self._try(self._link),
            "fsync of a folder": self._try(self._sync_folder),
        }

    def _try(self, what: Any) -> str:
        try:
            what()
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "error")
        return "yes"

    def _direct(self) -> None:
        file = os.open(self._folder / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        try:
            os.pwrite(file, self._buffer, 0)
            os.preadv(file, [self._buffer], 0)
        finally:
            os.close(file)

    def _unaligned(self) -> None:
        file = os.open(self._folder / "direct", os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(file, [bytearray(1000)], 3)
        finally:
            os.close(file)

    def _link(self) -> None:
        os.link(self._folder / "direct", self._folder / "linked")

    def _sync_folder(self) -> None:
        file = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def throughput(self) -> tuple[float, float]:
        """MiB/s of writing and of reading files of 1 MiB, O_DIRECT, one thread."""
        began = time.monotonic()
        for number in range(FILES):
            file = os.open(self._folder / f"speed-{number}", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
            os.pwrite(file, self._buffer, 0)
            os.close(file)
        written = time.monotonic()
        for number in range(FILES):
            file = os.open(self._folder / f"speed-{number}", os.O_RDONLY | os.O_DIRECT)
            os.preadv(file, [self._buffer], 0)
            os.close(file)
        read = time.monotonic()
        for number in range(FILES):
            os.unlink(self._folder / f"speed-{number}")
        return FILES / (written - began), FILES / (read - written)


class _Remote:
    """A `Hand` on a host."""

    def __init__(self, python: str, folder: Path) -> None:
        self._process = JsonProcess(python, "harness.hosts.volume_behaviour", str(folder))

    def __call__(self, name: str, *arguments: Any) -> Any:
        try:
            return self._process.request([name, *arguments])
        except ChildEnded:
            raise OSError(f"the process that measures the volume ended: {self._process.last_output(1)}") from None

    def close(self) -> None:
        self._process.end(END_SECONDS_MAX)


@contextlib.contextmanager
def _hand(host: Host | None, folder: Path) -> Iterator[_Remote]:
    hand = _Remote(host.python() if host else sys.executable, folder)
    try:
        yield hand
    finally:
        hand.close()


def measure(volume: Volume, local: Path) -> dict[str, Any]:
    """Everything, as one JSON-able dict; `local`: a folder on this machine's disk to compare throughput with.

    Seconds are the longest of a few tries, None: not within 40 s.
    """
    name = f"behaviour-{os.urandom(4).hex()}"
    (volume.seen_here / name).mkdir()
    first, second = volume.hosts[:2]
    with _hand(first, first.mount / name) as a, _hand(second, second.mount / name) as b, _hand(None, local) as here:
        found: dict[str, Any] = {"abilities": a("abilities")}
        for what, before, again in (("unasked", False, False), ("missed", True, False), ("missed, folder", True, True)):
            tries = [_seen(a, b, f"{what.replace(', ', '-')}-{number}", before, again) for number in range(REPEATS)]
            found[f"visible {what} seconds"] = None if None in tries else max(t for t in tries if t is not None)
        b("sees", "unasked-0")
        a("remove", "unasked-0")
        found["gone seconds"] = b("await_seen", "unasked-0", False, False)
        ours, disk = a("throughput"), here("throughput")
        found |= {"write ratio": ours[0] / disk[0], "read ratio": ours[1] / disk[1]}
    return found


def _seen(writer: _Remote, reader: _Remote, name: str, before: bool, again: bool) -> float | None:
    if before:
        reader("sees", name)
    writer("publish", name)
    seconds: float | None = reader("await_seen", name, True, again)
    return seconds


if __name__ == "__main__":
    hand = Hand(Path(sys.argv[1]))
    serve(lambda order: getattr(hand, order[0])(*order[1:]), claim_stdout())
