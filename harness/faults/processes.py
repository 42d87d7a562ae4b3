"""Faults of one process: system calls that fail or stop it at the n-th, limits on descriptors and file sizes, a clock
that steps. It starts and ends no worker itself.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from harness.faults.rules import FaultUnavailable


@dataclass(frozen=True)
class Injection:
    """Tamper with the `when`-th call of any of `calls` ("pwrite64,pwritev,pwritev2") that *one thread* makes.

    `when` is strace's: "3", "3+" (from the third on), "3+2" (each second from there), "3..5". Exactly one of: `error`
    (an errno's name) fails the call undone; `returns` reports that value, the call undone; `kill` delivers that signal:
    with SIGKILL the call is never made, with SIGSTOP the process stops (all threads) when it has just been made.
    `delay_seconds` delays it besides or alone.
    """

    calls: str
    when: str = "1"
    error: str = ""
    returns: int | None = None
    kill: str = ""
    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        chosen = bool(self.error) + (self.returns is not None) + bool(self.kill)
        if chosen > 1 or not (chosen or self.delay_seconds):
            raise ValueError(f"{self}: it takes one of error, returns and kill, or a delay alone")
        if self.error and not hasattr(errno, self.error):
            raise ValueError(f"error is {self.error!r}; it takes the name of an errno")
        if self.kill and self.kill not in signal.Signals.__members__:
            raise ValueError(f"kill is {self.kill!r}; it takes the name of a signal")

    @property
    def expression(self) -> str:
        """As strace reads it."""
        parts = [f"inject={self.calls}"]
        parts += [f"error={self.error}"] * bool(self.error)
        parts += [] if self.returns is None else [f"retval={self.returns}"]
        parts += [f"signal={self.kill}"] * bool(self.kill)
        parts += [f"delay_enter={round(self.delay_seconds * 1e6)}"] * bool(self.delay_seconds)
        return ":".join([*parts, f"when={self.when}"])


def strace_program() -> str:
    """The path of strace, if it can trace here."""
    program = shutil.which("strace")
    if program is None:
        raise FaultUnavailable("system-call faults take the program strace, which is not installed")
    done = subprocess.run([program, "-qq", "-e", "trace=none", "true"], capture_output=True, text=True)
    if done.returncode:
        raise FaultUnavailable(f"system-call faults: strace may not trace here: {' '.join(done.stderr.split())}")
    return program


def strace_inject(argv: Sequence[str], *injections: Injection | str, log: str | Path = os.devnull) -> list[str]:
    """The command that runs `argv` with these injections (strings: `inject=...` as strace writes it) in all its threads
    and children. Tampered calls are written to `log`. Raises `FaultUnavailable`.

    The process started is `argv` itself, with its own pid, signals, standard streams and exit code; strace looks on
    from a grandchild. Every system call costs some 100 us more. (strace's --seccomp-bpf would not, but then drops
    injected signals.) Two injections must not name the same call: strace keeps the last.
    """
    assert injections, "strace_inject without an injection"
    command = [strace_program(), "-D", "-f", "-qq", "-o", os.fspath(log)]
    expressions = [i if isinstance(i, str) else i.expression for i in injections]
    calls = ",".join(e.removeprefix("inject=").split(":")[0] for e in expressions)
    command += ["-e", f"trace={calls}"]
    for expression in expressions:
        command += ["-e", expression]
    return [*command, "--", *argv]


class PublishStep(NamedTuple):
    """A step in which a block becomes visible, and what must be true if the process ends just before it."""

    calls: str
    guarantee: str


PUBLISH_STEPS: dict[str, PublishStep] = {
    "create": PublishStep("open,openat,openat2", "no trace of the block"),
    "write": PublishStep("pwrite64,pwritev,pwritev2", "no name for the block; at most a temp file, empty"),
    "plain_write": PublishStep("write,writev", "no name for the block; at most a temp file, empty"),
    "sync": PublishStep("fsync,fdatasync,sync_file_range", "no name for the block"),
    "link": PublishStep("link,linkat", "no name for the block; from O_TMPFILE no temp file either"),
    "rename": PublishStep("rename,renameat,renameat2", "no name for the block; a full temp file that nobody mistakes"),
    "unlink": PublishStep("unlink,unlinkat", "the block whole; perhaps a temp file beside it"),
    "directory": PublishStep("mkdir,mkdirat", "no trace of the block; the next store makes the folder"),
}
"""Where to stop a writer: `Injection(PUBLISH_STEPS["link"].calls, when="3", kill="SIGKILL")` ends it before its third
link. Counted by thread: with n writer threads the n-th block of *one* of them, so use one thread for an exact block.
An interpreter makes calls of "create" and "plain_write" for itself too (imports, pipes, logs), and io_uring makes none
of all: there, and to stop at an exact file, use a `Rule` with "hang" on a path, and a signal."""


@contextlib.contextmanager
def _soft_limit(what: int, limit: int, pid: int) -> Iterator[None]:
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


@contextlib.contextmanager
def fd_limit(spare: int, pid: int = 0) -> Iterator[None]:
    """Let a running process (0: this one) open only `spare` more descriptors than it has, for the block: EMFILE."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid or 'self'}/fd")}
    if pid in (0, os.getpid()):
        taken -= {fd for fd in taken if not os.path.exists(f"/proc/self/fd/{fd}")}  # the listing's own
    limit = 0
    while spare or limit in taken:
        spare -= limit not in taken
        limit += 1
    with _soft_limit(resource.RLIMIT_NOFILE, limit, pid):
        yield


@contextlib.contextmanager
def file_size_limit(size_bytes: int, pid: int = 0) -> Iterator[None]:
    """Let a running process (0: this one) write no file beyond `size_bytes`, for the block: a write across the limit
    is short, one beyond it fails with EFBIG. The process must ignore SIGXFSZ, as every Python does, or it dies of it.
    """
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    if not ignored >> (signal.SIGXFSZ - 1) & 1:
        raise FaultUnavailable(f"process {pid} does not ignore SIGXFSZ and would die of a file size limit")
    with _soft_limit(resource.RLIMIT_FSIZE, size_bytes, pid):
        yield


class SteppedClock:
    """A wall clock that can be stepped under running processes: those started with `environment`.

    CLOCK_REALTIME alone is moved; monotonic clocks and the files' times stay the kernel's. A context manager; raises
    `FaultUnavailable` where libfaketime is missing.
    """

    def __enter__(self) -> Self:
        places = ("/usr/lib/*/faketime", "/usr/lib*/faketime", "/usr/local/lib/faketime")
        found = [path for place in places for path in sorted(glob.glob(f"{place}/libfaketimeMT.so.1"))]
        if not found:
            raise FaultUnavailable("a stepped clock takes libfaketime (package libfaketime), which is not installed")
        self._folder = tempfile.TemporaryDirectory(prefix="stepped-clock-")
        self._file = Path(self._folder.name, "offset")
        self.environment = {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # its name before libfaketime 0.9.10
            "NO_FAKE_STAT": "1",
        }
        self.step(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def step(self, seconds: int) -> None:
        """The clock is from now on this many seconds ahead of the kernel's (negative: behind; 0: right, the lift)."""
        fresh = self._file.with_name("next")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.rename(self._file)
