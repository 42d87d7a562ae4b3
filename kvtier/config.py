"""Frozen, validated configuration; every caller builds one of these first, and nothing below ever re-checks a value.

A bad value raises `ConfigError`: one sentence that names the option, the value and what is valid.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

PAGE_BYTES = 4096
"""Alignment of blocks in memory and in files: O_DIRECT on every common device accepts it."""

HASH_ALGORITHMS = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")
SEED_POLICIES = ("fixed", "env", "random")
INTEGRITY_LEVELS = ("verify", "require", "off")
IO_POLICIES = ("auto", "direct", "buffered")
DURABILITIES = ("cache", "durable")
MISMATCH_ACTIONS = ("refuse", "warn")
CACHE_POLICIES = ("lru", "arc")


class KvtierError(Exception):
    """Base of every error that kvtier raises on purpose; its text is one sentence for a person."""


class ConfigError(KvtierError, ValueError):
    """An option has a value that cannot work."""


class SlotError(KvtierError, IndexError):
    """A job names a slot that the CPU tier does not have."""


class RootError(KvtierError):
    """The root directory cannot be used, or belongs to processes that would not share with this one."""


def _check_int(config: object, name: str, low: int, multiple_of: int = 1) -> None:
    value = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it takes a whole number")
    if value < low:
        raise ConfigError(f"{name} is {value}; it must be at least {low}")
    if value % multiple_of:
        raise ConfigError(f"{name} is {value}; it must be a multiple of {multiple_of} (the alignment of direct I/O)")


def _check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; valid choices: {', '.join(choices)}")


def _check_bool(config: object, name: str) -> None:
    if not isinstance(value := getattr(config, name), bool):
        raise ConfigError(f"{name} is {value!r}; valid choices: True, False")


def _check_text(config: object, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} is {value!r}; it takes a name, as text")


def _check_mode(config: object, name: str, low: int, high: int) -> None:
    _check_int(config, name, 0)
    value = getattr(config, name)
    if value > high or value & low != low:
        raise ConfigError(f"{name} is {value:#o}; it takes permission bits that include {low:#o}, up to {high:#o}")


class _FromMapping:
    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Build from keywords. Raises `ConfigError` naming every unknown key together with the valid ones."""
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        required = [
            f.name
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if unknown := sorted(map(repr, set(options) - set(names))):
            raise ConfigError(f"unknown option {', '.join(unknown)}; valid options: {', '.join(names)}")
        if missing := [name for name in required if name not in options]:
            raise ConfigError(f"missing option {', '.join(map(repr, missing))}; valid options: {', '.join(names)}")
        return cls(**options)


@dataclass(frozen=True)
class KVCacheGroup(_FromMapping):
    """One group of layers that share a block table: tokens in one of its blocks, and its layers' names in order."""

    tokens_per_block: int
    layer_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_int(self, "tokens_per_block", 1)
        names: Any = self.layer_names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"layer_names is {names!r}; it takes a list of names")
        object.__setattr__(self, "layer_names", tuple(names))


@dataclass(frozen=True)
class RunConfig(_FromMapping):
    """What two engines must agree on before a block of one means anything to the other.

    The names and the order of meaning are vLLM's `FileMapper` fields (0.33.0). `replicated_layout` and
    `canonical_format` appear in `fields()` only when set, so older folders keep their names.
    """

    model_name: str
    tokens_per_hash: int = 16
    blocks_per_file: int = 1
    tp_size: int = 1
    pp_size: int = 1
    pcp_size: int = 1
    dcp_size: int = 1
    rank: int = 0
    dtype: str = "bfloat16"
    kv_cache_groups: tuple[KVCacheGroup, ...] = ()
    inference_engine: str = "vllm"
    parallel_agnostic: bool = False
    replicated_layout: bool = False
    canonical_format: str | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_hash", "blocks_per_file", "tp_size", "pp_size", "pcp_size", "dcp_size"):
            _check_int(self, name, 1)
        _check_int(self, "rank", 0)
        name = self.model_name
        if not isinstance(name, str) or not name or not name.isprintable() or len(os.fsencode(name)) > 200:
            raise ConfigError(f"model_name is {name!r}; it takes 1 to 200 bytes of printable text")
        for name in ("parallel_agnostic", "replicated_layout"):
            _check_bool(self, name)
        for name in ("dtype", "inference_engine", *(["canonical_format"] if self.canonical_format is not None else [])):
            _check_text(self, name)
        groups: Any = self.kv_cache_groups
        if not isinstance(groups, (list, tuple)) or not all(isinstance(g, (KVCacheGroup, Mapping)) for g in groups):
            raise ConfigError(f"kv_cache_groups is {groups!r}; it takes a list of tokens_per_block, layer_names")
        groups = tuple(g if isinstance(g, KVCacheGroup) else KVCacheGroup.from_mapping(g) for g in groups)
        object.__setattr__(self, "kv_cache_groups", groups)


