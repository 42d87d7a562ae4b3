"""Whether the threads of a process are at rest: each is stopped at a call, or waits for another thread or process.

A thread that was asleep at two looks and has not been on a CPU between them slept all the time. If that holds for all
threads, with every first look before every second one, then all slept at the moment between. Nobody but the explorer
can wake them from there on. For a thread that has not been on a CPU since the last rest, that rest is the first look.
"""

from __future__ import annotations

import contextlib
import os

from harness.explore.numbers import NUMBERS

_WAITS = {7, 23, 34, 43, 45, 47, 128, 130, 202, 219, 232, 270, 271, 281, 288, 441, 449}
"""poll, select, pause, accept, recvfrom, recvmsg, rt_sigtimedwait, rt_sigsuspend, futex, restart_syscall, epoll_wait,
pselect6, ppoll, epoll_pwait, accept4, epoll_pwait2, futex_waitv: they wait, and change no file. Not wait4 and waitid: a
child process goes on by itself."""
_FUTEX, _POLL = 202, 7
_TIMED = {23, 128, 219, 232, 270, 271, 281, 441, 449}
_PIPES = {NUMBERS[name] for name in ("read", "readv", "write", "writev")}


class Threads:
    """The threads of one process. `blocked` holds those that may wait in the kernel in a call that was let run."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._files: dict[int, tuple[int, int]] = {}  # thread -> descriptors of its syscall and schedstat
        self._list_again = True
        self._may_be_born = False
        self._slept: dict[int, bytes] = {}  # turns on a CPU of threads that were asleep at the last rest
        self.blocked: set[int] = set()

    def changed(self) -> None:
        """A thread is about to be started, or has ended."""
        self._list_again = self._may_be_born = True

    def has(self, thread: int) -> bool:
        """Whether it is a thread of this process."""
        if thread not in self._files:
            self._list()
        return thread in self._files

    def at_rest(self, stopped: set[int]) -> bool:
        """`stopped` threads wait for an answer of the explorer, who knows so."""
        while True:
            if self._list_again:
                self._list()
            others = self._files.keys() - stopped
            first: dict[int, bytes] = {}
            for thread in others - self._slept.keys():
                if self._asleep_in(thread) is None:
                    return False
                first[thread] = self._read(thread, 1)
            woken = set()
            for thread in others:
                if self._read(thread, 1) != (first.get(thread) or self._slept.get(thread)):
                    woken.add(thread)  # since the last rest, or between the looks
                elif self._asleep_in(thread) is None:
                    return False
            if self._list_again:  # a thread has ended
                continue
            if woken & first.keys():
                return False
            if not woken and self._may_be_born:  # its maker sleeps by now, so that it is on the list at the latest now
                self._may_be_born, before = False, set(self._files)
                self._list()
                if self._files.keys() - before:
                    continue
            if not woken:
                self._slept |= first
                return True
            for thread in woken:
                del self._slept[thread]

    def sits(self, thread: int) -> bool:
        """Whether a thread waits inside a call on a file that was let run."""
        text = self._read(thread, 0)
        return thread in self.blocked and text[:1].isdigit() and int(text.split(None, 1)[0]) not in _WAITS

    def timed(self, stopped: set[int]) -> bool:
        """Whether a thread that is not stopped may wake up by itself, after a time."""
        for thread in self._files.keys() - stopped:
            words = self._read(thread, 0).split()
            if not words or not words[0].isdigit():
                return True
            number, arguments = int(words[0]), [int(word, 16) for word in words[1:7]]
            if number == _FUTEX and arguments[3] == 0:
                continue
            if number == _POLL and arguments[2] >> 31:  # negative: for ever
                continue
            if number in (_FUTEX, _POLL) or number in _TIMED:
                return True
        return False

    def _asleep_in(self, thread: int) -> bytes | None:
        """What the thread waits in; None if it runs or will run by itself, empty if it has ended."""
        text = self._read(thread, 0)
        if not text:
            self._forget(thread)
            return b""
        if text[:1] == b"r":  # running
            return None
        number = int(text.split(None, 1)[0])
        return text if number in _WAITS or number in _PIPES or thread in self.blocked else None

    def _read(self, thread: int, which: int) -> bytes:
        files = self._files.get(thread)
        if files is None:
            return b""
        try:
            return os.pread(files[which], 256, 0)
        except OSError:  # it has ended
            return b""

    def _list(self) -> None:
        self._list_again = False
        try:
            now = {int(name) for name in os.listdir(f"/proc/{self._pid}/task")}
        except OSError:
            now = set()
        for thread in self._files.keys() - now:
            self._forget(thread)
        for thread in now - self._files.keys():
            folder = f"/proc/{self._pid}/task/{thread}"
            with contextlib.suppress(OSError):
                call = os.open(f"{folder}/syscall", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._files[thread] = call, os.open(f"{folder}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    os.close(call)

    def _forget(self, thread: int) -> None:
        self.blocked.discard(thread)
        self._slept.pop(thread, None)
        self._list_again = True
        for descriptor in self._files.pop(thread, ()):
            os.close(descriptor)

    def close(self) -> None:
        for thread in list(self._files):
            self._forget(thread)
