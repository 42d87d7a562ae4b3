"""A FUSE file system, `python -m harness.faults.fuse_server`: it passes requests to a folder, changed by the rules.

`harness.faults.FaultFs` starts it and exchanges JSON lines with it: one object on stdin, one answer on stdout ("ready"
first). It ends when stdin closes or its parent dies, and then every held request fails. It never unmounts by itself.

Differences from a disk, apart from the rules:
- Pieces: the kernel cuts I/O into requests of up to 1 MiB (256 pages, fewer bytes if the buffer is not page-aligned),
  so a block of 1 MiB and its trailer are two requests, and pieces of one call arrive in any order.
- O_DIRECT is accepted and not passed on, so alignment is not enforced; refuse it with a rule (`direct_only`, EINVAL).
  By default *all* I/O bypasses the page cache, so that one read() is one request; shared mmap then fails with ENODEV.
  With --cached, buffered reads come as the page cache pleases, and a short read passes for the end of the file.
- O_TMPFILE fails with EOPNOTSUPP (libfuse's high-level interface has no such operation): tiers take their other path.
- A file unlinked or replaced while open can be read and written on, but fstat() of it fails with ESTALE.
- renameat2 with flags fails with EINVAL, extended attributes with EOPNOTSUPP; locks work, within this kernel.
- A request that hangs here cannot be killed (as on a hard NFS mount): its process dies when the hang is lifted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # mfusepy prefers libfuse 2 where both are installed

import mfusepy  # type: ignore[import-untyped]

from harness.faults.rules import Rule, Table
from harness.runtime.process import claim_stdout

PARENT_POLL_SECONDS = 0.2
REQUESTS_HELD_MAX = 256
"""Threads of this process, so as many requests may hang while others proceed."""

T = TypeVar("T")
_STAT_FIELDS = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino", "st_blocks")


class Passthrough(mfusepy.Operations):  # type: ignore[misc]
    """Every operation on the folder `backing`, as the mount's one user (the one who mounted). Times in ns."""

    use_ns = True

    def __init__(self, backing: str, table: Table, on_ready: Callable[[], None]) -> None:
        self._backing = backing
        self._table = table
        self._on_ready = on_ready
        self._open: dict[int, tuple[str, bool]] = {}  # descriptor -> path at open, opened with O_DIRECT

    def _at(self, path: str) -> str:
        return self._backing + path

    def _do(
        self,
        operation: str,
        paths: tuple[str, ...],
        act: Callable[[], T],
        *,
        offset: int = 0,
        size: int = 0,
        direct: bool = False,
    ) -> tuple[T, list[Rule]]:
        """Run `act` as the rules allow; also returns the rules that act on the bytes."""
        rules = self._table.strike(operation, paths, offset, size, direct)
        for rule in rules:
            if not rule.late:
                self._before(rule, paths)
        result = act()
        for rule in rules:
            if rule.late:
                self._before(rule, paths)
        return result, rules

    def _before(self, rule: Rule, paths: tuple[str, ...]) -> None:
        if rule.error:
            raise OSError(rule.error, os.strerror(rule.error))
        match rule.action:
            case "delay" | "hang":
                self._table.hold(rule)
            case "truncate":
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(self._at(paths[0]), int(rule.amount))
            case "vanish":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._at(paths[0]))

    def _simple(self, operation: str, *paths: str, act: Callable[[], object]) -> int:
        self._do(operation, paths, act)
        return 0

    def _by_handle(self, operation: str, path: str | None, handle: int, act: Callable[[], object]) -> int:
        opened, direct = self._open[handle]  # path is None once the file is unlinked
        self._do(operation, (path or opened,), act, direct=direct)
        return 0

    def init_with_config(self, conn: Any, config: Any) -> None:
        # The kernel's default is 12: that many reads that hang would stop all others.
        conn.max_background = conn.congestion_threshold = 4 * REQUESTS_HELD_MAX
        self._on_ready()

    def open(self, path: str, flags: int) -> int:
        return self._opened("open", path, flags, 0)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self._opened("create", path, fi | os.O_CREAT, mode)

    def _opened(self, operation: str, path: str, flags: int, mode: int) -> int:
        direct = bool(flags & os.O_DIRECT)
        passed = flags & ~os.O_DIRECT  # buffers arrive unaligned
        taken: list[int] = []

        def act() -> None:
            taken.append(os.open(self._at(path), passed, mode))

        try:
            self._do(operation, (path,), act, direct=direct)
        except OSError:
            for handle in taken:  # opened, then reported failed: no release will follow
                os.close(handle)
            raise
        self._open[taken[0]] = (path, direct)
        return taken[0]

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        opened, direct = self._open[fh]
        act = lambda: os.pread(fh, size, offset)  # noqa: E731
        data, rules = self._do("read", (path or opened,), act, offset=offset, size=size, direct=direct)
        for rule in rules:
            data = _distort(rule, data, offset)
        return data

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        opened, direct = self._open[fh]
        paths = (path or opened,)
        rules = self._table.strike("write", paths, offset, len(data), direct)
        for rule in rules:
            if not rule.late:
                self._before(rule, paths)
            data = _distort(rule, data, offset)
        written = os.pwrite(fh, data, offset) if data else 0
        for rule in rules:
            if rule.late:
                self._before(rule, paths)
        return written

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        paths = (path or (self._open[fh][0] if fh is not None else "/"),)
        stat, _ = self._do("getattr", paths, lambda: os.lstat(self._at(paths[0])) if fh is None else os.fstat(fh))
        times = {"st_atime": stat.st_atime_ns, "st_mtime": stat.st_mtime_ns, "st_ctime": stat.st_ctime_ns}
        return {name: getattr(stat, name) for name in _STAT_FIELDS} | times

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        def act() -> list[tuple[str, int]]:
            with os.scandir(self._at(path)) as entries:
                return [(entry.name, entry.inode()) for entry in entries]

        entries, _ = self._do("readdir", (path,), act)
        # An inode number of 0 would mean "deleted" to the C library.
        return [(name, {"st_ino": inode}, 0) for name, inode in [(".", 1), ("..", 1), *entries]]

    def flush(self, path: str | None, fh: int) -> int:
        return self._by_handle("flush", path, fh, lambda: None)

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        return self._by_handle("fsync", path, fh, lambda: os.fdatasync(fh) if datasync else os.fsync(fh))

    def release(self, path: str | None, fh: int) -> int:
        try:
            return self._by_handle("release", path, fh, lambda: None)
        finally:
            del self._open[fh]
            os.close(fh)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        if fh is not None:
            return self._by_handle("truncate", path, fh, lambda: os.ftruncate(fh, length))
        assert path is not None
        return self._simple("truncate", path, act=lambda: os.truncate(self._at(path), length))

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        if flags:  # RENAME_NOREPLACE and RENAME_EXCHANGE: a file system may not know them, but must never ignore them
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._simple("rename", old, new, act=lambda: os.rename(self._at(old), self._at(new)))

    def link(self, target: str, source: str) -> int:
        return self._simple("link", source, target, act=lambda: os.link(self._at(source), self._at(target)))

    def unlink(self, path: str) -> int:
        return self._simple("unlink", path, act=lambda: os.unlink(self._at(path)))

    def mkdir(self, path: str, mode: int) -> int:
        return self._simple("mkdir", path, act=lambda: os.mkdir(self._at(path), mode))

    def rmdir(self, path: str) -> int:
        return self._simple("rmdir", path, act=lambda: os.rmdir(self._at(path)))

    def symlink(self, target: str, source: str) -> int:
        return self._simple("symlink", target, act=lambda: os.symlink(source, self._at(target)))

    def readlink(self, path: str) -> str:
        return self._do("readlink", (path,), lambda: os.readlink(self._at(path)))[0]

    def chmod(self, path: str, mode: int) -> int:
        return self._simple("chmod", path, act=lambda: os.chmod(self._at(path), mode))

    def chown(self, path: str, uid: int, gid: int) -> int:
        return self._simple("chown", path, act=lambda: os.chown(self._at(path), uid, gid, follow_symlinks=False))

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        now = time.time_ns()
        ns = (int(times[0]), int(times[1])) if times else (now, now)
        return self._simple("utimens", path, act=lambda: os.utime(self._at(path), ns=ns, follow_symlinks=False))

    def statfs(self, path: str) -> dict[str, int]:
        values, _ = self._do("statfs", (path,), lambda: os.statvfs(self._at(path)))
        return {name: getattr(values, name) for name in dir(values) if name.startswith("f_") and name != "f_fsid"}


