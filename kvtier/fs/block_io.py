"""One block <-> one file: probe, write, publish, read, verify. Called by the file tier's threads; with `native` and
`quarantine` the only code that touches block files. Errors of the file system are returned, never raised.

A file is the block followed by one trailer page, written by one vectored call and read by one vectored call:

    [0, block_bytes)                      the block, as vLLM writes it (vLLM reads such a file unchanged)
    [block_bytes, block_bytes + 4096)     `Trailer`: key and checksum of the block, its writer, the time

A file of exactly block_bytes is vLLM's: nothing in it can be verified.

`write_block` and `read_block` handle every case. `write_blocks` and `read_blocks` pass many blocks to the native
extension, where there is one, and fall back to these for every block that met anything unusual.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import xxhash

from kvtier.config import PAGE_BYTES, FsTierConfig, RootError
from kvtier.events import CorruptReason
from kvtier.fs import native, posix
from kvtier.fs.quarantine import move_to_quarantine
from kvtier.fs.trailer import Trailer, writer_of
from kvtier.hashing import OffloadKey

logger = logging.getLogger(__name__)

RECENCY_SECONDS = 3600.0
"""A load renews a file's mtime at most this often: recency for eviction at one call per block and hour; more often
where a root's blocks live for less than hours (`BlockIO.recency_seconds`)."""

FOLDER_GONE = (errno.ENOENT, errno.EPERM, errno.ESTALE)
"""An evictor removed the folder when it became empty, so it has to be made again. ext4 gives EPERM for a new
file in a removed folder that is still open, NFS gives ESTALE."""


def errno_name(error: OSError) -> str:
    """The symbol of an OSError ("ENOSPC"), for metrics and findings: a closed set."""
    return errno.errorcode.get(error.errno or errno.EIO, "EIO")


QUARANTINED_FOR = frozenset(get_args(CorruptReason)) - {"unverified"}
"""Why a file is not the block it should be and is moved away; one without trailer may yet be right."""


