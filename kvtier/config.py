"""Frozen, validated configuration; every caller builds one of these first, and nothing below ever re-checks a value.

Each option is declared with its check. A bad value raises `ConfigError`: one sentence that names the option, the value
and what is valid. A size in bytes is a whole number, or text with a unit: 500000, "1.5TB", "10GiB".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Self

PAGE_BYTES = 4096
"""Alignment of blocks in memory and in files: O_DIRECT on every common device accepts it."""

HASH_ALGORITHMS = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")
SEED_POLICIES = ("fixed", "env", "random")
INTEGRITY_LEVELS = ("verify", "require", "off")
IO_POLICIES = ("auto", "direct", "buffered")
DURABILITIES = ("cache", "durable")
MISMATCH_ACTIONS = ("refuse", "warn")
CACHE_POLICIES = ("lru", "arc")

THREADS_MAX = 1024
"""Threads of one direction: far beyond what keeps any device busy, and what a process can still start."""
NICE_MAX = 19
BLOCK_BYTES_MAX = 1 << 34
SIZE_BYTES_MAX = 1 << 60
COUNT_MAX = 1 << 30
HUNG_SECONDS = (0.001, 86400.0)
WATER_MARKS = (0.001, 1.0)
WEIGHTS = (0.001, 1000.0)

_SHOWN_MAX = 300
_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?) ?(?:([KMGTP])(i?))?B?", re.ASCII | re.IGNORECASE)


class KvtierError(Exception):
    """Base of every error that kvtier raises on purpose; its text is one sentence for a person."""


class ConfigError(KvtierError, ValueError):
    """An option has a value that cannot work."""


class SlotError(KvtierError, IndexError):
    """A job names a slot that the CPU tier does not have."""


class RootError(KvtierError):
    """The root directory cannot be used, or belongs to processes that would not share with this one."""


# --- checks ---

Check = Callable[[str, Any], Any]
"""Takes an option's name and value and returns the value to keep. Raises ConfigError."""


def _refusal(name: str, value: object, valid: str, note: str = "") -> ConfigError:
    try:
        shown = repr(value)
    except Exception:  # an integer of more digits than Python prints
        shown = f"of type {type(value).__name__} and cannot be shown"
    if len(shown) > _SHOWN_MAX:
        shown = shown[:_SHOWN_MAX] + "..."
    return ConfigError(f"{name} is {shown}{note}; {valid}")


