"""`Evictor`: keeps a root below its limits. It evicts the least recently used blocks, a little at a time, and collects
what killed writers left. A thread of the tier runs it, or `kvtier evict` beside the engines, or both.

An evicted block costs a load that needs it at most a miss: an open file stays readable, a removed one is ENOENT.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque

from kvtier.background import BackgroundThreads
from kvtier.config import CapacityConfig, ConfigError, RootError
from kvtier.events import FileEvictionReason
from kvtier.exit_codes import errno_text
from kvtier.fs.admission import EVICTED_KEYS_MAX, Evicted
from kvtier.fs.block_io import RECENCY_SECONDS, errno_name
from kvtier.ops.catalog import BlockFile, Unreadable, folders, note_error
from kvtier.ops.gc import Collector, remove_block
from kvtier.ops.headroom import Demand, Level, ProcessGrant, headroom_of
from kvtier.ops.lease import EvictorLease, Root
from kvtier.ops.pacing import DutyCycle, Pacing
from kvtier.ops.sampling import FolderSample, Sampler
from kvtier.ops.victims import FolderExcess, Plan, Victims, excess_by_folder

logger = logging.getLogger(__name__)

PAUSE_SECONDS_MAX = 5.0  # between two rounds
PAUSE_SECONDS_MIN = 0.1
PASS_SECONDS = 1.0  # how long a round evicts, or as long as it measured; then the root is measured anew
GC_SECONDS = 1.0  # how long a round collects garbage
BUSY_SECONDS = 1.0  # after its last job a process is busy: its evictor's thread is slow beside those of its jobs
BUSY_PAUSE_SECONDS = 0.4  # a busy leader pauses so long, so that an idle process can take the lease
PATIENCE_SECONDS = 0.2  # a busy process leads only if stores wait and no other process has measured for so long
RENEWALS = 8  # a block in use is marked so often on its way from the newest to the oldest, if not once an hour
AGES_MAX = 100
FACTS_MAX = 10_000
LOGGED_MAX = 1000
"""Of the blocks that may not be removed, so many are logged."""


class Evictor:
    """Measures and evicts below `root_dir`. `step` does one round; any number of processes may call theirs.

    The holder of the lease measures, and publishes it to the other processes. Each measurement grants each process the
    same: an eighth of the headroom, or of the band above the low water mark if that is less, less what it still writes.
    So with up to 8 writers the blocks never exceed `max_bytes` by more than `(1 - low_water) * max_bytes`, the error of
    a sample (1 %) and a block per process; with n times as many, by n times as much. The same holds for
    `min_free_bytes`, whose marks lie at `min_free_bytes / water`, as far as blocks go.

    Background eviction has a duty cycle of 10 %. Eviction is urgent from when the root is at its limit, or a process
    has used half of its grant and requests it through the lease, until the root is at its low water mark.

    `chance` decides which folders a sample has, and where the listing of the rest begins.
    """

    def __init__(
        self,
        root_dir: str,
        config: CapacityConfig,
        unreadable: Unreadable | None = None,
        *,
        lease: type[EvictorLease] = EvictorLease,
        victims: type[Victims] = Victims,
        chance: random.Random | None = None,
    ) -> None:
        self.root_dir = os.path.realpath(root_dir)
        self.config = config
        _check_min_free(self.root_dir, config.min_free_bytes)
        self.level: Level | None = None  # None before the first measurement
        self.pacing: Pacing = "background"
        self._unreadable = unreadable  # filled with what could not be read or removed; None: that is logged
        self._logged: set[tuple[str, str]] = set()  # path and errno of blocks that may not be removed
        self._traffic_seconds = -float("inf")  # when the last job was submitted
        self._due = threading.Event()
        self._grant = ProcessGrant(self._due)
        self._duty = DutyCycle(self._is_urgent)
        self._lease = lease(self.root_dir)
        chance = chance or random.Random(os.urandom(16))  # the application's own generator is left alone
        self._sampler, self._victims = Sampler(self._duty, chance), victims(self._duty, chance)
        self.gc = Collector(self.root_dir, self._duty, unreadable)
        self._facts: deque[Evicted] = deque(maxlen=FACTS_MAX)
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        size = f"{self.level.root.bytes:.0f} bytes" if self.level else "not measured"
        return f"<Evictor {self.root_dir}: {size}, {self.pacing}, {'leader' if self._lease.is_leader else 'follower'}>"

    def start(self, background: BackgroundThreads) -> None:
        """Do rounds on a thread of its own until `stop`."""
        self._thread = background.start("capacity", "kvtier_capacity", self._run)

    def stop(self) -> None:
        """Ends the thread at the next folder."""
        self._duty.stopped = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    # --- the scheduler's thread ---

    def reserve(self, blocks: int, file_bytes: int) -> int:
        """How many of `blocks` files may be stored now; `release` of that many must follow. A refusal brings the next
        round forward."""
        return self._grant.reserve(self.level, blocks, file_bytes)

    def release(self, blocks: int, file_bytes: int) -> None:
        """That many reserved blocks are written, or never will be."""
        self._grant.release(blocks, file_bytes)

    def note_traffic(self) -> None:
        """A job was submitted: this process is busy."""
        self._traffic_seconds = time.monotonic()

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
        """How old a block's mark of use may become before a load renews it. 0 before the first measurement: a small
        root may evict within seconds, so each load renews until the age of its blocks is known."""
        return min(RECENCY_SECONDS, self.root.oldest_seconds / RENEWALS) if self.root else 0.0

    # --- rounds ---

    @property
    def root(self) -> Root | None:
        """As last measured, here or by another process."""
        return self.level.root if self.level else None

    @property
    def excess_bytes(self) -> float:
        """To be evicted, as last measured."""
        return self.level.excess_bytes if self.level else 0.0

    def _run(self) -> None:
        trouble = ""
        while not self._duty.stopped:
            self._due.clear()
            try:
                pause, trouble = self.step(), ""
            except (OSError, RootError) as error:  # the volume is away: what cannot be measured cannot be evicted
                if str(error) != trouble:
                    logger.warning("capacity of %s: %s", self.root_dir, error)
                pause, trouble = PAUSE_SECONDS_MAX, str(error)
            if not self._duty.stopped:
                least = BUSY_PAUSE_SECONDS if self._lease.is_leader and self._is_busy() else PAUSE_SECONDS_MIN
                time.sleep(least)  # also while stores are refused without a break
                self._due.wait(pause - least)

    def step(self) -> float:
        """One round: measure, evict if above the high water mark, else collect garbage. Seconds until the next is due.

        One process leads: a process that reads another one's new measurement leaves the rest to it.
        """
        leads = self._must_lead()
        if self._grant.demand:
            self._lease.request_urgent()
        if leads:
            with self._lease.acquire() as lease:
                if lease is None:
                    return PAUSE_SECONDS_MIN
                self._lead(lease)
        return self._pause_seconds()

    def _must_lead(self) -> bool:
        root = self._lease.poll()
        if root is not None:
            # Stores wait here, which the leader does not know, and below the high water mark it evicts nothing.
            return self._note(root).headroom.high >= 0 and self._grant.is_too_small
        waited = time.monotonic() - self._lease.followed_seconds > PATIENCE_SECONDS
        return self._lease.is_leader or not self._is_busy() or (waited and self._grant.demand is Demand.REFUSED)

    def _is_busy(self) -> bool:
        return time.monotonic() - self._traffic_seconds < BUSY_SECONDS

    def _is_urgent(self) -> bool:
        """Whether work goes on without pauses. A tier's first measurement does, since its stores wait for it."""
        is_first = self.level is None and self._thread is not None
        return self.pacing == "urgent" or is_first or self._is_urgent_requested()

    def _is_urgent_requested(self) -> bool:
        return bool(self._grant.demand) or self._lease.is_urgent_requested()

    def _lead(self, lease: int) -> None:
        started = time.monotonic()
        samples = self._measure()
        if self._duty.stopped or self.root is None:
            return
        finished = time.monotonic()
        self._lease.publish(lease, self.root)
        plan = self._plan(samples)
        logger.debug("%r: %.0f bytes to evict", self, self.excess_bytes)
        deadline = finished + max(PASS_SECONDS, finished - started)
        for excess in plan.folders:
            self.evict(excess, plan.reason, deadline)
        if not plan.folders:
            self.gc.collect_for(GC_SECONDS)

    def plan(self) -> Plan:
        """Measure, and list what a pass would evict; nothing is removed. For people."""
        return self._plan(self._measure())

    def _plan(self, samples: list[FolderSample]) -> Plan:
        reason = self.level.headroom.reason if self.level else "max_bytes"
        return Plan(reason, excess_by_folder(samples, self.excess_bytes, self.config.shares))

    def _pause_seconds(self) -> float:
        level = self.level
        if level is None or level.excess_bytes > 0:  # an idle process, if there is one, comes first
            return BUSY_PAUSE_SECONDS if self._is_busy() else PAUSE_SECONDS_MIN
        due = level.headroom.high / level.growth / 2 if level.growth > 0 else PAUSE_SECONDS_MAX
        return min(PAUSE_SECONDS_MAX, max(PAUSE_SECONDS_MIN, due))

    def _measure(self) -> list[FolderSample]:
        self._duty.begin()
        samples = [self._sampler.sample(folder) for folder in folders(self.root_dir, self._unreadable)]
        oldest = min((block.used_seconds for one in samples for block in one.blocks), default=time.time())
        figures = sum(s.bytes for s in samples), sum(s.files for s in samples), max(0.0, time.time() - oldest)
        if not self._duty.stopped:  # else the rest of the root was not measured
            self._note(Root(*figures))
        return samples

    def _note(self, root: Root) -> Level:
        """What a measurement means. Eviction begins above the high water mark, or at once if stores wait for it, and
        goes on down to the low water mark."""
        now, headroom, before = time.monotonic(), headroom_of(root, self.root_dir, self.config), self.level
        grown = before.headroom.high - headroom.high if before else 0.0
        growth = max(0.0, grown / max(1e-3, now - before.measured_seconds)) if before else 0.0
        begun = self._grant.is_too_small or self.excess_bytes > 0
        is_excess = (headroom.low if begun else headroom.high) < 0
        must_hurry = self.pacing == "urgent" or self._is_urgent_requested() or headroom.stores <= 0
        self.pacing = "urgent" if is_excess and must_hurry else "background"
        self.level = level = Level(root, headroom, -headroom.low if is_excess else 0.0, growth, now)
        self._grant.demand = Demand.NONE
        return level

    # --- removing ---

    def evict(self, excess: FolderExcess, reason: FileEvictionReason, deadline: float) -> None:
        """Remove about `excess.bytes` of a folder's blocks; `deadline` (`time.monotonic()`) may end it earlier. The
        lease is held."""
        started, freed, gone = time.monotonic(), 0, list[BlockFile]()
        for block in self._victims.of(excess):
            if remove_block(block, self._note_refusal):
                freed += block.bytes
                gone.append(block)
            if freed >= excess.bytes or time.monotonic() > deadline or self._duty.stopped:
                break
        if gone:
            keys = tuple(block.key for block in gone[:EVICTED_KEYS_MAX])
            ages = tuple(max(0.0, time.time() - b.used_seconds) for b in gone[:: -(-len(gone) // AGES_MAX)])
            self._facts.append(Evicted(reason, keys, len(gone), freed, ages, started, time.monotonic()))

    def _note_refusal(self, path: str, error: OSError) -> None:
        """A block may not be removed: note it for the command, or log it, once for each path and errno."""
        if self._unreadable is not None:
            note_error(self._unreadable, path, error, "cannot be removed")
        elif (once := (path, errno_name(error))) not in self._logged and len(self._logged) < LOGGED_MAX:
            self._logged.add(once)
            logger.warning("%s cannot be removed: %s; give user %d access to it", path, errno_text(error), os.geteuid())


def _check_min_free(root_dir: str, min_free_bytes: int | None) -> None:
    """Raises ConfigError when no eviction could ever leave so much free: each store would be refused."""
    with contextlib.suppress(OSError):  # a root that cannot be used is another error, which its user raises
        status = os.statvfs(root_dir)
        size = status.f_blocks * status.f_frsize
        if min_free_bytes is not None and min_free_bytes >= size:
            raise ConfigError(
                f"min_free_bytes is {min_free_bytes}; the file system at {root_dir} has {size} bytes in all, so no "
                "store could ever be admitted"
            )
