"""How kvtier names blocks, without its tier: for its adapter, and for interpreters that lack the tier's packages (the
sha256 algorithm takes the standard library alone). It opens no root and keeps no state.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.adapters.base import TierSetup
from kvtier import (
    BlockHash,
    FileMapper,
    KVCacheGroup,
    OffloadKey,
    RunConfig,
    get_offload_block_hash,
    hash_function,
    hash_tokens,
    make_offload_key,
    none_hash,
    none_hash_digest,
)


def run_config(setup: TierSetup) -> RunConfig:
    """Whose blocks these are, in kvtier's words."""
    group = KVCacheGroup(setup.tokens_per_block, ("harness.layer",))
    return RunConfig(
        setup.model_name,
        tokens_per_hash=setup.tokens_per_block,
        tp_size=setup.ranks,
        rank=setup.rank,
        dtype=setup.dtype,
        kv_cache_groups=(group,),
    )


class KvtierNaming:
    """The names under one root, chained from `none`: that of an open tier, else derived here as a tier would."""

    def __init__(self, setup: TierSetup, none: BlockHash | None = None) -> None:
        self._tokens_per_block = setup.tokens_per_block
        self._none = none_hash(setup.hash_algorithm, setup.seed_policy) if none is None else none
        self._mapper = FileMapper(setup.root_dir, run_config(setup))
        self._hash = hash_function(setup.hash_algorithm)

    def keys(self, tokens: Sequence[int], parent: bytes | None = None, salt: str = "") -> list[bytes]:
        first = self._none if parent is None else get_offload_block_hash(OffloadKey(parent))
        salted = (lambda start, end: None if start else (("cache_salt", salt),)) if salt else None
        hashes = hash_tokens(tokens, self._tokens_per_block, self._hash, BlockHash(first), salted)
        return [make_offload_key(block_hash, 0) for block_hash in hashes]

    def other_group(self, key: bytes) -> bytes:
        return make_offload_key(get_offload_block_hash(OffloadKey(key)), 1)

    def none_hash_digest(self) -> str:
        return none_hash_digest(self._none)

    def file_name(self, key: bytes) -> str:
        return self._mapper.get_file_name(OffloadKey(key)).removeprefix(self._mapper.root_dir + "/")
