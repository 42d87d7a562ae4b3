"""MooseFS: a master and one chunk server, hosts as network namespaces with a FUSE client each, all settings stock."""

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
from harness.hosts.file_systems.fuse import READY_SECONDS_MAX, FuseHost
from harness.hosts.namespaces import POLL_SECONDS, SERVER_ADDRESS, Daemon, network

_NEW = "MFSM NEW"
"""Metadata of a volume that holds nothing."""
_MASTER = """WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {folder}/master
EXPORTS_FILENAME = {folder}/exports.cfg
TOPOLOGY_FILENAME = {folder}/topology.cfg
MATOML_LISTEN_HOST = {address}
MATOCS_LISTEN_HOST = {address}
MATOCL_LISTEN_HOST = {address}
"""
_CHUNKS = """WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {folder}/chunkserver
HDD_CONF_FILENAME = {folder}/disks.cfg
MASTER_HOST = {address}
BIND_HOST = {address}
CSSERV_LISTEN_HOST = {address}
HDD_LEAVE_SPACE_DEFAULT = 1GiB
"""


class MooseVolume(Volume):
    file_system = "MooseFS"
    mount_options = "stock"

    def __init__(self, servers: Sequence[Daemon], hosts: Sequence[Host], seen_here: Path) -> None:
        self._servers, self.hosts, self.seen_here = servers, hosts, seen_here
        self.visible_seconds_max = 1.0
        self.cannot = {
            "outage": "an unlock (flock) that is under way when a host is cut off for 12 s may not return, also "
            "without any tier: at least 3 of 32 threads that only wrote, locked and unlocked files hung in it"
        }
        self.sees_mounts = True

    def server_death(self) -> str:
        return "; ".join(filter(None, (server.death() for server in self._servers)))

    def restart_server(self, down_seconds: float) -> None:
        for server in self._servers:
            server.kill()
        time.sleep(down_seconds)
        for server in self._servers:
            server.start()


@contextlib.contextmanager
def moosefs_hosts(hosts: int = 2) -> Iterator[MooseVolume]:
    """A volume and its hosts. Raises `FaultUnavailable` without root, FUSE or the programs."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise FaultUnavailable("MooseFS takes /dev/fuse, which is not here or not ours to open")
    for program, package in (("mfsmaster", "master"), ("mfschunkserver", "chunkserver"), ("mfsmount", "client")):
        if shutil.which(program) is None:
            raise FaultUnavailable(f"MooseFS takes the program {program} (moosefs-{package}), which is not installed")
    with tempfile.TemporaryDirectory(prefix="moosefs-hosts-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("master", "chunkserver", "disk"):
            (folder / part).mkdir()
        (folder / "master" / "metadata.mfs").write_text(_NEW)
        (folder / "exports.cfg").write_text("* / rw,alldirs,maproot=0:0\n")
        (folder / "topology.cfg").write_text("")
        (folder / "disks.cfg").write_text(f"{folder / 'disk'}\n")
        (folder / "master.cfg").write_text(_MASTER.format(folder=folder, address=SERVER_ADDRESS))
        (folder / "chunkserver.cfg").write_text(_CHUNKS.format(folder=folder, address=SERVER_ADDRESS))
        mounts = {f"host{n}": folder / f"host{n}" for n in range(hosts)}
        observer = folder / "seen-here"
        with network(folder, [*mounts.values(), observer]) as net:
            servers = []
            for part, words in (("master", ["-a"]), ("chunkserver", [])):
                command = [f"mfs{part}", "-f", *words, "-c", str(folder / f"{part}.cfg"), "start"]
                log = folder / f"{part}.log"
                servers.append(Daemon(f"the MooseFS {part}", net.enter(net.server, command), log))
                servers[-1].start()
            clients: list[FuseHost] = []
            try:
                for number, (host, mount) in enumerate([*mounts.items(), ("observer", observer)]):
                    words = ["mfsmount", "-f", "-H", SERVER_ADDRESS, "-o", "mfsnice=0,mfsdelayedinit", str(mount)]
                    its_number = number if mount is not observer else None
                    clients.append(FuseHost(host, its_number, mount, folder, net, "MooseFS", words))
                for client in clients:
                    client.mount_volume()
                    _await_room(client.mount)
                yield MooseVolume(servers, clients[:hosts], observer)
            finally:
                for namespace in net.namespaces:
                    net.end_all(namespace)
                for daemon in (*servers, *(client.client for client in clients)):
                    daemon.kill()


def _await_room(mount: Path) -> None:
    """Until the master knows of its chunk server: before, the volume has no room."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not os.statvfs(mount).f_bavail:
        if time.monotonic() > deadline:
            raise FaultUnavailable(f"the MooseFS volume had no room after {READY_SECONDS_MAX:g} s")
        time.sleep(POLL_SECONDS)
