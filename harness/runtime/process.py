"""A child process that exchanges JSON lines with its parent: one value a line on stdin and on stdout.

The child is a module of the harness in an interpreter of its own, started with `-P` and an explicit PYTHONPATH, in a
session and process group of its own: a Ctrl-C in the terminal reaches the parent alone. Its stderr goes to a file. It
is ended by its pid, and `harness.core` is all that this module imports, so that the child may need no other package.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, ClassVar, TextIO

from harness.core.installation import ROOT, module_command

LAST_OUTPUT_LINES = 32
READER_SECONDS_MAX = 5.0
"""A grandchild that inherited the child's stdout may keep it open for longer."""
_END = object()


class ChildEnded(Exception):
    """The child closed its stdout: it ended, or it will send nothing more."""


class JsonProcess:
    """One child. `send` and `receive` may be called from different threads, each from one at a time.

    `python` runs `module` with `arguments`. `path` is its PYTHONPATH, by default the folder that holds the harness.
    `environment` is laid over this process's; a value of None removes the name. `stderr` is appended to; without it
    stderr goes to an unnamed file. With `on_message`, each message goes there on a thread of its own, then one call
    with `ended` true; without it, `receive` returns them.

    Raises `OSError` where the operating system refuses the process or the thread.
    """

    is_here: ClassVar[bool] = True
    ended_outside: ClassVar[str] = ""

    def __init__(
        self,
        python: str,
        module: str,
        *arguments: str,
        path: str = str(ROOT),
        environment: Mapping[str, str | None] | None = None,
        stderr: Path | None = None,
        on_message: Callable[[Any, bool], None] | None = None,
    ) -> None:
        given = {**os.environ, "PYTHONPATH": path, **(environment or {})}
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._on_message = on_message or (lambda message, ended: self._messages.put(_END if ended else message))
        self._stderr_path, self._last_output = stderr, b""
        self._unnamed: IO[bytes] | None = None
        with ExitStack() as files:
            sink: IO[bytes] = files.enter_context(open(stderr, "ab") if stderr else tempfile.TemporaryFile())
            self._popen = subprocess.Popen(
                [*module_command(python, module), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env={name: value for name, value in given.items() if value is not None},
                start_new_session=True,
            )
            self._reader = threading.Thread(target=self._read, name=f"reader-{self.pid}", daemon=True)
            try:
                self._reader.start()
            except RuntimeError as error:  # no more threads
                self._popen.kill()
                self._popen.communicate()
                raise OSError(errno.EAGAIN, str(error)) from error
            if stderr is None:
                self._unnamed = sink
                files.pop_all()  # `reap` closes it

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # the torn last line of a killed child
                    self._on_message(json.loads(line), False)
        self._on_message(None, True)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None until it is reaped; negative: the signal that ended it."""
        return self._popen.returncode

    def send(self, message: Any) -> bool:
        """Write one message; False where the child reads no more."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            self._popen.stdin.flush()
        except (OSError, ValueError):  # the pipe is broken, or `close_stdin` closed it
            return False
        return True

    def receive(self, seconds: float | None = None) -> Any:
        """The next message. Raises `TimeoutError` after `seconds`, and `ChildEnded` where none will come."""
        try:
            message = self._messages.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no message within {seconds:g} s") from None
        if message is _END:
            self._messages.put(_END)
            raise ChildEnded
        return message

    def request(self, message: Any, seconds: float | None = None) -> Any:
        """Send a message and return the next one received; raises as `receive`."""
        if not self.send(message):
            raise ChildEnded
        return self.receive(seconds)

    def signal(self, number: int) -> None:
        """Send a signal, if the child still runs."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        self._popen.kill()

    def last_output(self, lines: int = LAST_OUTPUT_LINES) -> str:
        """The last lines of its stderr."""
        if self._stderr_path:
            return last_lines(self._stderr_path, lines)
        text = self._last_output
        if self._unnamed:
            text = os.pread(self._unnamed.fileno(), os.fstat(self._unnamed.fileno()).st_size, 0)
        return _last_lines(text, lines)

    def wait(self, seconds: float) -> None:
        """Wait until it ends; raises `TimeoutError`."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} still runs after {seconds:g} s") from None

    def close_stdin(self) -> None:
        """Tell the child that no message follows."""
        assert self._popen.stdin is not None
        with suppress(OSError):
            self._popen.stdin.close()

    def reap(self) -> int:
        """Wait for a child that ends by itself or was killed, and release its pipes; its exit code."""
        self.close_stdin()
        code = self._popen.wait()
        self._reader.join(READER_SECONDS_MAX)
        if self._unnamed:
            self._last_output = self.last_output().encode()
            self._unnamed.close()
            self._unnamed = None
        return code

    def end(self, seconds: float) -> int:
        """Close stdin, wait for `seconds`, then kill; the exit code."""
        self.close_stdin()
        try:
            self.wait(seconds)
        except TimeoutError:
            self.kill()
        return self.reap()


def last_lines(path: Path, lines: int = LAST_OUTPUT_LINES) -> str:
    """The last lines of a file; "" where there is none."""
    return _last_lines(path.read_bytes() if path.is_file() else b"", lines)


def _last_lines(text: bytes, lines: int) -> str:
    return "\n".join(text.decode(errors="replace").splitlines()[-lines:])


def claim_stdout() -> TextIO:
    """In the child: its stdout to the parent, flushed after each line. What anything else prints goes to stderr."""
    sink = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return sink


def serve(answer: Callable[[Any], Any], sink: TextIO) -> None:
    """In the child: answer each message until stdin ends."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line)), default=float), file=sink)
