"""One actor during one schedule: each of its calls below the root stops until it is let run."""

from __future__ import annotations

import errno
import json
import select
import struct
import time
from dataclasses import dataclass
from typing import Any

from harness.explore import seccomp
from harness.explore.calls import DECODERS, Decoded
from harness.explore.child import MESSAGE_BYTES_MAX, Child
from harness.explore.locks import held_by
from harness.explore.model import Actor, CannotExplore
from harness.explore.numbers import CLONE_THREAD, NAMES

BUSY_SECONDS_MAX = 20.0
"""A process that neither makes a call nor waits for so long ends the exploration."""
EVENT_SECONDS = 0.002
LOOK_SECONDS = 0.0001
"""How long to wait for an event: when one is expected, and between two looks whether the process is at rest."""
SLEEPS = ("nanosleep", "clock_nanosleep")
RELEASING = ("close", "close_range", "exit_group")
"""Calls that are scheduled only while the process holds locks, which they release."""

Arrived = tuple[seccomp.Notification, Decoded | None]
"""A call that has stopped; None: a sleep."""


@dataclass
class Stopped:
    """A thread that waits to make a call below the root. `yields`: its sleeps since another actor's step."""

    notification: seccomp.Notification
    call: Decoded
    yields: int = 0
    since: int = -1  # the step before which it stopped; not yet known: negative


