"""What a root holds, seen from outside: folders, blocks, writers, leftovers, and whether each block is what it should
be. Called by the command line and by operators' scripts, beside running engines; never on an engine's path.

Everything is lazy and bounded in memory, so that a root of millions of files can be walked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvtier.blockio import BlockIO, BlockOutcome
from kvtier.config import PAGE_BYTES, ConfigError, FsTierConfig, RunConfig
from kvtier.hashing import OffloadKey
from kvtier.layout import RECORD_BYTES_MAX, FileMapper, check_root
from kvtier.trailer import read_trailer

TEMP_SUFFIX = ".tmp"


class BlockFile(NamedTuple):
    """One file that has a block's name. Times: seconds since the epoch."""

    path: str
    key: OffloadKey
    bytes: int
    used_seconds: float  # mtime: when it was written, or last loaded (to the hour at least)


@dataclass
class Folder:
    """The blocks of one rank of one run configuration. `record` is kvtier's, None where only vLLM has written."""

    mapper: FileMapper
    record: dict[str, Any] | None

    @property
    def block_bytes(self) -> int | None:
        """As recorded; None where only vLLM has written."""
        size = self.record.get("block_bytes") if self.record else None
        return size if isinstance(size, int) and size > 0 and size % PAGE_BYTES == 0 else None

    def prefixes(self) -> list[str]:
        """The first-level folders, in order. Block hashes are uniform, so each holds a fair sample of the blocks."""
        return sorted(entry.path for entry in scan(self.mapper.blocks_path) if entry.is_dir(follow_symlinks=False))

    def leaves(self, prefix: str) -> list[str]:
        """The folders that hold the blocks below a first-level folder; no link to one is followed."""
        return [entry.path for entry in scan(prefix) if entry.is_dir(follow_symlinks=False)]

    def blocks(self, prefixes: Iterable[str] | None = None) -> Iterator[BlockFile]:
        """Every regular file with a block's name, whatever its size; a file that vanishes meanwhile is passed over."""
        for path, status in self._files(self.prefixes() if prefixes is None else prefixes):
            if (key := self.mapper.parse_file_name(path)) is not None:
                yield BlockFile(path, key, status.st_size, status.st_mtime)

    def temps(self) -> Iterator[tuple[str, os.stat_result]]:
        """Files that some writer, perhaps a dead one, has not published."""
        for path, status in self._files(self.prefixes()):
            if path.endswith(TEMP_SUFFIX):
                yield path, status

    def _files(self, prefixes: Iterable[str]) -> Iterator[tuple[str, os.stat_result]]:
        for prefix in prefixes:
            for leaf in self.leaves(prefix):
                for entry in scan(leaf):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield entry.path, status

    def quarantined(self) -> list[tuple[str, os.stat_result]]:
        """Files set aside, by path."""
        found = []
        for entry in scan(self.mapper.quarantine_path):
            with contextlib.suppress(OSError):
                found.append((entry.path, entry.stat(follow_symlinks=False)))
        return sorted(found)


def folders(root_dir: str) -> Iterator[Folder]:
    """Every rank folder below a root that belongs to a readable `config.json`. Raises RootError for a bad root."""
    for base in bases(root_dir):
        for path in ranks(base):
            mapper = _mapper(root_dir, _read_object(os.path.join(base, "config.json")), int(path.rpartition("_r")[2]))
            if mapper is not None and mapper.base_path == base:
                yield Folder(mapper, _read_object(mapper.record_path))


def bases(root_dir: str) -> list[str]:
    """Every folder below a root that holds a readable `config.json`: one per run configuration. Raises RootError."""
    check_root(root_dir)
    there = sorted(entry.path for entry in scan(os.path.realpath(root_dir)) if entry.is_dir(follow_symlinks=False))
    return [path for path in there if _read_object(os.path.join(path, "config.json")) is not None]


def ranks(base: str) -> list[str]:
    """The folders that hold the blocks of a run configuration, one per rank."""
    root_dir, name = os.path.split(base)
    rank_of = re.compile(re.escape(name) + r"_r\d+")
    there = [entry for entry in scan(root_dir) if rank_of.fullmatch(entry.name)]
    return sorted(entry.path for entry in there if entry.is_dir(follow_symlinks=False))


def _mapper(root_dir: str, fields: dict[str, Any] | None, rank: int) -> FileMapper | None:
    names = {f.name for f in dataclasses.fields(RunConfig)}
    options = {"parallel_agnostic": True} | {name: value for name, value in (fields or {}).items() if name in names}
    try:
        return FileMapper(root_dir, RunConfig(**options, rank=rank))
    except (ConfigError, TypeError):
        return None


@dataclass
class Summary:
    """Figures of one folder. Ages in seconds."""

    folder: Folder
    blocks: int = 0
    bytes: int = 0
    oldest_seconds: float = 0.0
    newest_seconds: float = 0.0
    temps: int = 0
    quarantined: int = 0
    unsealed: int = 0  # of the sampled blocks: without trailer, so vLLM's
    writers: Counter[str] = field(default_factory=Counter)  # of the sampled blocks: instance id -> blocks
    seeds: Counter[str] = field(default_factory=Counter)  # of the sampled blocks: digest of NONE_HASH, 16 hex digits
    sampled: int = 0


def summarise(folder: Folder, trailers_max: int = 1000) -> Summary:
    """Count a folder, and read up to `trailers_max` trailers to tell who wrote."""
    now = time.time()
    summary = Summary(folder)
    for block in folder.blocks():
        age = max(0.0, now - block.used_seconds)
        summary.oldest_seconds = max(summary.oldest_seconds, age)
        summary.newest_seconds = min(summary.newest_seconds, age) if summary.blocks else age
        summary.blocks += 1
        summary.bytes += block.bytes
        if summary.sampled < trailers_max:
            summary.sampled += 1
            trailer = read_trailer(block.path)
            if trailer is None:
                summary.unsealed += 1
            else:
                summary.writers[trailer.instance_id.hex()] += 1
                summary.seeds[trailer.seed.hex()] += 1
    summary.temps = sum(1 for _ in folder.temps())
    summary.quarantined = len(folder.quarantined())
    return summary


class Checked(NamedTuple):
    """One block as `verify` found it; `outcome.reason` as of a load."""

    block: BlockFile
    outcome: BlockOutcome


def verify(folder: Folder, fix: bool = False) -> Iterator[Checked]:
    """Read each block once and check it against its trailer, as a load would. Safe under load.

    With `fix`, what is not the block it should be is set aside, as a load would do. Blocks of vLLM are read and counted
    as unverified. Where only vLLM has written, the size of most blocks is taken for the right one.
    """
    size = folder.block_bytes or _usual_size(folder)
    if size is None:
        return
    config = FsTierConfig(folder.mapper.root_dir, size)
    blockio = BlockIO(config, folder.mapper.quarantine_path)
    view = memoryview(mmap.mmap(-1, size))
    for block in folder.blocks():
        read = blockio.read_block if fix else blockio.examine
        yield Checked(block, read(block.path, block.key, view))


def _usual_size(folder: Folder) -> int | None:
    sizes = Counter(
        block.bytes // PAGE_BYTES * PAGE_BYTES for _, block in zip(range(100), folder.blocks(), strict=False)
    )
    return next((size for size, _ in sizes.most_common() if size), None)


def _read_object(path: str) -> dict[str, Any] | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            found = json.loads(file.read(RECORD_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def scan(path: str) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing when it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []
