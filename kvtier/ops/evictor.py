"""Keeps a root below its limits for months: evicts the least recently used blocks, a little at a time, and sweeps what
dead writers left. Run by a thread of the tier, by `kvtier evict` beside the engines, or by both: one evicts at a time.

Recency is the file's mtime, which a load moves forward only when it has grown old (blockio), so it survives restarts
and costs no call per hit. Block hashes are uniform over the 4096 first-level folders: some of them are a fair sample of
all, which makes measuring a root of millions of files cheap, and lets a pass stop anywhere and go on later.

Evicting a block that somebody loads costs that load at most a miss: an open file stays readable, a gone one is ENOENT.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.background import BackgroundThreads
from kvtier.config import CapacityConfig, ConfigError, RootError
from kvtier.events import FileEvictionReason
from kvtier.fs.admission import EVICTED_KEYS_MAX, Evicted
from kvtier.fs.block_io import RECENCY_SECONDS
from kvtier.ops.catalog import BlockFile, Folder, Unreadable, folders
from kvtier.ops.gc import remove_block, sweep

logger = logging.getLogger(__name__)

LEASE_NAME = ".kvtier-evictor"
LEASE_BYTES_MAX = 128
SAMPLE_BLOCKS = 10_000  # enough to know a folder's size to 1 %
PAUSE_SECONDS_MAX = 5.0
PAUSE_SECONDS_MIN = 0.1
PASS_SECONDS = 1.0  # how long a round evicts, or as long as it measured; then the root is measured anew
SWEEP_SECONDS = 1.0  # how long a round sweeps
SWEEP_EVERY_SECONDS = 3600.0
WRITERS = 8
BUSY_SECONDS = 1.0  # since its last job, a process is busy: its thread for this is slow beside those of its jobs
YIELD_SECONDS = 0.4  # a busy leader rests, so that others, if any are idle, come first
PATIENCE_SECONDS = 0.2  # a busy process leads only when stores wait, and nobody has measured for so long
PACE = 9.0  # who is in no hurry rests nine times as long as it works,
REST_SECONDS_MAX = 1.0  # also after a call that hung,
STRIDE_SECONDS = 0.0001  # and does so before whoever loads meanwhile would have to wait for a core
RENEWALS = 8  # a block in use is marked so often on its way from the newest to the oldest, if not once an hour
AGES_MAX = 100
FACTS_MAX = 10_000


class Root(NamedTuple):
    """A root as measured; `oldest_seconds`: for how long its least recently used block has not been used."""

    bytes: float
    files: float
    oldest_seconds: float


class Room(NamedTuple):
    """Bytes that may come until a root is at its low and high water marks (negative: beyond them), and those that
    stores may add: up to the limit, but not more than lie between it and the low water mark."""

    low: float
    high: float
    stores: float


@dataclass
class Measured:
    """A folder, estimated from `sample`; `whole`: the sample is all there is."""

    folder: Folder
    bytes: float = 0.0
    files: float = 0.0
    sample: list[BlockFile] = field(default_factory=list)
    whole: bool = True


class Plan(NamedTuple):
    """What is to go: about `bytes` of each folder, of blocks last used up to `cutoff_seconds` (since the epoch)."""

    reason: FileEvictionReason
    quotas: list[tuple[Measured, float, float]]  # folder, bytes, cutoff_seconds


class Capacity:
    """Measures and evicts below `config.root_dir`. `step` does one round; any number of processes may call theirs.

    Whoever has the lease measures and tells the others, in the lease's file. Each measurement grants each process the
    same: an eighth of the room that is left, or of what lies above the low water mark if that is less, less what it
    still writes. So with up to `WRITERS` processes the blocks never exceed `max_bytes` by more than
    `(1 - low_water) * max_bytes`, the error of a sample (1 %) and a block per process; with n times as many, by n times
    as much. The same holds for `min_free_bytes`, whose marks lie at `min_free_bytes / water`, as far as blocks go.

    The leader rests most of the time, unless the root is at its limit or a process asks for haste, which it does once
    half of its grant is used: it makes the lease's file longer.
    """

    def __init__(self, root_dir: str, config: CapacityConfig, unreadable: Unreadable | None = None) -> None:
        self.root_dir = os.path.realpath(root_dir)
        self.config = config
        _check_min_free(self.root_dir, config.min_free_bytes)
        self._unreadable = unreadable  # filled with what could not be read
        self.root: Root | None = None  # None before the first measurement
        self.excess_bytes = 0.0  # to go when last measured
        self.swept_files = 0
        self._room = Room(0.0, 0.0, 0.0)  # when last measured
        self._reason: FileEvictionReason = "max_bytes"
        self._granted: Root | None = None  # the measurement that the budget comes from
        self._share = self._budget = 0.0  # what it granted, and what is left of that
        self._pending = 0  # bytes admitted, and not known to be written
        self._lease_path = os.path.join(self.root_dir, LEASE_NAME)
        self._told = b""  # what stood last in the lease's file
        self._leading = False  # it was told here
        self._heard_seconds = -math.inf
        self.traffic_seconds = -math.inf  # when the last job came
        self._random = random.Random(os.urandom(16))  # the application's own generator is left alone
        self._refused = False  # since the last measurement
        self._asks = False  # so much of the grant is gone that whoever evicts should hurry
        self._wanted = False  # no room was left for a store
        self._draining = False  # above the high water mark, and since then not down to the low one
        self._hurry = False  # it was above its limit, or somebody asked, and is not down to the low mark yet
        self._stop = False
        self._due = threading.Event()
        self._facts: deque[Evicted] = deque(maxlen=FACTS_MAX)
        self._position: dict[str, str] = {}  # folder -> where the last round stopped
        self._rested_seconds = 0.0
        self._sweeping: Iterator[int] = iter(())
        self._sweep_seconds = -math.inf
        self._measured_seconds = 0.0
        self._growth = 0.0  # bytes a second, between the last two measurements
        self._thread: threading.Thread | None = None

    def start(self, background: BackgroundThreads) -> None:
        """Do rounds on a thread of its own until `stop`."""
        self._thread = background.start("capacity", "kvtier_capacity", self._run)

    def stop(self) -> None:
        """Ends the thread at the next folder."""
        self._stop = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    # --- the scheduler's thread ---

    def reserve(self, blocks: int, file_bytes: int) -> int:
        """How many of `blocks` files may be stored now; `release` must follow. A refusal brings the next round forward.
        The last block may go over the budget, so that any limit lets something through."""
        if self.root is not None and self.root is not self._granted:
            self._granted = self.root
            self._share = self._room.stores / WRITERS
            self._wanted, self._budget = self._share < file_bytes, self._share - self._pending
        admitted = max(0, min(blocks, math.ceil(self._budget / file_bytes)))
        self._budget -= admitted * file_bytes
        self._pending += admitted * file_bytes
        if admitted < blocks:
            self._refused = True
            self._due.set()
        if not self._asks and (self._refused or self._budget < self._share / 2):
            self._asks = True
            self._due.set()
        return admitted

    def release(self, blocks: int, file_bytes: int) -> None:
        """That many admitted blocks are written, or never will be."""
        self._pending -= blocks * file_bytes

    def note_traffic(self) -> None:
        """A job was submitted."""
        self.traffic_seconds = time.monotonic()

    def take_facts(self) -> list[Evicted]:
        """Evictions since the last call."""
        facts = []
        while self._facts:
            facts.append(self._facts.popleft())
        return facts

    def gauges(self) -> dict[str, float]:
        """Empty before the first measurement."""
        return {"root_bytes": self.root.bytes, "root_files": self.root.files} if self.root else {}

    @property
    def recency_seconds(self) -> float:
        """How old a block's mark of use may become before a load renews it."""
        return min(RECENCY_SECONDS, self.root.oldest_seconds / RENEWALS) if self.root else RECENCY_SECONDS

    # --- rounds ---

    def _run(self) -> None:
        trouble = ""
        while not self._stop:
            self._due.clear()
            try:
                pause, trouble = self.step(), ""
            except (OSError, RootError) as error:  # the volume is away: what cannot be measured cannot be evicted
                if str(error) != trouble:
                    logger.warning("capacity of %s: %s", self.root_dir, error)
                pause, trouble = PAUSE_SECONDS_MAX, str(error)
            if not self._stop:
                least = YIELD_SECONDS if self._leading and self._busy() else PAUSE_SECONDS_MIN
                time.sleep(least)  # also when stores are refused all the time
                self._due.wait(pause - least)

    def step(self) -> float:
        """One round: measure, evict if above the high water mark, sweep if it is time. Seconds until the next is due.

        One process leads: who sees that another has just measured leaves the rest to it.
        """
        leads = self._ought_to_lead()
        if self._asks:
            self._ask()
        if leads:
            with self._lease() as lease:
                if lease is None:
                    return PAUSE_SECONDS_MIN
                self._leading = True
                self._lead(lease)
        return self._pause()

    def _ought_to_lead(self) -> bool:
        now = time.monotonic()
        if self._listen():
            self._leading, self._heard_seconds = False, now
            # Stores wait here, which the leader does not know, and below the high water mark it does nothing.
            return self._wanted and self._room.high >= 0
        waited = now - self._heard_seconds > PATIENCE_SECONDS
        return self._leading or not self._busy() or (waited and self._refused)

    def _busy(self) -> bool:
        return time.monotonic() - self.traffic_seconds < BUSY_SECONDS

    def _lead(self, lease: int) -> None:
        started = time.monotonic()
        measured = self._measure_all()
        if self._stop:
            return
        finished = time.monotonic()
        self._tell(lease)
        reason, quotas = self._plan(measured)
        deadline = finished + max(PASS_SECONDS, finished - started)
        for one, quota, cutoff in quotas:
            self._evict(one, quota, cutoff, reason, deadline)
        if not quotas:
            self.sweep_for(SWEEP_SECONDS)

    def plan(self) -> Plan:
        """Measure, and say what a pass would take; nothing is removed. For people."""
        return self._plan(self._measure_all())

    def _pause(self) -> float:
        if self._draining or self.root is None:  # others, if there are any without jobs, are to be first
            return YIELD_SECONDS if self._busy() else PAUSE_SECONDS_MIN
        due = self._room.high / self._growth / 2 if self._growth > 0 else PAUSE_SECONDS_MAX
        return min(PAUSE_SECONDS_MAX, max(PAUSE_SECONDS_MIN, due))

    # --- the lease, and what its file says ---

    @contextlib.contextmanager
    def _lease(self) -> Iterator[int | None]:
        """The right to evict for a round: a lock that dies with its holder, also across hosts. None: another has it."""
        mode = os.stat(self.root_dir).st_mode & 0o666 | 0o600
        descriptor = os.open(self._lease_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                if os.fstat(descriptor).st_size == 0:  # whoever may write to the root may have the lease
                    os.fchmod(descriptor, mode)
                yield descriptor
        finally:
            os.close(descriptor)

    def _tell(self, lease: int) -> None:
        assert self.root is not None
        self._told = f"{os.urandom(8).hex()} {' '.join(f'{figure:.0f}' for figure in self.root)}\n".encode()
        os.pwrite(lease, self._told.ljust(LEASE_BYTES_MAX), 0)
        os.ftruncate(lease, LEASE_BYTES_MAX)

    def _ask(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._lease_path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                os.ftruncate(descriptor, LEASE_BYTES_MAX + 1)
            finally:
                os.close(descriptor)

    def _is_asked(self) -> bool:
        """Whether somebody, here or elsewhere, has asked to hurry since the last measurement."""
        with contextlib.suppress(FileNotFoundError):
            return self._asks or os.stat(self._lease_path, follow_symlinks=False).st_size > LEASE_BYTES_MAX
        return self._asks

    def _listen(self) -> bool:
        """Whether another process has measured since the last call; then `root` is what it found."""
        told = b""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._lease_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                told = os.read(descriptor, LEASE_BYTES_MAX).rstrip(b" ")
            finally:
                os.close(descriptor)
        told, before = (told if told.endswith(b"\n") else self._told), self._told
        self._told = told
        if not before or told == before:  # at first nobody can say how old it is
            return False
        try:
            found = Root(*map(float, told.split()[1:]))
        except (ValueError, TypeError):
            return False
        self._note(found)
        return True

    # --- measuring ---

    def _measure_all(self) -> list[Measured]:
        self._rested_seconds = time.monotonic()
        measured = [self._measure(folder) for folder in folders(self.root_dir, self._unreadable)]
        oldest = min((block.used_seconds for one in measured for block in one.sample), default=time.time())
        figures = sum(m.bytes for m in measured), sum(m.files for m in measured), max(0.0, time.time() - oldest)
        if not self._stop:  # else the rest of the root was not measured
            self._note(Root(*figures))
        return measured

    def _note(self, root: Root) -> None:
        """What a measurement means: how much room there is, how much must go, and whether stores wait for it. Nothing
        goes below the high water mark, unless stores wait; else down to the low one."""
        now, rooms = time.monotonic(), dict[FileEvictionReason, Room]()
        used, low, high = root.bytes, self.config.low_water, self.config.high_water
        if (limit := self.config.max_bytes) is not None:
            rooms["max_bytes"] = Room(limit * low - used, limit * high - used, limit - max(used, limit * low))
        if (least := self.config.min_free_bytes) is not None:
            status = os.statvfs(self.root_dir)
            free = status.f_bavail * status.f_frsize
            rooms["min_free_bytes"] = Room(free - least / low, free - least / high, min(free, least / low) - least)
        room = Room(*map(min, zip(*rooms.values(), strict=True)))
        if self.root is not None:
            self._growth = max(0.0, (self._room.high - room.high) / max(1e-3, now - self._measured_seconds))
        self._room, self._reason = room, min(rooms, key=lambda reason: rooms[reason].low)
        hurry = self._hurry or self._is_asked() or room.stores <= 0
        self._draining = (room.low if self._wanted or self._draining else room.high) < 0
        self._hurry, self.excess_bytes = hurry and self._draining, -room.low if self._draining else 0.0
        self.root, self._measured_seconds, self._refused, self._asks = root, now, False, False

    def _paced(self, blocks: Iterable[BlockFile]) -> Iterator[BlockFile]:
        """The same blocks, with rests."""
        for block in blocks:
            yield block
            self._rest()

    def _rest(self) -> None:
        """As long as what was done since the last rest asks for, unless somebody waits, as a tier's stores do for its
        first measurement."""
        worked = time.monotonic() - self._rested_seconds
        if worked > STRIDE_SECONDS:
            waits = self._hurry or (self.root is None and self._thread is not None) or self._is_asked()
            if not waits:
                time.sleep(min(REST_SECONDS_MAX, PACE * worked))
            self._rested_seconds = time.monotonic()

    def _measure(self, folder: Folder) -> Measured:
        """A folder's bytes and ages, from all of it when it is small, else from a sample of its first-level folders."""
        prefixes = folder.prefixes()
        self._random.shuffle(prefixes)  # another sample each time
        measured, seen = Measured(folder), 0
        for prefix in prefixes:
            seen += 1
            measured.sample += self._paced(folder.blocks([prefix]))
            self._rest()
            if len(measured.sample) >= SAMPLE_BLOCKS or self._stop:
                break
        scale = len(prefixes) / max(1, seen)
        measured.bytes, measured.files = scale * sum(b.bytes for b in measured.sample), scale * len(measured.sample)
        measured.whole = seen == len(prefixes)
        return measured

    # --- what has to go ---

    def _plan(self, measured: list[Measured]) -> Plan:
        quotas = self._quotas(measured, self.excess_bytes)
        return Plan(self._reason, [(m, quota, _cutoff(m.sample, quota / m.bytes)) for quota, m in quotas])

    def _quotas(self, measured: list[Measured], excess: float) -> list[tuple[float, Measured]]:
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

    # --- removing ---

    def _evict(
        self, measured: Measured, quota: float, cutoff: float, reason: FileEvictionReason, deadline: float
    ) -> None:
        """Remove about `quota` bytes of a folder's blocks last used up to `cutoff`; `deadline` may end it earlier."""
        started, freed, gone = time.monotonic(), 0, list[BlockFile]()
        for block in self._old_blocks(measured, cutoff):
            if remove_block(block, measured.folder.unreadable):
                freed += block.bytes
                gone.append(block)
            if freed >= quota or time.monotonic() > deadline or self._stop:
                break
        if gone:
            keys = tuple(block.key for block in gone[:EVICTED_KEYS_MAX])
            ages = tuple(max(0.0, time.time() - b.used_seconds) for b in gone[:: -(-len(gone) // AGES_MAX)])
            self._facts.append(Evicted(reason, keys, len(gone), freed, ages, started, time.monotonic()))

    def _old_blocks(self, measured: Measured, cutoff: float) -> Iterator[BlockFile]:
        """First those of the sample, the oldest before the others; then, a first-level folder after the other, from
        behind the last that a round came through, all there are."""
        old = sorted((b for b in measured.sample if b.used_seconds <= cutoff), key=lambda b: b.used_seconds)
        yield from self._paced(old)
        if measured.whole:
            return
        folder, prefixes = measured.folder, measured.folder.prefixes()
        last = self._position.setdefault(folder.mapper.blocks_path, self._random.choice(prefixes or [""]))
        start = bisect.bisect(prefixes, last)
        for prefix in prefixes[start:] + prefixes[:start]:
            yield from (block for block in self._paced(folder.blocks([prefix])) if block.used_seconds <= cutoff)
            self._rest()
            self._position[folder.mapper.blocks_path] = prefix

    def sweep_for(self, seconds: float) -> None:
        """Go on with a sweep, or begin one if the last is long ago, for about so long."""
        now = self._rested_seconds = time.monotonic()
        if now - self._sweep_seconds > SWEEP_EVERY_SECONDS:
            self._sweep_seconds = now
            swept = folders(self.root_dir, self._unreadable)
            self._sweeping = (removed for folder in swept for removed in sweep(folder))
        for removed in self._sweeping:
            self.swept_files += removed
            self._rest()
            if time.monotonic() - now > seconds or self._stop:
                break


def _cutoff(sample: list[BlockFile], fraction: float) -> float:
    """The time of last use up to which blocks make up `fraction` of the sample's bytes."""
    wanted = fraction * sum(block.bytes for block in sample)
    for block in sorted(sample, key=lambda block: block.used_seconds):
        wanted -= block.bytes
        if wanted <= 0:
            return block.used_seconds
    return time.time()


def _check_min_free(root_dir: str, min_free_bytes: int | None) -> None:
    """Raises ConfigError when no eviction could ever leave so much free: each store would be refused."""
    with contextlib.suppress(OSError):  # a root that cannot be used is another error, and its user's to raise
        status = os.statvfs(root_dir)
        size = status.f_blocks * status.f_frsize
        if min_free_bytes is not None and min_free_bytes >= size:
            raise ConfigError(
                f"min_free_bytes is {min_free_bytes}; the file system at {root_dir} has {size} bytes in all, so no "
                "store could ever be admitted"
            )
