"""Runs a program on a host that is a kernel of its own, as if it ran here: standard streams, environment, exit code.

`serve` is the agent on the host; `run` is its other end, started in the program's place by the supervisor. The program
dies with `run`, and `run` dies (by SIGKILL, as the program did) when the host is unreachable. Signals other than
SIGKILL are not passed on.

    run -> serve    {"argv", "env"} as one line, then frames: clock questions, stdin, end of stdin
    serve -> run    frames: clock answers, stdout, stderr, exit code
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from typing import BinaryIO

CONNECT_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 3
"""A host whose kernel has not answered for this time counts as gone."""
CLOCK_QUESTIONS = 8
FRAME_BYTES_MAX = 1 << 16
_HEAD = struct.Struct("<cI")


class Frames:
    """Frames of one byte kind and a payload, both ways over one socket. Sending is thread-safe."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        with self._lock:
            self._connection.sendall(_HEAD.pack(kind, len(payload)) + payload)

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame; EOFError when the other end is gone."""
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise EOFError
        kind, size = _HEAD.unpack(head)
        payload = self._file.read(size)
        if len(payload) < size:
            raise EOFError
        return kind, payload


class _Agent(socketserver.BaseRequestHandler):
    """One program."""

    def handle(self) -> None:
        frames = Frames(self.request)
        with contextlib.suppress(EOFError, OSError):
            self._handle(frames)

    def _handle(self, frames: Frames) -> None:
        kind, payload = frames.receive()
        while kind == b"T":
            frames.send(b"T", struct.pack("<q", time.monotonic_ns()))
            kind, payload = frames.receive()
        what = json.loads(payload)
        argv = what["argv"]
        if argv[1:3] == ["-P", "-m"]:  # an interpreter: its clock is to be that of the machine
            argv = [*argv[:3], "harness.hosts.clock", str(what["ahead_ns"]), *argv[3:]]
        pipe = subprocess.PIPE
        try:
            program = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=what["env"], process_group=0)
        except OSError as error:
            frames.send(b"2", f"{argv[0]}: {error}\n".encode())
            frames.send(b"X", struct.pack("<i", 127))
            return
        assert program.stdin is not None
        threads = [
            threading.Thread(target=_pump, args=(stream, frames, kind), daemon=True)
            for stream, kind in ((program.stdout, b"1"), (program.stderr, b"2"))
        ]
        for thread in threads:
            thread.start()
        feeder = threading.Thread(target=self._feed, args=(frames, program), daemon=True)
        feeder.start()
        for thread in threads:
            thread.join()
        frames.send(b"X", struct.pack("<i", program.wait()))

    def _feed(self, frames: Frames, program: subprocess.Popen[bytes]) -> None:
        assert program.stdin is not None
        try:
            while True:
                kind, payload = frames.receive()
                if kind == b"E":
                    program.stdin.close()
                else:
                    with contextlib.suppress(BrokenPipeError, ValueError):
                        program.stdin.write(payload)
                        program.stdin.flush()
        except (EOFError, OSError):
            program.kill()


def _pump(stream: BinaryIO, frames: Frames, kind: bytes) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(stream.fileno(), FRAME_BYTES_MAX):
            frames.send(kind, data)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def serve(address: str, port: int) -> None:
    """Start programs for every connection, without end."""
    with _Server((address, port), _Agent) as server:
        server.serve_forever()


def run(address: str, port: int, argv: list[str]) -> int:
    """Run `argv` there; returns its exit code, or dies of the signal that it died of."""
    try:
        connection = socket.create_connection((address, port), CONNECT_SECONDS_MAX)
    except OSError as error:
        print(f"no agent at {address}: {error}", file=sys.stderr)
        return 255
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        connection.setsockopt(socket.IPPROTO_TCP, name, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENCE_SECONDS_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS_MAX * 1000)
    frames = Frames(connection)
    code = -signal.SIGKILL
    with contextlib.suppress(EOFError, OSError):
        what = {"argv": argv, "env": dict(os.environ), "ahead_ns": _ahead_ns(frames)}
        frames.send(b"R", json.dumps(what).encode())
        threading.Thread(target=_feed, args=(frames,), daemon=True).start()
        while True:
            kind, payload = frames.receive()
            if kind == b"X":
                (code,) = struct.unpack("<i", payload)
                break
            os.write(1 if kind == b"1" else 2, payload)
    if code < 0:
        os.kill(os.getpid(), -code)
    return int(code)


def _ahead_ns(frames: Frames) -> int:
    """This machine's monotonic clock minus the host's, by the fastest of some round trips."""
    best, ahead = 1 << 62, 0
    for _ in range(CLOCK_QUESTIONS):
        before = time.monotonic_ns()
        frames.send(b"T")
        (theirs,) = struct.unpack("<q", frames.receive()[1])
        after = time.monotonic_ns()
        if after - before < best:
            best, ahead = after - before, (before + after) // 2 - theirs
    return ahead


def _feed(frames: Frames) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, FRAME_BYTES_MAX):
            frames.send(b"I", data)
        frames.send(b"E")


if __name__ == "__main__":
    role, its_address, its_port, *words = sys.argv[1:]
    if role == "serve":
        serve(its_address, int(its_port))
    else:
        sys.exit(run(its_address, int(its_port), words))