class BlockOutcome(NamedTuple):
    """What became of one block. `reason` is None when it worked, else an errno name or why the file is not the block:
    "kind" (not a regular file), "size", "trailer", "key", "checksum", "unverified" (no trailer where one must be)."""

    reason: str | None = None
    skipped: bool = False  # a store found the block already published
    writer: bytes | None = None  # instance id in the trailer; None without trailer
    traceparent: str = ""
    quarantined: str | None = None  # where a bad file went; "" when it could not be moved

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
        self._by_use = 0  # 1: first loads go past the page cache; 2: and set the atime, since reads do not
        self._misses_are_cached = False  # by the client of a network file system
        self._base_path = ""
        self.native_reads = self.native_writes = False  # may the native extension be used?
        self.recency_seconds = RECENCY_SECONDS

    # --- what the file system can do ---

    def probe(self, directory: str, aligned: bool = True) -> None:
        """Find out, with real one-page files in `directory`, the folder's base, whether O_DIRECT works in both
        directions and whether unnamed files can be published. `aligned`: the caller's memory is page-aligned.

        Raises RootError when nothing can be written there, or when io is "direct" and does not work.
        """
        path, page = "", self._pages(1)[:PAGE_BYTES]
        try:
            descriptor, path = posix.create_temp(os.O_WRONLY, 0o777, directory=directory)
            try:
                self._umask = 0o777 & ~os.fstat(descriptor).st_mode
                os.pwrite(descriptor, page, 0)
                direct = aligned and self._config.io != "buffered" and posix.direct_io_works(path, page)
                if direct and self._config.io == "auto":
                    self._by_use = 1 if posix.reads_set_access_times(path, page) else 2
                posix.unlock(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RootError(f"cannot write to {directory}: {errno_name(error)} ({error.strerror})") from error
        finally:
            posix.unlink_quietly(path)
        if self._config.io == "direct" and not direct:
            reason = "the file system refuses O_DIRECT" if aligned else "the slots are not page-aligned in memory"
            raise RootError(f"io is 'direct', but {reason} at {directory}; use 'auto' or 'buffered'")
        self.direct = direct
        self._write_flags |= posix.O_DIRECT if direct else 0
        self._read_flags |= posix.O_DIRECT if self._config.io == "direct" else 0
        self._tmpfile = posix.unnamed_files_work(directory, self._write_flags, self._config.file_mode)
        self._named_link = not self._tmpfile and posix.named_links_work(directory, self._config.file_mode)
        self.native_reads = self._config.compiled and native.CHECKSUM != 0 and directory.isascii()
        modes_hold = not self._umask & (self._config.file_mode | self._config.dir_mode)
        self.native_writes = self.native_reads and self._tmpfile and modes_hold and not self._durable
        self._base_path, file_system = directory, posix.type_at(directory)
        if self._durable:
            _sync(os.path.dirname(directory))  # where the names of the folders above all blocks are
        self._misses_are_cached = file_system in ("nfs", "nfs4")
        logger.log(
            logging.DEBUG if direct and self._tmpfile else logging.INFO,
            "%s: %s, O_DIRECT %s, O_TMPFILE %s, hard links %s, native reads %s, native writes %s",
            *(directory, file_system or "unknown file system", direct, self._tmpfile),
            *(self._tmpfile or self._named_link, self.native_reads, self.native_writes),
        )

    # --- existence ---

    def exists(self, path: str) -> bool:
        """Whether a block is there: a regular file of a right size. Anything else, and any error, is no block."""
        return self._is_block(path, None)

    def exists_many(self, paths: Sequence[str]) -> list[bool]:
        """`exists` for each, in order; past the client's cache of missing names where the file system has one."""
        if self._misses_are_cached:
            return [self.exists(path) or self.revalidate(path) for path in paths]
        if not self.native_reads:
            return [self.exists(path) for path in paths]
        return [size in self._sizes for size in native.sizes(list(paths))]

    def _is_block(self, name: str, folder: int | None) -> bool:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size in self._sizes

    def revalidate(self, path: str) -> bool:
        """`exists` after the server was queried, below the directory that `probe` saw.

        NFS clients cache names that were missing for up to a minute (the negative dentry cache), and neither stat nor
        open of the file queries the server again. Opening the folder does (close-to-open consistency); a folder may
        itself be cached as missing, up to the base path, which exists.
        """
        return _revalidate_folder(os.path.dirname(path), self._base_path) and self.exists(path)

    # --- write ---

    def write_blocks(
        self, paths: Sequence[str], keys: Sequence[OffloadKey], views: Sequence[memoryview], traceparent: str = ""
    ) -> list[BlockOutcome]:
        """`write_block` for each, in order."""
        if not self.native_writes:
            return [self.write_block(*block, traceparent) for block in zip(paths, keys, views, strict=True)]
        blocks = list(paths), list(keys), list(views), self._pages(len(paths)), PAGE_BYTES
        trailer = self._trailer(keys[0], 0, traceparent).pack()
        modes = self._config.file_mode, self._config.dir_mode
        done = native.write_blocks(*blocks, trailer, native.CHECKSUM, self._write_flags, *modes)
        outcomes = {1: BlockOutcome(writer=self.instance_id), 2: BlockOutcome(skipped=True)}
        return [
            outcomes.get(result) or self.write_block(path, key, view, traceparent)
            for result, path, key, view in zip(done, paths, keys, views, strict=True)
        ]

    def write_block(self, path: str, key: OffloadKey, view: memoryview, traceparent: str = "") -> BlockOutcome:
        """Publish `view` (block_bytes long) at `path`, all or nothing: no other process ever sees a part of it.

        The first writer wins; a block that is already there is success. What is there and is no block is quarantined.
        """
        for attempt in range(1, 9):
            try:
                return self._write(path, key, view, traceparent)
            except OSError as error:
                if error.errno not in FOLDER_GONE or attempt >= (8 if error.errno == errno.ESTALE else 3):
                    return BlockOutcome(reason=errno_name(error))
                # GlusterFS, two hosts made the folder at once: for a second one has a stale handle, which only an
                # open that queries the server renews; O_PATH does not.
                _revalidate_folder(os.path.dirname(path), self._base_path)
        raise AssertionError("unreachable")

    def _write(self, path: str, key: OffloadKey, view: memoryview, traceparent: str) -> BlockOutcome:
        directory, name = os.path.split(path)
        folder, is_new = self._open_folder(directory)
        try:
            # A new folder, the usual case below a million blocks, saves the check whether the block is in it.
            if not is_new and self._is_block(name, folder):
                return self._settled(path, BlockOutcome(skipped=True))
            page = self._pages(1)
            trailer = self._trailer(key, xxhash.xxh3_64_intdigest(view), traceparent).pack()
            page[: len(trailer)] = trailer
            descriptor, temp = self._create(folder)
            try:
                try:
                    if self._umask & self._config.file_mode:
                        os.fchmod(descriptor, self._config.file_mode)
                    if not self.direct:  # else a crash may leave a prefix of the file, which looks like vLLM's
                        os.ftruncate(descriptor, self._sealed_bytes)
                    _transfer(os.pwritev, descriptor, [view, page[:PAGE_BYTES]], self._sealed_bytes)
                    if self._durable:
                        os.fdatasync(descriptor)
                    if temp is not None:
                        posix.unlock(descriptor)
                    return self._settled(path, self._publish(descriptor, temp, folder, path))
                finally:
                    os.close(descriptor)  # may fail itself, where a quota is found out late
            finally:
                if temp is not None:
                    posix.unlink_quietly(temp, folder)  # gone already when it was renamed; never another writer's
        finally:
            os.close(folder)

    def _trailer(self, key: OffloadKey, checksum: int, traceparent: str = "") -> Trailer:
        return Trailer(key, self.block_bytes, checksum, self.instance_id, time.time_ns(), traceparent, self._seed)

    def _settled(self, path: str, outcome: BlockOutcome) -> BlockOutcome:
        """With durability, the file and its name are on the device before success is reported."""
        if self._durable and outcome.ok:
            if outcome.skipped:
                _sync(path)  # its writer may not be durable, or not have come so far
            for _ in range(3):  # the block's folder and the two above, which may be as new as the block
                path = os.path.dirname(path)
                _sync(path)
        return outcome

    def _open_folder(self, directory: str, levels: int = 2) -> tuple[int, bool]:
        """A block's folder, and whether it was made just now. Of missing folders two are made, never a root that is not
        mounted."""
        try:
            return posix.open_no_links(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), False
        except FileNotFoundError:
            if not levels:
                raise
        above, name = os.path.split(directory)
        parent, _ = self._open_folder(above, levels - 1)
        try:
            is_new = posix.make_dir(name, self._config.dir_mode, self._umask, parent)
            return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent), is_new
        finally:
            os.close(parent)

    def _create(self, folder: int) -> tuple[int, str | None]:
        """An empty file to write into: unnamed where that works (a killed process leaves nothing), else a temp file,
        locked while it is written, as long as its writer lives."""
        if self._tmpfile:
            return os.open(".", posix.O_TMPFILE | self._write_flags, self._config.file_mode, dir_fd=folder), None
        return posix.create_temp(self._write_flags, self._config.file_mode, folder)

    def _publish(self, descriptor: int, temp: str | None, folder: int, path: str) -> BlockOutcome:
        quarantined, name = None, os.path.basename(path)
        for _ in range(3):  # something in the way is moved; another repairer may race us, but not for ever
            try:
                if temp is None:
                    posix.link_unnamed(descriptor, name, folder)
                elif self._named_link:  # replaces nothing: to a reader of the replaced file it would be an ESTALE
                    os.link(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
                return BlockOutcome(writer=self.instance_id, quarantined=quarantined)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
                    raise
                if self._is_block(name, folder):
                    return BlockOutcome(skipped=True, quarantined=quarantined)
                quarantined = self._quarantine(path, "size", None)
        return BlockOutcome(reason="EEXIST", quarantined=quarantined)

    # --- read ---

    def read_blocks(
        self, paths: Sequence[str], keys: Sequence[OffloadKey], views: Sequence[memoryview]
    ) -> list[BlockOutcome]:
        """`read_block` for each, in order."""
        if not self.native_reads:
            return [self.read_block(*block) for block in zip(paths, keys, views, strict=True)]
        pages = self._pages(len(paths))
        blocks = list(paths), list(keys), list(views), pages, PAGE_BYTES
        verify = self._config.integrity != "off"
        trailer, checksum = self._trailer(keys[0], 0).pack(), native.CHECKSUM if verify else 0
        used = native.read_blocks(*blocks, trailer, checksum, self._read_flags, self._by_use)
        outcomes = []
        each_page = (pages[start : start + PAGE_BYTES] for start in range(0, len(pages), PAGE_BYTES))
        for page, used_seconds, path, key, view in zip(each_page, used, paths, keys, views, strict=False):
            if used_seconds < 0:
                outcome = self.read_block(path, key, view)
            else:
                outcome = BlockOutcome(None, False, *writer_of(page)) if verify else self._verified(page, key, view)
                self._renew(path, used_seconds)
            outcomes.append(outcome)
        return outcomes

    def read_block(self, path: str, key: OffloadKey, view: memoryview) -> BlockOutcome:
        """Read the block of `key` into `view` (block_bytes long) and verify it. When the outcome is not ok, `view`
        holds undefined bytes; a file that is not the block it should be is moved to quarantine."""
        outcome, status = self._read(path, key, view)
        if outcome.reason is None or outcome.reason not in QUARANTINED_FOR:
            return outcome
        return outcome._replace(quarantined=self._quarantine(path, outcome.reason, status))

    def verify_block(self, path: str, key: OffloadKey, view: memoryview) -> BlockOutcome:
        """`read_block`, but a bad file stays where it is."""
        return self._read(path, key, view)[0]

    def _read(self, path: str, key: OffloadKey, view: memoryview) -> tuple[BlockOutcome, os.stat_result | None]:
        """The outcome, and the file that was seen."""
        status: os.stat_result | None = None
        try:
            descriptor = posix.open_no_links(path, self._read_flags)
            try:
                status = os.fstat(descriptor)
                outcome = self._read_open(descriptor, status, key, view)
                if outcome.ok:
                    self._renew(descriptor, 0 if self._by_use == 2 and not posix.was_read(status) else status.st_mtime)
                return outcome, status
            finally:
                os.close(descriptor)
        except OSError as error:
            outcome = BlockOutcome(reason=errno_name(error))
            if isinstance(error, FileNotFoundError) or status is not None:
                return outcome, status
        try:  # some kinds of file cannot even be opened
            with posix.opened(os.path.dirname(path)) as folder:
                status = os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
        except OSError:
            return outcome, None
        return (outcome if stat.S_ISREG(status.st_mode) else BlockOutcome(reason="kind")), status

    def _renew(self, file: int | str, used_seconds: float) -> None:
        """Set a file's mtime, the mark of use that eviction goes by, if it is old. An atime after it means: loaded."""
        if time.time() - used_seconds > self.recency_seconds:
            now, follow = time.time_ns(), isinstance(file, int)
            try:
                os.utime(file, ns=(now, now - 1000), follow_symlinks=follow)
            except OSError:  # another user's file: one who may write it may set both times to now
                with contextlib.suppress(OSError):
                    os.utime(file, follow_symlinks=follow)

    def _read_open(self, descriptor: int, status: os.stat_result, key: OffloadKey, view: memoryview) -> BlockOutcome:
        if not stat.S_ISREG(status.st_mode):
            return BlockOutcome(reason="kind")
        if self._by_use and not posix.was_read(status) and not posix.is_cached(descriptor, status.st_size):
            posix.pass_page_cache(descriptor)
        if status.st_size == self.block_bytes:
            if self._config.integrity == "require":
                return BlockOutcome(reason="unverified")
            _transfer(os.preadv, descriptor, [view], self.block_bytes)
            return BlockOutcome()
        if status.st_size != self._sealed_bytes:
            return BlockOutcome(reason="size")
        page = self._pages(1)
        _transfer(os.preadv, descriptor, [view, page[:PAGE_BYTES]], self._sealed_bytes)
        return self._verified(page, key, view)

    def _verified(self, page: memoryview, key: OffloadKey, view: memoryview) -> BlockOutcome:
        trailer = Trailer.unpack(page)
        if self._config.integrity != "off":
            if trailer is None or trailer.block_bytes != self.block_bytes:
                return BlockOutcome(reason="trailer")
            if trailer.key != key:
                return BlockOutcome(reason="key")
            if xxhash.xxh3_64_intdigest(view) != trailer.checksum:
                return BlockOutcome(reason="checksum")
        return BlockOutcome(None, False, trailer.instance_id, trailer.traceparent) if trailer else BlockOutcome()

    # --- helpers ---

    def _quarantine(self, path: str, reason: str, seen: os.stat_result | None) -> str:
        """Where the bad file went; `seen`: what was read of it (None: something is in a block's way)."""

        def is_bad(folder: int, now: os.stat_result) -> bool:
            return os.path.samestat(now, seen) if seen else not self._is_block(os.path.basename(path), folder)

        below = self._quarantine_path
        return move_to_quarantine(path, reason, is_bad, lambda: self._open_folder(below, levels=1)[0], below)

    def _pages(self, count: int) -> memoryview:
        """This thread's page-aligned memory for at least `count` trailers."""
        pages: memoryview | None = getattr(self._local, "pages", None)
        if pages is None or len(pages) < count * PAGE_BYTES:
            pages = self._local.pages = memoryview(mmap.mmap(-1, count * PAGE_BYTES))
        return pages


def _transfer(move: Callable[..., int], descriptor: int, buffers: Sequence[memoryview], total: int) -> None:
    """Move `total` bytes from offset 0, going on after short transfers (Python itself handles EINTR, PEP 475).

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


def _sync(path: str) -> None:
    descriptor = posix.open_no_links(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _revalidate_folder(directory: str, base_path: str) -> bool:
    """Whether the server has the folder. A missing one costs one query per missing level."""
    for attempt in range(2):
        try:
            os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            return True
        except FileNotFoundError:
            above = os.path.dirname(directory)
            if attempt or len(directory) <= len(base_path) or not _revalidate_folder(above, base_path):
                return False
        except OSError:
            return False
    return False
