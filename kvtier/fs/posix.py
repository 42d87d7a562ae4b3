"""System calls on files below a root: opening without following links, making folders, publishing a file whole, reading
a small one, and what the file system can do, found out with real files when a tier opens its root.

Nothing here follows a symbolic link below the root, so that a link planted there leads no reader or writer out of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from typing import ParamSpec

O_DIRECT = getattr(os, "O_DIRECT", 0)
O_TMPFILE = getattr(os, "O_TMPFILE", 0)
_P = ParamSpec("_P")
_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class UnfitFileError(Exception):
    """A file that `read_small_file` does not read; the text goes on a sentence that begins with its path."""


def temp_name() -> str:
    """A name for a file on its way, unique across hosts, processes and their restarts."""
    return f".{os.uname().nodename}.{os.getpid()}.{os.urandom(8).hex()}.tmp"


def create_temp(flags: int, mode: int, folder: int | None = None, directory: str = "") -> tuple[int, str]:
    """A new file under a temp name, locked as long as its writer lives: garbage collection removes only unlocked ones.

    In the open `folder`, else in `directory`. Returns descriptor and path.
    """
    path = os.path.join(directory, temp_name())
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | flags, mode, dir_fd=folder)
    with contextlib.suppress(OSError):  # no locks here: then no process can remove it
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor, path


def unlock(descriptor: int) -> None:
    """Release the lock before the file gets its name, not by the close: nfs-ganesha 4.2 and 4.3 die when a lock is
    forgotten while its file is closed. Garbage collection takes no file this young."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def make_dir(name: str, mode: int, umask: int = 0o777, folder: int | None = None) -> bool:
    """Create a folder with exactly `mode`, below `folder` when it is given; one that exists is left as it is.

    Whether this call made it. `umask` only spares a chmod where it takes nothing from `mode`.
    """
    try:
        os.mkdir(name, mode, dir_fd=folder)
    except FileExistsError:
        return False
    if umask & mode:
        os.chmod(name, mode, dir_fd=folder)
    return True


def read_small_file(path: str, bytes_max: int) -> bytes:
    """All of a regular file; never blocks on a pipe. Raises OSError; UnfitFileError for a link, another kind of file,
    and one that is longer than `bytes_max`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UnfitFileError("is not a regular file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnfitFileError("is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(bytes_max + 1)
    finally:
        os.close(descriptor)
    if len(content) > bytes_max:
        raise UnfitFileError(f"is longer than {bytes_max} bytes")
    return content


def publish_file(path: str, content: bytes, mode: int) -> None:
    """Make `path` appear with all of `content` and exactly `mode`, unless it is there. A killed process leaves no file
    under that name, and no file at all where the file system has unnamed ones."""
    directory, name = os.path.split(path)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _publish_unnamed(folder, name, content, mode)
    except FileExistsError:
        return
    except OSError:  # no unnamed files here; any other error comes back in the other way
        with contextlib.suppress(FileExistsError):
            _publish_named(folder, name, content, mode)
    finally:
        os.close(folder)


def _publish_unnamed(folder: int, name: str, content: bytes, mode: int) -> None:
    descriptor = os.open(".", O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=folder)
    try:
        _fill(descriptor, content, mode)
        link_unnamed(descriptor, name, folder)
    finally:
        os.close(descriptor)


def _publish_named(folder: int, name: str, content: bytes, mode: int) -> None:
    descriptor, temp = create_temp(os.O_WRONLY, mode, folder)
    try:
        try:
            _fill(descriptor, content, mode)
            unlock(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            # Without links (FAT, some FUSE) the last of several simultaneous first openings wins, not the first.
            os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        unlink_quietly(temp, folder)


def _fill(descriptor: int, content: bytes, mode: int) -> None:
    os.fchmod(descriptor, mode)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.fsync(descriptor)  # unsynced, a power cut can leave a file of the right size and wrong bytes


def _or_false(trial: Callable[_P, bool]) -> Callable[_P, bool]:
    """A trial that returns False where it raises an OSError."""

    @functools.wraps(trial)
    def works(*arguments: _P.args, **keywords: _P.kwargs) -> bool:
        try:
            return trial(*arguments, **keywords)
        except OSError:
            return False

    return works


@_or_false
def direct_io_works(path: str, page: memoryview) -> bool:
    """Whether a page-aligned `page` can be written to and read from an existing file past the page cache."""
    for flags, move in ((os.O_WRONLY, os.pwritev), (os.O_RDONLY, os.preadv)):
        descriptor = os.open(path, flags | O_DIRECT | os.O_CLOEXEC)
        try:
            move(descriptor, [page], 0)
        finally:
            os.close(descriptor)
    return O_DIRECT != 0


@_or_false
def reads_set_access_times(path: str, page: memoryview) -> bool:
    """Whether a read past the page cache moves an existing file's access time past its modification time."""
    os.utime(path, (0, 0))
    descriptor = os.open(path, os.O_RDONLY | O_DIRECT | os.O_CLOEXEC)
    try:
        os.preadv(descriptor, [page], 0)
    finally:
        os.close(descriptor)
    return was_read(os.stat(path))