@dataclass(frozen=True)
class CapacityConfig(_FromMapping):
    """How large a root may grow: `max_bytes` of blocks and/or `min_free_bytes` on its file system.

    Eviction begins above `high_water` of the limit and ends at `low_water`; stores beyond the limit are refused.
    `shares` gives models (by name) a weight other than 1: a model loses blocks only while it holds more than its share.
    """

    max_bytes: int | None = None
    min_free_bytes: int | None = None
    high_water: float = 0.95
    low_water: float = 0.9
    shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_bytes is None and self.min_free_bytes is None:
            raise ConfigError("capacity sets no limit; give max_bytes, min_free_bytes, or both")
        for name in ("max_bytes", "min_free_bytes"):
            if getattr(self, name) is not None:
                _check_int(self, name, 1)
        if not 0 < self.low_water < self.high_water <= 1:
            raise ConfigError(
                f"low_water is {self.low_water}, high_water {self.high_water}; valid: 0 < low_water < high_water <= 1"
            )
        bad = {name: weight for name, weight in self.shares.items() if not weight > 0}
        if bad:
            raise ConfigError(f"shares has {bad}; each weight must be above 0")


@dataclass(frozen=True)
class FsTierConfig(_FromMapping):
    """Options of `FileSystemTierManager`. Sizes are bytes.

    A store or load job is split into tasks of at most `task_bytes_max` (a block counts as 64 KiB at least; never less
    than one block), so that a job uses the idle threads, each for four blocks at least if that bound allows it, and
    nothing waits behind more than one bounded task per thread.
    Stores beyond `store_queue_bytes_max`, and stores that come while more than half of the CPU tier's slots wait to be
    stored, are refused at once, with a result that says so: a slow volume never takes all slots. A thread whose task
    runs for longer than `hung_seconds` is replaced until the task ends, so that calls that hang do not take their class
    down, up to as many as the threads; a lookup that has waited for so long is a miss.

    `io` "auto": stores go past the page cache where the file system can, so that no backlog of dirty pages delays
    loads; loads go through it, so that what any process of this host has loaded lately comes from memory. "direct":
    both past it, for hosts without memory to spare or blocks that are loaded once. "buffered": both through it.
    `compiled`: use the compiled twin (`_batch.c`) where there is one.

    `thread_nice`: by how much the priority of the tier's threads is below that of the process, for the sake of the
    engine's own threads; that of the read-priority ones is lower by 3 more, for the sake of stores.

    `durability` "cache": after a power loss blocks may be missing (never wrong); "durable": a store that succeeded
    survives one. `capacity` bounds the root; without it the root grows until the disk is full.
    """

    root_dir: str
    block_bytes: int
    n_read_threads: int = 16
    n_write_threads: int = 16
    thread_nice: int = 5
    hash_algorithm: str = "sha256"
    seed_policy: str = "fixed"
    on_mismatch: str = "refuse"
    on_untrusted_root: str = "warn"
    integrity: str = "verify"
    io: str = "auto"
    compiled: bool = True
    durability: str = "cache"
    task_bytes_max: int = 1 << 20
    store_queue_bytes_max: int = 1 << 30
    hung_seconds: float = 10.0
    known_keys_max: int = 1 << 18
    enable_kv_events: bool = False
    capacity: CapacityConfig | None = None
    file_mode: int = 0o600
    dir_mode: int = 0o700

    def __post_init__(self) -> None:
        root: Any = os.fspath(self.root_dir) if isinstance(self.root_dir, os.PathLike) else self.root_dir
        if not isinstance(root, str) or not root or "\0" in root:
            raise ConfigError(f"root_dir is {root!r}; it takes the path of a directory")
        object.__setattr__(self, "root_dir", os.path.abspath(root))
        _check_int(self, "block_bytes", PAGE_BYTES, multiple_of=PAGE_BYTES)
        # Zero threads in a group would starve its class: vLLM 0.33 accepts it, kvtier never does.
        for name in ("n_read_threads", "n_write_threads", "task_bytes_max"):
            _check_int(self, name, 1)
        _check_int(self, "store_queue_bytes_max", self.block_bytes)
        for name in ("known_keys_max", "thread_nice"):
            _check_int(self, name, 0)
        if not isinstance(self.hung_seconds, (int, float)) or not self.hung_seconds > 0:
            raise ConfigError(f"hung_seconds is {self.hung_seconds!r}; it takes a number above 0")
        _check_choice(self, "hash_algorithm", HASH_ALGORITHMS)
        _check_choice(self, "seed_policy", SEED_POLICIES)
        _check_choice(self, "on_mismatch", MISMATCH_ACTIONS)
        _check_choice(self, "on_untrusted_root", MISMATCH_ACTIONS)
        _check_choice(self, "integrity", INTEGRITY_LEVELS)
        _check_choice(self, "io", IO_POLICIES)
        _check_choice(self, "durability", DURABILITIES)
        if isinstance(self.capacity, Mapping):
            object.__setattr__(self, "capacity", CapacityConfig.from_mapping(self.capacity))
        for name in ("compiled", "enable_kv_events"):
            _check_bool(self, name)
        _check_mode(self, "file_mode", 0o600, 0o777)
        _check_mode(self, "dir_mode", 0o700, 0o3777)  # setgid hands a group's folder on to what is made in it


@dataclass(frozen=True)
class CpuTierConfig(_FromMapping):
    """Options of the primary tier: `num_chunks` slots of `block_bytes` each, and which idle slot goes first."""

    num_chunks: int
    block_bytes: int
    cache_policy: str = field(default="lru")

    def __post_init__(self) -> None:
        _check_int(self, "num_chunks", 1)
        _check_int(self, "block_bytes", PAGE_BYTES, multiple_of=PAGE_BYTES)
        _check_choice(self, "cache_policy", CACHE_POLICIES)
