"""One actor in a process of its own, each of whose calls below the root stops until it is let run."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import struct
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.explore import seccomp
from harness.explore.calls import DECODERS, Decoded, Decoder
from harness.explore.locks import held_by
from harness.explore.memory import Memory
from harness.explore.model import Actor, CannotExplore
from harness.explore.numbers import CLONE_VM, MAP_SHARED, NAMES
from harness.explore.paths import Resolver
from harness.explore.threads import Threads

MESSAGE_BYTES_MAX = 1 << 17
OPEN_SECONDS_MAX = 60.0
BUSY_SECONDS_MAX = 20.0
"""A process that neither makes a call nor waits for so long ends the exploration."""
POLL_MS = 2
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

    def __init__(self, index: int, actor: Actor, root: Path, notes: set[str]) -> None:
        self.index = index
        self.actor = actor
        self.root = root
        self.notes = notes
        self.stopped: dict[int, Stopped] = {}
        self.sleeping: dict[int, seccomp.Notification] = {}
        self.ended = False
        self.killed = False
        self.result: Any = None
        self.error: str | None = None
        self.pid = 0
        self._numbers: dict[int, int] = {}  # thread id -> number
        self._yields: dict[int, int] = {}
        self._returning: tuple[int, Decoded] | None = None  # thread and call of the step that is being made
        self._result = ""
        self._running: dict[int, str] = {}  # calls that may wait in the kernel
        self._locks_taken = False

    def start(self, others: list[ActorProcess]) -> None:
        """Open the subject ungated, and run its steps up to the first stop. Raises CannotExplore."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                ours.close()
                for other in others:
                    other.forget()
                _run(self.actor, self.root, theirs)
            os._exit(1)
        theirs.close()
        self._socket = ours
        ours.settimeout(OPEN_SECONDS_MAX)
        message, descriptors, _, _ = socket.recv_fds(ours, MESSAGE_BYTES_MAX, 1)
        if not descriptors:
            self.kill()
            why = message.decode() or "it ended"
            raise CannotExplore(f"actor {self.actor.name} could not be started: {why}")
        self._listener = descriptors[0]
        seccomp.prepare(self._listener)
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(ours, select.POLLIN)
        self._memory = Memory(self.pid)
        self._threads = Threads(self.pid)
        self._resolver = Resolver(self.pid, self.root)
        self._decoder = Decoder(self._resolver, self._memory)
        ours.send(b"go")
        self.settle()

    def forget(self) -> None:
        """In a child of the explorer: close what belongs to this actor."""
        if not self.ended:
            self._socket.close()
            os.close(self._listener)

    def choice(self, number: int) -> str:
        return f"{self.index}.{number}"

    def let_run(self, number: int) -> str:
        """Let the stopped call run, up to the process's next rest. Returns its result; empty while it waits inside."""
        stopped = self.stopped.pop(number)
        thread = stopped.notification.thread
        if stopped.call.may_block:
            self._threads.blocked.add(thread)
            self._running[number] = stopped.call.text
        if stopped.call.lock and stopped.call.lock.takes:
            self._locks_taken = True
        self._result, self._returning = "", (thread, stopped.call)
        seccomp.let_run(self._listener, stopped.notification)
        self.settle(POLL_MS)
        if self._returning and not self.ended and not self.blocks(number):
            self._result = stopped.call.result()
        self._returning = None
        return self._result

    def wake(self) -> bool:
        """End the sleeps of this process's threads; whether there were any."""
        sleeping, self.sleeping = self.sleeping, {}
        for number, notification in sleeping.items():
            self._yields[number] = self._yields.get(number, 0) + 1
            seccomp.give(self._listener, notification, 0)
        if sleeping:
            self.settle(POLL_MS)
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

    def blocks(self, number: int) -> bool:
        """Whether the thread waits inside the kernel, in the call that was let run last."""
        return number in self._in_kernel()

    def calls_in_kernel(self) -> list[str]:
        """The calls in which threads wait for another process, as text."""
        return [self._running[number] for number in self._in_kernel()]

    def _in_kernel(self) -> list[int]:
        return [
            number for thread, number in self._numbers.items() if number in self._running and self._threads.sits(thread)
        ]

    def is_waiting_in_kernel(self) -> bool:
        return bool(self._running)

    def data(self, call: Decoded) -> bytes:
        """What a stopped write is about to write."""
        return b"".join(self._memory.read(address, length) for address, length in call.buffers)

    def settle(self, wait_ms: int = POLL_MS) -> None:
        """Handle what the process does until it is at rest or has ended."""
        deadline = 0.0
        arrived: list[Arrived] = []
        while not self.ended:
            if self._handle(wait_ms, arrived):
                deadline = 0.0
                if not arrived:
                    continue
            waiting = {one.notification.thread for one in self.stopped.values()}
            waiting |= {one.thread for one in self.sleeping.values()} | {one.thread for one, _ in arrived}
            if self._threads.at_rest(waiting) and not self._poll.poll(0):
                break
            wait_ms = 1
            deadline = deadline or time.monotonic() + BUSY_SECONDS_MAX
            if time.monotonic() > deadline:
                raise CannotExplore(f"actor {self.actor.name} neither makes a call nor waits for {BUSY_SECONDS_MAX} s")
        self._number(arrived)

    def _handle(self, wait_ms: int, arrived: list[Arrived]) -> bool:
        """One round of events; whether there was any."""
        events = self._poll.poll(wait_ms)
        for descriptor, event in events:
            if descriptor == self._listener:
                if event & select.POLLIN:
                    notification = seccomp.receive(self._listener)
                    if notification:
                        self._arrive(notification, arrived)
                elif event & select.POLLHUP:
                    self._poll.unregister(self._listener)
            else:
                self._hear()
        return bool(events)

    def _hear(self) -> None:
        message = self._socket.recv(MESSAGE_BYTES_MAX)
        if message:
            value = json.loads(message)
            self.result, self.error = value.get("result"), value.get("error")
        else:
            self._end()

    def _arrive(self, notification: seccomp.Notification, arrived: list[Arrived]) -> None:
        """Lets a call run at once unless it is one to schedule, or a sleep."""
        name, a = NAMES[notification.number], notification.arguments
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
            seccomp.give(self._listener, notification, errno.ENOSYS)
            return
        elif name == "mmap":
            place = self._resolver.descriptor(a[4] & 0xFFFFFFFF) if a[3] & MAP_SHARED else None
            if place:
                self.notes.add(f"{self.actor.name} maps {place.shown} shared: its accesses are not ordered")
        elif name in ("clone", "clone3", "fork", "vfork", "execve"):
            self._threads.changed()
            flags = a[0] if name == "clone" else 0
            if name == "clone3":
                flags = struct.unpack("=Q", self._memory.read(a[0], 8))[0]
            if not flags & CLONE_VM:
                self.notes.add(f"{self.actor.name} starts a child process ({name}): its calls are not ordered")
        seccomp.let_run(self._listener, notification)

    def _decode(self, notification: seccomp.Notification) -> Decoded | None:
        name = NAMES[notification.number]
        try:
            if name in DECODERS:
                return self._decoder.decode(name, notification.arguments)
        except OSError:  # an address that is not mapped: the kernel says EFAULT
            return None
        held = {one.inode for one in held_by(self.pid)}
        if name == "close":
            place = self._resolver.descriptor(notification.arguments[0] & 0xFFFFFFFF)
            held &= {place.inode} if place else set()
            text = f"close({place.shown})" if place else ""
        else:
            text = f"{name}()"
        return Decoded(name, text, writes={("lock", inode) for inode in held}) if held else None

    def _number(self, arrived: list[Arrived]) -> None:
        """Threads get numbers in the order in which they first stop; those of one moment in that of their calls."""
        for notification, call in sorted(arrived, key=lambda one: (one[1].text if one[1] else "", one[0].thread)):
            number = self._numbers.setdefault(notification.thread, len(self._numbers))
            self._threads.blocked.discard(notification.thread)
            self._running.pop(number, None)
            if call is None:
                self.sleeping[number] = notification
            else:
                self.stopped[number] = Stopped(notification, call, self._yields.get(number, 0))

    def kill(self) -> None:
        """SIGKILL, now."""
        os.kill(self.pid, signal.SIGKILL)
        self.killed = True
        self._end()

    def _end(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if not self.killed and code and self.error is None:
            self.error = f"the process ended with exit code {code}"
        self.ended = True
        self.stopped, self.sleeping = {}, {}
        self._socket.close()
        if hasattr(self, "_listener"):
            os.close(self._listener)
            self._memory.close()
            self._threads.close()


def _run(actor: Actor, root: Path, parent: socket.socket) -> None:
    """The child: it does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seccomp.die_with_parent()
    gc.disable()
    try:
        subject = actor.open(root)
        listener = seccomp.install()
    except BaseException as error:
        parent.send(traceback.format_exception_only(error)[-1].strip().encode())
        os._exit(1)
    # From here on every call below the root stops; sendmsg and recvfrom do not.
    socket.send_fds(parent, [b"listener"], [listener])
    parent.recv(2)
    os.close(listener)
    try:
        value: dict[str, Any] = {"result": actor.steps(subject)}
    except BaseException as error:
        value = {"error": traceback.format_exception_only(error)[-1].strip()}
    parent.send(json.dumps(value).encode())
    os._exit(0)
