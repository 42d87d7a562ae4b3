"""Drives an adapter as an engine does, checks block contents, and reads this process's clocks. For `measures`."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import resource
import time
from collections.abc import Sequence

from harness.adapters.base import Adapter, Finished
from harness.core import content

POLL_SECONDS = 500e-6
"""Interval between polls, long enough that polling costs negligible CPU."""


class Wrong(Exception):
    """The tier failed a block, or returned another's bytes: there is no figure."""


def keys_of(label: str, count: int, start: int = 0) -> list[bytes]:
    """Keys as both tiers take them: 32 bytes of hash and group 0. The same label gives the same keys everywhere."""
    return [hashlib.sha256(f"{label} {i}".encode()).digest() + bytes(4) for i in range(start, start + count)]


class Driver:
    """Drives an adapter as an engine does: submit and poll, on one thread."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.block_bytes = adapter.setup.block_bytes
        self.slots = adapter.setup.slots
        self.view = adapter.view.cast("B")
        self.finished: dict[int, tuple[float, Finished]] = {}
        self._next = 0
        adapter.request_started("bench")

    def row(self, slot: int) -> memoryview:
        return self.view[slot * self.block_bytes : (slot + 1) * self.block_bytes]

    def fill(self, keys: Sequence[bytes]) -> None:
        for slot, key in enumerate(keys[: self.slots]):
            content.fill(self.row(slot), key)

    def poison(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.row(slot)[:8] = self.row(slot)[-8:] = b"\xa5" * 8

    def check(self, slot: int, key: bytes) -> None:
        """Compare the first and the last word, which detects a load that did not happen."""
        first, last = content.seed_of(key), content.seed_of(key) + (self.block_bytes // 8 - 1) * content.STEP
        mask = (1 << 64) - 1
        row = self.row(slot)
        if (int.from_bytes(row[:8], "little"), int.from_bytes(row[-8:], "little")) != (first & mask, last & mask):
            raise Wrong(f"slot {slot} does not hold the block that was loaded into it")

    def submit(self, direction: str, keys: Sequence[bytes], slots: Sequence[int]) -> int:
        self._next += 1
        submit = self.adapter.submit_store if direction == "store" else self.adapter.submit_load
        submit(self._next, keys, slots, "bench")
        return self._next

    def poll(self) -> list[int]:
        """Ids of jobs that have ended since; raises `Wrong` if a block of them failed."""
        now = time.perf_counter()
        ended = []
        for result in self.adapter.poll():
            if result.failed:
                counts = {name: n for name, n in self.adapter.counts().items() if name.startswith("failed")}
                raise Wrong(f"{len(result.failed)} blocks of job {result.job_id} failed {counts or ''}".strip())
            self.finished[result.job_id] = now, result
            ended.append(result.job_id)
        self.adapter.step()
        self.adapter.tasks()
        return ended

    def wait(self, job_ids: Sequence[int], poll_seconds: float = POLL_SECONDS) -> None:
        pending = set(job_ids) - self.finished.keys()
        while pending:
            pending.difference_update(self.poll())
            if pending:
                time.sleep(poll_seconds)

    def run(self, direction: str, keys: Sequence[bytes], slots: Sequence[int], job_blocks: int) -> dict[str, float]:
        """All blocks in jobs of `job_blocks`, at once; its seconds, throughput and CPU time."""
        root = self.adapter.setup.root_dir
        requests, before, started = device_requests(root, direction), cpu_seconds(), time.perf_counter()
        jobs = [
            self.submit(direction, keys[i : i + job_blocks], slots[i : i + job_blocks])
            for i in range(0, len(keys), job_blocks)
        ]
        self.wait(jobs)
        seconds = max(self.finished[job][0] for job in jobs) - started
        moved = len(keys) * self.block_bytes
        return {
            "seconds": seconds,
            "mib_per_second": moved / seconds / (1 << 20),
            "cpu_seconds_per_gib": (cpu_seconds() - before) / moved * (1 << 30),
            "device_requests_per_block": (device_requests(root, direction) - requests) / len(keys),
        }

    def path(self, key: bytes) -> str:
        name = self.adapter.file_name(key)
        assert name is not None
        return os.path.join(self.adapter.setup.root_dir, name)

    def cool(self, keys: Sequence[bytes]) -> None:
        """Write out and drop these blocks' pages from the page cache."""
        sync(self.adapter.setup.root_dir)
        for key in keys:
            descriptor = os.open(self.path(key), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def sync(path: str) -> None:
    """Write out the dirty pages of this file system, and of no other."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def device_requests(path: str, direction: str) -> float:
    """Requests that the device of a file system has ended, from all processes; NaN where it has no device."""
    device = os.stat(path).st_dev
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as file:
            return float(file.read().split()[4 if direction == "store" else 0])
    except OSError:
        return math.nan


def io_chars(direction: str) -> int:
    """Bytes that this process has passed to write (store) or read (load) calls, also in jobs that have not ended."""
    name = "wchar" if direction == "store" else "rchar"
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
