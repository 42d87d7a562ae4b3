"""The description of a run's machine names no host and no user."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from harness.core.environment import describe, parse_mountinfo

NFS = "vers=4.2,rsize=1048576,proto=tcp,addr=10.0.0.9,clientaddr=10.0.0.7,hard"
MOUNTINFO = f"""\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,discard,errors=remount-ro
30 22 0:40 / /mnt/pvc rw,noatime shared:2 - nfs4 server.example:/export rw,{NFS}
31 30 0:41 / /mnt/pvc/with\\040space rw - cifs //server/share rw,username=alice,password=secret,vers=3.1
32 22 0:42 / /mnt/pvc2 rw - tmpfs tmpfs rw,size=16384k
33 22 0:43 / /mnt/pvc2 ro - overlay overlay rw,lowerdir=/a/b,upperdir=/c
torn line
"""


def test_the_description_is_json_and_has_no_names(tmp_path: Path) -> None:
    described = describe(tmp_path / "not" / "there" / "yet")
    text = json.dumps(described)
    assert json.loads(text) == described
    assert described["cpus"] >= 1
    assert described["memory_bytes"] > 0
    assert described["root"]["file_system"]
    assert described["root"]["free_bytes"] > 0
    assert "numpy" in described["packages"]
    assert str(tmp_path) not in text
    if len(host := socket.gethostname()) > 3:
        assert host not in text


def test_a_project_without_a_repository_has_no_commit(tmp_path: Path) -> None:
    assert describe(tmp_path, tmp_path)["git"] is None


def test_the_deepest_mount_decides() -> None:
    assert parse_mountinfo(MOUNTINFO, Path("/home")) == ("ext4", ["rw", "relatime", "discard", "errors=remount-ro"])
    assert parse_mountinfo(MOUNTINFO, Path("/mnt/pvcx"))[0] == "ext4"
    assert parse_mountinfo(MOUNTINFO, Path("/mnt/pvc/with space/x"))[0] == "cifs"
    assert parse_mountinfo(MOUNTINFO, Path("/mnt/pvc2"))[0] == "overlay"  # mounted over the other
    assert parse_mountinfo("", Path("/")) == (None, None)


def test_options_that_may_name_a_host_or_a_user_are_dropped() -> None:
    _, nfs = parse_mountinfo(MOUNTINFO, Path("/mnt/pvc/root"))
    assert nfs == ["rw", "noatime", "vers=4.2", "rsize=1048576", "proto=tcp", "hard"]
    _, cifs = parse_mountinfo(MOUNTINFO, Path("/mnt/pvc/with space"))
    assert cifs == ["rw", "vers=3.1"]


def test_the_real_root_is_found() -> None:
    file_system, options = parse_mountinfo(Path("/proc/self/mountinfo").read_text(), Path(os.getcwd()))
    assert file_system
    assert options
