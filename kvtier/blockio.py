"""One block <-> one file: probe, write, publish, read, verify. Called by the fs tier's threads; the only module that
touches block files, and the one seam where faults plug in. It never raises for the world's errors: it returns them.

A file is the block followed by one trailer page, written by one vectored call and read by one vectored call:

    [0, block_bytes)                      the block, as vLLM writes it (vLLM reads such a file unchanged)
    [block_bytes, block_bytes + 4096)     `Trailer`: whose block this is, its checksum, who wrote it, and when

A file of exactly block_bytes is vLLM's: nothing in it can be verified.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import xxhash

from kvtier.config import PAGE_BYTES, FsTierConfig, RootError
from kvtier.hashing import OffloadKey

logger = logging.getLogger(__name__)

O_DIRECT = getattr(os, "O_DIRECT", 0)
O_TMPFILE = getattr(os, "O_TMPFILE", 0)

RECENCY_SECONDS = 3600.0
"""A load renews a file's mtime at most this often: recency for eviction at one call per block and hour."""

MAGIC = b"KVTIER\r\n"
VERSION = 1
XXH3_64 = 1
_HEADER = struct.Struct("<8sHHHHQQQ16s8s64s64s")  # everything of the trailer but its own checksum
_CHECK = struct.Struct("<Q")


def errno_name(error: OSError) -> str:
    """The symbol of an OSError ("ENOSPC"), for metrics and findings: a closed set."""
    return errno.errorcode.get(error.errno or errno.EIO, "EIO")


class Trailer(NamedTuple):
    """What a block file says about its block. `traceparent` is the writer's W3C trace context, or ""."""

    key: bytes
    block_bytes: int
    checksum: int
    instance_id: bytes  # 16 bytes, one per tier instance
    created_ns: int  # wall clock of the writer
    traceparent: str = ""
    seed: bytes = bytes(8)  # the first 8 bytes of the digest of the writer's NONE_HASH

    def pack_into(self, page: memoryview | mmap.mmap) -> None:
        """Fill one page; a trace context that is not ASCII or too long is dropped rather than truncated."""
        trace = self.traceparent.encode("ascii", "ignore")
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            XXH3_64,
            len(self.key),
            0,
            self.block_bytes,
            self.checksum,
            self.created_ns,
            self.instance_id,
            self.seed,
            self.key,
            trace if len(trace) <= 64 else b"",
        )
        page[: _HEADER.size] = header
        page[_HEADER.size : _HEADER.size + _CHECK.size] = _CHECK.pack(xxhash.xxh3_64_intdigest(header))

    @classmethod
    def unpack(cls, page: bytes | memoryview | mmap.mmap) -> Self | None:
        """The trailer in a page, or None when the page is not one: any damage to it shows in its own checksum."""
        header = bytes(page[: _HEADER.size])
        if len(page) < _HEADER.size + _CHECK.size or header[: len(MAGIC)] != MAGIC:
            return None
        if _CHECK.unpack(page[_HEADER.size : _HEADER.size + _CHECK.size])[0] != xxhash.xxh3_64_intdigest(header):
            return None
        _, version, algorithm, key_length, _, size, *rest = _HEADER.unpack(header)
        checksum, created_ns, instance_id, seed, key, trace = rest
        if version != VERSION or algorithm != XXH3_64 or key_length > len(key):
            return None
        traceparent = trace.rstrip(b"\0").decode("ascii", "replace")
        return cls(key[:key_length], size, checksum, instance_id, created_ns, traceparent, seed)


CORRUPT_REASONS = ("kind", "size", "trailer", "key", "checksum")
"""Why a file is not the block it should be; such a file is set aside."""


class BlockOutcome(NamedTuple):
    """What became of one block. `reason` is None when it worked, else an errno name or why the file is not the block:
    "kind" (not a regular file), "size", "trailer", "key", "checksum", "unverified" (no trailer where one must be)."""

    reason: str | None = None
    skipped: bool = False  # a store found the block already published
    writer: bytes | None = None  # instance id in the trailer; None without trailer
    traceparent: str = ""
    set_aside: str | None = None  # where a bad file went; "" when it could not be moved

    @property
    def ok(self) -> bool:
        return self.reason is None