def parse_size(name: str, value: object) -> int:
    """Bytes from a whole number, or from text with or without a unit: K to P (powers of 1000), Ki to Pi (of 1024), B
    optional. A fraction of a byte is dropped. Raises ConfigError in the name of option `name`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, unit, binary = match.groups()
        size = Fraction(number) * (1024 if binary else 1000) ** ("KMGTP".index(unit.upper()) + 1 if unit else 0)
        if unit or size.denominator == 1:
            return int(size)
    raise _refusal(name, value, "it takes a whole number of bytes, or a number with a unit: 500000, 1.5TB, 10GiB")


def _bounded(name: str, value: object, size: int, low: int, high: int, multiple_of: int = 1) -> int:
    note = f" ({size} bytes)" if isinstance(value, str) else ""
    if size < low:
        raise _refusal(name, value, f"it must be at least {low}", note)
    if size > high:
        raise _refusal(name, value, f"it must be at most {high}", note)
    if size % multiple_of:
        raise _refusal(name, value, f"it must be a multiple of {multiple_of} (the alignment of direct I/O)", note)
    return size


def _size(low: int = 1, high: int = SIZE_BYTES_MAX, multiple_of: int = 1) -> Check:
    return lambda name, value: _bounded(name, value, parse_size(name, value), low, high, multiple_of)


def _whole(low: int, high: int = COUNT_MAX) -> Check:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _refusal(name, value, "it takes a whole number")
        return _bounded(name, value, value, low, high)

    return check


def _number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:  # NaN is neither
            raise _refusal(name, value, f"it takes a number from {low:g} to {high:g}")
        return value

    return check


def _choice(*choices: str) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _refusal(name, value, f"valid choices: {', '.join(choices)}")
        return value

    return check


def _mode(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        mode: int = _whole(0)(name, value)
        if mode > high or mode & low != low:
            raise ConfigError(f"{name} is {mode:#o}; it takes permission bits that include {low:#o}, up to {high:#o}")
        return mode

    return check


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refusal(name, value, "valid choices: True, False")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _refusal(name, value, "it takes a name, as text")
    return value


def _model(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or len(os.fsencode(value)) > 200:
        raise _refusal(name, value, "it takes 1 to 200 bytes of printable text")
    return value


def _root(name: str, value: Any) -> str:
    path: Any = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        usable = isinstance(path, str) and bool(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise _refusal(name, value, "it takes the path of a directory")
    if not os.path.isabs(path):  # each process would make another folder of it
        raise _refusal(name, value, "it takes an absolute path, such as /mnt/kv (~ is not expanded)")
    return str(os.path.abspath(path))


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise _refusal(name, value, "it takes a list of names")
    return tuple(value)


def _shares(name: str, value: Any) -> Mapping[str, float]:
    if not isinstance(value, Mapping) or not all(isinstance(model, str) and model for model in value):
        raise _refusal(name, value, "it takes a mapping of model names to weights")
    weight = _number(*WEIGHTS)
    return {model: weight(f"the weight of {model!r} in {name}", given) for model, given in value.items()}


def _groups(name: str, value: Any) -> tuple[KVCacheGroup, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, (KVCacheGroup, Mapping)) for one in value):
        raise _refusal(name, value, "it takes a list of tokens_per_block, layer_names")
    return tuple(_nested(KVCacheGroup, f"{name}[{index}]", one) for index, one in enumerate(value))


def _capacity(name: str, value: Any) -> CapacityConfig | None:
    if value is None or isinstance(value, (CapacityConfig, Mapping)):
        return None if value is None else _nested(CapacityConfig, name, value)
    try:
        return CapacityConfig(max_bytes=value)
    except ConfigError:
        names = ", ".join(f.name for f in dataclasses.fields(CapacityConfig))
        valid = f'it takes the size of max_bytes, such as "2TiB", or a mapping of {names}'
        raise _refusal(name, value, valid) from None


def _nested(config: type[_Config], name: str, value: Any) -> Any:
    if isinstance(value, config):
        return value
    try:
        return config.from_mapping(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


class _Config:
    """Base of the configurations: runs the checks that their options are declared with, then `_check_together`."""

    def __post_init__(self) -> None:
        for name, check in _checks(type(self)).items():  # type: ignore[arg-type]  # a class does have a hash
            object.__setattr__(self, name, check(name, getattr(self, name)))
        self._check_together()

    def _check_together(self) -> None:
        """What must hold between options. Raises ConfigError."""

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Build from keywords. Raises `ConfigError` naming every unknown key together with the valid ones."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        names = [f.name for f in fields]
        if not isinstance(options, Mapping):
            raise _refusal("configuration", options, f"it takes a mapping of {', '.join(names)}")
        required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        if unknown := sorted(map(repr, set(options) - set(names))):
            raise ConfigError(f"unknown option {', '.join(unknown)}; valid options: {', '.join(names)}")
        if missing := [name for name in required if name not in options]:
            raise ConfigError(f"missing option {', '.join(map(repr, missing))}; valid options: {', '.join(names)}")
        return cls(**options)


@functools.cache
def _checks(config: Any) -> Mapping[str, Check]:
    hints = typing.get_type_hints(config, include_extras=True)
    return {f.name: hints[f.name].__metadata__[0] for f in dataclasses.fields(config)}


# --- configurations ---


@dataclass(frozen=True)
class KVCacheGroup(_Config):
    """One group of layers that share a block table: tokens in one of its blocks, and its layers' names in order."""

    tokens_per_block: Annotated[int, _whole(1)]
    layer_names: Annotated[tuple[str, ...], _names] = ()


@dataclass(frozen=True)
class RunConfig(_Config):
    """What two engines must agree on before a block of one means anything to the other.

    The names and the order of meaning are vLLM's `FileMapper` fields (0.33.0). `replicated_layout` and
    `canonical_format` appear in `fields()` only when set, so older folders keep their names.
    """

    model_name: Annotated[str, _model]
    tokens_per_hash: Annotated[int, _whole(1)] = 16
    blocks_per_file: Annotated[int, _whole(1)] = 1
    tp_size: Annotated[int, _whole(1)] = 1
    pp_size: Annotated[int, _whole(1)] = 1
    pcp_size: Annotated[int, _whole(1)] = 1
    dcp_size: Annotated[int, _whole(1)] = 1
    rank: Annotated[int, _whole(0)] = 0
    dtype: Annotated[str, _text] = "bfloat16"
    kv_cache_groups: Annotated[tuple[KVCacheGroup, ...], _groups] = ()
    inference_engine: Annotated[str, _text] = "vllm"
    parallel_agnostic: Annotated[bool, _switch] = False
    replicated_layout: Annotated[bool, _switch] = False
    canonical_format: Annotated[str | None, _optional(_text)] = None


@dataclass(frozen=True)
class CapacityConfig(_Config):
    """How large a root may grow: `max_bytes` of blocks and/or `min_free_bytes` on its file system.

    Eviction begins above `high_water` of the limit and ends at `low_water`; stores beyond the limit are refused.
    `shares` gives models (by name) a weight other than 1: a model loses blocks only while it holds more than its share.
    """

    max_bytes: Annotated[int | None, _optional(_size())] = None
    min_free_bytes: Annotated[int | None, _optional(_size())] = None
    high_water: Annotated[float, _number(*WATER_MARKS)] = 0.95
    low_water: Annotated[float, _number(*WATER_MARKS)] = 0.9
    shares: Annotated[Mapping[str, float], _shares] = field(default_factory=dict)

    def _check_together(self) -> None:
        if self.max_bytes is None and self.min_free_bytes is None:
            raise ConfigError("no limit is set; give max_bytes, min_free_bytes, or both")
        if self.low_water >= self.high_water:
            raise ConfigError(
                f"low_water is {self.low_water}, high_water {self.high_water}; low_water must be below high_water"
            )


