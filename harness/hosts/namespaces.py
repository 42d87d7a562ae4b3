"""Network namespaces for test hosts: one for the server with a bridge in it, one or a tap for each host.

The machine's own network is not touched: addresses and links exist only inside namespaces that this process made, whose
names carry its pid. They go, with all that runs in them, when the block ends or the process does, even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.faults.mounts import require_root, run_command, undertaken
from harness.faults.rules import FaultUnavailable

SERVER_ADDRESS = "10.0.0.1"
POLL_SECONDS = 0.02
END_SECONDS_MAX = 5.0


def host_address(number: int) -> str:
    """The address of the host with this number, from 0."""
    return f"10.0.0.{11 + number}"


class Network:
    """The server's namespace with its bridge; `attach` adds a namespace per host, or a tap for a host of its own."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.server = f"{prefix}s"
        self.namespaces = [self.server]

    def enter(self, namespace: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` there. The mount namespace stays ours (`ip netns exec` would take another)."""
        return ["nsenter", f"--net=/run/netns/{namespace}", "--", *argv]

    def add_namespace(self, number: int) -> str:
        """A host's namespace, linked to the bridge; returns its name."""
        name = f"{self._prefix}h{number}"
        self._ip("netns", "add", name)
        self.namespaces.append(name)
        self._ip("-n", self.server, "link", "add", f"port{number}", "type", "veth", "peer", "eth0", "netns", name)
        self._ip("-n", name, "link", "set", "lo", "up")
        self._ip("-n", name, "addr", "add", f"{host_address(number)}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        self.join(number)
        self._ip("-n", self.server, "link", "set", f"port{number}", "up")
        return name

    def add_bridge(self, name: str, address: str) -> None:
        """One more bridge in the server's namespace, with the server's address on it."""
        self._ip("-n", self.server, "link", "add", name, "type", "bridge")
        self._ip("-n", self.server, "link", "set", name, "up")
        self._ip("-n", self.server, "addr", "add", f"{address}/24", "dev", name)

    def add_tap(self, kind: str, number: int, bridge: str) -> None:
        """A link for a kernel of its own: a tap in the server's namespace, named by its kind and the host's number."""
        name = f"{kind}{number}"
        self._ip("-n", self.server, "tuntap", "add", name, "mode", "tap")
        self._ip("-n", self.server, "link", "set", name, "master", bridge)
        self._ip("-n", self.server, "link", "set", name, "up")

    def join(self, number: int) -> None:
        """The host's port is on the bridge: packets pass."""
        self._ip("-n", self.server, "link", "set", f"port{number}", "master", "bridge")

    def part(self, number: int) -> None:
        """The host's port is on no bridge: packets go nowhere, and neither side gets an error."""
        self._ip("-n", self.server, "link", "set", f"port{number}", "nomaster")

    def pids(self, namespace: str) -> list[int]:
        """Processes in a namespace."""
        done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    def end_all(self, namespace: str) -> None:
        """Kill all processes in a namespace of this network."""
        deadline = time.monotonic() + END_SECONDS_MAX
        while (pids := self.pids(namespace)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _ip(self, *words: str) -> None:
        run_command("a network of test hosts", "ip", *words)


@contextlib.contextmanager
def network(folder: Path, mounts: Sequence[Path] = ()) -> Iterator[Network]:
    """A network with a server's namespace. At the end, however it comes, `mounts` are unmounted, and `folder`, which
    holds them and all that was made for the network, is removed."""
    require_root("a network of test hosts")
    prefix = f"kvt{os.getpid()}"
    for number in range(1000):  # several in one process
        if not Path(f"/run/netns/{prefix}-{number}s").exists():
            prefix = f"{prefix}-{number}"
            break
    net = Network(prefix)
    each = f"for n in $(ls /run/netns | grep '^{prefix}[hs]'); do "
    commands = (
        ["sh", "-c", f"{each} ip netns pids $n | xargs -r kill -9; done"],
        *(["umount", "-l", str(mount)] for mount in mounts),
        ["sh", "-c", f"{each} ip netns del $n; done"],
        ["rm", "-rf", "--one-file-system", str(folder)],
    )
    with undertaken(*commands):
        run_command("a network of test hosts", "ip", "netns", "add", net.server)
        run_command("a network of test hosts", "ip", "-n", net.server, "link", "set", "lo", "up")
        net.add_bridge("bridge", SERVER_ADDRESS)
        yield net


class Daemon:
    """A server process in a namespace, in the foreground, that can be killed and started again with the same words."""

    def __init__(self, what: str, command: Sequence[str], log: Path) -> None:
        self._what, self._command, self._log = what, list(command), log
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._popen = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """End it by SIGKILL; nothing happens when it has ended."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None

    def death(self) -> str:
        """How it ended by itself, in words; "" while it runs, and after `kill`."""
        code = self._popen.poll() if self._popen is not None else None
        if code is None:
            return ""
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"{self._what} ended by itself, {how}"

    def check(self) -> None:
        """Raise `FaultUnavailable` with its last output when it has ended."""
        if self._popen is None or self._popen.poll() is not None:
            words = " ".join(self._log.read_text(errors="replace").splitlines()[-4:])
            raise FaultUnavailable(f"{self._what} did not come up: {words or 'no output'}")
