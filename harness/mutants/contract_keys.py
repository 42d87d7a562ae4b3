"""Mutants of keys, over the reference tier: they join what must be separate, or lose one of many. Workers load them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.adapters.base import TierSetup
from harness.adapters.reference import MemoryAdapter
from harness.mutants.base import breaks


@breaks("keys_name_prefixes", r"not those of the whole|depend on the tokens before it")
class KeysOfTheBlockAlone(MemoryAdapter):
    """A key does not depend on the blocks before its own."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        size = self.setup.tokens_per_block
        starts = range(0, len(tokens) - size + 1, size)
        return [MemoryAdapter.keys(self, tokens[start : start + size])[0] for start in starts]


@breaks("keys_tell_tokens_apart", r"blocks that differ in one token, its bits or its place have \d+ keys")
class KeysOfSixteenBits(MemoryAdapter):
    """A key takes only the low 16 bits of each token."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return super().keys([token & 0xFFFF for token in tokens], parent)


@breaks("keys_have_their_full_length", r"keys have \d+ independent bits")
class KeysOfFortyBits(MemoryAdapter):
    """A key has 40 bits of the hash and zeros."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return [key[:5] + bytes(27) for key in super().keys(tokens, parent)]


@breaks("keys_are_used_in_full", r"have one file name|file names|is found under a key that differs")
class NamesFilesByHalfTheKey(MemoryAdapter):
    """The file of a block is named by the first half of its key, and any block in it is taken."""

    def file_name(self, key: bytes) -> str | None:
        return super().file_name(key[:16])

    def _path(self, key: bytes) -> Path:
        return super()._path(key[:16])

    def _read(self, key: bytes) -> bytes:
        return self._path(key).read_bytes()[: self.setup.block_bytes]


@breaks("models_are_separate", r"blocks are found that only another model stored|wrong bytes")
class IgnoresTheModel(MemoryAdapter):
    """Engines of different models share blocks."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(replace(setup, model_name=""))
        self.setup = setup


@breaks("data_types_are_separate", r"blocks are found that only another data type stored|wrong bytes")
class IgnoresTheDataType(MemoryAdapter):
    """Engines with different data types share blocks."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(replace(setup, dtype=""))
        self.setup = setup


@breaks("ranks_are_separate", r"blocks are found that only another rank stored|wrong bytes")
class IgnoresTheRank(MemoryAdapter):
    """The ranks of an engine share blocks."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(replace(setup, rank=0))
        self.setup = setup


@breaks("groups_are_separate", r"blocks are found that only another group of layers stored")
class FindsBlocksOfOtherGroups(MemoryAdapter):
    """A lookup ignores the group of layers in a key."""

    def other_group(self, key: bytes) -> bytes | None:
        return key + b"1"

    def _path(self, key: bytes) -> Path:
        return super()._path(key[:32])

    def _found(self, key: bytes) -> bool:
        return self._path(key).exists()


@breaks("salts_are_separate", r"blocks of different salts have equal keys")
class TakesSixLettersOfTheSalt(MemoryAdapter):
    """Only the first six letters of a cache salt count."""

    def salted_keys(self, tokens: Sequence[int], salt: str) -> list[bytes] | None:
        return super().salted_keys(tokens, salt[:6])


@breaks("many_keys_stay_apart", r"blocks that were reported stored are not found")
class KeepsOneBlockPerBucket(MemoryAdapter):
    """Of two blocks in one of 4,096 buckets the later replaces the earlier."""

    def _path(self, key: bytes) -> Path:
        return super()._path(hashlib.sha256(key).digest()[:2][:1] + bytes([hashlib.sha256(key).digest()[1] & 0xF0]))
