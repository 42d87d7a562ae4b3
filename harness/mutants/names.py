"""Tiers that derive names wrongly, so that processes do not meet or meet where they must not. Workers load
them; they import kvtier, since what they break lies inside it."""

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
    """Keys come from `hash()` of a tuple, which differs from process to process as soon as there is a string in it."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            block = ("block", parent, *tokens[start : start + size])
            parent = hash(block).to_bytes(32, "little", signed=True)
            keys.append(parent)
        return keys


@detected_by("matrix", r"is common to .* PYTHONHASHSEED .*, which must not share", scenario="determinism")
class IgnoresTheSeed(MemoryAdapter):
    """The seed of the chain is a constant, whatever PYTHONHASHSEED and the policy say."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._none_hash = hashlib.sha256(b"constant").digest()


class _NoGroups(FileMapper):
    def get_file_name(self, key: OffloadKey) -> str:
        return super().get_file_name(make_offload_key(get_offload_block_hash(key), 0))


@detected_by("determinism", r"block \d+ of another group.* share the name")
class DropsTheGroup(KvtierAdapter):
    """The name of a block does not say of which group of layers it is, though each has its own KV."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._tier.file_mapper.__class__ = self._naming._mapper.__class__ = _NoGroups
