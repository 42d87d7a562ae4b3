"""The reference tier, an oracle: the harness must pass it. It is simple on purpose, and slow.

Several processes share it, so it is a folder instead of a dict. A block is a file named by its key and ends with a
digest of key and bytes; it gets its name when it is whole. Each model, data type, rank and block size has a folder of
its own. A process whose keys are chained from another seed than the folder's is refused. Every job runs inside
`submit_*`, and the next `poll` reports it: no thread, no queue, no race.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.adapters.base import Adapter, Finished, TierSetup, Verdict

FOLDER = "memory"
TEMP_AGE_SECONDS = 60.0


class ReferenceAdapter(Adapter):
    """The reference tier: a block is a file, and every job runs inside its submit.

    Keys are SHA-256 chains over the tokens' text; the seed follows `seed_policy`.
    """

    name: ClassVar[str] = "reference"
    runs_in_submit: ClassVar[bool] = True
    exposes_files: ClassVar[bool] = True
    forgets: ClassVar[bool] = True
    operations: ClassVar[tuple[str, ...]] = ("collect",)
    separates: ClassVar[tuple[str, ...]] = ("model_name", "dtype", "ranks", "rank")
    hash_algorithms: ClassVar[tuple[str, ...]] = ("sha256",)

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        if setup.options:
            raise ValueError(f"unknown option {', '.join(map(repr, setup.options))}; the reference tier takes none")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._memory = bytearray(setup.slots * setup.block_bytes)
        self._view = memoryview(self._memory).cast("B", (setup.slots, setup.block_bytes))
        self._finished: list[Finished] = []
        self._name = f"{FOLDER}-{_digest(setup)}"
        self._folder = Path(setup.root_dir) / self._name
        self._folder.mkdir(exist_ok=True)
        self._none_hash = hashlib.sha256(_seed(setup.seed_policy)).digest()
        self._agree(self._folder / "config.json", self.none_hash_digest().encode())

    def _agree(self, record: Path, digest: bytes) -> None:
        """Publish the digest of the seed, unless a process was first. Raises ValueError where that has another."""
        if record.exists() and (not record.is_file() or record.stat().st_size != len(digest)):
            _publish(record, digest)
        theirs = publish_first(record, digest)
        if theirs != digest:
            raise ValueError(
                f"the root's seed has the digest {theirs.decode(errors='backslashreplace')!r}, "
                f"this process's {digest.decode()!r}; set PYTHONHASHSEED as the "
                "processes that share the root do, or choose another root"
            )

    @property
    def view(self) -> memoryview:
        return self._view

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            block = ",".join(map(str, tokens[start : start + size]))
            parent = hashlib.sha256((parent or self._none_hash) + block.encode()).digest()
            keys.append(parent)
        return keys

    def none_hash_digest(self) -> str:
        return hashlib.sha256(self._none_hash).hexdigest()[:16]

    def file_name(self, key: bytes) -> str | None:
        return f"{self._name}/{key.hex()}.bin"

    def other_group(self, key: bytes) -> bytes | None:
        return hashlib.sha256(b"group 1" + key).digest()

    def salted_keys(self, tokens: Sequence[int], salt: str) -> list[bytes] | None:
        return self.keys(tokens, hashlib.sha256(self._none_hash + b"salt" + salt.encode()).digest())

    def _read(self, key: bytes) -> bytes:
        """The block. Raises `OSError` unless it is there, of this key and whole."""
        block = (content := _content(self._path(key)))[: self.setup.block_bytes]
        if content != _seal(key, block):
            raise OSError(f"{self._path(key)} does not hold its block")
        return block

    def _found(self, key: bytes) -> bool:
        try:
            return bool(self._read(key))
        except OSError:
            return False

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.bin"

    def _slot(self, slot: int) -> memoryview:
        size = self.setup.block_bytes
        return memoryview(self._memory)[slot * size : (slot + 1) * size]

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" if self._found(key) else "miss" for key in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        ok, failed, reasons = [], [], set[str]()
        for key, slot in zip(keys, slots, strict=True):
            try:
                _publish(self._path(key), _seal(key, self._slot(slot)))
                ok.append(key)
            except OSError as error:
                failed.append(key)
                reasons.add(errno.errorcode.get(error.errno or 0, "damaged"))
        self._finished.append(Finished(job_id, ok, failed, reasons=" ".join(sorted(reasons))))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        ok, failed, reasons = [], [], set[str]()
        for key, slot in zip(keys, slots, strict=True):
            try:
                self._slot(slot)[:] = self._read(key)
                ok.append(key)
            except OSError as error:
                failed.append(key)
                reasons.add(errno.errorcode.get(error.errno or 0, "damaged"))
        self._finished.append(Finished(job_id, ok, failed, reasons=" ".join(sorted(reasons))))

    def poll(self) -> list[Finished]:
        finished, self._finished = self._finished, []
        return finished

    def has_pending_work(self) -> bool:
        return bool(self._finished)

    def operate(self, operation: str, blocks: int = 0) -> None:
        """Remove the temp files of killed processes: those that nobody has changed for a minute."""
        for path in self._folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > TEMP_AGE_SECONDS:
                    path.unlink()

    def drain(self) -> None:
        return

    def close(self) -> None:
        return

    def gauges(self) -> Mapping[str, float]:
        return {"load_queue": 0, "store_queue": 0, "load_oldest_seconds": 0, "store_oldest_seconds": 0}


MemoryAdapter = ReferenceAdapter
"""The former name, for tiers that derive from it."""


def _seed(policy: str) -> bytes:
    """PYTHONHASHSEED decides if it is set, else the policy."""
    if (seed := os.environ.get("PYTHONHASHSEED")) is not None:
        return b"seed " + seed.encode()
    if policy == "env":
        raise ValueError("seed_policy is 'env' and PYTHONHASHSEED is not set")
    return b"fixed" if policy == "fixed" else os.urandom(32)


def _digest(setup: TierSetup) -> str:
    """What every process that shares blocks with this one has in common."""
    shared = (setup.model_name, setup.dtype, setup.ranks, setup.rank, setup.tokens_per_block, setup.block_bytes)
    return hashlib.sha256(repr(shared).encode()).hexdigest()[:12]


def _seal(key: bytes, block: bytes | memoryview) -> bytes:
    """The block with a digest that proves its key and that it is whole."""
    return bytes(block) + hashlib.sha256(key + block).digest()


def _content(path: Path) -> bytes:
    """Content of a regular file; `OSError` for anything else. Opening a FIFO must not block."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileNotFoundError(path)
        return file.read()


