"""Locks of files: what a call asks for, and whether somebody else holds it. /proc/locks and fdinfo know the holders."""

from __future__ import annotations

import fcntl
from typing import NamedTuple

from harness.explore.numbers import F_GETLK, F_OFD_GETLK, F_OFD_SETLKW, F_SETLK, F_SETLKW

_TO_THE_END = (1 << 63) - 1


class Lock(NamedTuple):
    """A lock call: `kind` is "FLOCK", "POSIX" (the process owns it) or "OFDLCK" (the open file owns it)."""

    kind: str
    inode: int
    descriptor: int
    takes: bool  # False: it releases, or only asks
    exclusive: bool
    waits: bool
    only_asks: bool
    start: int
    end: int
    shown: str


class Held(NamedTuple):
    """A lock that is held: a line of /proc/locks."""

    kind: str
    exclusive: bool
    pid: int
    inode: int
    start: int
    end: int


def flock_of(inode: int, descriptor: int, operation: int) -> Lock:
    names = {fcntl.LOCK_SH: "LOCK_SH", fcntl.LOCK_EX: "LOCK_EX", fcntl.LOCK_UN: "LOCK_UN"}
    mode = operation & ~fcntl.LOCK_NB
    shown = names.get(mode, str(mode)) + ("|LOCK_NB" if operation & fcntl.LOCK_NB else "")
    takes = mode in (fcntl.LOCK_SH, fcntl.LOCK_EX)
    waits = takes and not operation & fcntl.LOCK_NB
    return Lock("FLOCK", inode, descriptor, takes, mode == fcntl.LOCK_EX, waits, False, 0, _TO_THE_END, shown)


def record_lock_of(inode: int, descriptor: int, command: int, kind: int, start: int, length: int) -> Lock:
    """A fcntl lock; a range from the file's end is taken for all of the file."""
    end = start + length - 1 if length else _TO_THE_END
    of_file = command >= F_OFD_GETLK
    asks = command in (F_GETLK, F_OFD_GETLK)
    takes = not asks and kind != fcntl.F_UNLCK
    waits = takes and command in (F_SETLKW, F_OFD_SETLKW)
    name = {F_GETLK: "F_GETLK", F_SETLK: "F_SETLK", F_SETLKW: "F_SETLKW"}.get(command - 31 if of_file else command, "?")
    what = {fcntl.F_RDLCK: "F_RDLCK", fcntl.F_WRLCK: "F_WRLCK", fcntl.F_UNLCK: "F_UNLCK"}.get(kind, "?")
    shown = f"{name.replace('F_', 'F_OFD_') if of_file else name}, {what}"
    owner = "OFDLCK" if of_file else "POSIX"
    return Lock(owner, inode, descriptor, takes, kind == fcntl.F_WRLCK, waits, asks, start, end, shown)


def _parse(words: list[str]) -> Held | None:
    # 1: FLOCK  ADVISORY  WRITE 4711 00:1f:42 0 EOF, and "1: -> ..." for those that wait
    if len(words) < 8 or words[1] == "->":
        return None
    end = _TO_THE_END if words[7] == "EOF" else int(words[7])
    return Held(words[1], words[3] == "WRITE", int(words[4]), int(words[5].rsplit(":", 1)[1]), int(words[6]), end)


def _read(path: str, prefix: str = "") -> list[Held]:
    try:
        with open(path) as file:
            lines = [line.removeprefix(prefix).split() for line in file if line.startswith(prefix)]
    except OSError:
        return []
    return [held for words in lines if (held := _parse(words))]


def held_by(pid: int) -> list[Held]:
    """Locks taken by this process; an open file's lock counts for the process that took it."""
    return [held for held in _read("/proc/locks") if held.pid == pid or (held.pid == -1 and held.kind == "OFDLCK")]


def conflict(lock: Lock, pid: int) -> bool:
    """Whether the lock cannot be had now by process `pid`."""
    held = [one for one in _read("/proc/locks") if one.inode == lock.inode and one.kind == lock.kind]
    if lock.kind == "POSIX":
        held = [one for one in held if one.pid != pid]
    else:
        for mine in _read(f"/proc/{pid}/fdinfo/{lock.descriptor}", "lock:\t"):
            if mine in held:
                held.remove(mine)
    return any(one.start <= lock.end and lock.start <= one.end and (one.exclusive or lock.exclusive) for one in held)
