"""GlusterFS without its management daemon: one brick, hosts as network namespaces with a FUSE client each.

The client's graph is the one that a volume has by default where it matters for visibility: write-behind and metadata
cache with their stock settings. Only the time after which a silent server is given up is shorter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.faults.mounts import is_mounted
from harness.faults.rules import FaultUnavailable
from harness.hosts.base import Host, Volume
from harness.hosts.network import POLL_SECONDS, SERVER_ADDRESS, Daemon, Network, network

PORT = 24007
PING_SECONDS_MAX = 4
"""A server that is silent for so long is given up: calls fail with ENOTCONN until it is heard again (stock: 42)."""
READY_SECONDS_MAX = 30.0

_SERVER = """
volume posix
  type storage/posix
  option directory {brick}
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume brick
  type performance/io-threads
  subvolumes locks
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.bind-address {address}
  option transport.socket.listen-port {port}
  option auth.addr.brick.allow *
  subvolumes brick
end-volume
"""
_CLIENT = """
volume client
  type protocol/client
  option transport-type tcp
  option remote-host {address}
  option remote-port {port}
  option remote-subvolume brick
  option ping-timeout {ping}
end-volume
volume write-behind
  type performance/write-behind
  subvolumes client
end-volume
volume md-cache
  type performance/md-cache
  subvolumes write-behind
end-volume
"""


class GlusterHost(Host):
    """A network namespace and a mount; its kernel is the machine's, so losing power is the end of all that runs there,
    the client with its caches included."""

    def __init__(self, name: str, number: int | None, mount: Path, folder: Path, net: Network) -> None:
        super().__init__(name, mount, folder)
        self._number, self._net = number, net
        self._namespace = net.server if number is None else net.add_namespace(number)
        mount.mkdir()
        self.client = Daemon(
            f"the GlusterFS client of {self.name}",
            self.command(["glusterfs", "-N", "-f", str(folder / "client.vol"), "-l", "-", str(mount)]),
            folder / f"{self.name}.log",
        )

    def command(self, argv: Sequence[str]) -> list[str]:
        return self._net.enter(self._namespace, argv)

    def cut(self) -> None:
        assert self._number is not None, "the server's own client cannot be cut off"
        self._net.part(self._number)

    def heal(self) -> None:
        assert self._number is not None, "the server's own client cannot be cut off"
        self._net.join(self._number)

    def lose_power(self) -> None:
        self.cut()  # first, so that no dying connection tells the server
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


class GlusterVolume(Volume):
    file_system = "GlusterFS"
    mount_options = f"write-behind, md-cache; ping-timeout {PING_SECONDS_MAX} s"

    def __init__(self, server: Daemon, hosts: Sequence[Host], seen_here: Path) -> None:
        self._server, self.hosts, self.seen_here = server, hosts, seen_here
        self.visible_seconds_max = 1.0
        self.cannot = {}

    def server_death(self) -> str:
        return self._server.death()

    def restart_server(self, down_seconds: float) -> None:
        self._server.kill()
        time.sleep(down_seconds)
        self._server.start()


@contextlib.contextmanager
def gluster_hosts(hosts: int = 2) -> Iterator[GlusterVolume]:
    """A volume and its hosts. Raises `FaultUnavailable` without root, FUSE or the programs."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise FaultUnavailable("GlusterFS takes /dev/fuse, which is not here or not ours to open")
    for program, package in (("glusterfsd", "glusterfs-server"), ("glusterfs", "glusterfs-client")):
        if shutil.which(program) is None:
            raise FaultUnavailable(f"GlusterFS takes the program {program} (package {package}), which is not installed")
    with tempfile.TemporaryDirectory(prefix="gluster-hosts-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (brick := folder / "brick").mkdir()
        mounts = {f"host{n}": folder / f"host{n}" for n in range(hosts)}
        observer = folder / "seen-here"
        values = {"brick": brick, "address": SERVER_ADDRESS, "port": PORT, "ping": PING_SECONDS_MAX}
        (folder / "server.vol").write_text(_SERVER.format(**values))
        (folder / "client.vol").write_text(_CLIENT.format(**values))
        with network(folder, [*mounts.values(), observer]) as net:
            command = ["glusterfsd", "-N", "-f", str(folder / "server.vol"), "-l", "-"]
            server = Daemon("the GlusterFS server", net.enter(net.server, command), folder / "server.log")
            server.start()
            clients: list[GlusterHost] = []
            try:
                clients += [GlusterHost(name, n, mount, folder, net) for n, (name, mount) in enumerate(mounts.items())]
                clients.append(GlusterHost("observer", None, observer, folder, net))
                for host in clients:
                    host.mount_volume()
                yield GlusterVolume(server, clients[:hosts], observer)
            finally:
                for namespace in net.namespaces:
                    net.end_all(namespace)
                for daemon in (server, *(host.client for host in clients)):
                    daemon.kill()
