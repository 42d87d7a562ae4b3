"""Catalog of a root: its folders, blocks, writers and leftovers, and whether each block passes verification. Called by
the command line and by operators' scripts, beside running engines; never on an engine's path.

Everything is lazy and bounded in memory, so that a root of millions of files can be walked. What cannot be read is
noted in a mapping, path -> problem, which `folders` takes and every walk of its folders fills.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
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

from kvtier.config import PAGE_BYTES, ConfigError, FsTierConfig, RootError, RunConfig
from kvtier.exit_codes import errno_text
from kvtier.fs.block_io import QUARANTINED_FOR, BlockIO, BlockOutcome, errno_name
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.root_manifest import RECORD_BYTES_MAX, check_root
from kvtier.fs.trailer import read_trailer
from kvtier.hashing import OffloadKey

TEMP_SUFFIX = ".tmp"
UNREADABLE_MAX = 1000
"""So many of the paths that cannot be read are named."""
FOLDER_NAME = re.compile(r"(.+_[0-9a-f]{12})(_r\d+)?")
"""The folder of a run configuration, or of one of its ranks."""
_PREFIX_NAME, _LEAF_NAME = re.compile(r"[0-9a-f]{3}"), re.compile(r"[0-9a-f]{2}_g\d+")
_MISSING = "is missing"
GONE = ("ENOENT", "ENOTDIR", "ESTALE")
"""Errors of a file that was removed after it was listed."""

Unreadable = dict[str, str]
"""Path -> what is wrong with it, as the rest of a sentence that begins with the path."""


class UnreadableRootError(RootError):
    """The root exists and cannot be listed."""


class BlockFile(NamedTuple):
    """One file that has a block's name. Times: seconds since the epoch."""

    path: str
    key: OffloadKey
    bytes: int
    used_seconds: float  # mtime: when it was written, or last loaded (to the hour at least)


@dataclass
class Folder:
    """The blocks of one rank of one run configuration. `record` is the manifest; None where only vLLM has written, or
    where it is in `unreadable`, to which every walk adds."""

    mapper: FileMapper
    record: dict[str, Any] | None
    unreadable: Unreadable = field(default_factory=dict)

    @property
    def block_bytes(self) -> int | None:
        """As the manifest says; None without one."""
        size = self.record.get("block_bytes") if self.record else None
        return size if isinstance(size, int) and size > 0 and size % PAGE_BYTES == 0 else None

    def prefixes(self) -> list[str]:
        """The first-level folders, in order. Block hashes are uniform, so each holds a fair sample of the blocks."""
        return sorted(self._folders(self.mapper.blocks_path, _PREFIX_NAME))

    def leaves(self, prefix: str) -> list[str]:
        """The folders that hold the blocks below a first-level folder; no link to one is followed."""
        return self._folders(prefix, _LEAF_NAME)

    def _folders(self, path: str, name: re.Pattern[str]) -> list[str]:
        found = []
        for entry in scan(path, self.unreadable):
            if entry.is_dir(follow_symlinks=False):
                found.append(entry.path)
            elif name.fullmatch(entry.name):
                note(self.unreadable, entry.path, "is not a folder")
        return found

    def blocks(self, prefixes: Iterable[str] | None = None, *, any_kind: bool = False) -> Iterator[BlockFile]:
        """Every regular file with a block's name, whatever its size; with `any_kind` also a folder, FIFO or link with
        such a name. A file removed during the walk is skipped."""
        for path, status in self._files(self.prefixes() if prefixes is None else prefixes, any_kind):
            if (key := self.mapper.parse_file_name(path)) is not None:
                yield BlockFile(path, key, status.st_size, status.st_mtime)

    def temps(self) -> Iterator[tuple[str, os.stat_result]]:
        """Files that a writer, perhaps a killed one, has not published."""
        for path, status in self._files(self.prefixes()):
            if path.endswith(TEMP_SUFFIX):
                yield path, status

    def _files(self, prefixes: Iterable[str], any_kind: bool = False) -> Iterator[tuple[str, os.stat_result]]:
        for prefix in prefixes:
            for leaf in self.leaves(prefix):
                for entry in scan(leaf, self.unreadable):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        note_error(self.unreadable, entry.path, error)
                        continue
                    if any_kind or stat.S_ISREG(status.st_mode):
                        yield entry.path, status

    def quarantined(self) -> list[tuple[str, os.stat_result]]:
        """Quarantined files, by path."""
        found = []
        for entry in scan(self.mapper.quarantine_path):
            with contextlib.suppress(OSError):
                found.append((entry.path, entry.stat(follow_symlinks=False)))
        return sorted(found)


def folders(root_dir: str, unreadable: Unreadable | None = None) -> Iterator[Folder]:
    """Every rank folder below a root that belongs to a readable `config.json`. Raises RootError for a bad root."""
    unreadable = {} if unreadable is None else unreadable
    for base in bases(root_dir, unreadable):
        config_path = os.path.join(base, "config.json")
        for path in ranks(base):
            mapper = _mapper(root_dir, _read_object(config_path), int(path.rpartition("_r")[2]))
            if mapper is None or mapper.blocks_path != path:
                note(unreadable, path, f"is no rank of the run configuration in {config_path}")
                continue
            record = _read_object(mapper.record_path)
            if isinstance(record, str) and record != _MISSING:
                note(unreadable, mapper.record_path, record)
            yield Folder(mapper, record if isinstance(record, dict) else None, unreadable)