@dataclass(frozen=True)
class FsTierConfig(_Config):
    """Options of `FileSystemTierManager`. `root_dir` is absolute. A `capacity` that is one size means its `max_bytes`.

    A store or load job is split into tasks of at most `task_bytes_max` (a block counts as 64 KiB at least; never less
    than one block), so that a job uses the idle threads, each for four blocks at least if that bound allows it, and
    nothing waits behind more than one bounded task per thread.
    Stores beyond `store_queue_bytes_max` are refused at once, with a result that says so. Queued stores may hold more
    than half of the CPU tier's slots in a burst. Once one has waited for a second, more are refused; once a hit finds
    no slot, the newest are given up: a slow volume never takes all slots. A thread whose task runs for longer than
    `hung_seconds` is replaced until the task ends, so that hung calls do not stop their direction, up to as many as the
    threads; a lookup that has waited for so long is a miss.

    `io` "auto": stores go past the page cache where the file system can, so that no backlog of dirty pages delays
    loads. A block's first load on this host goes past it too, later ones go through it, so that what is loaded again
    comes from memory. "direct": all past it, for hosts without memory to spare. "buffered": all through it.
    `compiled`: use the native extension (`fs/_native.c`) where there is one.

    `thread_nice`: the nice offset of the tier's threads above the process, so that the engine's own threads run first;
    read-priority threads have 3 more, so that stores get a core.

    `durability` "cache": after a power loss blocks may be missing (never wrong); "durable": a store that succeeded
    survives one. `capacity` bounds the root; without it the root grows until the disk is full.
    """

    root_dir: Annotated[str, _root]
    block_bytes: Annotated[int, _size(PAGE_BYTES, BLOCK_BYTES_MAX, multiple_of=PAGE_BYTES)]
    # Zero threads for one direction would starve it: vLLM 0.33 accepts that, kvtier does not.
    n_read_threads: Annotated[int, _whole(1, THREADS_MAX)] = 16
    n_write_threads: Annotated[int, _whole(1, THREADS_MAX)] = 16
    thread_nice: Annotated[int, _whole(0, NICE_MAX)] = 5
    hash_algorithm: Annotated[str, _choice(*HASH_ALGORITHMS)] = "sha256"
    seed_policy: Annotated[str, _choice(*SEED_POLICIES)] = "fixed"
    on_mismatch: Annotated[str, _choice(*MISMATCH_ACTIONS)] = "refuse"
    on_untrusted_root: Annotated[str, _choice(*MISMATCH_ACTIONS)] = "warn"
    integrity: Annotated[str, _choice(*INTEGRITY_LEVELS)] = "verify"
    io: Annotated[str, _choice(*IO_POLICIES)] = "auto"
    compiled: Annotated[bool, _switch] = True
    durability: Annotated[str, _choice(*DURABILITIES)] = "cache"
    task_bytes_max: Annotated[int, _size()] = 1 << 20
    store_queue_bytes_max: Annotated[int, _size()] = 1 << 30
    hung_seconds: Annotated[float, _number(*HUNG_SECONDS)] = 10.0
    known_keys_max: Annotated[int, _whole(0)] = 1 << 18
    enable_kv_events: Annotated[bool, _switch] = False
    capacity: Annotated[CapacityConfig | None, _capacity] = None
    file_mode: Annotated[int, _mode(0o600, 0o777)] = 0o600
    dir_mode: Annotated[int, _mode(0o700, 0o3777)] = 0o700  # setgid: what is made in a group's folder is the group's

    def _check_together(self) -> None:
        if self.store_queue_bytes_max < self.block_bytes:
            raise _refusal(
                "store_queue_bytes_max", self.store_queue_bytes_max, f"it must be at least {self.block_bytes}"
            )
        if self.capacity and self.capacity.max_bytes is not None:
            file_bytes = self.block_bytes + PAGE_BYTES
            # With less, each block is above the high water mark as soon as it is stored, and is evicted at once.
            least = math.ceil(file_bytes / self.capacity.high_water)
            if self.capacity.max_bytes < least:
                valid = f"it must be at least {least}: a file of {file_bytes} bytes below the high water mark"
                raise _refusal("capacity: max_bytes", self.capacity.max_bytes, valid)


@dataclass(frozen=True)
class CpuTierConfig(_Config):
    """Options of the primary tier: `num_chunks` slots of `block_bytes` each, and which idle slot goes first."""

    num_chunks: Annotated[int, _whole(1)]
    block_bytes: Annotated[int, _size(PAGE_BYTES, BLOCK_BYTES_MAX, multiple_of=PAGE_BYTES)]
    cache_policy: Annotated[str, _choice(*CACHE_POLICIES)] = "lru"

    def _check_together(self) -> None:
        if self.num_chunks * self.block_bytes > SIZE_BYTES_MAX:
            valid = f"num_chunks * block_bytes must be at most {SIZE_BYTES_MAX}"
            raise _refusal("num_chunks", self.num_chunks, valid, f" and block_bytes {self.block_bytes}")