class ActorProcess:
    """An actor's process. After `start` and after each `settle` it is at rest, or it has `ended`.

    `stopped` has the threads that can be let run, by their number; `sleeping` those in a sleep, which takes no time
    here: `wake` ends it.
    """

    def __init__(self, index: int, actor: Actor, notes: set[str]) -> None:
        self.index = index
        self.actor = actor
        self.notes = notes
        self.stopped: dict[int, Stopped] = {}
        self.sleeping: dict[int, seccomp.Notification] = {}
        self.child: Child | None = None  # that can be used again once this has ended
        self.ended = False
        self.killed = False
        self.result: Any = None
        self.so_far: Any = None  # the last of `reports` values that its steps have given up to now
        self.reports = 0
        self.sleeps = 0  # that were ended at once
        self.error: str | None = None
        self._done = self._exiting = False  # the steps have returned; the process is on its way out
        self._numbers: dict[int, int] = {}  # thread id -> number
        self._yields: dict[int, int] = {}
        self._returning: tuple[int, Decoded] | None = None  # thread and call of the step that is being made
        self._result = ""
        self._running: dict[int, str] = {}  # calls that may wait in the kernel
        self._locks_taken = False

    def start(self, child: Child) -> None:
        """Run the steps up to the first stop. Raises CannotExplore."""
        self.child, self._process = child, child
        child.go()
        self.settle()

    @property
    def pid(self) -> int:
        return self._process.pid

    def choice(self, number: int) -> str:
        return f"{self.index}.{number}"

    def let_run(self, number: int) -> str:
        """Let the stopped call run, up to the process's next rest. Returns its result; empty while it waits inside."""
        stopped = self.stopped.pop(number)
        thread = stopped.notification.thread
        if stopped.call.may_block:
            self._process.threads.blocked.add(thread)
            self._running[number] = stopped.call.text
        if stopped.call.lock and stopped.call.lock.takes:
            self._locks_taken = True
        self._result, self._returning = "", (thread, stopped.call)
        seccomp.let_run(self._process.listener, stopped.notification)
        self.settle()
        if self._returning and self.child is not None and not self.blocks(number):
            self._result = stopped.call.result()
        self._returning = None
        return self._result

    def wake(self) -> bool:
        """End the sleeps of this process's threads; whether there were any."""
        sleeping, self.sleeping = self.sleeping, {}
        self.sleeps += len(sleeping)
        for number, notification in sleeping.items():
            self._yields[number] = self._yields.get(number, 0) + 1
            seccomp.give(self._process.listener, notification, 0)
        if sleeping:
            self.settle()
        return bool(sleeping)

    def others_moved(self) -> None:
        """Another actor made a step: polling this process's files again is worthwhile."""
        self._yields.clear()
        for stopped in self.stopped.values():
            stopped.yields = 0

    def decode_again(self, number: int) -> None:
        """The state below the root has changed: see anew what the stopped call would do to it."""
        stopped = self.stopped[number]
        stopped.call = self._decode(stopped.notification) or stopped.call

    @property
    def holds_locks(self) -> bool:
        """Whether it may hold a lock: it has taken one."""
        return self._locks_taken

    def may_wake(self) -> bool:
        """Whether a thread may go on by itself, when a time is over."""
        stopped = {one.notification.thread for one in self.stopped.values()}
        return not self.ended and (bool(self.sleeping) or self._process.threads.timed(stopped))

    def blocks(self, number: int) -> bool:
        """Whether the thread waits inside the kernel, in the call that was let run last."""
        return number in self._in_kernel()

    def calls_in_kernel(self) -> list[str]:
        """The calls in which threads wait for another process, as text."""
        return [self._running[number] for number in self._in_kernel()]

    def _in_kernel(self) -> list[int]:
        return [
            number
            for thread, number in self._numbers.items()
            if number in self._running and self._process.threads.sits(thread)
        ]

    def is_waiting_in_kernel(self) -> bool:
        return bool(self._running)

    def data(self, call: Decoded) -> bytes:
        """What a stopped write is about to write."""
        return b"".join(self._process.memory.read(address, length) for address, length in call.buffers)

    def settle(self, wait_seconds: float = EVENT_SECONDS) -> None:
        """Handle what the process does until it is at rest or has ended. An event is expected within `wait_seconds`."""
        deadline = 0.0
        arrived: list[Arrived] = []
        while not self.ended:
            if self._handle(wait_seconds, arrived):
                deadline = 0.0
                if not arrived and not self._done:
                    continue
            waiting = {one.notification.thread for one in self.stopped.values()}
            waiting |= {one.thread for one in self.sleeping.values()} | {one.thread for one, _ in arrived}
            if self._process.threads.at_rest(waiting) and not self._process.poll.poll(0):
                if not self._may_leave(bool(waiting)):
                    break
                continue
            wait_seconds = LOOK_SECONDS
            deadline = deadline or time.monotonic() + BUSY_SECONDS_MAX
            if time.monotonic() > deadline:
                raise CannotExplore(f"actor {self.actor.name} neither makes a call nor waits for {BUSY_SECONDS_MAX} s")
        self._number(arrived)

    def _handle(self, wait_seconds: float, arrived: list[Arrived]) -> bool:
        """One round of events; whether there was any."""
        if wait_seconds:  # select, since poll counts in milliseconds
            select.select(self._process.descriptors, (), (), wait_seconds)
        events = self._process.poll.poll(0)
        for descriptor, event in events:
            if descriptor == self._process.listener:
                if event & select.POLLIN:
                    notification = seccomp.receive(self._process.listener)
                    if notification:
                        self._arrive(notification, arrived)
                elif event & select.POLLHUP:
                    self._process.poll.unregister(self._process.listener)
                    self._process.descriptors.remove(self._process.listener)
            else:
                self._hear()
        return bool(events)

    def _hear(self) -> None:
        message = self._process.socket.recv(MESSAGE_BYTES_MAX)
        if message:
            value = json.loads(message)
            if "so far" in value:
                self.so_far, self.reports = value["so far"], self.reports + 1
                return
            self.result, self.error, self._done = value.get("result"), value.get("error"), True
        else:
            self._end()

    def _may_leave(self, waiting: bool) -> bool:
        """At rest. If the steps of a process that can be used again have returned: whether it is on its way out.

        It ends here as it is. If a thread still waits, or it holds a lock, it must exit, which is a step of its own.
        """
        if not self._done or self.actor.again is None or self._exiting:
            return False
        if not waiting and not (self._locks_taken and held_by(self.pid)):
            self.ended = True
        else:
            self._exiting = True
            self._process.exit()
        return True

    def _arrive(self, notification: seccomp.Notification, arrived: list[Arrived]) -> None:
        """Lets a call run at once unless it is one to schedule, or a sleep."""
        name, a = NAMES[notification.number], notification.arguments
        if not self._process.threads.has(notification.thread):  # of a child process
            seccomp.let_run(self._process.listener, notification)
            return
        if self._returning and self._returning[0] == notification.thread:  # so that call has returned
            self._result, self._returning = self._returning[1].result(), None
        if name in DECODERS or (self._locks_taken and name in RELEASING):
            call = self._decode(notification)
            if call is not None:
                arrived.append((notification, call))
                return
        elif name in SLEEPS:
            arrived.append((notification, None))
            return
        elif name in ("io_uring_setup", "io_setup"):
            self.notes.add(f"{self.actor.name} asked for asynchronous I/O ({name}), which was refused with ENOSYS")
            seccomp.give(self._process.listener, notification, errno.ENOSYS)
            return
        elif name == "mmap":
            if place := self._process.resolver.descriptor(a[4] & 0xFFFFFFFF):
                self.notes.add(f"{self.actor.name} maps {place.shown} into memory: its accesses are not ordered")
        elif name in ("clone", "clone3", "fork", "vfork", "execve"):
            self._process.threads.changed()
            flags = a[0] if name == "clone" else 0
            if name == "clone3":
                flags = struct.unpack("=Q", self._process.memory.read(a[0], 8))[0]
            if not flags & CLONE_THREAD:
                self.notes.add(f"{self.actor.name} starts a child process ({name}): its calls are not ordered")
        seccomp.let_run(self._process.listener, notification)

    def _decode(self, notification: seccomp.Notification) -> Decoded | None:
        name = NAMES[notification.number]
        try:
            if name in DECODERS:
                return self._process.decoder.decode(name, notification.arguments)
        except OSError:  # an address that is not mapped: the kernel says EFAULT
            return None
        held = {one.inode for one in held_by(self.pid)}
        if name == "close":
            place = self._process.resolver.descriptor(notification.arguments[0] & 0xFFFFFFFF)
            held &= {place.inode} if place else set()
            text = f"close({place.shown})" if place else ""
        else:
            text = f"{name}()"
        return Decoded(name, text, writes={("lock", inode) for inode in held}) if held else None

    def _number(self, arrived: list[Arrived]) -> None:
        """Threads get numbers in the order in which they first stop; those of one moment in that of their calls."""
        for notification, call in sorted(arrived, key=lambda one: (one[1].text if one[1] else "", one[0].thread)):
            number = self._numbers.setdefault(notification.thread, len(self._numbers))
            self._process.threads.blocked.discard(notification.thread)
            self._running.pop(number, None)
            if call is None:
                self.sleeping[number] = notification
            else:
                self.stopped[number] = Stopped(notification, call, self._yields.get(number, 0))

    def kill(self) -> None:
        """SIGKILL, now."""
        self._process.kill()
        self.killed = self.ended = True
        self.child = None
        self.stopped, self.sleeping = {}, {}

    def _end(self) -> None:
        code = self._process.end()
        if code and self.error is None:
            self.error = f"the process ended with exit code {code}"
        self.ended = True
        self.child = None
        self.stopped, self.sleeping = {}, {}