class _Fuse(mfusepy.FUSE):  # type: ignore[misc]
    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:  # mfusepy drops the flags
        status: int = self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)
        return status


def _distort(rule: Rule, data: bytes, offset: int) -> bytes:
    """The bytes of one request (at file offset `offset`) as the rule leaves them."""
    amount = int(rule.amount)
    match rule.action:
        case "short":
            return data[:amount]
        case "zero":
            return data[:amount] + bytes(max(0, len(data) - amount))
        case "bit_flip":
            at = len(data) // 2 if amount < 0 else amount - offset
            if at < len(data):
                return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return data


def _carry_out(table: Table, lines: TextIO, answer: Callable[[object], None]) -> None:
    """Carry out one command per line until there are none: {"inject": [rule, ...]}, {"lift": true}, {}: counts."""
    for line in lines:
        command = json.loads(line)
        if "inject" in command:
            table.inject([Rule(**rule) for rule in command["inject"]])
        counts = table.counts()
        if "lift" in command:
            table.lift()
        answer(counts)
    os._exit(0)  # requests under way end with an error, as when such a daemon dies


def _outlive_nobody(parent: int) -> None:
    """End with the parent. A parent killed while one of its own threads hangs in here keeps its pipes open and its
    pid taken, for as long as the thread hangs: only its state in /proc shows it.
    """
    while os.getppid() == parent:
        with open(f"/proc/{parent}/stat", encoding="utf-8", errors="replace") as file:
            if file.read().rpartition(")")[2].split()[0] in "ZX":
                break
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """BACKING MOUNT [--cached]: serve until stdin closes."""
    backing, mount, *rest = arguments
    answers = claim_stdout()
    os.umask(0)  # the kernel has applied the caller's
    table = Table()

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers)

    threading.Thread(target=_outlive_nobody, args=(os.getppid(),), daemon=True).start()
    threading.Thread(target=_carry_out, args=(table, sys.stdin, answer), daemon=True).start()
    _Fuse(
        Passthrough(os.path.abspath(backing), table, lambda: answer("ready")),
        mount,
        foreground=True,
        fsname="faultfs",
        max_threads=REQUESTS_HELD_MAX,
        max_idle_threads=16,
        default_permissions=True,
        **({"allow_other": True} if os.geteuid() == 0 else {}),
        hard_remove=True,
        use_ino=True,
        direct_io="--cached" not in rest,
        # Nothing is remembered: what another mount or the backing folder does is seen at once.
        entry_timeout=0,
        attr_timeout=0,
        negative_timeout=0,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
