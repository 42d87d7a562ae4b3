"""`open_no_links`: `os.open` that follows no symbolic link in any part of a path. Used for every file below a root, so
that nobody who may write there can lead a reader or a writer out of it.
"""

from __future__ import annotations

import ctypes
import errno
import os

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
