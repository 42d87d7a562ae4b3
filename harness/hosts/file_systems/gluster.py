"""GlusterFS without its management daemon: one brick, hosts as network namespaces with a FUSE client each.

The client's graph is the one that a volume has by default where it matters for visibility: write-behind and metadata
cache with their stock settings. Only the time after which a silent server is given up is shorter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.faults.rules import FaultUnavailable
from harness.hosts.base import Host, Volume
from harness.hosts.file_systems.fuse import FuseHost
from harness.hosts.namespaces import SERVER_ADDRESS, Daemon, network

PORT = 24007
PING_SECONDS_MAX = 4
"""After this time without an answer of the server, calls fail with ENOTCONN until it answers again (default: 42)."""
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


class GlusterVolume(Volume):
    file_system = "GlusterFS"
    mount_options = f"write-behind, md-cache; ping-timeout {PING_SECONDS_MAX} s"

    def __init__(self, server: Daemon, hosts: Sequence[Host], seen_here: Path) -> None:
        self._server, self.hosts, self.seen_here = server, hosts, seen_here
        self.visible_seconds_max = 1.0
        self.cannot, self.sees_mounts = {}, True

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
            clients: list[FuseHost] = []
            try:
                for number, (host_name, mount) in enumerate([*mounts.items(), ("observer", observer)]):
                    words = ["glusterfs", "-N", "-f", str(folder / "client.vol"), "-l", "-", str(mount)]
                    its_number = number if mount is not observer else None
                    clients.append(FuseHost(host_name, its_number, mount, folder, net, "GlusterFS", words))
                for host in clients:
                    host.mount_volume()
                yield GlusterVolume(server, clients[:hosts], observer)
            finally:
                for namespace in net.namespaces:
                    net.end_all(namespace)
                for daemon in (server, *(host.client for host in clients)):
                    daemon.kill()
