"""File systems with faults: the fault file system, small disks that fill up, mounts that turn read-only.

Scenarios and tests use them as context managers. Each mount is unmounted when the block or the process ends, even by
SIGKILL: a shell waits for the end of a pipe and cleans up. No other mount is touched, except the argument of
`read_only`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from harness.faults.rules import FaultUnavailable, Rule
from harness.runtime.process import ChildEnded, JsonProcess

READY_SECONDS_MAX = 20.0
"""From start to the first answer of the fault file system's process."""
BUSY_SECONDS_MAX = 5.0
"""How long `read_only` tries to find a moment in which no file is open for writing."""
POLL_SECONDS = 0.005


def is_mounted(path: str | Path) -> bool:
    """Whether a file system is mounted exactly there, by the kernel's list. Sends the file system no request."""
    wanted = os.fspath(path)
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return any(line.split()[1].encode().decode("unicode_escape") == wanted for line in lines)


@contextlib.contextmanager
def undertaken(*commands: Sequence[str]) -> Iterator[None]:
    """Run `commands` in order when the block ends or this process dies in any way; their failures are ignored."""
    script = "; ".join(shlex.join(command) + " 2>/dev/null" for command in commands)
    cleaner = subprocess.Popen(
        ["/bin/sh", "-c", f"trap '' INT TERM HUP; while read -r _; do :; done; {script}"],
        stdin=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"},
        start_new_session=True,
    )
    try:
        yield
    finally:
        cleaner.communicate()


def require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise FaultUnavailable(f"{what} takes root, and this process runs as user {os.geteuid()}")


