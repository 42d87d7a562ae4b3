"""Mutants of lookups and of the CPU tier: wrong answers, wrong reference counts. Over the reference tier and kvtier's
stack; workers load them.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.adapters.base import TierSetup, Verdict
from harness.adapters.kvtier import KvtierStackAdapter
from harness.adapters.reference import MemoryAdapter
from harness.mutants.base import detected_by
from kvtier.base import ReqContext
from kvtier.config import FsTierConfig, RunConfig
from kvtier.cpu.manager import CPUOffloadingManager
from kvtier.fs.manager import FileSystemTierManager
from kvtier.hashing import OffloadKey

SMALL_CPU_TIER = ("cpu_chunks=32",)


@detected_by(
    "faults",
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


@detected_by("leftovers", r"slots of the CPU tier are pinned although no request is left")
class LeaksSlots(_OverCpuTier):
    """A slot stays pinned after its read."""

    cpu_tier = _NeverUnpins
