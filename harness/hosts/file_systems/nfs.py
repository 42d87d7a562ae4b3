"""Real NFSv4.2: an nfs-ganesha server, and hosts that are Linux kernels of their own (user-mode-linux) with the
kernel's NFS client; see `harness.hosts.user_mode_kernel`.
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
from harness.hosts.namespaces import SERVER_ADDRESS, Daemon, Network, host_address, network
from harness.hosts.user_mode_kernel import Kernel, add_control, require_kernels

MOUNT = Path("/mnt/volume")
MODULES = Path("/usr/lib/uml/modules")
LEASE_SECONDS = 60
"""How long a silent client keeps its locks."""

_GANESHA = """
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = 2049; Bind_addr = {address};
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}
NFSv4 {{ Minor_Versions = 1, 2; Graceless = true; Grace_Period = 0; Lease_Lifetime = {lease};
  RecoveryBackend = fs; RecoveryRoot = {recovery}; Only_Numeric_Owners = true; }}
EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /volume; Access_Type = RW; Squash = No_Root_Squash;
  SecType = sys; Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""
_PREPARATIONS = """
ip addr add {address}/24 dev vec1; ip link set vec1 up
modprobe -d {modules} nfsv4
mkdir {mount}
mount -t nfs4 -o vers=4.2,proto=tcp,hard,timeo=50,retrans=2{options} {server}:/volume {mount}"""


class NfsHost(Host):
    """A kernel of its own. Workers are started through its agent; see `harness.hosts.remote`."""

    def __init__(self, number: int, folder: Path, net: Network, writable: Path, mount_options: str) -> None:
        self._number, self._net = number, net
        values = {
            "address": host_address(number),
            "modules": folder / "modules",
            "mount": MOUNT,
            "options": "," + mount_options if mount_options else "",
            "server": SERVER_ADDRESS,
        }
        link = f"vec1:transport=tap,ifname=port{number},depth=128,gro=1"
        self.kernel = Kernel(number, folder, net, writable, _PREPARATIONS.format(**values), [link])
        super().__init__(self.kernel.name, MOUNT, folder)

    def command(self, argv: Sequence[str]) -> list[str]:
        return self.kernel.command(argv)

    def cut(self) -> None:
        self._net.part(self._number)

    def heal(self) -> None:
        self._net.join(self._number)

    def lose_power(self) -> None:
        self.kernel.kill()

    def power_on(self) -> None:
        self.heal()
        self.kernel.boot()
        self.kernel.await_ready()


class NfsVolume(Volume):
    file_system = "NFSv4.2"

    def __init__(self, server: Daemon, hosts: Sequence[Host], seen_here: Path, mount_options: str) -> None:
        self._server, self.hosts, self.seen_here = server, hosts, seen_here
        self.mount_options = ", ".join(filter(None, ("vers=4.2, hard", mount_options)))
        self.cannot = {
            "crash": "a process of another kernel cannot be stopped at a system call; the outage scenario kills kernels"
        }
        self.visible_seconds_max, self.sees_mounts = 1.0, False

    def server_death(self) -> str:
        return self._server.death()

    def restart_server(self, down_seconds: float) -> None:
        self._server.kill()
        time.sleep(down_seconds)
        self._server.start()


@contextlib.contextmanager
def nfs_hosts(writable: Path, mount_options: str = "", hosts: int = 2) -> Iterator[NfsVolume]:
    """A volume and its hosts. `writable`: the one folder of this machine that hosts may write to (a run's folder).

    `mount_options` are added to the client's. Raises `FaultUnavailable` without root or the programs.
    """
    require_kernels("an NFS host")
    for program, package in (("ganesha.nfsd", "nfs-ganesha"), ("mount.nfs4", "nfs-common")):
        if shutil.which(program) is None:
            raise FaultUnavailable(f"NFS hosts take the program {program} (package {package}), which is not installed")
    release = next(iter(sorted(os.listdir(MODULES))), None) if MODULES.is_dir() else None
    if release is None:
        raise FaultUnavailable(f"NFS hosts take the modules of user-mode-linux, which are not at {MODULES}")
    with tempfile.TemporaryDirectory(prefix="nfs-hosts-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        export, recovery = folder / "export", folder / "recovery"
        for path in (export, recovery, modules := folder / "modules" / "lib" / "modules"):
            path.mkdir(parents=True)
        (modules / release).symlink_to(MODULES / release)
        values = {"address": SERVER_ADDRESS, "lease": LEASE_SECONDS, "recovery": recovery, "export": export}
        (folder / "ganesha.conf").write_text(_GANESHA.format(**values))
        with network(folder) as net:
            add_control(net, range(hosts))
            words = ["ganesha.nfsd", "-F", "-f", str(folder / "ganesha.conf"), "-L", "/dev/stderr"]
            words += ["-p", str(folder / "ganesha.pid")]
            server = Daemon("the NFS server", net.enter(net.server, words), folder / "server.log")
            server.start()
            all_hosts = []
            try:
                for number in range(hosts):
                    net.add_tap("port", number, "bridge")
                    all_hosts.append(NfsHost(number, folder, net, writable, mount_options))
                for host in all_hosts:
                    host.kernel.boot()
                for host in all_hosts:
                    host.kernel.await_ready()
                yield NfsVolume(server, all_hosts, export, mount_options)
            finally:
                for host in all_hosts:
                    host.lose_power()
                server.kill()