def run_command(what: str, *command: str) -> None:
    """Run a command of the system; its failure means that this machine cannot inject the fault."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise FaultUnavailable(f"{what} takes the program {command[0]}, which is not installed") from None
    if done.returncode:
        output = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise FaultUnavailable(f"{what}: {command[0]} failed: {output}")


class FaultFs:
    """`backing` seen through `mount`, where the injected rules change requests (see `Rule`).

    A context manager; any thread may call its methods. Without rules it passes everything on. With `cached` the page
    cache is used (see `fuse_server` for this and for what differs from a disk). Raises `FaultUnavailable`.
    """

    def __init__(self, backing: str | Path, *, cached: bool = False) -> None:
        self.backing = Path(backing).resolve(strict=True)
        self._cached = cached
        self._lock = threading.Lock()
        self._daemon: JsonProcess | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.check_available()
        self.mount = Path(tempfile.mkdtemp(prefix="faultfs-"))
        with self._stack:
            self._stack.enter_context(undertaken(self._unmount_command, ["rmdir", str(self.mount)]))
            self._stack.callback(self._end)
            self._begin()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def check_available() -> None:
        """Raise `FaultUnavailable` where it cannot work, before anything is started."""
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise FaultUnavailable("the fault file system takes /dev/fuse, which is not here or not ours to open")
        if importlib.util.find_spec("mfusepy") is None:
            raise FaultUnavailable(
                "the fault file system takes the Python package mfusepy, which is missing: pip install 'kvtier[faults]'"
            )
        if shutil.which("fusermount3") is None:
            raise FaultUnavailable("the fault file system takes libfuse 3 and fusermount3 (package fuse3)")

    @property
    def _unmount_command(self) -> list[str]:
        return ["umount", "-l", str(self.mount)] if os.geteuid() == 0 else ["fusermount3", "-uz", str(self.mount)]

    def _begin(self) -> None:
        arguments = [str(self.backing), str(self.mount), *["--cached"] * self._cached]
        self._daemon = JsonProcess(sys.executable, "harness.faults.fuse_server", *arguments)
        try:
            self._daemon.receive(READY_SECONDS_MAX)
        except TimeoutError:
            self._daemon.kill()
            self._end()
            raise FaultUnavailable(f"the fault file system did not start within {READY_SECONDS_MAX:g} s") from None
        except ChildEnded:
            lines = self._end().strip().splitlines()
            raise FaultUnavailable(
                f"the fault file system did not start: {lines[-1] if lines else 'its process gave no reason'}"
            ) from None

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        assert self._daemon is not None, "the fault file system is not running"
        return self._daemon.pid

    def _end(self) -> str:
        """End the process, if there is one: held requests fail. Returns its last output."""
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return ""
        daemon.end(READY_SECONDS_MAX)
        return daemon.last_output()

    def _request(self, command: dict[str, Any]) -> Any:
        with self._lock:
            assert self._daemon is not None, "the fault file system is not running"
            return self._daemon.request(command)

    def inject(self, *rules: Rule) -> None:
        """Add these rules, from the next request on; each counts from zero."""
        self._request({"inject": [rule.to_json() for rule in rules]})

    def lift(self) -> dict[str, Any]:
        """Remove all rules, release every held request, mount again after `disconnect`. Returns the last `counts`."""
        if self._daemon is None:
            subprocess.run(self._unmount_command, check=True)
            self._begin()
        counts: dict[str, Any] = self._request({"lift": True})
        return counts

    def counts(self) -> dict[str, Any]:
        """{"requests": {operation: n}, "rules": [{"rule", "hits", "acts"}] in force, "held": requests held back now}.

        "hits" are requests that matched, "acts" those on which the rule acted.
        """
        counts: dict[str, Any] = self._request({})
        return counts

    def await_counts(self, satisfied: Callable[[dict[str, Any]], bool], seconds: float = 30.0) -> dict[str, Any]:
        """The first counts that satisfy (`lambda c: c["held"] == 2`); TimeoutError with the last after `seconds`."""
        deadline = time.monotonic() + seconds
        while not satisfied(counts := self.counts()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds:g} s the counts are {counts}")
            time.sleep(POLL_SECONDS)
        return counts

    def disconnect(self) -> None:
        """Kill the process that serves the mount: every request, also one under way, fails (ENOTCONN) until `lift`.

        Descriptors opened before stay dead after it.
        """
        assert self._daemon is not None, "the fault file system is not running"
        self._daemon.kill()
        self._end()


class SmallDisk:
    """A file system of its own; `mount` is its root. Made by `small_disk`."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self._ballast = mount / ".ballast"

    def fill(self) -> int:
        """Take what space is left, so that the next write to a new page fails with ENOSPC. Returns bytes taken."""
        taken, piece = 0, 1 << 30
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while piece >= 4096:
                try:
                    os.posix_fallocate(descriptor, taken, piece)
                    taken += piece
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2
        finally:
            os.close(descriptor)
        return taken

    def free(self) -> None:
        """Give back what `fill` took: the fault is lifted."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(size_bytes: int, kind: Literal["tmpfs", "ext4", "xfs"] = "tmpfs") -> Iterator[SmallDisk]:
    """A disk with room for about `size_bytes` (ext4 keeps some for itself, 4 MiB at least), gone after the block.

    ext4 and XFS (300 MiB at least) lie in a sparse file behind a loop device, and behave as disks do; tmpfs takes
    O_DIRECT only since Linux 6.6.
    Raises `FaultUnavailable`.
    """
    require_root(f"a small {kind}")
    if kind != "tmpfs" and not os.path.exists("/dev/loop-control"):
        raise FaultUnavailable(f"a small {kind} takes loop devices, and there is no /dev/loop-control here")
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    mount, image = folder / "mount", folder / "image"
    mount.mkdir()
    commands = (["umount", "-l", str(mount)], ["rm", "-f", str(image)], ["rmdir", str(mount), str(folder)])
    with undertaken(*commands):
        if kind == "tmpfs":
            run_command(
                "a small tmpfs", "mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "small-disk", str(mount)
            )
        else:
            with open(image, "wb") as file:
                file.truncate(size_bytes)
            options = {"ext4": ["-F", "-m", "0"], "xfs": []}[kind]
            run_command(f"a small {kind}", f"mkfs.{kind}", "-q", *options, str(image))
            run_command(f"a small {kind}", "mount", "-o", "loop", str(image), str(mount))
        yield SmallDisk(mount)


@contextlib.contextmanager
def read_only(mount: str | Path) -> Iterator[None]:
    """Remount a file system read-only for the block: writes fail with EROFS, reads go on.

    The kernel refuses while any file is open for writing, so this tries for a while; under traffic that leaves no such
    moment it raises `FaultUnavailable` (a `Rule` with EROFS has no such limit).
    """
    require_root("remounting read-only")
    deadline = time.monotonic() + BUSY_SECONDS_MAX
    while True:
        try:
            run_command("remounting read-only", "mount", "-o", "remount,ro", str(mount))
            break
        except FaultUnavailable as error:
            if "busy" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        run_command("remounting writable", "mount", "-o", "remount,rw", str(mount))