def bases(root_dir: str, unreadable: Unreadable | None = None) -> list[str]:
    """The folders below a root whose `config.json` matches their name: one per run configuration. One without a
    `config.json` is skipped: an engine may be making it. Raises RootError."""
    unreadable, found = {} if unreadable is None else unreadable, []
    for entry in list_root(root_dir):
        if not entry.is_dir(follow_symlinks=False):
            if FOLDER_NAME.fullmatch(entry.name):
                note(unreadable, entry.path, "is not a folder")
            continue
        config_path = os.path.join(entry.path, "config.json")
        fields = _read_object(config_path)
        mapper = _mapper(root_dir, fields, 0)
        if mapper is not None and mapper.base_path == entry.path:
            found.append(entry.path)
        elif isinstance(fields, dict):
            note(
                unreadable, config_path, "does not belong to the name of its folder: it was edited, or is not kvtier's"
            )
        elif fields != _MISSING:
            note(unreadable, config_path, fields)
    return found


def list_root(root_dir: str) -> list[os.DirEntry[str]]:
    """The entries of a root, by name. Raises RootError when there is no root, or it cannot be listed."""
    check_root(root_dir)
    try:
        with os.scandir(os.path.realpath(root_dir)) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UnreadableRootError(
            f"root_dir {root_dir!r} cannot be read: {errno_text(error)}; give user {os.geteuid()} access to it"
        ) from error


def ranks(base: str) -> list[str]:
    """The folders that hold the blocks of a run configuration, one per rank."""
    root_dir, name = os.path.split(base)
    rank_of = re.compile(re.escape(name) + r"_r\d+")
    there = [entry for entry in scan(root_dir) if rank_of.fullmatch(entry.name)]
    return sorted(entry.path for entry in there if entry.is_dir(follow_symlinks=False))


def _mapper(root_dir: str, fields: dict[str, Any] | str, rank: int) -> FileMapper | None:
    if isinstance(fields, str):
        return None
    names = {f.name for f in dataclasses.fields(RunConfig)}
    options = {"parallel_agnostic": True} | {name: value for name, value in fields.items() if name in names}
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
    """Count a folder, and read up to `trailers_max` trailers to identify the writers."""
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
    """One block as `verify` found it; `outcome.reason` as of a load. `writer`: the instance id in the trailer of a
    corrupt block; None when its trailer cannot be read."""

    block: BlockFile
    outcome: BlockOutcome
    writer: bytes | None


def verify(folder: Folder, fix: bool = False) -> Iterator[Checked]:
    """Read each block once and check it against its trailer, as a load would. Safe beside engines.

    With `fix`, what is not the block it should be is moved to quarantine, as a load would do. Blocks of vLLM are read
    and counted as unverified. Without a manifest, the size of most blocks is taken for the right one. Nothing is read
    if the manifest's block size contradicts the blocks, which is noted: each block would be found corrupt.
    """
    sealed, unsealed = _sizes(folder)
    size = folder.block_bytes
    if size is not None and sealed and (usual := sealed.most_common(1)[0][0]) != size:
        says = f"says block_bytes {size}, but {sealed[usual]} of {sealed.total()} sampled trailers say {usual}"
        note(folder.unreadable, folder.mapper.record_path, f"{says}: nothing was verified; set block_bytes to {usual}")
        return
    size = size or next((size for size, _ in (sealed + unsealed).most_common()), PAGE_BYTES)
    try:
        view = memoryview(mmap.mmap(-1, size))
    except (OSError, OverflowError):
        note(folder.unreadable, folder.mapper.record_path, f"says block_bytes {size}, which exceeds the memory")
        return
    blockio = BlockIO(FsTierConfig(folder.mapper.root_dir, size), folder.mapper.quarantine_path)
    for block in folder.blocks(any_kind=True):
        outcome = (blockio.read_block if fix else blockio.verify_block)(block.path, block.key, view)
        is_corrupt = outcome.reason in QUARANTINED_FOR
        trailer = read_trailer(outcome.quarantined or block.path) if is_corrupt else None
        yield Checked(block, outcome, trailer.instance_id if trailer else None)


def _sizes(folder: Folder) -> tuple[Counter[int], Counter[int]]:
    """Block sizes of the first 100 blocks: as their trailers say, and by the size of files without a right trailer."""
    sealed, unsealed = Counter[int](), Counter[int]()
    for block in itertools.islice(folder.blocks(), 100):
        trailer = read_trailer(block.path)
        if trailer is not None and trailer.block_bytes == block.bytes - PAGE_BYTES:
            sealed[trailer.block_bytes] += 1
        elif block.bytes >= PAGE_BYTES:
            unsealed[block.bytes // PAGE_BYTES * PAGE_BYTES] += 1
    return sealed, unsealed


def _read_object(path: str) -> dict[str, Any] | str:
    """The object in a file; a string states why it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            found = json.loads(file.read(RECORD_BYTES_MAX))
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        return "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be read: {errno_text(error)}"
    except (ValueError, RecursionError):
        return "is not JSON"
    return found if isinstance(found, dict) else "holds no JSON object"


def scan(path: str, unreadable: Unreadable | None = None) -> list[os.DirEntry[str]]:
    """The entries of a folder; none when it cannot be read, which is noted in `unreadable`."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        if unreadable is not None:
            note_error(unreadable, path, error)
        return []


def note(unreadable: Unreadable, path: str, problem: str) -> None:
    """Note a problem, unless there are `UNREADABLE_MAX` already."""
    if len(unreadable) < UNREADABLE_MAX:
        unreadable[path] = problem


def note_error(unreadable: Unreadable, path: str, error: OSError, failed: str = "cannot be read") -> bool:
    """Note an error, unless the path was removed. Returns whether it is a problem."""
    if errno_name(error) in GONE:
        return False
    note(unreadable, path, f"{failed}: {errno_text(error)}")
    return True
