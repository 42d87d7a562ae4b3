"""System calls on files below a root: opening without following links, unnamed files, and what the file system can do,
found out with real files when a tier opens its root.

Every file below a root is opened by `open_no_links`, so that nobody who may write there can lead a reader or a writer
out of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

O_DIRECT = getattr(os, "O_DIRECT", 0)
O_TMPFILE = getattr(os, "O_TMPFILE", 0)


def temp_name() -> str:
    """A name for a file on its way, unique across hosts, processes and their restarts."""
    return f".{os.uname().nodename}.{os.getpid()}.{os.urandom(8).hex()}.tmp"


def direct_io_works(path: str, page: memoryview) -> bool:
    """Whether a page-aligned `page` can be written to and read from an existing file past the page cache."""
    if not O_DIRECT:
        return False
    for flags, move in ((os.O_WRONLY, os.pwritev), (os.O_RDONLY, os.preadv)):
        try:
            descriptor = os.open(path, flags | O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            move(descriptor, [page], 0)
        except OSError:
            return False
        finally:
            os.close(descriptor)
    return True


def unnamed_files_work(directory: str, flags: int, mode: int) -> bool:
    """Whether a file may be written without a name and be given one when it is whole."""
    if not O_TMPFILE:
        return False
    path = os.path.join(directory, temp_name())
    try:
        descriptor = os.open(directory, O_TMPFILE | flags, mode)
    except OSError:
        return False
    try:
        link_unnamed(descriptor, path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
        unlink_quietly(path)
    return True


def named_links_work(directory: str, mode: int) -> bool:
    """Whether a file may get a second name, and never in another one's place."""
    path, other = os.path.join(directory, temp_name()), os.path.join(directory, temp_name())
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode))
        os.link(path, other)
    except OSError:
        return False
    finally:
        unlink_quietly(path)
        unlink_quietly(other)
    return True


def type_at(path: str) -> str:
    """The kernel's name for the file system at a path ("ext4", "nfs4", "fuse.glusterfs"); "" when it does not tell."""
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


_SYS_OPENAT2 = 437  # on every architecture
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
