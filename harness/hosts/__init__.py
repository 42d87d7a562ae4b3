"""Several hosts on one machine that share a volume of a real network file system; scenarios start workers on them.

`HOSTS` names the file systems. What a machine cannot do raises `FaultUnavailable`: skip with its text.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from harness.hosts.base import Host, Volume
from harness.hosts.gluster import gluster_hosts

HOSTS: dict[str, Callable[[], AbstractContextManager[Volume]]] = {"gluster": gluster_hosts}

__all__ = ["HOSTS", "Host", "Volume", "gluster_hosts"]
