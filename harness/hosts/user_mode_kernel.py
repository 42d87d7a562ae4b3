"""A separate Linux kernel (user-mode-linux) for a test host. It boots, runs programs, and is killed as by a power loss.

It sees this machine's files read-only, so it runs the same interpreter and the same checkout. Hosts and scenarios make
one on a network that they started. It has one CPU and slow system calls: it serves correctness, not speed. It never
stops its processes in order.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.faults.rules import FaultUnavailable
from harness.hosts import remote
from harness.hosts.base import write_program
from harness.hosts.namespaces import END_SECONDS_MAX, POLL_SECONDS, Network

MEMORY = "512M"
AGENT_PORT = 7000
CONTROL_ADDRESS = "10.0.1.1"
READY_SECONDS_MAX = 180.0
"""A kernel boots in 5 s, and on a crowded machine in a minute."""
_REPOSITORY = Path(__file__).resolve().parents[2]

# The first process of a kernel. What it may write of the machine's files is one folder, at once and without a cache: a
# host that loses its power has sent what it had done.
_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run; mount -t tmpfs tmp /mnt
mkdir -p {writable} 2>/dev/null  # below a tmpfs of ours it does not exist yet
mount -t hostfs -o sync,{writable} none {writable}
hostname {name}
ip link set lo up
ip addr add {control}/24 dev vec0; ip link set vec0 up
{preparations}
PYTHONPATH={repository} exec {python} -m harness.hosts.remote serve {control} {port}
"""


def require_kernels(what: str) -> None:
    """Raise `FaultUnavailable` where there are none."""
    if shutil.which("linux.uml") is None:
        raise FaultUnavailable(f"{what} takes the program linux.uml (package user-mode-linux), which is not installed")


def add_control(net: Network, numbers: Sequence[int]) -> None:
    """The links between kernels with these numbers and this machine, which are never cut."""
    net.add_bridge("control", CONTROL_ADDRESS)
    for number in numbers:
        net.add_tap("control", number, "control")


class Kernel:
    """One kernel, off at first; `number` identifies its control link on the shared network.

    `folder` is for its files; `writable` is the one folder of this machine that its processes may write to. The lines
    of shell `preparations` run in it before programs are, and `devices` are words of its command line; its network
    devices from vec1 on are free.
    """

    def __init__(
        self, number: int, folder: Path, net: Network, writable: Path, preparations: str, devices: Sequence[str]
    ) -> None:
        self.name = f"host{number}"
        self._folder, self._net, self._log = folder, net, folder / f"{self.name}.log"
        self._address = f"10.0.1.{11 + number}"
        init = folder / f"init-{self.name}"
        values = {
            "control": self._address,
            "name": self.name,
            "port": AGENT_PORT,
            "preparations": preparations,
            "python": shlex.quote(sys.executable),
            "repository": _REPOSITORY,
            "writable": writable,
        }
        init.write_text(_INIT.format(**values))
        init.chmod(0o755)
        words = ["linux.uml", f"mem={MEMORY}", f"uml_dir={folder / 'uml'}", "rootfstype=hostfs", "rootflags=/", "ro"]
        words += ["con=null", "con0=fd:0,fd:1", "quiet", "loglevel=3", *devices]
        words += [f"vec0:transport=tap,ifname=control{number},depth=128,gro=1", f"init={init}"]
        self._words = words
        self._popen: subprocess.Popen[bytes] | None = None

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that, run here, runs `argv` there; see `Host.command`."""
        # By its path: PYTHONPATH is the program's own, and goes to the kernel with the rest of the environment.
        relay = [sys.executable, remote.__file__, "run", self._address, str(AGENT_PORT)]
        return self._net.enter(self._net.server, [*relay, *argv])

    def python(self, interpreter: str = sys.executable) -> str:
        """A program that behaves as `interpreter` does, but runs there."""
        return write_program(self._folder / f"python-{self.name}", self.command([interpreter]))

    def boot(self) -> None:
        """Returns before it is ready; several may boot at once."""
        with open(self._log, "ab") as log:
            self._popen = subprocess.Popen(
                self._net.enter(self._net.server, self._words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        """Until programs can be run; its preparations are done by then. Raises `FaultUnavailable`."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            assert self._popen is not None
            if self._popen.poll() is not None:
                break
            done = subprocess.run(self.command(["true"]), capture_output=True)
            if done.returncode == 0:
                return
            time.sleep(0.1)
        words = " ".join(self._log.read_text(errors="replace").splitlines()[-6:])
        raise FaultUnavailable(f"{self.name} did not come up: {words or 'no output'}")

    def kill(self) -> None:
        """SIGKILL to all of its processes at once; on return none is left. Nothing happens when it is off."""
        if self._popen is None:
            return
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        deadline = time.monotonic() + END_SECONDS_MAX
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:  # one that writes to its disk may end a little later
                os.killpg(self._popen.pid, 0)
                time.sleep(POLL_SECONDS)
        self._popen = None
