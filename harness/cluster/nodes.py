"""Rank 0's side of a cluster: the other nodes, and the placement of a run's workers on all of them in turn.

Process 0 runs on node 0, process 1 on node 1, and so on round all nodes. A node that is lost takes its processes with
it; what starts later goes to the next node that is left.
"""

from __future__ import annotations

import dataclasses
import queue
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from harness.cluster import mount
from harness.cluster.channel import Inbox, Outbox
from harness.cluster.files import write_piece
from harness.cluster.store import ClusterLost, Connect
from harness.core import notes
from harness.core.environment import describe
from harness.core.history import HistoryWriter, in_words, note_of
from harness.core.inputs import UsageError
from harness.core.run_files import write_json
from harness.core.run_root import left_behind
from harness.entry_point import VERSION
from harness.runtime.placement import Here, OnMessage, WorkerProcess
from harness.runtime.process import last_lines
from harness.runtime.worker import Instruction

COLLECT_SECONDS_MAX = 120.0
LEAVE_SECONDS_MAX = 5.0


class RemoteProcess:
    """A worker on another node."""

    is_here: ClassVar[bool] = False

    def __init__(self, node: Node, number: int, stderr: Path, on_message: OnMessage) -> None:
        self._node, self._number, self._stderr, self._on_message = node, number, stderr, on_message
        self.pid = -1  # on its node; known soon after its start
        self.exit_code: int | None = None
        self.ended_outside = ""

    def send(self, message: Any) -> bool:
        return self._node.send({"send": self._number, "message": message})

    def signal(self, number: int) -> None:
        self._node.send({"signal": self._number, "number": int(number)})

    def last_output(self) -> str:
        return last_lines(self._stderr)

    def reap(self) -> int:
        assert self.exit_code is not None
        return self.exit_code

    def said(self, message: dict[str, Any]) -> None:
        self._on_message(message, False)

    def end(self, code: int, outside: str = "") -> None:
        """Nothing more comes from it."""
        if self.exit_code is None:
            self.ended_outside, self.exit_code = outside, code
            self._on_message(None, True)


class Node:
    """Another node, by its agent. `lost` is a sentence once it is."""

    def __init__(self, rank: int, connect: Connect, join_seconds: float, loss_seconds: float) -> None:
        self.rank, self.lost, self.bound_seconds = rank, "", 0.0
        self.hello: dict[str, Any] = {}
        self.ready = threading.Event()
        self.bytes_received = self.messages = 0
        self.processes: list[int] = []
        self.run_dir: Path | None = None
        self.troubles: list[str] = []
        self._join_seconds, self._loss_seconds = join_seconds, loss_seconds
        self._outbox = Outbox(connect(), f"to-{rank}")
        self._inbox = Inbox(connect(), f"from-{rank}")
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._workers: dict[int, RemoteProcess] = {}
        self._lock = threading.Lock()
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"node-{rank}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """With its host, for messages."""
        return f"node {self.rank} ({self.hello['host']})" if self.hello else f"node {self.rank}"

    def send(self, message: dict[str, Any]) -> bool:
        """False where the node is lost."""
        if self.lost:
            return False
        try:
            self._outbox.send(message)
        except (ConnectionError, TimeoutError) as error:
            self._lose(str(error))
            return False
        return True

    def reply(self, seconds: float) -> Any:
        """Its next reply, None where the node is lost by then."""
        deadline = time.monotonic() + seconds
        while not self.lost and time.monotonic() < deadline:
            try:
                return self._replies.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def start(
        self, instruction: Instruction, env: Mapping[str, str | None], python: str, stderr: Path, on_message: OnMessage
    ) -> RemoteProcess:
        with self._lock:
            number = len(self._workers)
            worker = self._workers[number] = RemoteProcess(self, number, stderr, on_message)
            self.processes.append(instruction.setup.process)
        given = {"instruction": dataclasses.asdict(instruction), "env": dict(env)}
        if not self.send({"start": number, "python": "" if python == sys.executable else python, **given}):
            worker.end(-signal.SIGKILL, self.lost)
        return worker

    def leave(self, why: str) -> None:
        """Tell the agent that it may end; `why` is an error's sentence or ""."""
        self.send({"bye": why})

    def await_gone(self, seconds: float) -> None:
        self._gone.wait(seconds)

    def _listen(self) -> None:
        seconds = self._join_seconds
        try:
            while True:
                message, payload = self._inbox.receive(seconds)
                self.messages += 1
                self.bytes_received += len(payload)
                if "gone" in message:
                    return
                if "ready" in message:
                    seconds = self._loss_seconds
                self._handle(message, payload)
        except TimeoutError:
            self._lose(f"no message from it for {seconds:g} s")
        except ConnectionError as error:
            self._lose(str(error))
        finally:
            self._gone.set()

    def _handle(self, message: dict[str, Any], payload: bytes) -> None:
        if "clock" in message:
            self.send({"clock": message["clock"], "at": time.monotonic()})
            self.bound_seconds = message.get("bound", self.bound_seconds)
        elif "file" in message and self.run_dir is not None:
            try:
                write_piece(self.run_dir, message, payload)
            except OSError as error:
                self.troubles.append(in_words(error))
        elif "of" in message:
            worker = self._workers[message["of"]]
            if "message" in message:
                worker.said(message["message"])
            elif "pid" in message:
                worker.pid = message["pid"]
            elif "end" in message:
                worker.end(message["end"])
            else:
                worker.end(1, f"it could not be started on {self.name}: {message['refused']}")
        elif "hello" in message:
            self.hello = message["hello"]
        elif "ready" in message:
            self.bound_seconds = message["ready"]
            self.ready.set()
        elif "reply" in message:
            self._replies.put(message["reply"])

    def _lose(self, why: str) -> None:
        with self._lock:
            if self.lost or self._gone.is_set():
                return
            self.lost = f"{self.name} was lost: {why}"
            workers = list(self._workers.values())
        for worker in workers:
            worker.end(-signal.SIGKILL, f"it was lost with its node: {self.lost}")
        self.ready.set()


