"""Several hosts on one machine that share a volume of a real network file system; scenarios start workers on them.

`HOSTS` brings up each file system, given the one folder that hosts may write to besides. What a machine cannot do
raises `FaultUnavailable`: skip with its text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from harness.hosts.base import Host, Volume
from harness.hosts.file_systems.gluster import gluster_hosts
from harness.hosts.file_systems.moosefs import moosefs_hosts
from harness.hosts.file_systems.nfs import nfs_hosts

HOSTS: dict[str, Callable[[Path], AbstractContextManager[Volume]]] = {
    "gluster": lambda writable: gluster_hosts(),  # its hosts share this machine's files
    "moosefs": lambda writable: moosefs_hosts(),
    "nfs": nfs_hosts,
    "nfs-lookupcache-positive": functools.partial(nfs_hosts, mount_options="lookupcache=positive"),
}

__all__ = ["HOSTS", "Host", "Volume", "gluster_hosts", "moosefs_hosts", "nfs_hosts"]
