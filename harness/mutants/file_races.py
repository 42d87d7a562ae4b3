"""Mutants of protocols that keep more in a shared folder than blocks: an index, markers, names in reserve, side files.

Each derives from the correct protocol of `protocols`, and only the scenario `interleavings` shows its defect for sure.
Workers load them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from harness.adapters.base import Verdict
from harness.adapters.reference import publish_first
from harness.mutants.protocols import SoundProtocol, Unsealed, shown_by

WAIT_SECONDS = 0.01


@shown_by("store A, store B", "lost-store", r"lost store: A was reported stored", kills=1)
class ReportsBeforeItPublishes(SoundProtocol):
    """A store is reported when its temp file is whole, and gets its name when the request ends."""

    def _link(self, temp: Path, path: Path) -> None:
        self._whole = (temp, path)

    def request_finished(self, req_id: str) -> None:
        if whole := self.__dict__.pop("_whole", None):
            super()._link(*whole)


@shown_by("store A | store B", "wrong-bytes", r"wrong bytes: .*\b[AB]\b")
class NumbersItsTempNames(Unsealed):
    """Each process numbers its temp files from 0, and all processes write them in one folder."""

    def _temp_for(self, path: Path) -> Path:
        self._made = getattr(self, "_made", -1) + 1
        return path.with_name(f".{self._made}.tmp")

    def _create(self, temp: Path) -> int:
        return os.open(temp, os.O_CREAT | os.O_WRONLY)

    def _link(self, temp: Path, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(temp, path)


@shown_by("store A | store B", "lost-store", r"lost store: [AB] was reported stored")
class IndexesWithoutALock(SoundProtocol):
    """A block is there if an index names it; a store reads the index, adds its block, and renames it into place."""

    bookkeeping: ClassVar[tuple[str, ...]] = (*SoundProtocol.bookkeeping, "index.json")

    def _names(self) -> list[str]:
        try:
            return list(json.loads((self._folder / "index.json").read_bytes()))
        except FileNotFoundError:
            return []

    def _is_there(self, path: Path) -> bool:
        return path.name in self._names() and super()._is_there(path)

    def _store(self, key: bytes, block: memoryview) -> None:
        super()._store(key, block)
        names = {*self._names(), self._path(key).name}
        temp = self._folder / f".{os.urandom(8).hex()}.tmp"
        temp.write_text(json.dumps(sorted(names)))
        os.rename(temp, self._folder / "index.json")

    def _link(self, temp: Path, path: Path) -> None:
        os.rename(temp, path)

    def _load(self, key: bytes, slot: memoryview) -> None:
        if not self._is_there(path := self._path(key)):
            raise FileNotFoundError(errno.ENOENT, "not in the index", str(path))
        super()._load(key, slot)


@shown_by("store A | lookup A", "lost-store", r"lost store: A was reported stored")
class RemembersMissesInFiles(SoundProtocol):
    """A lookup that finds no block makes a marker for the next ones; a store that comes in between has removed it
    already."""

    bookkeeping: ClassVar[tuple[str, ...]] = (*SoundProtocol.bookkeeping, "*.miss")

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        for key, verdict in zip(keys, verdicts, strict=True):
            if verdict == "miss":
                self._marker(key).touch()
        return verdicts

    def _marker(self, key: bytes) -> Path:
        return self._path(key).with_suffix(".miss")

    def _store(self, key: bytes, block: memoryview) -> None:
        super()._store(key, block)
        self._marker(key).unlink(missing_ok=True)

    def _load(self, key: bytes, slot: memoryview) -> None:
        if self._marker(key).exists():
            raise FileNotFoundError(errno.ENOENT, "marked as missing", str(self._path(key)))
        super()._load(key, slot)


@shown_by(
    "lookup A, store A, lookup A", "lookup", r"lookup: process 0: lookup A is a miss although the block was there"
)
class ListsItsFolderOnce(SoundProtocol):
    """Lookups answer from a list of the folder that the process makes at its first one."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        if not hasattr(self, "_listed"):
            self._listed = set(self._blocks())
        return ["hit" if self._path(key) in self._listed else "miss" for key in keys]


@shown_by("store A | load A", "lost-store", r"lost store: A was reported stored")
class PublishesTheDigestApart(Unsealed):
    """A block's digest is a file of its own, which comes after the block; a load in between quarantines the block."""

    bookkeeping: ClassVar[tuple[str, ...]] = (*SoundProtocol.bookkeeping, "*.sum")

    def _store(self, key: bytes, block: memoryview) -> None:
        super()._store(key, block)
        temp = self._temp_for(self._path(key))
        temp.write_bytes(hashlib.sha256(key + bytes(block)).digest())
        os.rename(temp, self._path(key).with_suffix(".sum"))

    def _load(self, key: bytes, slot: memoryview) -> None:
        path = self._path(key)
        block, seen = path.read_bytes(), path.stat()
        with contextlib.suppress(FileNotFoundError):
            if path.with_suffix(".sum").read_bytes() == hashlib.sha256(key + block).digest():
                slot[:] = block
                return
        self._quarantine(path, seen)
        raise OSError(errno.EBADMSG, "damaged", str(path))


