"""Mutants of names: processes derive different names for one block, or one name for different blocks. Workers load
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from harness.adapters.base import TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.adapters.reference import MemoryAdapter
from harness.mutants.base import detected_by
from kvtier.fs.file_mapper import FileMapper
from kvtier.hashing import OffloadKey, get_offload_block_hash, make_offload_key


@detected_by("determinism", r"block \d+ has \d+ names")
class HashesTuples(MemoryAdapter):
    """Keys come from `hash()` of a tuple with a string, which differs between processes."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            block = ("block", parent, *tokens[start : start + size])
            parent = hash(block).to_bytes(32, "little", signed=True)
            keys.append(parent)
        return keys


@detected_by("seed_settings", r"is common to .* PYTHONHASHSEED .*, which must not share", scenario="determinism")
class IgnoresTheSeed(MemoryAdapter):
    """The seed of the hash chain is a constant; PYTHONHASHSEED and the seed policy are ignored."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._none_hash = hashlib.sha256(b"constant").digest()


class _NoGroups(FileMapper):
    def get_file_name(self, key: OffloadKey) -> str:
        return super().get_file_name(make_offload_key(get_offload_block_hash(key), 0))


@detected_by("determinism", r"block \d+ of another group.* share the name")
class DropsTheGroup(KvtierAdapter):
    """The name of a block omits its group of layers, although each group has its own KV."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._tier.file_mapper.__class__ = self._naming._mapper.__class__ = _NoGroups
