"""`open_fs_tier`: the one place that makes the file tier's collaborators and injects them.

Processes share blocks exactly when they derive the same `NONE_HASH` (the seed of the hash chain) and the same hash
algorithm. The root's manifest has both; a process that would not share is refused when it opens the root.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from kvtier.background import BackgroundThreads
from kvtier.config import PAGE_BYTES, CapacityConfig, ConfigError, FsTierConfig, RunConfig
from kvtier.events import Observer
from kvtier.fs.admission import Admission, Quota
from kvtier.fs.async_lookup import AsyncLookupManager
from kvtier.fs.block_io import BlockIO
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.manager import FileSystemTierManager
from kvtier.fs.root_manifest import check_trust, open_root
from kvtier.fs.thread_pool import DualQueue, DualQueueThreadPool
from kvtier.hashing import BlockHash, OffloadKey, none_hash_digest
from kvtier.hashing import none_hash as derive_none_hash


def open_fs_tier(
    config: FsTierConfig,
    run: RunConfig,
    primary_kv_view: memoryview,
    observer: Observer | None = None,
    tier_type: str = "fs",
    none_hash: BlockHash | None = None,
    *,
    block_io: Callable[[FsTierConfig, str, bytes], BlockIO] = BlockIO,
    queue: Callable[[int, int], DualQueue] = DualQueue,
    quota: Callable[[str, CapacityConfig], Quota] | None = None,
) -> FileSystemTierManager:
    """The file tier over `config.root_dir` for the slots in `primary_kv_view`, shape (slots, config.block_bytes).

    `run` says whose blocks these are and so which folder they live in. An engine that has derived its `NONE_HASH`
    passes it; without it, it is derived as `config` says. `block_io`, `queue` and `quota` make a collaborator in place
    of kvtier's own. Raises RootError when the root cannot be used, or was written by processes that would not share
    with this one (`config.on_mismatch`).
    """
    shape = primary_kv_view.shape or (0, 0)
    if len(shape) != 2 or shape[1] != config.block_bytes or not primary_kv_view.c_contiguous:
        raise ConfigError(f"primary_kv_view has shape {shape}; it must be (slots, {config.block_bytes}), contiguous")
    none = none_hash or derive_none_hash(config.hash_algorithm, config.seed_policy)
    mapper = FileMapper(config.root_dir, run)
    slots = primary_kv_view.cast("B")
    open_folders(config, mapper, config.hash_algorithm, none)
    blocks = block_io(config, mapper.quarantine_path, bytes.fromhex(none_hash_digest(none))[:8])
    blocks.probe(mapper.base_path, aligned=_address(slots) % PAGE_BYTES == 0)

    def probe(keys: Sequence[OffloadKey]) -> Sequence[bool]:
        return blocks.exists_many([mapper.get_file_name(key) for key in keys])

    keeper = None
    if config.capacity:
        keeper = (quota or _evictor)(config.root_dir, config.capacity)
    background, name = BackgroundThreads(), f"kvtier_{tier_type}"
    lookup = AsyncLookupManager(probe, config.known_keys_max, f"{name}_lookup", config.hung_seconds, background)
    schedule = queue(config.n_read_threads, config.n_write_threads)
    pool = DualQueueThreadPool(schedule, name, config.hung_seconds, config.thread_nice, background)
    admission = Admission(config, len(slots), keeper)
    return FileSystemTierManager(
        config, none, slots, mapper, blocks, lookup, pool, admission, background, observer, tier_type
    )


def open_folders(
    config: FsTierConfig, mapper: FileMapper, hash_algorithm: str | None, none_hash: BlockHash | None = None
) -> None:
    """Make the mapper's folders, and compare what stands there with what this process has. Without `none_hash` as much
    as is known without it, for engines that derive it after their tiers. Raises RootError; logs what "warn" allows."""
    check_trust(mapper, config.on_untrusted_root)
    open_root(
        mapper,
        hash_algorithm=hash_algorithm,
        none_digest=None if none_hash is None else none_hash_digest(none_hash),
        block_bytes=config.block_bytes,
        on_mismatch=config.on_mismatch,
        dir_mode=config.dir_mode,
        file_mode=config.file_mode,
    )


def _evictor(root_dir: str, config: CapacityConfig) -> Quota:
    from kvtier.ops.evictor import Evictor  # most tiers have no limit and never load it

    return Evictor(root_dir, config)


def _address(view: memoryview) -> int:
    if view.readonly or not len(view):
        return 1  # cannot be told: treated as not aligned
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
