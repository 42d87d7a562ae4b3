"""Real NFSv4.2: an nfs-ganesha server, and hosts that are Linux kernels of their own (user-mode-linux) with the
kernel's NFS client. Each host sees the machine's files read-only, so it runs the same interpreter and the same
checkout.

A host has one CPU and slow system calls: good for what is right, not for what is fast.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.faults.rules import FaultUnavailable
from harness.hosts import remote
from harness.hosts.base import Host, Volume
from harness.hosts.network import SERVER_ADDRESS, Daemon, Network, host_address, network

MEMORY = "512M"
AGENT_PORT = 7000
CONTROL_ADDRESS = "10.0.1.1"
READY_SECONDS_MAX = 180.0
"""A host boots in 5 s, and on a crowded machine in a minute."""
MOUNT = Path("/mnt/volume")
MODULES = Path("/usr/lib/uml/modules")
LEASE_SECONDS = 60
"""How long a silent client keeps its locks."""
_REPOSITORY = Path(__file__).resolve().parents[2]

_GANESHA = """
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = 2049; Bind_addr = {address};
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}
NFSv4 {{ Minor_Versions = 1, 2; Graceless = true; Grace_Period = 0; Lease_Lifetime = {lease};
  RecoveryBackend = fs; RecoveryRoot = {recovery}; Only_Numeric_Owners = true; }}
EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /volume; Access_Type = RW; Squash = No_Root_Squash;
  SecType = sys; Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""
# The first process of a host. What it may write of the machine's files is one folder, at once and without a cache: a
# host that loses its power has told what it had done.
_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run; mount -t tmpfs tmp /mnt
mkdir -p {writable} 2>/dev/null  # below a tmpfs of ours it does not exist yet
mount -t hostfs -o sync,{writable} none {writable}
hostname {name}
ip link set lo up
ip addr add {address}/24 dev vec0; ip link set vec0 up
ip addr add {control}/24 dev vec1; ip link set vec1 up
modprobe -d {modules} nfsv4
mkdir {mount}
mount -t nfs4 -o vers=4.2,proto=tcp,hard,timeo=50,retrans=2{options} {server}:/volume {mount}
PYTHONPATH={repository} exec {python} -m harness.hosts.remote serve {control} {port}
"""


def control_address(number: int) -> str:
    """Where a host's agent listens: a link of its own that is never cut."""
    return f"10.0.1.{11 + number}"


class NfsHost(Host):
    """A kernel of its own. Workers are started through its agent; see `harness.hosts.remote`."""

    def __init__(self, number: int, folder: Path, net: Network, writable: Path, mount_options: str) -> None:
        super().__init__(f"host{number}", MOUNT, folder)
        self._number, self._net, self._log = number, net, folder / f"host{number}.log"
        self._init = folder / f"init-{self.name}"
        values = {
            "address": host_address(number),
            "control": control_address(number),
            "modules": folder / "modules",
            "mount": MOUNT,
            "name": self.name,
            "options": "," + mount_options if mount_options else "",
            "port": AGENT_PORT,
            "python": shlex.quote(sys.executable),
            "repository": _REPOSITORY,
            "server": SERVER_ADDRESS,
            "writable": writable,
        }
        self._init.write_text(_INIT.format(**values))
        self._init.chmod(0o755)
        self._popen: subprocess.Popen[bytes] | None = None

    def command(self, argv: Sequence[str]) -> list[str]:
        # By its path: PYTHONPATH is the program's own, and goes to the host with the rest of the environment.
        relay = [sys.executable, remote.__file__, "run", control_address(self._number), str(AGENT_PORT)]
        return self._net.enter(self._net.server, [*relay, *argv])

    def cut(self) -> None:
        self._net.part(self._number)

    def heal(self) -> None:
        self._net.join(self._number)

    def lose_power(self) -> None:
        if self._popen is not None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
            self._popen = None

    def power_on(self) -> None:
        self.heal()
        self.boot()
        self.await_ready()

    def boot(self) -> None:
        """Returns before the host is ready; several may boot at once."""
        taps = {"vec0": f"port{self._number}", "vec1": f"control{self._number}"}
        network_words = [f"{vec}:transport=tap,ifname={tap},depth=128,gro=1" for vec, tap in taps.items()]
        words = ["linux.uml", f"mem={MEMORY}", "rootfstype=hostfs", "rootflags=/", "ro", "con=null", "con0=fd:0,fd:1"]
        words += ["quiet", "loglevel=3", *network_words, f"init={self._init}"]
        with open(self._log, "ab") as log:
            self._popen = subprocess.Popen(
                self._net.enter(self._net.server, words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        """Until its agent answers; it is started after the volume is mounted."""
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
        raise FaultUnavailable(f"{self.name} did not come up: {words or 'no reason told'}")


class NfsVolume(Volume):
    file_system = "NFSv4.2"

    def __init__(self, server: Daemon, hosts: Sequence[Host], seen_here: Path, mount_options: str) -> None:
        self._server, self.hosts, self.seen_here = server, hosts, seen_here
        self.mount_options = ", ".join(filter(None, ("vers=4.2, hard", mount_options)))
        self.cannot = {
            "crash": "nobody here can stop a process of another kernel at a system call; outage kills kernels"
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
    needed = (("linux.uml", "user-mode-linux"), ("ganesha.nfsd", "nfs-ganesha"), ("mount.nfs4", "nfs-common"))
    for program, package in needed:
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
            net.add_bridge("control", CONTROL_ADDRESS)
            words = ["ganesha.nfsd", "-F", "-f", str(folder / "ganesha.conf"), "-L", "/dev/stderr"]
            words += ["-p", str(folder / "ganesha.pid")]
            server = Daemon("the NFS server", net.enter(net.server, words), folder / "server.log")
            server.start()
            all_hosts = []
            try:
                for number in range(hosts):
                    net.add_tap("port", number, "bridge")
                    net.add_tap("control", number, "control")
                    all_hosts.append(NfsHost(number, folder, net, writable, mount_options))
                for host in all_hosts:
                    host.boot()
                for host in all_hosts:
                    host.await_ready()
                yield NfsVolume(server, all_hosts, export, mount_options)
            finally:
                for host in all_hosts:
                    host.lose_power()
                server.kill()