@shown_by(
    "store A | lookup A, load A", "failed-load", r"failed load: process 1: load A .* although the block was there"
)
class ReservesTheName(SoundProtocol):
    """A store makes an empty file under the block's name, so that no other one begins, and renames its own over it; a
    lookup sees the name."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" if self._path(key).exists() else "miss" for key in keys]

    def _store(self, key: bytes, block: memoryview) -> None:
        if self._is_there(path := self._path(key)):
            return
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        super()._store(key, block)

    def _link(self, temp: Path, path: Path) -> None:
        os.rename(temp, path)

    def _quarantine(self, path: Path, seen: os.stat_result | None) -> None:
        return


@shown_by("A: load A | load A", "failed-load", r"failed load: process \d: load A failed \(ENOENT\)")
class TakesTheFileWhileItReads(SoundProtocol):
    """A load renames the file, so that no eviction removes it, and renames it back; another load finds nothing."""

    def _load(self, key: bytes, slot: memoryview) -> None:
        path = self._path(key)
        mine = path.with_name(f".{os.urandom(8).hex()}.tmp")
        os.rename(path, mine)
        try:
            slot[:] = mine.read_bytes()[: self.setup.block_bytes]
        finally:
            os.rename(mine, path)


@shown_by("A, B: load A | evict", "wrong-bytes", r"wrong bytes: process 0: load A .*(zero|untouched)")
class EvictsByOverwriting(Unsealed):
    """An eviction fills the oldest blocks with zeros, for secrecy, before it removes them; a load reads the zeros."""

    def _remove_oldest(self, count: int) -> None:
        for path in self._blocks()[: max(0, count)]:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_WRONLY)
                try:
                    os.write(descriptor, bytes(self._file_bytes()))
                finally:
                    os.close(descriptor)
                path.unlink(missing_ok=True)

    def _load(self, key: bytes, slot: memoryview) -> None:
        path = self._path(key)
        if len(content := path.read_bytes()) != self._file_bytes():
            raise OSError(errno.EBADMSG, "damaged", str(path))
        slot[:] = content


@shown_by("store A | then store A", "stuck", r"stuck: it looks again and again", kills=1)
class WaitsForTheOtherWriter(SoundProtocol):
    """A store that finds another one at work waits until it has ended; if that one was killed, it waits for ever."""

    bookkeeping: ClassVar[tuple[str, ...]] = (*SoundProtocol.bookkeeping, "*.writing")

    def _store(self, key: bytes, block: memoryview) -> None:
        path = self._path(key)
        busy = path.with_suffix(".writing")
        while not self._is_there(path):
            try:
                os.close(os.open(busy, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                time.sleep(WAIT_SECONDS)
                continue
            try:
                super()._store(key, block)
            finally:
                busy.unlink()


@shown_by("open | open other", "refused-opening", r"refused opening: process \d")
class PublishesItsConfigInTwoFiles(SoundProtocol):
    """The digest of the seed is in two files, each published by the process that comes first to it."""

    bookkeeping: ClassVar[tuple[str, ...]] = (*SoundProtocol.bookkeeping, "config-*.json")

    def _agree(self, record: Path, digest: bytes) -> None:
        names = [record.with_name(f"config-{part}.json") for part in "12"]
        theirs = {publish_first(name, digest) for name in names}
        if theirs != {digest}:
            raise ValueError(f"the root's seed has another digest than {digest.decode()}")


@shown_by("A, B: evict | then evict | then evict", "evicted-too-much", r"evicted too much: 0 blocks are left", kills=1)
class BreaksAStaleLease(SoundProtocol):
    """A process that finds a dead holder's lease removes it by its name; by then another one may have done the same and
    made its own."""

    @contextlib.contextmanager
    def _lease(self) -> Iterator[bool]:
        is_mine = self._take(lease := self._folder / "lease")
        yield is_mine
        if is_mine:
            lease.unlink(missing_ok=True)

    def _take(self, lease: Path) -> bool:
        while True:
            with contextlib.suppress(FileExistsError):
                os.symlink(str(os.getpid()), lease)
                return True
            with contextlib.suppress(FileNotFoundError):
                if os.path.exists(f"/proc/{os.readlink(lease)}"):
                    return False
                os.unlink(lease)