def _holds(path: Path, content: bytes) -> bool:
    try:
        return _content(path) == content
    except OSError:
        return False


def publish_first(path: Path, content: bytes) -> bytes:
    """Publish the file whole unless there is one; the content of the one that is there. Of processes that publish
    different contents at the same time, all see the same one, where the file system has hard links."""
    name = path.with_name(f"{os.urandom(16).hex()}.tmp")
    try:
        file = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY)
    except OSError:  # a file system without unnamed files
        with open(name, "wb") as named:
            named.write(content)
            named.flush()
            os.fsync(named.fileno())  # after a crash it is whole or missing
        try:
            os.link(name, path)
        except FileExistsError:
            name.unlink()
        except OSError:
            name.rename(path)
        else:
            name.unlink()
        return _content(path)
    with open(file, "wb") as unnamed:
        unnamed.write(content)
        unnamed.flush()
        os.fsync(file)
        with contextlib.suppress(FileExistsError):
            os.link(f"/proc/self/fd/{file}", path, src_dir_fd=file, follow_symlinks=True)
    return _content(path)


def _publish(path: Path, content: bytes) -> None:
    """Publish the file whole, in place of anything but an equal file.

    Some shared volumes cannot open a file for a moment while it is replaced (ESTALE), and processes publish equal files
    at the same time.
    """
    if _holds(path, content):
        return
    name = path.with_name(f"{os.urandom(16).hex()}.tmp")
    if path.is_dir() and not path.is_symlink():
        path.rename(name.with_suffix(".dir"))
    try:
        file = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY)
    except OSError:  # a file system without unnamed files
        try:
            name.write_bytes(content)
            with contextlib.suppress(OSError):  # also where there are no hard links
                os.link(name, path)
            if not _holds(path, content):
                name.rename(path)
        finally:
            name.unlink(missing_ok=True)
        return
    with open(file, "wb") as unnamed:
        unnamed.write(content)
        unnamed.flush()
        link = functools.partial(os.link, f"/proc/self/fd/{file}", src_dir_fd=file, follow_symlinks=True)
        with contextlib.suppress(FileExistsError):
            return link(path)
        if not _holds(path, content):
            link(name)
            name.rename(path)