class Nodes:
    """All nodes of a cluster; a `Placement` for the runs that this process makes."""

    words: ClassVar[tuple[str, ...]] = ("node", "--")

    def __init__(self, others: Sequence[Node], visible_seconds: float) -> None:
        self._others, self._visible_seconds = others, visible_seconds
        self._here = Here()
        self._run_dir: Path | None = None
        self._root_dir: Path | None = None

    @classmethod
    def gathered(
        cls,
        size: int,
        connect: Connect,
        join_seconds: float,
        loss_seconds: float,
        visible_seconds: float,
    ) -> Nodes:
        """Wait for the agents of ranks 1 to `size` - 1. Raises `ClusterLost` for one that does not come, `UsageError`
        where versions differ."""
        deadline = time.monotonic() + join_seconds
        nodes = cls([Node(rank, connect, join_seconds, loss_seconds) for rank in range(1, size)], visible_seconds)
        try:
            for node in nodes._others:
                node.ready.wait(max(0.0, deadline - time.monotonic()))
            if missing := [node.rank for node in nodes._others if not node.ready.is_set() or node.lost]:
                ranks = ", ".join(map(str, missing))
                raise ClusterLost(
                    f"rank {ranks} of {size} nodes did not come within {join_seconds:g} s; start `kvtier-harness node` "
                    "on each node, with the same --address and --port"
                )
            for node in nodes._others:
                if (version := node.hello["version"]) != VERSION:
                    raise UsageError(
                        f"{node.name} has kvtier {version}, node 0 ({socket.gethostname()}) has kvtier {VERSION}; "
                        "install one version on all nodes"
                    )
        except Exception as error:
            nodes.close(str(error))
            raise
        return nodes

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(str(error) if isinstance(error, Exception) else "")

    def close(self, why: str = "") -> None:
        """All agents end; `why` is the sentence of an error or ""."""
        for node in self._others:
            node.leave(why)
        deadline = time.monotonic() + LEAVE_SECONDS_MAX
        for node in self._others:
            if node.ready.is_set() and not node.lost and not why:
                node.await_gone(max(0.0, deadline - time.monotonic()))

    @property
    def machines(self) -> int:
        return 1 + len(self._others)

    def check(self, root_dir: str | None) -> None:
        """Raises `UsageError` unless all nodes see each other's tokens below `root_dir`, and no other run is there."""
        if not self._others:
            return
        if root_dir is None:
            raise UsageError("--root-dir is missing: a run over several nodes needs a folder that all of them mount")
        for left in left_behind(root_dir):
            if left.state == "live":
                raise UsageError(f"another run uses --root-dir {root_dir!r} now: {left.path.name}; wait until it ends")
        token = uuid.uuid4().hex
        try:
            self._check_tokens(root_dir, token)
        finally:
            self._all({"untoken": token}, lambda: mount.remove_token(Path(root_dir), token, 0))

    def _check_tokens(self, root_dir: str, token: str) -> None:
        written = self._all({"token": token, "root_dir": root_dir}, lambda: mount.write_token(Path(root_dir), token, 0))
        for rank, why in written.items():
            if why:
                raise UsageError(f"--root-dir {root_dir!r} {why} on {self._name(rank)}; mount the volume on all nodes")
        ranks = self.machines
        seen = self._all(
            {"look": token, "seconds": self._visible_seconds},
            lambda: mount.unseen_tokens(Path(root_dir), token, ranks, self._visible_seconds),
        )
        for rank, unseen in seen.items():
            if unseen:
                names = ", ".join(map(self._name, unseen))
                raise UsageError(
                    f"{self._name(rank)} does not see what {names} wrote below --root-dir {root_dir!r} within "
                    f"{self._visible_seconds:g} s; --root-dir must be one mounted volume on all nodes"
                )

    def _all(self, message: dict[str, Any], here: Callable[[], Any]) -> dict[int, Any]:
        """The replies of all nodes to one message, that of this node included, by rank."""
        for node in self._others:
            node.send(message)
        replies = {0: here()}
        for node in self._others:
            replies[node.rank] = node.reply(self._visible_seconds + LEAVE_SECONDS_MAX)
            if node.lost:
                raise ClusterLost(node.lost)
        return replies

    def _name(self, rank: int) -> str:
        return self._others[rank - 1].name if rank else f"node 0 ({socket.gethostname()})"

    def begin(self, run_dir: Path, root_dir: Path) -> None:
        self._run_dir, self._root_dir = run_dir, root_dir
        for node in self._others:
            node.run_dir = run_dir
            node.send({"run": str(root_dir)})

    def start(
        self, instruction: Instruction, env: Mapping[str, str | None], python: str, on_message: OnMessage
    ) -> WorkerProcess:
        assert self._run_dir is not None
        node = self._place(instruction.setup.process)
        if node is None:
            return self._here.start(instruction, env, python, on_message)
        return node.start(instruction, env, python, self._run_dir / instruction.stderr_name, on_message)

    def _place(self, process: int) -> Node | None:
        """None is this node."""
        nodes = [None, *self._others]
        for ahead in range(len(nodes)):
            node = nodes[(process + ahead) % len(nodes)]
            if node is None or not node.lost:
                return node
        raise AssertionError("this node is never lost")

    def collect(self) -> list[str]:
        assert self._run_dir is not None and self._root_dir is not None
        facts: list[dict[str, Any]] = []
        for node in self._others:
            node.send({"collect": True})
        for node in self._others:
            reply = node.reply(COLLECT_SECONDS_MAX)
            if reply is None and not node.lost:
                node.troubles.append(f"{node.name} did not send its files within {COLLECT_SECONDS_MAX:g} s")
            of_node = {"node": node.rank, "processes": node.processes, "lost": node.lost}
            of_node |= {"clock_bound_seconds": node.bound_seconds, "messages": node.messages}
            facts.append({**of_node, "bytes": node.bytes_received, "environment": (reply or {}).get("environment")})
        lost = [node.lost for node in self._others if node.lost]
        troubles = [trouble for node in self._others for trouble in dict.fromkeys(node.troubles)]
        try:
            write_json(self._run_dir / "nodes.json", [{"node": 0, "environment": describe(self._root_dir)}, *facts])
            writer = HistoryWriter(self._run_dir / "history-nodes.jsonl")
            for fact in facts:
                about = notes.Node(fact["node"], fact["processes"], fact["clock_bound_seconds"], fact["lost"])
                writer.write(note_of(-1, time.monotonic(), about))
            writer.close()
        except OSError as error:
            troubles.append(in_words(error))
        return lost + troubles
