"""Numbers of the system calls that are stopped, on x86-64, and the flags that decide what they do."""

from __future__ import annotations

import os

NUMBERS: dict[str, int] = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "lseek": 8, "mmap": 9,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "nanosleep": 35, "sendfile": 40,
    "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75,
    "truncate": 76, "ftruncate": 77, "getdents": 78, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86,
    "unlink": 87, "symlink": 88, "readlink": 89, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94,
    "utime": 132, "mknod": 133, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "getxattr": 191,
    "lgetxattr": 192, "fgetxattr": 193, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "io_setup": 206,
    "getdents64": 217, "clock_nanosleep": 230, "exit_group": 231, "utimes": 235, "openat": 257, "mkdirat": 258,
    "mknodat": 259, "fchownat": 260, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "symlinkat": 266, "readlinkat": 267, "fchmodat": 268, "faccessat": 269, "splice": 275, "sync_file_range": 277,
    "utimensat": 280, "fallocate": 285, "preadv": 295, "pwritev": 296, "renameat2": 316, "copy_file_range": 326,
    "preadv2": 327, "pwritev2": 328, "statx": 332, "io_uring_setup": 425, "clone3": 435, "close_range": 436,
    "openat2": 437, "faccessat2": 439, "fchmodat2": 452,
}  # fmt: skip
NAMES = {number: name for name, number in NUMBERS.items()}

F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 5, 6, 7, 36, 37, 38
FCNTL_LOCKS = (F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW)
MAP_ANONYMOUS = 0x20
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x200, 0x400, 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
CLONE_THREAD = 0x10000

OPEN_FLAGS = {
    "O_CREAT": os.O_CREAT, "O_EXCL": os.O_EXCL, "O_TRUNC": os.O_TRUNC, "O_APPEND": os.O_APPEND,
    "O_NONBLOCK": os.O_NONBLOCK, "O_DIRECT": os.O_DIRECT, "O_DSYNC": os.O_DSYNC, "O_NOFOLLOW": os.O_NOFOLLOW,
    "O_NOATIME": os.O_NOATIME, "O_PATH": os.O_PATH,
}  # fmt: skip
"""In the order in which they are shown, after the access mode. O_TMPFILE contains O_DIRECTORY; O_CLOEXEC is omitted."""


def open_flags(flags: int) -> str:
    """Flags of open as people write them: "O_WRONLY|O_CREAT|O_EXCL"."""
    names = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[flags & 3]] if not flags & os.O_PATH else []
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        names.append("O_TMPFILE")
    elif flags & os.O_DIRECTORY:
        names.append("O_DIRECTORY")
    return "|".join([*names, *(name for name, bit in OPEN_FLAGS.items() if flags & bit)])
