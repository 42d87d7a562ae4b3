"""Mutants of protocols on shared files: a small correct tier, and tiers with one wrong order of system calls each.

Each is correct with one process, and in most schedules of two. The scenario `interleavings` runs them all. Workers load
them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from harness.adapters.base import Finished, Verdict
from harness.adapters.reference import TEMP_AGE_SECONDS, ReferenceAdapter
from harness.mutants.base import AdapterClass, detected_by

ATTEMPTS = 3


def shown_by(program: str, rule: str, finding: str, kills: int = 0) -> Callable[[AdapterClass], AdapterClass]:
    """Every schedule of this program is run, and one of them must break the rule."""
    options: dict[str, Any] = {"program": (program,), "kills": kills}
    return detected_by(f"interleavings/{rule}", finding, scenario="interleavings", **options)


class SoundProtocol(ReferenceAdapter):
    """The correct base: a block and its digest are written into a temp file, which is then linked to the block's name.

    A load verifies the digest and quarantines a damaged file. One process at a time evicts. No threads: each job is
    done in its submit.
    """

    operations: ClassVar[tuple[str, ...]] = ("evict", "collect")
    bookkeeping: ClassVar[tuple[str, ...]] = ("config.json", "lease", "lock")

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" if self._is_there(self._path(key)) else "miss" for key in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._each(job_id, keys, slots, self._store)

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._each(job_id, keys, slots, self._load)

    def operate(self, operation: str, blocks: int = 0) -> None:
        if operation == "evict":
            self._evict(blocks)
        else:
            self._collect()

    def _each(
        self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], work: Callable[[bytes, memoryview], None]
    ) -> None:
        ok, failed, reasons = [], [], set[str]()
        for key, slot in zip(keys, slots, strict=True):
            try:
                work(key, self._slot(slot))
                ok.append(key)
            except OSError as error:
                failed.append(key)
                reasons.add(errno.errorcode.get(error.errno or 0, "damaged"))
        self._finished.append(Finished(job_id, ok, failed, reasons=" ".join(sorted(reasons))))

    # --- stores ---

    def _store(self, key: bytes, block: memoryview) -> None:
        path = self._path(key)
        if self._is_there(path):
            return
        temp = self._temp_for(path)
        descriptor = self._create(temp)
        try:
            self._fill(descriptor, key, block)
        finally:
            os.close(descriptor)
        self._link(temp, path)

    def _temp_for(self, path: Path) -> Path:
        return path.with_name(f".{os.urandom(8).hex()}.tmp")

    def _create(self, temp: Path) -> int:
        return os.open(temp, os.O_CREAT | os.O_EXCL | os.O_WRONLY)

    def _parts(self, key: bytes, block: bytes | memoryview) -> list[bytes]:
        """What a block's file holds."""
        return [bytes(block), hashlib.sha256(key + bytes(block)).digest()]

    def _fill(self, descriptor: int, key: bytes, block: memoryview) -> None:
        for part in self._parts(key, block):
            os.write(descriptor, part)

    def _link(self, temp: Path, path: Path) -> None:
        try:
            for _ in range(ATTEMPTS):
                with contextlib.suppress(FileExistsError):
                    return os.link(temp, path)
                if self._is_there(path):
                    return
                self._quarantine(path, None)
            raise FileExistsError(errno.EEXIST, "still there", str(path))
        finally:
            temp.unlink(missing_ok=True)

    # --- loads ---

    def _file_bytes(self) -> int:
        return sum(map(len, self._parts(b"", bytes(self.setup.block_bytes))))

    def _is_there(self, path: Path) -> bool:
        try:
            return os.stat(path).st_size == self._file_bytes()
        except OSError:
            return False

    def _load(self, key: bytes, slot: memoryview) -> None:
        path = self._path(key)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            seen, content = os.fstat(descriptor), os.read(descriptor, self._file_bytes() + 1)
        finally:
            os.close(descriptor)
        block = content[: self.setup.block_bytes]
        if len(content) != self._file_bytes() or content != b"".join(self._parts(key, block)):
            self._quarantine(path, seen)
            raise OSError(errno.EBADMSG, "damaged", str(path))
        slot[:] = block

    def _quarantine(self, path: Path, seen: os.stat_result | None) -> None:
        """Move a damaged file away, unless another process has done it: who holds its lock may move it."""
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                now = os.stat(path)
                if self._is_there(path) if seen is None else now.st_ino != seen.st_ino:
                    return
                self._move_away(path)
            finally:
                os.close(descriptor)

    def _move_away(self, path: Path) -> None:
        folder = path.parent / "quarantine"
        folder.mkdir(exist_ok=True)
        os.rename(path, folder / f"{path.name}.{os.urandom(4).hex()}")

    # --- maintenance ---

    def _evict(self, blocks: int) -> None:
        with self._lease() as is_mine:
            if is_mine:
                self._remove_oldest(len(self._blocks()) - blocks)

    @contextlib.contextmanager
    def _lease(self) -> Iterator[bool]:
        descriptor = os.open(self._folder / "lease", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _blocks(self) -> list[Path]:
        return sorted(self._folder.glob("*.bin"), key=self._used_seconds)

    def _used_seconds(self, path: Path) -> float:
        try:
            return path.stat().st_mtime
        except FileNotFoundError:  # removed since it was listed
            return 0.0

    def _remove_oldest(self, count: int) -> None:
        for path in self._blocks()[: max(0, count)]:
            path.unlink(missing_ok=True)

    def _collect(self) -> None:
        for path in self._folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if self._is_abandoned(path):
                    path.unlink()

    def _is_abandoned(self, temp: Path) -> bool:
        return time.time() - temp.stat().st_mtime > TEMP_AGE_SECONDS


class Unsealed(SoundProtocol):
    """Correct, too: a block's file holds the block alone, as vLLM's, so that only its size says whether it is whole."""

    def _parts(self, key: bytes, block: bytes | memoryview) -> list[bytes]:
        half = self.setup.block_bytes // 2
        return [bytes(block[:half]), bytes(block[half:])]


@shown_by("store A | load A", "wrong-bytes", r"wrong bytes: .*(zero|untouched)")
class WritesInPlace(Unsealed):
    """A block is written under its final name, into a file that has its full size from the start."""

    def _store(self, key: bytes, block: memoryview) -> None:
        if self._is_there(path := self._path(key)):
            return
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
        try:
            os.ftruncate(descriptor, self._file_bytes())
            self._fill(descriptor, key, block)
        finally:
            os.close(descriptor)


@shown_by("store A | load A", "wrong-bytes", r"wrong bytes: .*(zero|untouched)")
class RenamesBeforeTheWrite(Unsealed):
    """The temp file gets the block's name once it has its size, and its bytes later."""

    def _fill(self, descriptor: int, key: bytes, block: memoryview) -> None:
        os.ftruncate(descriptor, self._file_bytes())
        temp = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        os.rename(temp, self._path(key))
        super()._fill(descriptor, key, block)

    def _link(self, temp: Path, path: Path) -> None:
        return


@shown_by("store A | load A", "lost-store", r"lost store: A was reported stored")
class LinksBeforeTheTrailer(SoundProtocol):
    """A file gets its block's name when the block is written, and its digest afterwards."""

    def _fill(self, descriptor: int, key: bytes, block: memoryview) -> None:
        data, digest = self._parts(key, block)
        os.write(descriptor, data)
        os.link(f"/proc/self/fd/{descriptor}", self._path(key), follow_symlinks=True, src_dir_fd=descriptor)
        os.write(descriptor, digest)

    def _link(self, temp: Path, path: Path) -> None:
        temp.unlink()


@shown_by("store A | store A", "failed-store", r"failed store: .*ENOENT")
class SharesItsTempName(SoundProtocol):
    """The temp file of a block has one name in all processes, and each opens it as it finds it."""

    def _temp_for(self, path: Path) -> Path:
        return path.with_suffix(".tmp")

    def _create(self, temp: Path) -> int:
        return os.open(temp, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)

    def _link(self, temp: Path, path: Path) -> None:
        os.rename(temp, path)


@shown_by("store A | store A", "failed-store", r"failed store: .*EEXIST")
class SeedsItsTempName(SoundProtocol):
    """Temp names come from a generator that is seeded alike in all processes; a store that finds its name taken fails,
    and removes the file."""

    def _temp_for(self, path: Path) -> Path:
        return path.with_name(f".{random.Random(0).getrandbits(64):016x}.tmp")

    def _create(self, temp: Path) -> int:
        try:
            return super()._create(temp)
        except FileExistsError:
            temp.unlink(missing_ok=True)
            raise


@shown_by("store A | store B", "failed-store", r"failed store: .*ENOENT")
class UnlinksTempFilesOfOthers(SoundProtocol):
    """Before a store, all temp files of the folder are removed, also those of running writers."""

    def _create(self, temp: Path) -> int:
        for other in temp.parent.glob(".*.tmp"):
            other.unlink(missing_ok=True)
        return super()._create(temp)


@shown_by("store A | collect", "failed-store", r"failed store: .*ENOENT")
class CollectsTempFilesOfRunningWriters(SoundProtocol):
    """Garbage collection removes temp files of any age."""

    def _is_abandoned(self, temp: Path) -> bool:
        return True


@shown_by("store A | store A", "lost-store", r"lost store: A was reported stored")
class ChecksThenAppends(SoundProtocol):
    """A store that finds no file appends the block to a new one; two stores append it twice."""

    def _store(self, key: bytes, block: memoryview) -> None:
        path = self._path(key)
        if path.exists():
            return
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            os.write(descriptor, b"".join(self._parts(key, block)))
        finally:
            os.close(descriptor)


@shown_by("A short: load A | store A", "lost-store", r"lost store: A was reported stored")
class QuarantinesByName(SoundProtocol):
    """A load checks that the damaged file is still there, and then moves whatever has its name."""

    def _quarantine(self, path: Path, seen: os.stat_result | None) -> None:
        with contextlib.suppress(OSError):
            if not self._is_there(path):
                self._move_away(path)


@shown_by("A short: store A | store A", "lost-store", r"lost store: A was reported stored", kills=1)
class RepairsByUnlink(SoundProtocol):
    """A store removes a damaged file by its name before it links its own; if it is killed in between, the file that
    another store has just published is gone."""

    def _quarantine(self, path: Path, seen: os.stat_result | None) -> None:
        path.unlink(missing_ok=True)


@shown_by("A, B: evict | evict", "evicted-too-much", r"evicted too much: 0 blocks are left")
class EvictsAfterMeasuring(SoundProtocol):
    """The blocks are counted before the lease is taken; by then another process may have evicted."""

    def _evict(self, blocks: int) -> None:
        excess = len(self._blocks()) - blocks
        with self._lease() as is_mine:
            if is_mine:
                self._remove_oldest(excess)


@shown_by("A, B: evict | evict", "evicted-too-much", r"evicted too much: 0 blocks are left")
class LeasesWithoutALock(SoundProtocol):
    """The lease is a file that says whether it is taken: it is read, and then written."""

    @contextlib.contextmanager
    def _lease(self) -> Iterator[bool]:
        lease = self._folder / "lease"
        is_free = not lease.exists() or lease.read_bytes() == b"free"
        if is_free:
            lease.write_bytes(b"taken")
        yield is_free
        if is_free:
            lease.write_bytes(b"free")


@shown_by("A, B: evict", "next-process", r"next process: it evicts, and 2 blocks are left", kills=1)
class LeavesItsLeaseToNobody(SoundProtocol):
    """The lease is a file that only its maker removes: if that process is killed, no process evicts again."""

    @contextlib.contextmanager
    def _lease(self) -> Iterator[bool]:
        lease = self._folder / "lease"
        try:
            os.close(os.open(lease, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            yield False
        else:
            yield True
            lease.unlink()


@shown_by("store A", "next-process", r"next process: it cannot store A", kills=1)
class LocksWithAFile(SoundProtocol):
    """A store makes a lock file and removes it at its end; if it is killed, each later store of the block fails."""

    def _store(self, key: bytes, block: memoryview) -> None:
        lock = self._path(key).with_suffix(".lock")
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            if self._is_there(self._path(key)):
                return
            raise
        super()._store(key, block)
        lock.unlink()


@shown_by("A: store B | evict", "stuck", r"stuck: deadlock")
class LocksInEitherOrder(SoundProtocol):
    """A store locks the folder and then the lease, an eviction the lease and then the folder."""

    def _store(self, key: bytes, block: memoryview) -> None:
        with self._locked("lock"), self._locked("lease"):
            super()._store(key, block)

    def _evict(self, blocks: int) -> None:
        with self._locked("lease"), self._locked("lock"):
            self._remove_oldest(len(self._blocks()) - blocks)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        descriptor = os.open(self._folder / name, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@shown_by("open | open", "refused-opening", r"refused opening: process \d")
class ChecksItsConfigThenWrites(SoundProtocol):
    """A process that finds no `config.json` writes one in place; another reads it before it is whole."""

    def _agree(self, record: Path, digest: bytes) -> None:
        if not record.exists():
            record.write_bytes(digest)
        if record.read_bytes() != digest:
            raise ValueError(f"the root's seed has another digest than {digest.decode()}")


@shown_by("open | open other", "two-seeds", r"two seeds: process")
class RenamesItsConfigOverAnother(SoundProtocol):
    """A process that finds no `config.json` renames its own to it, over one that another process has made since."""

    def _agree(self, record: Path, digest: bytes) -> None:
        if not record.exists():
            temp = record.with_name(f".{os.urandom(8).hex()}.tmp")
            temp.write_bytes(digest)
            os.rename(temp, record)
        if record.read_bytes() != digest:
            raise ValueError(f"the root's seed has another digest than {digest.decode()}")


@shown_by("store A", "left-over", r"left over: .*tmp of the killed process stays", kills=1)
class NeverCollects(SoundProtocol):
    """Garbage collection takes each temp file for that of a running writer, also of one that was killed."""

    def _is_abandoned(self, temp: Path) -> bool:
        return False


@shown_by("A: store A | load A", "failed-load", r"failed load: process 1: load A failed \(ENOENT\)")
class ReplacesByUnlink(SoundProtocol):
    """A store of a block that is there removes its file before it links the new one; a load in between fails."""

    def _is_there(self, path: Path) -> bool:
        return False

    def _link(self, temp: Path, path: Path) -> None:
        path.unlink(missing_ok=True)
        os.rename(temp, path)


@shown_by("A, B: load A | evict", "raised", r"raised: process 0: RuntimeError")
class ExpectsTheFileToStay(SoundProtocol):
    """A load that has seen its block's file raises an exception if the file is gone when it is opened."""

    def _load(self, key: bytes, slot: memoryview) -> None:
        if not self._is_there(path := self._path(key)):
            raise FileNotFoundError(errno.ENOENT, "no block", str(path))
        try:
            super()._load(key, slot)
        except FileNotFoundError as error:
            raise RuntimeError("the block was there") from error


@shown_by("store A | store A", "results", r"results: process \d: store A got 2 results")
class ReportsALostRaceTwice(SoundProtocol):
    """A store that finds the block published by another one reports its result twice."""

    def _link(self, temp: Path, path: Path) -> None:
        self._was_first = not path.exists()
        super()._link(temp, path)

    def _store(self, key: bytes, block: memoryview) -> None:
        self._was_first = True
        super()._store(key, block)

    def poll(self) -> list[Finished]:
        finished = super().poll()
        return finished if getattr(self, "_was_first", True) else finished * 2
