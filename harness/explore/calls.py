"""A stopped call decoded: its text for people, what it reads and writes, whether it must wait, and how it ended.

A result is deduced: nothing else runs between the state before the call, kept here, and the state after it. So an errno
is the one that this state implies, and a call that failed for another reason has the result "failed".
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.explore import numbers
from harness.explore.locks import Lock, conflict, flock_of, record_lock_of
from harness.explore.memory import Memory
from harness.explore.numbers import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW
from harness.explore.path_resolution import Object, Place, Resolver

TEXT_BYTES_MAX = 4096


@dataclass
class Decoded:
    """One stopped call below the root. `lock` is what it waits for or tries; `result` is asked once it has returned."""

    name: str
    text: str
    places: tuple[Place, ...] = ()
    reads: set[Object] = field(default_factory=set)
    writes: set[Object] = field(default_factory=set)
    updates: set[Object] = field(default_factory=set)  # writes that may be exchanged with each other
    flags: str = ""
    offset: int = -1
    length: int = -1
    lock: Lock | None = None
    result: Callable[[], str] = lambda: "= 0"
    buffers: tuple[tuple[int, int], ...] = ()  # (address, length) of what a write writes
    may_block: bool = False  # in the kernel, for another process: a FIFO

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(place.shown for place in self.places)

    @property
    def inode(self) -> int:
        return self.places[0].inode if self.places else 0

    def must_wait(self, pid: int) -> bool:
        """Whether the call would wait now for a lock that another process or descriptor holds."""
        return self.lock is not None and self.lock.waits and conflict(self.lock, pid)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


class Decoder:
    """Decodes the calls of one process. `folder_status`: whether it looks at a folder's size, links and times."""

    def __init__(self, resolver: Resolver, memory: Memory, folder_status: bool) -> None:
        self._resolver = resolver
        self._memory = memory
        self._folder_status = folder_status
        self._pid = resolver.pid

    def decode(self, name: str, arguments: tuple[int, ...]) -> Decoded | None:
        """The call, or None where it does not concern the root."""
        return DECODERS[name](self, name, arguments)

    # Arguments.

    def _text(self, address: int) -> str:
        return self._memory.text(address, TEXT_BYTES_MAX)

    def _at(self, base: int, address: int, follow: bool, flags: int = 0) -> Place | None:
        path = self._text(address) if address else ""
        number = _signed(base)
        if (not path and flags & AT_EMPTY_PATH) or not address:
            return None if number == AT_FDCWD else self._resolver.descriptor(number)
        return self._resolver.path(None if number == AT_FDCWD else number, path, follow)

    def _file(self, descriptor: int) -> Place | None:
        return self._resolver.descriptor(_signed(descriptor))

    def _position(self, descriptor: int) -> int:
        try:
            with open(f"/proc/{self._pid}/fdinfo/{_signed(descriptor)}") as info:
                return int(info.readline().split()[1])
        except (OSError, ValueError, IndexError):
            return -1

    def _descriptors(self) -> set[str]:
        try:
            return set(os.listdir(f"/proc/{self._pid}/fd"))
        except OSError:
            return set()

    # Opening.

    def open(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        if name == "openat2":
            flags, mode = struct.unpack("=QQ", self._memory.read(a[2], 16))
        elif name == "creat":
            flags, mode = os.O_CREAT | os.O_WRONLY | os.O_TRUNC, a[1]
        else:
            flags, mode = (a[2], a[3]) if name == "openat" else (a[1], a[2])
        follow = not flags & os.O_NOFOLLOW and flags & (os.O_CREAT | os.O_EXCL) != os.O_CREAT | os.O_EXCL
        base, address = (a[0], a[1]) if name in ("openat", "openat2") else (AT_FDCWD & 0xFFFFFFFF, a[0])
        place = self._at(base, address, follow)
        if place is None:
            return None
        shown = numbers.open_flags(flags)
        made = f", 0{mode & 0o7777:o}" if flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE else ""
        call = Decoded(name, f"{name}({place.shown}, {shown}{made})", (place,), set(place.reads), flags=shown)
        is_new = place.status is None and bool(flags & os.O_CREAT) and not place.lost
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            is_new = False
        elif is_new:
            _change_entry(call, place)
        elif place.status and flags & os.O_TRUNC:
            call.writes |= {("data", place.inode), ("meta", place.inode)}
        if place.status and stat.S_ISFIFO(place.status.st_mode) and not flags & os.O_PATH:
            call.writes.add(("pipe", place.inode))
            call.may_block = not flags & os.O_NONBLOCK
        before = self._descriptors()

        def result() -> str:
            new = sorted(map(int, self._descriptors() - before))
            if new:
                return f"= {new[0]}"
            if place.status is None:
                return "= -1 ENOENT" if place.lost or not flags & os.O_CREAT else "= -1, failed"
            if flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL:
                return "= -1 EEXIST"
            if stat.S_ISLNK(place.status.st_mode):
                return "= -1 ELOOP"
            if flags & os.O_DIRECTORY and not stat.S_ISDIR(place.status.st_mode):
                return "= -1 ENOTDIR"
            return "= -1, failed"

        call.result = result
        return call

    # Reading attributes.

    def status(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        if name in ("stat", "lstat", "access"):
            place = self._at(AT_FDCWD & 0xFFFFFFFF, a[0], name != "lstat")
        elif name == "fstat":
            place = self._file(a[0])
        else:
            flags = {"newfstatat": a[3], "statx": a[2], "faccessat2": a[3]}.get(name, 0)
            place = self._at(a[0], a[1], not flags & AT_SYMLINK_NOFOLLOW, flags)
        if place is None:
            return None
        mask = f", mask {a[3]:#x}" if name == "statx" else ""
        call = Decoded(name, f"{name}({place.shown}{mask})", (place,), set(place.reads))
        if place.status:
            call.reads.add(("meta", place.inode))
            if not stat.S_ISDIR(place.status.st_mode):
                call.reads |= {("data", place.inode)} if "access" not in name else set()
            elif "access" not in name and self._folder_status:
                call.reads.add(("list", place.inode))
        size = f", size {place.status.st_size}" if place.status and stat.S_ISREG(place.status.st_mode) else ""
        ended = f"= 0{'' if 'access' in name else size}" if place.status else "= -1 ENOENT"
        call.result = lambda: ended
        return call

    def read_link(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._path(name, a, follow=False)
        if place is None:
            return None
        ended = "= -1 ENOENT"
        if place.status:
            ended = f"= {place.status.st_size}" if stat.S_ISLNK(place.status.st_mode) else "= -1 EINVAL"
        return Decoded(name, f"{name}({place.shown})", (place,), set(place.reads), result=lambda: ended)

    def list(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._file(a[0])
        if place is None:
            return None
        return Decoded(name, f"{name}({place.shown})", (place,), {("list", place.inode)}, result=lambda: "")

    def seek(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._file(a[0])
        if place is None:
            return None
        text = f"{name}({place.shown}, {_signed(a[1])}, {a[2]})"
        return Decoded(name, text, (place,), {("data", place.inode)}, result=lambda: f"= {self._position(a[0])}")

    # Data.

    def transfer(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._file(a[0])
        if place is None or place.status is None or stat.S_ISDIR(place.status.st_mode):
            return None
        writes = "write" in name
        if name in ("read", "write", "pread64", "pwrite64"):
            buffers: tuple[tuple[int, int], ...] = ((a[1], a[2]),)
        else:
            pairs = self._memory.read(a[1], 16 * min(a[2], 1024))
            buffers = tuple(struct.iter_unpack("=QQ", pairs))
        length = sum(size for _, size in buffers)
        before = self._position(a[0])
        moves = name in ("read", "write", "readv", "writev") or (name.endswith("v2") and a[3] == 0xFFFFFFFFFFFFFFFF)
        offset = before if moves else a[3]
        call = Decoded(name, f"{name}({place.shown}, {length} B at {offset})", (place,), offset=offset, length=length)
        target = call.writes if writes else call.reads
        target.add(("data", place.inode))
        if stat.S_ISFIFO(place.status.st_mode):
            call.writes.add(("pipe", place.inode))
            call.may_block = True
        if writes:
            call.buffers = buffers
        size = place.status.st_size

        def result() -> str:
            if moves:
                return f"= {self._position(a[0]) - before}"
            if not writes:
                return f"= {max(0, min(length, size - offset))}"
            now = self._file(a[0])
            return f"= {length}" if now and now.status and now.status.st_size >= offset + length else "= -1, failed"

        call.result = result
        return call

    def copy(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        source, target = (self._file(a[1]), self._file(a[0])) if name == "sendfile" else map(self._file, (a[0], a[2]))
        if source is None and target is None:
            return None
        length = a[3] if name == "sendfile" else a[4]
        shown = [place.shown if place else "elsewhere" for place in (source, target)]
        call = Decoded(name, f"{name}({shown[0]} -> {shown[1]}, {length} B)", result=lambda: "")
        call.places = tuple(place for place in (target, source) if place)
        call.reads |= {("data", source.inode)} if source else set()
        call.writes |= {("data", target.inode)} if target else set()
        return call

    def resize(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._at(AT_FDCWD & 0xFFFFFFFF, a[0], True) if name == "truncate" else self._file(a[0])
        if place is None:
            return None
        length = a[2] + a[3] if name == "fallocate" else a[1]
        call = Decoded(name, f"{name}({place.shown}, {length} B)", (place,), set(place.reads), length=length)
        if place.status:
            call.writes.add(("data", place.inode))
        else:
            call.result = lambda: "= -1 ENOENT"
        return call

    def sync(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._file(a[0])
        return Decoded(name, f"{name}({place.shown})", (place,)) if place else None

    # Names.

    def _path(self, name: str, a: tuple[int, ...], follow: bool, flags: int = 0) -> Place | None:
        if name.endswith(("at", "at2")):
            return self._at(a[0], a[1], follow, flags)
        return self._at(AT_FDCWD & 0xFFFFFFFF, a[0], follow)

    def make(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        if name.startswith("symlink"):
            place = self._at(a[1], a[2], False) if name == "symlinkat" else self._at(AT_FDCWD & 0xFFFFFFFF, a[1], False)
        else:
            place = self._path(name, a, follow=False)
        if place is None:
            return None
        mode = {"mkdir": a[1], "mkdirat": a[2]}.get(name)
        shown = f", 0{mode & 0o7777:o}" if mode is not None else ""
        call = Decoded(name, f"{name}({place.shown}{shown})", (place,), set(place.reads))
        if place.status is None and not place.lost:
            _change_entry(call, place)
        call.result = lambda: _made(place)
        return call

    def link(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        if name == "linkat":
            source = self._at(a[0], a[1], bool(a[4] & AT_SYMLINK_FOLLOW), a[4])
            target = self._at(a[2], a[3], False)
        else:
            source, target = (self._at(AT_FDCWD & 0xFFFFFFFF, address, False) for address in a[:2])
        if target is None:
            return None
        shown = source.shown if source else "elsewhere"
        call = Decoded(name, f"{name}({shown} -> {target.shown})", (target,), set(target.reads))
        if source:
            call.places = (source, target)
            call.reads |= source.reads
        missing = source is not None and source.status is None
        if not missing and target.status is None and not target.lost:
            _change_entry(call, target)
            call.writes |= {("meta", source.inode)} if source else set()
        call.result = lambda: "= -1 ENOENT" if missing else _made(target)
        return call

    def rename(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        if name == "rename":
            source, target = (self._at(AT_FDCWD & 0xFFFFFFFF, address, False) for address in a[:2])
        else:
            source, target = self._at(a[0], a[1], False), self._at(a[2], a[3], False)
        if source is None or target is None:
            return self._half_rename(name, source or target)
        flags = a[4] if name == "renameat2" else 0
        how = {1: ", RENAME_NOREPLACE", 2: ", RENAME_EXCHANGE"}.get(flags, "")
        call = Decoded(name, f"{name}({source.shown} -> {target.shown}{how})", (source, target))
        call.reads |= source.reads | target.reads
        refused = bool(flags & numbers.RENAME_NOREPLACE) and target.status is not None
        if source.status and not target.lost and not refused and source.inode != target.inode:
            _change_entry(call, source)
            _change_entry(call, target)
            for place in (source, target):
                if place.status:
                    call.writes.add(("meta", place.inode))
                    if stat.S_ISDIR(place.status.st_mode):
                        call.writes.add(("list", place.inode))

        def result() -> str:
            if source.status is None or target.lost:
                return "= -1 ENOENT"
            if refused:
                return "= -1 EEXIST"
            now = target.now()
            return "= 0" if now and now.st_ino == source.inode else "= -1, failed"

        call.result = result
        return call

    def _half_rename(self, name: str, place: Place | None) -> Decoded | None:
        if place is None:
            return None
        call = Decoded(name, f"{name}({place.shown}, elsewhere)", (place,), set(place.reads), {("meta", place.inode)})
        _change_entry(call, place)
        return call

    def remove(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        is_folder = name == "rmdir" or (name == "unlinkat" and bool(a[2] & numbers.AT_REMOVEDIR))
        place = self._path(name, a, follow=False)
        if place is None:
            return None
        how = ", AT_REMOVEDIR" if is_folder and name == "unlinkat" else ""
        call = Decoded(name, f"{name}({place.shown}{how})", (place,), set(place.reads))
        if place.status:
            _change_entry(call, place)
            call.writes.add(("meta", place.inode))
            if is_folder:
                call.writes.add(("list", place.inode))

        def result() -> str:
            if place.status is None:
                return "= -1 ENOENT"
            now = place.now()
            if now is None or now.st_ino != place.inode:
                return "= 0"
            if is_folder:
                return "= -1 ENOTEMPTY" if stat.S_ISDIR(now.st_mode) else "= -1 ENOTDIR"
            return "= -1 EISDIR" if stat.S_ISDIR(now.st_mode) else "= -1, failed"

        call.result = result
        return call

    def attributes(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        if name in ("fchmod", "fchown") or name.startswith(("fset", "fget", "fremove")):
            place = self._file(a[0])
        elif name in ("fchmodat", "fchmodat2", "fchownat", "utimensat"):
            flags = {"fchownat": a[4], "utimensat": a[3], "fchmodat2": a[3]}.get(name, 0)
            place = self._at(a[0], a[1], not flags & AT_SYMLINK_NOFOLLOW, flags)
        else:
            place = self._at(AT_FDCWD & 0xFFFFFFFF, a[0], not name.startswith("l"))
        if place is None:
            return None
        mode = {"chmod": a[1], "fchmod": a[1], "fchmodat": a[2], "fchmodat2": a[2]}.get(name)
        mode = None if mode is None else mode & 0o7777
        shown = f", 0{mode:o}" if mode is not None else ""
        call = Decoded(name, f"{name}({place.shown}{shown})", (place,), set(place.reads))
        if place.status:
            changes = "getxattr" not in name and mode != stat.S_IMODE(place.status.st_mode)
            (call.writes if changes else call.reads).add(("meta", place.inode))
            if name.startswith(("utime", "futime")) and stat.S_ISDIR(place.status.st_mode):
                call.writes.add(("list", place.inode))
        else:
            call.result = lambda: "= -1 ENOENT"
        if "xattr" in name:
            call.result = lambda: ""
        return call

    # Locks.

    def flock(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._file(a[0])
        return self._locking(name, place, flock_of(place.inode, _signed(a[0]), a[1])) if place else None

    def record_lock(self, name: str, a: tuple[int, ...]) -> Decoded | None:
        place = self._file(a[0])
        if place is None:
            return None
        kind, whence, start, length = struct.unpack("=hhxxxxqq", self._memory.read(a[2], 24))
        if whence == os.SEEK_CUR:
            start += self._position(a[0])
        return self._locking(name, place, record_lock_of(place.inode, _signed(a[0]), a[1], kind, start, length))

    def _locking(self, name: str, place: Place, lock: Lock) -> Decoded:
        call = Decoded(name, f"{name}({place.shown}, {lock.shown})", (place,), flags=lock.shown, lock=lock)
        (call.reads if lock.only_asks else call.writes).add(("lock", place.inode))
        refused = lock.takes and not lock.waits and conflict(lock, self._pid)
        call.result = lambda: "= -1 EAGAIN" if refused else "= 0"
        return call


def _change_entry(call: Decoded, place: Place) -> None:
    """A name appears, vanishes or leads elsewhere. Of its folder this changes size, link count and times."""
    call.writes.add(("entry", place.folder, place.name))
    call.updates.add(("list", place.folder))


def _made(place: Place) -> str:
    if place.status is not None:
        return "= -1 EEXIST"
    return "= 0" if place.now() else "= -1 ENOENT" if place.lost else "= -1, failed"


DECODERS: dict[str, Callable[[Decoder, str, tuple[int, ...]], Decoded | None]] = {
    name: method
    for names, method in (
        ("open openat openat2 creat", Decoder.open),
        ("stat lstat fstat newfstatat statx access faccessat faccessat2", Decoder.status),
        ("readlink readlinkat", Decoder.read_link),
        ("getdents getdents64", Decoder.list),
        ("lseek", Decoder.seek),
        ("read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2", Decoder.transfer),
        ("sendfile splice copy_file_range", Decoder.copy),
        ("truncate ftruncate fallocate", Decoder.resize),
        ("fsync fdatasync sync_file_range", Decoder.sync),
        ("mkdir mkdirat mknod mknodat symlink symlinkat", Decoder.make),
        ("link linkat", Decoder.link),
        ("rename renameat renameat2", Decoder.rename),
        ("unlink unlinkat rmdir", Decoder.remove),
        ("chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat", Decoder.attributes),
        ("setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr", Decoder.attributes),
        ("removexattr lremovexattr fremovexattr", Decoder.attributes),
        ("flock", Decoder.flock),
        ("fcntl", Decoder.record_lock),
    )
    for name in names.split()
}
"""Calls that are scheduled -> how they are decoded. The other stopped calls are `process.py`'s own business."""
