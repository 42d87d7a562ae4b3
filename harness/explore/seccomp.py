"""Seccomp user notification by ctypes: the filter, its listener, notifications and their answers. Linux on x86-64.

seccomp_unotify(2) documents it. A filter needs no privilege once `no_new_privs` is set.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import signal
import struct
import warnings
from typing import NamedTuple

from harness.explore.numbers import FCNTL_LOCKS, MAP_ANONYMOUS, NUMBERS

_SECCOMP = 317
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_TSYNC, _NEW_LISTENER, _TSYNC_ESRCH = 1 << 0, 1 << 3, 1 << 4
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000
_SET_PDEATHSIG, _NO_NEW_PRIVS = 1, 38
_AUDIT_ARCH_X86_64 = 0xC000003E
_CONTINUE, _SYNC_WAKE_UP = 1, 1
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16


class Notification(NamedTuple):
    """A stopped call: its id for the answer, the thread, the system call's number, and its six arguments."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x21 << 8 | number


_RECEIVE = _ioctl(3, 0, _NOTIFICATION.size)
_SEND = _ioctl(3, 1, _ANSWER.size)
_SET_FLAGS = _ioctl(1, 4, 8)

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def _filter() -> bytes:
    """Notifies for each call in `NUMBERS`; of fcntl only locks, of lseek only what reads a size, of mmap only files."""
    allow, notify = _instruction(_RETURN, _ALLOW), _instruction(_RETURN, _USER_NOTIF)
    partial = ("fcntl", "lseek", "mmap")
    plain = sorted(number for name, number in NUMBERS.items() if name not in partial)
    code = [_instruction(_LOAD, _ARCH_AT), _instruction(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, 1, 0), allow]
    code.append(_instruction(_LOAD, _NUMBER_AT))
    for name in partial:
        if name == "fcntl":
            tests = [_instruction(_JUMP_EQUAL, command, len(FCNTL_LOCKS) - i) for i, command in enumerate(FCNTL_LOCKS)]
            at = 1
        elif name == "lseek":
            tests, at = [_instruction(_JUMP_GREATER_EQUAL, os.SEEK_END, 1)], 2
        else:
            tests, at = [_instruction(_JUMP_SET, MAP_ANONYMOUS, 0, 1)], 3
        block = [_instruction(_LOAD, _ARGUMENTS_AT + 8 * at), *tests, allow, notify]
        code += [_instruction(_JUMP_EQUAL, NUMBERS[name], 0, len(block)), *block]
    code += [_instruction(_JUMP_EQUAL, number, len(plain) - i) for i, number in enumerate(plain)]
    return b"".join([*code, allow, notify])


def _seccomp(operation: int, flags: int, argument: object) -> int:
    found: int = _libc.syscall(_SECCOMP, operation, flags, argument)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def install() -> int:
    """Stop the calls of all present and future threads of this process. Returns the listener."""
    code = _filter()
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    if _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        code_ = ctypes.get_errno()
        raise OSError(code_, os.strerror(code_))
    return _seccomp(_SET_MODE_FILTER, _TSYNC | _NEW_LISTENER | _TSYNC_ESRCH, ctypes.byref(program))


def die_with_parent() -> None:
    """SIGKILL for this process as soon as its parent has ended."""
    _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def prepare(listener: int) -> None:
    """Wake the two sides on one CPU, where the kernel can (6.6 and later): a stop costs half as much."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, _SET_FLAGS, _SYNC_WAKE_UP)


def receive(listener: int) -> Notification | None:
    """The next stopped call; None if its thread has just been killed."""
    buffer = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
    return Notification(identity, thread, number, tuple(arguments))


def let_run(listener: int, notification: Notification) -> None:
    """Let the kernel execute the stopped call."""
    _answer(listener, _ANSWER.pack(notification.id, 0, 0, _CONTINUE))


def give(listener: int, notification: Notification, code: int) -> None:
    """End the stopped call without executing it: 0 or an errno."""
    _answer(listener, _ANSWER.pack(notification.id, 0, -code, 0))


def _answer(listener: int, answer: bytes) -> None:
    try:
        fcntl.ioctl(listener, _SEND, answer)
    except OSError as error:
        if error.errno != errno.ENOENT:  # killed in the meantime
            raise


def unavailable() -> str | None:
    """Why system calls cannot be stopped here, one clause; None if they can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return (
            f"the system is {platform.system()} on {platform.machine()}, and system calls are known for Linux on x86-64"
        )
    action = ctypes.c_uint32(_USER_NOTIF)
    try:
        _seccomp(_GET_ACTION_AVAIL, 0, ctypes.byref(action))
    except OSError as error:
        return f"the kernel or the container offers no seccomp user notification (seccomp: {error.strerror})"
    return _tried()


def _tried() -> str | None:
    with warnings.catch_warnings():  # Python 3.12 warns of threads; the child needs none
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 0
        try:
            install()
        except OSError as error:
            code = error.errno or errno.EINVAL
        os.kill(os.getpid(), signal.SIGKILL) if not code else os._exit(code)  # an exit would be stopped
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return f"a filter cannot be installed (seccomp: {os.strerror(code)})" if code > 0 else None
