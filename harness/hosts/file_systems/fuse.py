"""A host that is a network namespace with a FUSE client in it; GlusterFS and MooseFS bring their own clients.

Its kernel is the machine's, so losing power is the end of all that runs there, the client with its caches included.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from harness.faults.mounts import is_mounted
from harness.faults.rules import FaultUnavailable
from harness.hosts.base import Host
from harness.hosts.namespaces import POLL_SECONDS, Daemon, Network

READY_SECONDS_MAX = 30.0


class FuseHost(Host):
    """A namespace and a mount. `number` None: in the server's namespace, for an observer that is never cut off.
    `client`: the words that mount the volume at `mount` and stay in the foreground."""

    def __init__(
        self, name: str, number: int | None, mount: Path, folder: Path, net: Network, what: str, client: Sequence[str]
    ) -> None:
        super().__init__(name, mount, folder)
        self._number, self._net = number, net
        self._namespace = net.server if number is None else net.add_namespace(number)
        mount.mkdir()
        self.client = Daemon(f"the {what} client of {name}", self.command(client), folder / f"{name}.log")

    def command(self, argv: Sequence[str]) -> list[str]:
        return self._net.enter(self._namespace, argv)

    def cut(self) -> None:
        assert self._number is not None, "the server's own client cannot be cut off"
        self._net.part(self._number)

    def heal(self) -> None:
        assert self._number is not None, "the server's own client cannot be cut off"
        self._net.join(self._number)

    def lose_power(self) -> None:
        self.cut()  # first, so that no closing connection informs the server
        self._net.end_all(self._namespace)
        self.client.kill()
        subprocess.run(["umount", "-l", str(self.mount)], check=True)

    def power_on(self) -> None:
        self.heal()
        self.mount_volume()

    def mount_volume(self) -> None:
        """Start the client and wait until its mount answers."""
        self.client.start()
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            self.client.check()
            if is_mounted(self.mount):
                with contextlib.suppress(OSError):  # ENOTCONN while it looks for the server
                    os.statvfs(self.mount)
                    return
            if time.monotonic() > deadline:
                raise FaultUnavailable(f"the volume did not answer on {self.name} in {READY_SECONDS_MAX:g} s")
            time.sleep(POLL_SECONDS)
