"""Mutants of lookups and of the CPU tier: wrong answers, wrong reference counts. Over the reference tier and kvtier's
stack; workers load them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from harness.adapters.base import TierSetup, Verdict
from harness.adapters.kvtier import KvtierStackAdapter
from harness.adapters.reference import MemoryAdapter
from harness.mutants.base import breaks, detected_by
from kvtier.base import ReqContext
from kvtier.config import FsTierConfig, RunConfig
from kvtier.cpu.manager import CPUOffloadingManager
from kvtier.fs.manager import FileSystemTierManager
from kvtier.hashing import OffloadKey

SMALL_CPU_TIER = ("cpu_chunks=32",)


@detected_by(
    "faults/no-block",
    r"damage_remove .*: no block: blocks \d+ are said to be there and do not load",
    scenario="faults",
    fault=("damage_remove",),
)
class CachesHitsForEver(MemoryAdapter):
    """A block that was once a hit stays a hit in this process, also after its file is gone and a load failed."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._known: set[bytes] = set()

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        self._known.update(key for key, verdict in zip(keys, verdicts, strict=True) if verdict == "hit")
        return ["hit" if key in self._known else "miss" for key in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._known.update(keys)


class _OverCpuTier(KvtierStackAdapter):
    """kvtier's stack with another CPU tier: its CPU tier gets another class."""

    cpu_tier: type[CPUOffloadingManager]

    def _build(self, config: FsTierConfig, run: RunConfig) -> FileSystemTierManager:
        tier = super()._build(config, run)
        self._manager.primary.__class__ = self.cpu_tier
        return tier


class SameCpuTier(_OverCpuTier):
    """The correct base of the mutants below."""

    cpu_tier = CPUOffloadingManager


class _PinsNothing(CPUOffloadingManager):
    def prepare_read(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> tuple[int, ...]:
        return tuple(self._chunks[key].slot for key in keys)

    def complete_read(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        return


@detected_by("integrity/bytes", r"process \d+ in job \d+: other key", tier_option=SMALL_CPU_TIER, slots=32)
class EvictsPinnedBlocks(_OverCpuTier):
    """Blocks are evicted while they are read, and their slots are filled again."""

    cpu_tier = _PinsNothing


class _NeverUnpins(CPUOffloadingManager):
    def complete_load(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        return


@detected_by("leftovers/own-checks", r"slots of the CPU tier are pinned although no request is left")
class LeaksSlots(_OverCpuTier):
    """A slot stays pinned after its read."""

    cpu_tier = _NeverUnpins


@detected_by("visibility/answered", r"asked for block \d+ and never got an answer", scenario="sharing")
class NeverAnswersSome(MemoryAdapter):
    """The lookup of each seventh key says retry for ever."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        answers = zip(keys, super().lookup(keys, req_id), strict=True)
        return ["retry" if key[0] % 7 == 0 else verdict for key, verdict in answers]


@detected_by("visibility/stored-is-found", r"got a miss for block \d+", scenario="retention", seconds=4.0)
class ForgetsAfterTwoSeconds(MemoryAdapter):
    """An instance finds a block that it has stored for two seconds only."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._stored: dict[bytes, float] = {}

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._stored.update(dict.fromkeys(keys, time.monotonic()))

    def _found(self, key: bytes) -> bool:
        return time.monotonic() - self._stored.get(key, time.monotonic()) < 2.0 and super()._found(key)


@detected_by("visibility/stored-is-found", r"got a miss for block \d+", scenario="retention")
class ExpiresOldFiles(MemoryAdapter):
    """Blocks whose files are older than a month are not found."""

    def _found(self, key: bytes) -> bool:
        with contextlib.suppress(OSError):
            return time.time() - self._path(key).stat().st_mtime < 30 * 86400 and super()._found(key)
        return False


@detected_by("visibility/stored-is-found", r"got a miss for block \d+", scenario="retention")
class IndexOfFiveHundredBlocks(MemoryAdapter):
    """The index of an instance holds the last 500 blocks that it has stored or loaded; others are found on no disk."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        found = sorted(self._folder.glob("*.bin"), key=lambda path: path.stat().st_mtime)
        self._index = dict.fromkeys(path.name for path in found[-500:])

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._index |= dict.fromkeys(self._path(key).name for key in keys)
        for name in list(self._index)[:-500]:
            del self._index[name]

    def _found(self, key: bytes) -> bool:
        known = self._path(key).name in self._index or len(self._index) < 500
        return known and super()._found(key)


@detected_by("visibility/stored-is-found", r"process \d+ \(start \d+\) got a miss", scenario="retention")
class ForgetsAtEachStart(MemoryAdapter):
    """An instance that starts again finds only what came into the root within the last half second before its start."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._since = time.time() - 0.5 if setup.incarnation else 0.0

    def _found(self, key: bytes) -> bool:
        with contextlib.suppress(OSError):
            return self._path(key).stat().st_mtime >= self._since and super()._found(key)
        return False


@detected_by("sharing/stored-is-found", r"missed block \d+, stored .* s before", requests=400)
class LosesOneInAHundred(MemoryAdapter):
    """One block in a hundred is never found, though it is there."""

    def _found(self, key: bytes) -> bool:
        return int.from_bytes(key[:2], "big") % 100 != 0 and super()._found(key)


@breaks("lookups_cost_the_same_per_key", r"a lookup of 1,024 keys costs .* times as much for each key")
class SortsForEachKey(MemoryAdapter):
    """For each of its keys a lookup sorts all of them."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        places = [sorted(keys, reverse=True).index(key) for key in keys]
        assert len(places) == len(keys)
        return super().lookup(keys, req_id)
