"""Tokens -> chained block hashes -> `OffloadKey`, bit for bit as vLLM; called by the engine's side, does no I/O.

One hash stands for a block *and* everything before it, so two requests share a block exactly when they share the whole
prefix. Processes share only if they also agree on the algorithm and on `NONE_HASH`, the parent of every first block.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import index
from typing import Any, NamedTuple, NewType

from kvtier.config import HASH_ALGORITHMS, SEED_POLICIES, ConfigError

BlockHash = NewType("BlockHash", bytes)
OffloadKey = NewType("OffloadKey", bytes)
HashFunction = Callable[[object], BlockHash]
ExtraKeys = Callable[[int, int], tuple[Any, ...] | None]
"""`(start, end)` of a block in tokens -> what besides its tokens decides its content, as tuples `(tag, value, ...)`."""

DEFAULT_SEED = "vllm-none-hash"
SEED_VARIABLE = "PYTHONHASHSEED"
GROUP_BYTES = 4
"""An `OffloadKey` is a block hash followed by its group index, big-endian, in this many bytes."""


def hash_function(algorithm: str) -> HashFunction:
    """H of vLLM: SHA-256 or XXH3-128 over pickle protocol 5 or canonical CBOR. Raises `ConfigError` for any other name.

    H takes its argument as it is: with pickle, see `_canonical` for why that matters.
    """
    if algorithm not in HASH_ALGORITHMS:
        raise ConfigError(f"hash_algorithm is {algorithm!r}; valid choices: {', '.join(HASH_ALGORITHMS)}")
    encode = _cbor() if algorithm.endswith("_cbor") else _pickle
    digest = _sha256 if algorithm.startswith("sha256") else _xxh3(algorithm)
    return lambda value: BlockHash(digest(encode(value)))


def none_hash(algorithm: str, policy: str = "fixed", environ: Mapping[str, str] = os.environ) -> BlockHash:
    """The parent of every first block. Instances share blocks only if this is equal in all of them.

    A set `PYTHONHASHSEED` decides under every policy, verbatim, even if empty. Unset, `fixed` is vLLM 0.33: one
    well-known seed for the sha256 pair, a random one for the xxhash pair, whose collisions an attacker could compute
    in advance; `env` raises `ConfigError`; `random` is older vLLM: 32 random bytes, so nothing is ever shared.
    """
    if policy not in SEED_POLICIES:
        raise ConfigError(f"seed_policy is {policy!r}; valid choices: {', '.join(SEED_POLICIES)}")
    h = hash_function(algorithm)
    seed = environ.get(SEED_VARIABLE)
    if seed is None:
        if policy == "env":
            raise ConfigError(
                f"seed_policy is 'env' but {SEED_VARIABLE} is not set; set it to the same value (for example 0) in "
                "every process that shares this root, since all block names follow from it, or use seed_policy 'fixed'"
            )
        if policy == "random":
            return BlockHash(os.urandom(32))
        seed = DEFAULT_SEED if algorithm.startswith("sha256") else os.urandom(32).hex()
    return h(_copy_str(seed))


def none_hash_digest(none: BlockHash) -> str:
    """What a root's manifest has of `NONE_HASH`: enough to compare, not enough to compute hashes with it."""
    return hashlib.sha256(none).hexdigest()


class MultimodalItem(NamedTuple):
    """One image, clip or the like: its tokens are `[offset, offset + length)` of the request."""

    identifier: str
    offset: int
    length: int


@dataclass(frozen=True)
class RequestExtras:
    """What besides its tokens decides the KV of a request; called with a block's `[start, end)`, it is an `ExtraKeys`.

    `lora` is (name, path). `prompt_embeds[i]` is the SHA-256 of the raw bytes of the rows of block i, for requests that
    bring embeddings; blocks after the last one have no rows.
    """

    lora: tuple[str, str] | None = None
    mm_items: tuple[MultimodalItem, ...] = ()
    cache_salt: str | None = None
    prompt_embeds: tuple[bytes, ...] | None = None

    def __post_init__(self) -> None:
        items = sorted((MultimodalItem(*item) for item in self.mm_items), key=lambda item: item.offset)
        object.__setattr__(self, "mm_items", tuple(items))

    def __call__(self, start: int, end: int) -> tuple[tuple[Any, ...], ...] | None:
        """The extra keys of block `[start, end)` in vLLM's order, or None if there are none."""
        keys: list[tuple[Any, ...]] = []
        if self.lora is not None:
            keys.append(("lora", *self.lora))
        for item in self.mm_items:
            # The offset counts from the block's start (negative if the item began earlier): the same item elsewhere
            # in a block of equal placeholders is another block.
            if item.offset < end and start < item.offset + item.length:
                keys.append(("mm", item.identifier, item.offset - start))
        if start == 0 and self.cache_salt:  # later blocks inherit it through the chain
            keys.append(("cache_salt", self.cache_salt))
        if self.prompt_embeds is not None:
            block = start // (end - start)
            keys.append(("prompt_embeds", self.prompt_embeds[block] if block < len(self.prompt_embeds) else _NO_ROWS))
        return tuple(keys) or None


