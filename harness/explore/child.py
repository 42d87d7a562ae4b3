"""The operating-system process of an actor: its fork, its listener and how it hands over results. Used again if asked.

A process that is used again saves the fork and the opening of a tier, which cost several times as much as a schedule.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import socket
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.explore import seccomp
from harness.explore.calls import Decoder
from harness.explore.memory import Memory
from harness.explore.model import Actor, CannotExplore
from harness.explore.path_resolution import Resolver
from harness.explore.threads import Threads

MESSAGE_BYTES_MAX = 1 << 17
OPEN_SECONDS_MAX = 60.0
_GO, _AGAIN, _READY, _EXIT = b"go", b"again", b"ready", b"exit"


class Child:
    """A forked process with an open subject, all of whose stopped calls arrive at `listener`. Raises CannotExplore.

    `others` are the explorer's children so far; the new one must not keep their descriptors.
    """

    def __init__(self, actor: Actor, root: Path, others: Sequence[Child]) -> None:
        self.actor = actor
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                ours.close()
                for other in others:
                    other.forget()
                _live(actor, root, theirs)
            os._exit(1)
        theirs.close()
        self.socket = ours
        ours.settimeout(OPEN_SECONDS_MAX)
        try:
            message, descriptors, _, _ = socket.recv_fds(ours, MESSAGE_BYTES_MAX, 1)
        except OSError as error:
            message, descriptors = f"it did not open within {OPEN_SECONDS_MAX:g} s ({error})".encode(), []
        if not descriptors:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            ours.close()
            raise CannotExplore(f"actor {actor.name} could not be started: {message.decode() or 'it ended'}")
        self.listener = descriptors[0]
        seccomp.prepare(self.listener)
        self.descriptors = [self.listener, ours.fileno()]
        self.poll = select.poll()
        self.poll.register(self.listener, select.POLLIN)
        self.poll.register(ours, select.POLLIN)
        self.memory = Memory(self.pid)
        self.threads = Threads(self.pid)
        self.resolver = Resolver(self.pid, root)
        self.decoder = Decoder(self.resolver, self.memory, actor.folder_status)

    def forget(self) -> None:
        """In another child: close what belongs to this one."""
        self.socket.close()
        os.close(self.listener)

    def go(self) -> None:
        """Run the steps."""
        self.socket.send(_GO)

    def renew(self) -> bool:
        """Make the subject as new, with no call stopped; False if that failed."""
        self.socket.send(_AGAIN)
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == self.listener:
                    if notification := seccomp.receive(self.listener):
                        seccomp.let_run(self.listener, notification)
                else:
                    return self.socket.recv(MESSAGE_BYTES_MAX) == _READY

    def exit(self) -> None:
        """Tell a process that can be used again to exit."""
        self.socket.send(_EXIT)

    def end(self) -> int:
        """Wait for its end and release what belongs to it. Returns the exit code, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        self.socket.close()
        os.close(self.listener)
        self.memory.close()
        self.threads.close()
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.end()


def _live(actor: Actor, root: Path, parent: socket.socket) -> None:
    """The child: it does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seccomp.die_with_parent()
    gc.disable()
    logging.disable(logging.ERROR)  # a tier logs each damaged file, in each of thousands of schedules
    try:
        subject = actor.open(root)
        listener = seccomp.install()
    except BaseException as error:
        parent.send(_in_words(error).encode())
        os._exit(1)
    # From here on every call below the root stops; sendmsg and recvfrom do not.
    socket.send_fds(parent, [b"listener"], [listener])
    parent.recv(len(_GO))
    os.close(listener)
    while True:
        parent.send(json.dumps(_steps(actor, subject, parent)).encode())
        if actor.again is None:
            os._exit(0)
        if parent.recv(len(_AGAIN)) != _AGAIN:
            os._exit(0)
        try:
            actor.again(subject)
        except BaseException as error:
            parent.send(_in_words(error).encode())
            os._exit(1)
        parent.send(_READY)
        parent.recv(len(_GO))


def _steps(actor: Actor, subject: object, parent: socket.socket) -> dict[str, Any]:
    try:
        value = actor.steps(subject)
        if isinstance(value, Iterator):
            reports, value = value, None
            for value in reports:
                parent.send(json.dumps({"so far": value}).encode())
        return {"result": value}
    except BaseException as error:
        return {"error": _in_words(error)}


def _in_words(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