@_or_false
def unnamed_files_work(directory: str, flags: int, mode: int) -> bool:
    """Whether a file may be written without a name and be given one when it is whole."""
    path = os.path.join(directory, temp_name())
    descriptor = os.open(directory, O_TMPFILE | flags, mode)
    try:
        link_unnamed(descriptor, path)
    finally:
        os.close(descriptor)
        unlink_quietly(path)
    return O_TMPFILE != 0


@_or_false
def named_links_work(directory: str, mode: int) -> bool:
    """Whether a file may get a second name, and never in another one's place."""
    path, other = os.path.join(directory, temp_name()), os.path.join(directory, temp_name())
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode))
        os.link(path, other)
    finally:
        unlink_quietly(path)
        unlink_quietly(other)
    return True


def was_read(status: os.stat_result) -> bool:
    """Whether a file was read since it was written, as far as its times say."""
    return status.st_atime_ns > status.st_mtime_ns


def is_cached(descriptor: int, size: int) -> bool:
    """Whether a file is wholly in the page cache (Linux 6.5, and only for a user who may write it)."""
    extent, pages = (ctypes.c_uint64 * 2)(0, size), (ctypes.c_uint64 * 5)()
    done = _libc.syscall(_SYS_CACHESTAT, descriptor, ctypes.byref(extent), ctypes.byref(pages), 0) == 0
    return done and pages[0] * mmap.PAGESIZE >= size


def pass_page_cache(descriptor: int) -> None:
    """Let an open file be read past the page cache from now on, where that works."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, O_DIRECT)


def type_at(path: str) -> str:
    """The kernel's name for the file system at a path ("ext4", "nfs4", "fuse.glusterfs"); "" when it is not listed."""
    device, found = os.stat(path).st_dev, ""
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        for line in lines:
            left, _, right = line.partition(" - ")
            major, _, minor = left.split()[2].partition(":")
            if os.makedev(int(major), int(minor)) == device:
                found = right.split()[0]
    return found


def link_unnamed(descriptor: int, name: str, folder: int | None = None) -> None:
    """Give an unnamed file its name, which nothing may have."""
    # src_dir_fd is not used for an absolute source, but its presence makes Python call linkat(AT_SYMLINK_FOLLOW).
    source = f"/proc/self/fd/{descriptor}"
    os.link(source, name, src_dir_fd=descriptor, dst_dir_fd=folder, follow_symlinks=True)


def unlink_quietly(name: str, folder: int | None = None) -> None:
    """Remove a name that may be gone already."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)


_SYS_OPENAT2, _SYS_CACHESTAT = 437, 451  # on every architecture
_AT_FDCWD = -100
_RESOLVE_NO_SYMLINKS = 0x04
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_no_links(path: str, flags: int, mode: int = 0) -> int:
    """A descriptor; `path` is absolute. Raises OSError, with ELOOP where a link is in the way."""
    if not _HAS_OPENAT2:
        return _by_parts(path, flags, mode)
    descriptor = _openat2(path, flags, mode)
    while descriptor < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), path)
        descriptor = _openat2(path, flags, mode)
    return descriptor


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_PATH | os.O_DIRECTORY) -> Iterator[int]:
    """A descriptor, which no link leads to; by default that of a folder, for calls with `dir_fd`."""
    descriptor = open_no_links(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _openat2(path: str, flags: int, mode: int) -> int:
    how = _OpenHow(flags, mode, _RESOLVE_NO_SYMLINKS)
    return int(_libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))


def _by_parts(path: str, flags: int, mode: int) -> int:
    """The same where the kernel (before 5.6) or a sandbox has no openat2: folder by folder."""
    *parents, name = path.strip("/").split("/")
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
    finally:
        os.close(folder)


def _probe() -> bool:
    descriptor = _openat2("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0)
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0


_HAS_OPENAT2 = _probe()