class BlockIO:
    """Reads and writes blocks of `config.block_bytes` below one root. Thread-safe: no state but per-thread pages.

    `probe` must be called once before use.
    """

    def __init__(self, config: FsTierConfig, quarantine_path: str, seed: bytes = bytes(8)) -> None:
        self.instance_id = os.urandom(16)
        self._seed = seed
        self.block_bytes = config.block_bytes
        self._sealed_bytes = config.block_bytes + PAGE_BYTES
        self._config = config
        self._quarantine_path = quarantine_path
        self._sizes = (self._sealed_bytes,) if config.integrity == "require" else (self._sealed_bytes, self.block_bytes)
        self._read_flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not hang us
        self._write_flags = os.O_WRONLY | os.O_CLOEXEC
        self._durable = config.durability == "durable"
        self._tmpfile = False
        self._named_link = False
        self._umask = 0o777  # until `probe` has seen it
        self._local = threading.local()
        self.direct = False

    # --- what the file system can do ---

    def probe(self, directory: str, aligned: bool = True) -> None:
        """Find out, with real one-page files in `directory`, whether O_DIRECT works in both directions and whether
        unnamed files can be published. `aligned`: the caller's memory is page-aligned.

        Raises RootError when nothing can be written there, or when io="direct" was asked for and does not work.
        """
        path = os.path.join(directory, self._temp_name())
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o777)
            try:
                self._umask = 0o777 & ~os.fstat(descriptor).st_mode
                os.pwrite(descriptor, self._page(), 0)
            finally:
                os.close(descriptor)
            direct = aligned and self._config.io != "buffered" and self._direct_works(path)
        except OSError as error:
            raise RootError(f"cannot write to {directory}: {errno_name(error)} ({error.strerror})") from error
        finally:
            _unlink_quietly(path)
        if self._config.io == "direct" and not direct:
            reason = "the file system refuses O_DIRECT" if aligned else "the slots are not page-aligned in memory"
            raise RootError(f"io is 'direct', but {reason} at {directory}; use 'auto' or 'buffered'")
        self.direct = direct
        if direct:
            self._read_flags |= O_DIRECT
            self._write_flags |= O_DIRECT
        self._tmpfile = self._tmpfile_works(directory)
        self._named_link = not self._tmpfile and self._named_link_works(directory)
        if not (direct and self._tmpfile):
            logger.info("%s: O_DIRECT %s, O_TMPFILE %s", directory, direct, self._tmpfile)

    def _direct_works(self, path: str) -> bool:
        if not O_DIRECT:
            return False
        for flags, move in ((os.O_WRONLY, os.pwritev), (os.O_RDONLY, os.preadv)):
            try:
                descriptor = os.open(path, flags | O_DIRECT | os.O_CLOEXEC)
            except OSError:
                return False
            try:
                move(descriptor, [self._page()], 0)
            except OSError:
                return False
            finally:
                os.close(descriptor)
        return True

    def _tmpfile_works(self, directory: str) -> bool:
        if not O_TMPFILE:
            return False
        path = os.path.join(directory, self._temp_name())
        try:
            descriptor = os.open(directory, O_TMPFILE | self._write_flags, self._config.file_mode)
        except OSError:
            return False
        try:
            _link(descriptor, path)
        except OSError:
            return False
        finally:
            os.close(descriptor)
            _unlink_quietly(path)
        return True

    def _named_link_works(self, directory: str) -> bool:
        path = os.path.join(directory, self._temp_name())
        other = os.path.join(directory, self._temp_name())
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, self._config.file_mode))
            os.link(path, other)
        except OSError:
            return False
        finally:
            _unlink_quietly(path)
            _unlink_quietly(other)
        return True

    # --- existence ---

    def exists(self, path: str) -> bool:
        """Whether a block is there: a regular file of a right size. Anything else, and any error, is no block."""
        try:
            status = os.stat(path, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size in self._sizes

    def exists_everywhere(self, path: str, base_path: str) -> bool:
        """The same, but a "no" is never a remembered one.

        NFS clients remember names that were missing for up to a minute, and neither stat nor open of the file asks the
        server again. Opening the folder does (close-to-open consistency); a folder may itself be remembered as missing,
        up to `base_path`, which exists.
        """
        return self.exists(path) or (_look_again(os.path.dirname(path), base_path) and self.exists(path))

    # --- write ---

    def write_block(self, path: str, key: OffloadKey, view: memoryview, traceparent: str = "") -> BlockOutcome:
        """Publish `view` (block_bytes long) at `path`, all or nothing: no other process ever sees a part of it.

        The first writer wins; a block that is already there is success. Something there that is no block is set aside.
        """
        for attempt in (1, 2, 3):
            try:
                return self._write(path, key, view, traceparent)
            except FileNotFoundError:  # an evictor removed the folder when it became empty: make it again
                if attempt == 3:
                    return BlockOutcome(reason="ENOENT")
            except OSError as error:
                return BlockOutcome(reason=errno_name(error))
        raise AssertionError("unreachable")

    def _write(self, path: str, key: OffloadKey, view: memoryview, traceparent: str) -> BlockOutcome:
        directory = os.path.dirname(path)
        # A new folder, the usual case below a million blocks, spares asking whether the block is in it.
        if not make_dirs(directory, self._config.dir_mode, self._umask) and self.exists(path):
            return self._settled(path, BlockOutcome(skipped=True))
        page = self._page()
        checksum = xxhash.xxh3_64_intdigest(view)
        now, writer = time.time_ns(), self.instance_id
        Trailer(key, self.block_bytes, checksum, writer, now, traceparent, self._seed).pack_into(page)
        descriptor, temp_path = self._create(directory)
        try:
            try:
                if self._umask & self._config.file_mode:
                    os.fchmod(descriptor, self._config.file_mode)
                _transfer(os.pwritev, descriptor, [view, memoryview(page)], self._sealed_bytes)
                if self._durable:
                    os.fdatasync(descriptor)
                return self._settled(path, self._publish(descriptor, temp_path, path))
            finally:
                os.close(descriptor)  # may fail itself, where a quota is found out late
        finally:
            if temp_path is not None:
                _unlink_quietly(temp_path)  # gone already when it was renamed; never another writer's

    def _settled(self, path: str, outcome: BlockOutcome) -> BlockOutcome:
        """With durability, the file and its name are on the device before anybody hears of success."""
        if self._durable and outcome.ok:
            if outcome.skipped:
                _sync(path)  # its writer may not have asked for durability, or not have got so far
            for _ in range(3):  # the block's folder and the two above, which may be as new as the block
                path = os.path.dirname(path)
                _sync(path)
        return outcome

    def _create(self, directory: str) -> tuple[int, str | None]:
        """An empty file to write into: unnamed where that works (a killed process leaves nothing), else a temp file,
        locked as long as its writer lives."""
        if self._tmpfile:
            return os.open(directory, O_TMPFILE | self._write_flags, self._config.file_mode), None
        temp_path = os.path.join(directory, self._temp_name())
        descriptor = os.open(temp_path, os.O_CREAT | os.O_EXCL | self._write_flags, self._config.file_mode)
        with contextlib.suppress(OSError):  # no locks here: then nobody will dare to remove it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor, temp_path

    def _publish(self, descriptor: int, temp_path: str | None, path: str) -> BlockOutcome:
        set_aside = None
        for _ in range(3):  # something in the way is moved; another repairer may race us, but not for ever
            try:
                if temp_path is None:
                    _link(descriptor, path)
                elif self._named_link:  # replaces nothing: to a reader of the replaced file it would be an ESTALE
                    os.link(temp_path, path)
                else:
                    os.rename(temp_path, path)
                return BlockOutcome(writer=self.instance_id, set_aside=set_aside)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
                    raise
                if self.exists(path):
                    return BlockOutcome(skipped=True, set_aside=set_aside)
                set_aside = self._set_aside(path, "size", None)
        return BlockOutcome(reason="EEXIST", set_aside=set_aside)

    # --- read ---

    def read_block(self, path: str, key: OffloadKey, view: memoryview) -> BlockOutcome:
        """Read the block of `key` into `view` (block_bytes long) and verify it. When the outcome is not ok, `view`
        holds rubbish; a file that is not the block it should be is moved to quarantine."""
        outcome, status = self._read(path, key, view)
        if outcome.reason not in CORRUPT_REASONS:
            return outcome
        return outcome._replace(set_aside=self._set_aside(path, outcome.reason, status))

    def examine(self, path: str, key: OffloadKey, view: memoryview) -> BlockOutcome:
        """The same without moving anything."""
        return self._read(path, key, view)[0]

    def _read(self, path: str, key: OffloadKey, view: memoryview) -> tuple[BlockOutcome, os.stat_result | None]:
        """The outcome, and the file that was seen."""
        status: os.stat_result | None = None
        try:
            descriptor = os.open(path, self._read_flags)
            try:
                status = os.fstat(descriptor)
                outcome = self._read_open(descriptor, status, key, view)
                if outcome.ok and time.time() - status.st_mtime > RECENCY_SECONDS:
                    with contextlib.suppress(OSError):
                        os.utime(descriptor)  # the mark of use that eviction goes by
                return outcome, status
            finally:
                os.close(descriptor)
        except OSError as error:
            outcome = BlockOutcome(reason=errno_name(error))
            if isinstance(error, FileNotFoundError) or status is not None:
                return outcome, status
        try:  # some kinds of file cannot even be opened: is that why?
            status = os.stat(path, follow_symlinks=False)
        except OSError:
            return outcome, None
        return (outcome if stat.S_ISREG(status.st_mode) else BlockOutcome(reason="kind")), status

    def _read_open(self, descriptor: int, status: os.stat_result, key: OffloadKey, view: memoryview) -> BlockOutcome:
        if not stat.S_ISREG(status.st_mode):
            return BlockOutcome(reason="kind")
        if status.st_size == self.block_bytes:
            if self._config.integrity == "require":
                return BlockOutcome(reason="unverified")
            _transfer(os.preadv, descriptor, [view], self.block_bytes)
            return BlockOutcome()
        if status.st_size != self._sealed_bytes:
            return BlockOutcome(reason="size")
        page = self._page()
        _transfer(os.preadv, descriptor, [view, memoryview(page)], self._sealed_bytes)
        trailer = Trailer.unpack(page)
        if self._config.integrity != "off":
            if trailer is None or trailer.block_bytes != self.block_bytes:
                return BlockOutcome(reason="trailer")
            if trailer.key != key:
                return BlockOutcome(reason="key")
            if xxhash.xxh3_64_intdigest(view) != trailer.checksum:
                return BlockOutcome(reason="checksum")
        if trailer is None:
            return BlockOutcome()
        return BlockOutcome(writer=trailer.instance_id, traceparent=trailer.traceparent)

    # --- helpers ---

    def _set_aside(self, path: str, reason: str, seen: os.stat_result | None) -> str:
        """Move a bad file to quarantine; "" when it cannot be moved, or is no longer the file that was `seen`."""
        try:
            now = os.stat(path, follow_symlinks=False)
            if seen is not None and (now.st_ino, now.st_dev) != (seen.st_ino, seen.st_dev):
                return ""  # somebody repaired it meanwhile
            if not stat.S_ISREG(now.st_mode):
                reason = "kind"
            make_dirs(self._quarantine_path, self._config.dir_mode, self._umask)
            target = os.path.join(self._quarantine_path, f"{os.path.basename(path)}.{reason}.{os.urandom(4).hex()}")
            os.rename(path, target)
        except OSError as error:
            logger.warning("cannot set aside %s (%s): %s", path, reason, error)
            return ""
        logger.warning("set aside %s: %s", path, reason)
        return target

    def _temp_name(self) -> str:
        return f".{os.uname().nodename}.{os.getpid()}.{os.urandom(8).hex()}.tmp"

    def _page(self) -> mmap.mmap:
        """This thread's page-aligned page for trailers."""
        try:
            return self._local.page  # type: ignore[no-any-return]
        except AttributeError:
            self._local.page = mmap.mmap(-1, PAGE_BYTES)
            return self._local.page  # type: ignore[no-any-return]


def read_trailer(path: str) -> Trailer | None:
    """Who wrote a file, without its block; None without a trailer, or when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(descriptor).st_size
            return Trailer.unpack(os.pread(descriptor, PAGE_BYTES, size - PAGE_BYTES)) if size > PAGE_BYTES else None
        finally:
            os.close(descriptor)
    except OSError:
        return None


def make_dirs(directory: str, mode: int, umask: int = 0o777) -> bool:
    """Create `directory` and its missing parents with exactly `mode`; folders that exist are left as they are.

    Whether this call made it. `umask` only spares a chmod where it takes nothing from `mode`.
    """
    try:
        os.mkdir(directory, mode)
    except FileExistsError:
        return False
    except FileNotFoundError:
        make_dirs(os.path.dirname(directory), mode, umask)
        return make_dirs(directory, mode, umask)
    if umask & mode:
        os.chmod(directory, mode)
    return True


def _transfer(move: Callable[..., int], descriptor: int, buffers: Sequence[memoryview], total: int) -> None:
    """Move `total` bytes from offset 0, going on after short transfers (EINTR is Python's affair, PEP 475).

    After a short transfer it goes on from the last whole page, as O_DIRECT demands; no progress is an EIO.
    """
    done = move(descriptor, buffers, 0)
    while done < total:
        resume = done - done % PAGE_BYTES
        rest, skip = [], resume
        for buffer in buffers:
            if skip < len(buffer):
                rest.append(buffer[skip:])
            skip = max(0, skip - len(buffer))
        moved = move(descriptor, rest, resume)
        if resume + moved <= done:
            raise OSError(errno.EIO, f"short transfer: {done} of {total} bytes")
        done = resume + moved


def _link(descriptor: int, path: str) -> None:
    # src_dir_fd is not used for an absolute source, but its presence makes Python call linkat(AT_SYMLINK_FOLLOW).
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _look_again(directory: str, base_path: str) -> bool:
    """Whether the folder is there, asked of the server. A missing one costs one question per missing level."""
    for attempt in range(2):
        try:
            os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except FileNotFoundError:
            if attempt or len(directory) <= len(base_path) or not _look_again(os.path.dirname(directory), base_path):
                return False
        except OSError:
            return False
        else:
            return True
    return False


def _unlink_quietly(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
