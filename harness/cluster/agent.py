"""The agent of a node other than rank 0: starts workers, relays their messages, and sends what they write to rank 0.

It ends when rank 0 says so, or when no message of rank 0 comes for `loss_seconds`. Then it ends its workers and removes
its folder.

    rank 0 -> agent    token, look, untoken; run, start, send, signal, collect; clock (an answer); bye
    agent -> rank 0    hello, beat with a question of the clock; replies; pid, message and end of a worker; files
"""

from __future__ import annotations

import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.adapters.base import TierSetup
from harness.cluster import mount
from harness.cluster.channel import Inbox, Outbox
from harness.cluster.clocks import FIRST_SAMPLES, ClockDifference
from harness.cluster.files import Files
from harness.cluster.store import ClusterLost, Connect
from harness.core.environment import describe
from harness.core.history import in_words
from harness.core.inputs import UsageError
from harness.entry_point import VERSION
from harness.runtime.accounting import Accounting, Watched
from harness.runtime.placement import Here, WorkerProcess
from harness.runtime.worker import Instruction

BEAT_SECONDS = 1.0
FILES_SECONDS = 0.2
IDLE_SECONDS = 0.05


class _Run:
    """What this node has of one run: a folder, its workers, and the kernel's account of them."""

    def __init__(self, rank: int, root: str, difference: ClockDifference) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kvtier-node-"))
        self.root = root
        self.files = Files(self.folder)
        self.processes: dict[int, WorkerProcess] = {}
        self.running: dict[int, int] = {}  # number of the worker -> number of its process in the run
        self.here = Here(difference.ahead_ns)
        ahead_seconds = difference.ahead_ns * 1e-9
        self._accounting = Accounting(
            self.folder, self._watched, f"accounting-{rank}", lambda: time.monotonic() + ahead_seconds
        )

    def _watched(self) -> list[Watched]:
        return [Watched(process, self.processes[number].pid) for number, process in list(self.running.items())]

    def complete(self) -> None:
        """No record follows."""
        self._accounting.close()

    def close(self) -> None:
        """End what still runs, and remove the folder."""
        for number in list(self.running):
            self.processes[number].signal(signal.SIGKILL)
            self.processes[number].reap()
        self._accounting.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Agent:
    """One node's agent. `root_here` is this node's path of the root, where it differs from rank 0's."""

    def __init__(
        self, rank: int, size: int, connect: Connect, root_here: str | None, loss_seconds: float, join_seconds: float
    ) -> None:
        self._rank, self._size = rank, size
        self._root_here, self._loss_seconds = root_here, loss_seconds
        store = connect()
        if store.count(f"rank/{rank}") > 1:
            raise UsageError(f"rank {rank} was started twice; start one agent for each rank")
        self._outbox = Outbox(store, f"from-{rank}")
        self._inbox = Inbox(connect(), f"to-{rank}")
        self._difference = ClockDifference()
        self._roots = ("", "")  # rank 0's path of the root, and ours
        self._run: _Run | None = None
        self._out: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._over = threading.Event()
        self._join(join_seconds)

    def _join(self, seconds: float) -> None:
        hello = {"version": VERSION, "host": socket.gethostname(), "python": sys.version.split()[0]}
        try:
            self._outbox.send({"hello": hello})
            for _ in range(FIRST_SAMPLES):
                self._outbox.send({"clock": time.monotonic()})
                message, _payload = self._inbox.receive(seconds)
                if "bye" in message:
                    raise UsageError(message["bye"] or "rank 0 ended before the run began")
                self._difference.first(message["clock"], message["at"], time.monotonic())
            self._difference.fix()
            self._outbox.send({"ready": self._difference.bound_seconds})
        except (ConnectionError, TimeoutError) as error:
            raise ClusterLost(f"rank 0 was lost before the run began: {error}") from None

    def serve(self) -> None:
        """Until rank 0 ends the cluster. Raises `ClusterLost` where rank 0 is lost, `UsageError` with its reason."""
        sender = threading.Thread(target=self._send, name="sender", daemon=True)
        sender.start()
        try:
            while True:
                message, _ = self._inbox.receive(self._loss_seconds)
                if "bye" in message:
                    break
                self._do(message)
        except TimeoutError:
            raise ClusterLost(f"rank 0 was lost: no message from it for {self._loss_seconds:g} s") from None
        except ConnectionError as error:
            raise ClusterLost(f"rank 0 was lost: {error}") from None
        finally:
            self._over.set()
            self._end_run()
        if message["bye"]:
            raise UsageError(message["bye"])
        sender.join(self._loss_seconds)
        with suppress(ConnectionError):
            self._outbox.send({"gone": True})

    def _end_run(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None

    def _do(self, message: dict[str, Any]) -> None:
        run = self._run
        if "clock" in message:
            self._difference.renew(message["clock"], message["at"], time.monotonic())
        elif "token" in message:
            self._roots = (message["root_dir"], self._root_here or message["root_dir"])
            self._out.put({"reply": mount.write_token(Path(self._roots[1]), message["token"], self._rank)})
        elif "look" in message:
            threading.Thread(target=self._look, args=(message["look"], message["seconds"]), daemon=True).start()
        elif "untoken" in message:
            mount.remove_token(Path(self._roots[1]), message["untoken"], self._rank)
            self._out.put({"reply": ""})
        elif "run" in message:
            self._run = _Run(self._rank, mount.where(*self._roots, message["run"]), self._difference)
        elif run is None:
            return
        elif "start" in message:
            self._start(run, message)
        elif "send" in message:
            if message["send"] in run.running:
                run.processes[message["send"]].send(message["message"])
        elif "signal" in message:
            if message["signal"] in run.running:
                run.processes[message["signal"]].signal(message["number"])
        elif "collect" in message:
            run.complete()
            self._out.put({"collected": True})

    def _look(self, token: str, seconds: float) -> None:
        self._out.put({"reply": mount.unseen_tokens(Path(self._roots[1]), token, self._size, seconds)})

    def _start(self, run: _Run, message: dict[str, Any]) -> None:
        number, given = message["start"], message["instruction"]
        setup = TierSetup(**given["setup"])
        changed = {"run_dir": str(run.folder), "root_dir": mount.where(*self._roots, setup.root_dir)}
        instruction = Instruction(**{**given, "setup": TierSetup(**{**setup.to_json(), **changed})})

        def on_message(said: dict[str, Any], ended: bool) -> None:
            self._out.put({"of": number, "ended": True} if ended else {"of": number, "message": said})

        try:
            process = run.here.start(instruction, message["env"], message["python"] or sys.executable, on_message)
        except OSError as error:
            self._out.put({"of": number, "refused": in_words(error)})
            return
        run.processes[number] = process
        run.running[number] = setup.process
        self._out.put({"of": number, "pid": process.pid})

    def _send(self) -> None:
        """The sender's thread: messages at once, new contents of files several times a second, a beat every second."""
        files_due = beat_due = 0.0
        try:
            while not self._over.is_set():
                now = time.monotonic()
                if now >= beat_due:
                    beat_due = now + BEAT_SECONDS
                    self._outbox.send({"clock": time.monotonic(), "bound": self._difference.bound_seconds})
                if now >= files_due:
                    files_due = now + FILES_SECONDS
                    self._send_files()
                try:
                    message = self._out.get(timeout=IDLE_SECONDS)
                except queue.Empty:
                    continue
                self._relay(message)
        except (ConnectionError, TimeoutError):
            return  # the receiving thread notices the same

    def _relay(self, message: dict[str, Any]) -> None:
        run = self._run
        if "ended" in message and run is not None:
            number = message["of"]
            code = run.processes[number].reap()
            run.running.pop(number, None)
            self._send_files()  # its history is at rank 0 before its end
            message = {"of": number, "end": code}
        if "collected" in message and run is not None:
            self._send_files()
            message = {"reply": {"environment": describe(run.root), "bound": self._difference.bound_seconds}}
            self._outbox.send(message)
            self._end_run()
            return
        self._outbox.send(message)

    def _send_files(self) -> None:
        if self._run is not None:
            for head, data in self._run.files.fresh():
                self._outbox.send(head, data)
