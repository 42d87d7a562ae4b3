"""System-call faults, and a log of system calls, in a running process: strace attaches and detaches.

Counting begins when strace has attached, so that a program's start-up does not count.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from typing import Self

from harness.faults.processes import Injection, strace_program
from harness.faults.rules import FaultUnavailable

ATTACH_SECONDS_MAX = 20.0


class Attached:
    """strace on a running process and all its threads, until `detach`; a context manager.

    With `injections` it tampers with their calls (see `Injection`), else it writes the `calls` named to `log`, with all
    strings whole. The process runs on when strace has detached. Raises `FaultUnavailable` where strace may not attach;
    `ProcessLookupError` when the process has ended.
    """

    def __init__(
        self, pid: int, *injections: Injection, calls: str = "", log: str | Path = os.devnull, string_bytes: int = 512
    ) -> None:
        calls = ",".join([*(i.calls for i in injections), *([calls] if calls else [])])
        command = [strace_program(), "-f", "-s", str(string_bytes), "-o", os.fspath(log), "-e", f"trace={calls}"]
        for injection in injections:
            command += ["-e", injection.expression]
        self._strace = subprocess.Popen(
            [*command, "-p", str(pid)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        output = self._read_until_attached()
        if "attached" not in output:
            self.detach()
            if not os.path.exists(f"/proc/{pid}"):
                raise ProcessLookupError(pid)
            raise FaultUnavailable(f"system-call faults: strace may not attach here: {' '.join(output.split())}")

    def _read_until_attached(self) -> str:
        """The output of strace until it has attached or ended."""
        assert self._strace.stderr is not None
        output, deadline = b"", time.monotonic() + ATTACH_SECONDS_MAX
        while b"attached" not in output and (left := deadline - time.monotonic()) > 0:
            if not select.select([self._strace.stderr], [], [], left)[0]:
                break
            if not (more := os.read(self._strace.stderr.fileno(), 4096)):
                break
            output += more
        return output.decode(errors="replace")

    def detach(self) -> None:
        """The process runs on by itself; harmless when it has ended."""
        self._strace.terminate()
        assert self._strace.stderr is not None
        self._strace.stderr.close()
        self._strace.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