def hash_tokens(
    tokens: Sequence[int],
    tokens_per_hash: int,
    hash_fn: HashFunction,
    parent: BlockHash,
    extra_keys: ExtraKeys | None = None,
) -> list[BlockHash]:
    """One hash per full block of `tokens_per_hash` tokens, chained after `parent` (`NONE_HASH` for a new request).

    Tokens are whole numbers of any type and size; a tail that fills no block has no hash. `extra_keys` counts tokens
    from the start of `tokens`. Equal input gives equal hashes, in every process and whatever objects carry it.
    """
    assert tokens_per_hash >= 1, f"tokens_per_hash is {tokens_per_hash}"
    exact = tuple(map(index, tokens))  # exact ints of True and numpy ints; 1.5 and "1" are a TypeError
    previous = BlockHash(_copy_bytes(parent))
    hashes: list[BlockHash] = []
    for start in range(0, len(exact) - tokens_per_hash + 1, tokens_per_hash):
        end = start + tokens_per_hash
        extra = _canonical(extra_keys(start, end)) if extra_keys is not None else None
        previous = hash_fn((previous, exact[start:end], extra))
        hashes.append(previous)
    return hashes


def chunk_hashes(block_hashes: Sequence[BlockHash], hashes_per_chunk: int) -> list[BlockHash]:
    """Of each full run of `hashes_per_chunk` hashes the last one, which stands for all before it."""
    assert hashes_per_chunk >= 1, f"hashes_per_chunk is {hashes_per_chunk}"
    return list(block_hashes[hashes_per_chunk - 1 :: hashes_per_chunk])


def make_offload_key(block_hash: BlockHash, group_idx: int = 0) -> OffloadKey:
    """Pack; `get_offload_block_hash` and `get_offload_group_idx` are the exact inverse. 0 <= group_idx < 2**32."""
    return OffloadKey(block_hash + group_idx.to_bytes(GROUP_BYTES, "big"))


def get_offload_block_hash(key: OffloadKey) -> BlockHash:
    """The hash in a key."""
    return BlockHash(key[:-GROUP_BYTES])


def get_offload_group_idx(key: OffloadKey) -> int:
    """The group index in a key."""
    return int.from_bytes(key[-GROUP_BYTES:], "big")


# Pickle writes an object that it meets twice as a back reference to the first meeting: it goes by identity, not by
# equality. So ("ab", "ab") made of one string object and of two equal ones are two different pickles; a numpy int, a
# str subclass or one tuple used twice make others still. vLLM's values arrived over a socket, each string an object of
# its own, while its tags are literals, one object each however often they occur. This rebuilds exactly that: plain
# types, every value a fresh copy, equal tags one object. (CPython keeps one object for "" and for each character up to
# U+00FF, also for bytes; a copy of those is the same object here as it is there.)
def _canonical(extra: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if not extra:
        return None
    tags: dict[str, str] = {}
    keys = []
    for tag, *values in extra:
        plain_tag = _copy_str(tag)
        keys.append((tags.setdefault(plain_tag, plain_tag), *map(_copy_value, values)))
    return tuple(keys)


def _copy_value(value: Any) -> str | bytes | int:
    if isinstance(value, str):
        return _copy_str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _copy_bytes(value)
    return index(value)


def _copy_str(value: str) -> str:
    return str.encode(value, "utf-8", "surrogatepass").decode("utf-8", "surrogatepass")


def _copy_bytes(value: bytes | bytearray | memoryview) -> bytes:
    return bytes(bytearray(value))


_NO_ROWS = hashlib.sha256(b"").digest()


def _pickle(value: object) -> bytes:
    return pickle.dumps(value, protocol=5)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _cbor() -> Callable[[object], bytes]:
    dumps: Callable[..., bytes] = _needed("cbor2", "a *_cbor hash_algorithm").dumps
    return lambda value: dumps(value, canonical=True)


def _xxh3(algorithm: str) -> Callable[[bytes], bytes]:
    digest: Callable[[bytes], bytes] = _needed("xxhash", f"hash_algorithm {algorithm!r}").xxh3_128_digest
    return digest


def _needed(package: str, why: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"{why} needs the package {package}, but it cannot be imported ({error})") from None
