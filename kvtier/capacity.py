"""Keeps a root below its limits for months: evicts the least recently used blocks, a little at a time, and sweeps what
dead writers left. Run by a thread of the tier, by `kvtier evict` in a sidecar, or by both: one evicts at a time.

Recency is the file's mtime, which a load moves forward at most once an hour (blockio), so it survives restarts and
costs no call per hit. Block hashes are uniform over the 4096 first-level folders: some of them are a fair sample of
all, which makes measuring a root of millions of files cheap, and lets a pass stop and start anywhere.

Evicting a block that somebody loads costs that load at most a miss: an open file stays readable, a gone one is ENOENT.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.config import CapacityConfig, RootError
from kvtier.hashing import OffloadKey
from kvtier.survey import BlockFile, Folder, folders

logger = logging.getLogger(__name__)

LEASE_NAME = ".kvtier-evictor"
SAMPLE_BLOCKS = 10_000  # enough to know a folder's size to 1 %
TEMP_AGE_SECONDS = 60.0  # a writer locks its temp file right after creating it: younger ones may not be locked yet
QUARANTINE_FILES_MAX = 1000
PAUSE_SECONDS_MAX = 5.0
PAUSE_SECONDS_MIN = 0.1
BUDGET_SECONDS = 2.0
WRITERS = 8
PACE = 3.0  # an unhurried pass rests three times as long as it works
EVICTED_KEYS_MAX = 100_000


class Evicted(NamedTuple):
    """One pass over one folder: what went, why, and how long it had not been used."""

    reason: str  # "max_bytes" or "min_free_bytes"
    keys: tuple[OffloadKey, ...]
    bytes: int
    youngest_seconds: float


@dataclass
class _Measured:
    folder: Folder
    bytes: float
    ages: list[tuple[float, int]] = field(default_factory=list)  # (used_seconds, bytes) of a sample


class Capacity:
    """Measures and evicts below `config.root_dir`. `step` does one round; any number of processes may call theirs.

    After a measurement a process may store an eighth of the room that was left, within `BUDGET_SECONDS`; then it has to
    measure again. So up to `WRITERS` processes exceed `max_bytes` by no more than the root grew in that time.
    """

    def __init__(self, root_dir: str, config: CapacityConfig) -> None:
        self.root_dir = root_dir
        self.config = config
        self.used_bytes = 0.0
        self._budget = 0.0  # bytes that may be stored here before the next measurement; none before the first
        self._lease_path = os.path.join(root_dir, LEASE_NAME)
        self._random = random.Random(os.urandom(16))  # the application's own generator is left alone
        self._wanted = False  # a store was refused since the last measurement
        self._stop = False
        self._due = threading.Event()
        self._facts: deque[Evicted] = deque()
        self._measured_seconds = 0.0
        self._growth = 0.0  # bytes a second, between the last two measurements
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Do rounds on a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._run, name="kvtier_capacity", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread at the next folder."""
        self._stop = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def admit(self, blocks: int, file_bytes: int) -> int:
        """How many of `blocks` files may be stored now; they count as stored. A refusal brings the next round forward
        and makes it evict. The last block may go over the budget, so that any limit lets something through."""
        if self.config.max_bytes is None:
            return blocks
        if time.monotonic() - self._measured_seconds > BUDGET_SECONDS:
            self._budget = 0.0
        admitted = max(0, min(blocks, math.ceil(self._budget / file_bytes)))
        self._budget -= admitted * file_bytes
        if admitted < blocks:
            self._wanted = True
            self._due.set()
        return admitted

    def take_facts(self) -> list[Evicted]:
        """Evictions since the last call."""
        facts = []
        while self._facts:
            facts.append(self._facts.popleft())
        return facts

    def _run(self) -> None:
        while not self._stop:
            self._due.clear()
            try:
                pause = self.step()
            except (OSError, RootError) as error:  # the volume is away: what cannot be measured cannot be evicted
                logger.warning("capacity of %s: %s", self.root_dir, error)
                pause = PAUSE_SECONDS_MAX
            if not self._stop:
                time.sleep(PAUSE_SECONDS_MIN)  # also when stores are refused all the time
                self._due.wait(pause - PAUSE_SECONDS_MIN)

    def step(self) -> float:
        """One round: measure, evict if above the high water mark. Seconds until the next one is due.

        Nothing is done while another process has the lease.
        """
        with self._lease() as lease:
            if not lease:
                return PAUSE_SECONDS_MIN
            measured = [self._measure(folder) for folder in folders(self.root_dir)]
            used = sum(m.bytes for m in measured)
            now = time.monotonic()
            if self._measured_seconds:
                self._growth = max(0.0, (used - self.used_bytes) / (now - self._measured_seconds))
            reason, excess = self._excess(used)
            for quota, one in self._quotas(measured, excess):
                used -= self._evict(one, quota, reason)
            self.used_bytes, self._measured_seconds, self._wanted = used, time.monotonic(), False
            if self.config.max_bytes is not None:
                self._budget = (self.config.max_bytes - used) / WRITERS
            room = (self.config.max_bytes or used) * self.config.high_water - used
            due = room / self._growth / 2 if self._growth > 0 else PAUSE_SECONDS_MAX
            return min(PAUSE_SECONDS_MAX, max(PAUSE_SECONDS_MIN, due))

    @contextlib.contextmanager
    def _lease(self) -> Iterator[bool]:
        """The right to evict, for one round: a lock that dies with its holder, also across hosts."""
        descriptor = os.open(self._lease_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _measure(self, folder: Folder) -> _Measured:
        """A folder's bytes and ages, from all of it when it is small, else from a sample of its first-level folders."""
        prefixes = folder.prefixes()
        self._random.shuffle(prefixes)  # another sample each time
        measured, seen, total = _Measured(folder, 0.0), 0, 0
        for count, prefix in enumerate(prefixes, 1):
            for block in folder.blocks([prefix]):
                measured.ages.append((block.used_seconds, block.bytes))
                total += block.bytes
            seen = count
            if len(measured.ages) >= SAMPLE_BLOCKS or self._stop:
                break
        measured.bytes = total * len(prefixes) / seen if seen else 0.0
        return measured

    def _excess(self, used: float) -> tuple[str, float]:
        """Why and how many bytes must go; nothing below the high water mark, else down to the low one."""
        limit, least = self.config.max_bytes, self.config.min_free_bytes
        reason, excess = "max_bytes", 0.0
        if limit is not None and used > limit * (self.config.low_water if self._wanted else self.config.high_water):
            excess = used - limit * self.config.low_water
        if least is not None:
            status = os.statvfs(self.root_dir)
            free = status.f_bavail * status.f_frsize
            if free < least and least / self.config.low_water - free > excess:
                reason, excess = "min_free_bytes", least / self.config.low_water - free
        return reason, excess

    def _quotas(self, measured: list[_Measured], excess: float) -> list[tuple[float, _Measured]]:
        """How much each folder gives: those above an equal share first, down to a common level, so that no model can
        push the others out. `config.shares` (model name -> weight) makes shares unequal."""
        if excess <= 0:
            return []
        weight = {id(m): self.config.shares.get(m.folder.mapper.run.model_name, 1.0) for m in measured}
        target = max(0.0, sum(m.bytes for m in measured) - excess)
        keep: dict[int, float] = {}
        rest = sorted(measured, key=lambda m: m.bytes / weight[id(m)])
        total_weight = sum(weight.values())
        for one in rest:  # the smallest first: what it leaves of its share goes to the others
            share = target * weight[id(one)] / total_weight
            keep[id(one)] = min(one.bytes, share)
            target -= keep[id(one)]
            total_weight -= weight[id(one)]
        return [(m.bytes - keep[id(m)], m) for m in measured if m.bytes > keep[id(m)]]

    def _evict(self, measured: _Measured, quota: float, reason: str) -> float:
        """Remove about `quota` bytes of the least recently used blocks of a folder; the bytes that went."""
        cutoff = _cutoff(measured.ages, quota / measured.bytes)
        freed, gone, youngest = 0.0, list[OffloadKey](), 0.0
        prefixes = measured.folder.prefixes()
        self._random.shuffle(prefixes)
        for prefix in prefixes:
            started = time.monotonic()
            for block in [b for b in measured.folder.blocks([prefix]) if b.used_seconds <= cutoff]:
                if freed < quota and _remove(block):
                    freed += block.bytes
                    youngest = max(youngest, block.used_seconds)
                    if len(gone) < EVICTED_KEYS_MAX:
                        gone.append(block.key)
            if freed >= quota or self._stop:
                break
            if not self._wanted:  # nobody waits for the room
                time.sleep(PACE * (time.monotonic() - started))
        if gone:
            self._facts.append(Evicted(reason, tuple(gone), round(freed), max(0.0, time.time() - youngest)))
        return freed


def sweep(folder: Folder) -> int:
    """Remove temp files whose writer is dead (their lock is free), empty folders, and the oldest of a large quarantine;
    the number of files that went. vLLM's temp files carry no lock and are left alone."""
    removed = 0
    for path, status in folder.temps():
        if os.path.basename(path).startswith(".") and time.time() - status.st_mtime > TEMP_AGE_SECONDS:
            removed += _remove_unlocked(path)
    aside = sorted(folder.quarantined(), key=_mtime)
    for path in aside[: max(0, len(aside) - QUARANTINE_FILES_MAX)]:
        with contextlib.suppress(OSError):
            os.unlink(path)
            removed += 1
    return removed


def _cutoff(ages: list[tuple[float, int]], fraction: float) -> float:
    """The time of last use up to which blocks make up `fraction` of the sampled bytes."""
    wanted = fraction * sum(size for _, size in ages)
    for used_seconds, size in sorted(ages):
        wanted -= size
        if wanted <= 0:
            return used_seconds
    return time.time()


def _remove(block: BlockFile) -> bool:
    """Unlink a block unless it was used since it was listed; its folder goes with the last block."""
    with contextlib.suppress(OSError):
        if os.stat(block.path, follow_symlinks=False).st_mtime == block.used_seconds:
            os.unlink(block.path)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(block.path))  # refused while anything is in it
            return True
    return False


def _remove_unlocked(path: str) -> int:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
            return 1
        finally:
            os.close(descriptor)
    return 0


def _mtime(path: str) -> float:
    with contextlib.suppress(OSError):
        return os.stat(path, follow_symlinks=False).st_mtime
    return 0.0
