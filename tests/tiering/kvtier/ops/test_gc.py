"""Garbage collection removes what killed writers left, and nothing else; no link leads it out of the root."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtier.config import CapacityConfig
from kvtier.ops.catalog import BlockFile, folders
from kvtier.ops.cli import main
from kvtier.ops.evictor import Evictor
from kvtier.ops.gc import MANIFEST_TEMP_AGE_SECONDS, TEMP_AGE_SECONDS, collect, remove_block
from tests.tiering.kvtier.ops.tier import FILE, Tier, key, present


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    tier = Tier(tmp_path)
    yield tier
    tier.manager.shutdown()


def test_temp_files_of_killed_writers_are_removed_and_no_others(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", [1])
    parent = tier.path(1).parent
    old = time.time() - 10 * TEMP_AGE_SECONDS
    names = {"dead": ".host.1.aa.tmp", "alive": ".host.2.bb.tmp", "young": ".host.3.cc.tmp", "vllm": "x.bin_7.tmp"}
    for name, file in names.items():
        (parent / file).write_bytes(b"part")
        if name != "young":
            os.utime(parent / file, (old, old))
    with open(parent / names["alive"], "r+b") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        (folder,) = folders(str(tmp_path))
        assert sum(collect(folder)) == 1
    assert sorted(p.name for p in parent.iterdir()) == sorted(
        [names["alive"], names["young"], names["vllm"], tier.path(1).name]
    )


def test_quarantine_keeps_the_newest(tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.ops.gc.QUARANTINE_FILES_MAX", 4)
    monkeypatch.setattr("kvtier.ops.gc.QUARANTINE_BYTES_MAX", 250)
    quarantine = Path(tier.manager.file_mapper.quarantine_path)
    for number in range(6):
        (quarantine / f"{number}.bin.size.00").write_bytes(bytes(10 if number else 100))
        os.utime(quarantine / f"{number}.bin.size.00", (number, number))
    (folder,) = folders(str(tmp_path))
    assert sum(collect(folder)) == 2
    (quarantine / "6.bin.size.00").write_bytes(bytes(240))
    assert sum(collect(folder)) == 3
    assert sorted(entry.name[0] for entry in quarantine.iterdir()) == ["5", "6"]
    said = CliRunner().invoke(main, ["inspect", str(tmp_path), "--quarantined"]).stdout
    assert f"{quarantine}/6.bin.size.00" in said


def test_a_living_writers_temp_file_is_locked(tmp_path: Path, tier: Tier) -> None:
    tier.manager.blockio._tmpfile = tier.manager.blockio.native_writes = False
    parent = tier.path(1).parent
    parent.mkdir(parents=True)
    above = os.open(parent, os.O_PATH)
    descriptor, temp = tier.manager.blockio._create(above)
    os.close(above)
    assert temp
    os.utime(parent / temp, (0, 0))
    (folder,) = folders(str(tmp_path))
    assert sum(collect(folder)) == 0
    os.close(descriptor)
    assert sum(collect(folder)) == 1


PROBE_THAT_BLOCKS = """
import sys
from kvtier.fs import block_io as blockio, posix as file_system
from kvtier.config import FsTierConfig

def block(path, *rest):
    print(path, flush=True)
    sys.stdin.read()
    return False

setattr(file_system, sys.argv[2], block)
blockio.BlockIO(FsTierConfig(sys.argv[1], 4096), sys.argv[1]).probe(sys.argv[1])
"""


@pytest.mark.parametrize("blocked", ["direct_io_works", "unlink_quietly"])
def test_temp_files_of_a_killed_probe_are_removed_and_no_others(tmp_path: Path, tier: Tier, blocked: str) -> None:
    base = Path(tier.manager.file_mapper.base_path)
    (folder,) = folders(str(tmp_path))
    before = {entry.name for entry in base.iterdir()}
    vllm = base / "config.json_7.tmp"
    vllm.write_bytes(b"{}")
    os.utime(vllm, (0, 0))
    command = [sys.executable, "-c", PROBE_THAT_BLOCKS, str(base), blocked]
    probing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert probing.stdout
        temp = base / os.path.basename(probing.stdout.readline().strip())
        assert temp.exists()
        assert temp.name not in before
        os.utime(temp, (0, 0))
        if blocked == "direct_io_works":
            assert sum(collect(folder)) == 0, "its writer is alive"
    finally:
        probing.kill()
        probing.communicate()
    os.utime(temp)
    assert sum(collect(folder)) == 0, "young: its writer may not have locked it yet"
    os.utime(temp, (0, 0))
    assert sum(collect(folder)) == 1
    assert {entry.name for entry in base.iterdir()} == {*before, vllm.name}


def test_no_symbolic_link_leads_gc_or_eviction_out_of_the_root(tmp_path: Path, tier: Tier) -> None:
    """Folders below the root are links to folders with files of right names: nothing there is listed or removed."""
    tier.run("store", range(20))
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    leaf = tier.path(3).parent
    names = [path.name for path in leaf.iterdir()]
    leaf.rename(outside / "leaf")
    leaf.symlink_to(outside / "leaf")
    prefix = tier.path(7).parent.parent
    prefix.rename(outside / "prefix")
    prefix.symlink_to(outside / "prefix")
    (outside / "leaf" / ".host.1.aa.tmp").write_bytes(b"")
    os.utime(outside / "leaf" / ".host.1.aa.tmp", (0, 0))
    (folder,) = folders(str(tmp_path))
    listed = [block for block in folder.blocks() if block.key in (key(3), key(7))]
    assert listed == []
    status = tier.path(3).stat()
    for number in (3, 7):  # also if the link replaces the folder after it was listed
        block = BlockFile(str(tier.path(number)), key(number), FILE, tier.path(number).stat().st_mtime)
        assert not remove_block(block)
    assert sum(collect(folder)) == 0
    Evictor(str(tmp_path), CapacityConfig(max_bytes=FILE, low_water=0.01)).step()
    assert sorted(os.listdir(outside / "leaf")) == sorted([*names, ".host.1.aa.tmp"])
    assert tier.path(3).stat().st_mtime == status.st_mtime
    assert tier.path(7).exists()
    assert len(present(tier, range(20))) == 2, "all others were evicted"


@pytest.mark.parametrize("name", ["config.json", "kvtier.json", "kvtier_r3.json"])
def test_manifest_temp_files_of_killed_processes_are_removed_by_age(tmp_path: Path, tier: Tier, name: str) -> None:
    base = Path(tier.manager.file_mapper.base_path)
    before = {entry.name for entry in base.iterdir()}
    temps = {age: base / f"{name}.{age:016x}.tmp" for age in (0, int(2 * MANIFEST_TEMP_AGE_SECONDS))}
    others = [base / f"{name}_7.tmp", base / f"{name}.07.tmp", base / f"other.json.{1:016x}.tmp"]
    for path in (*temps.values(), *others):
        path.write_bytes(b"{}")
        os.utime(path, (0, 0))
    os.utime(temps[0])
    (folder,) = folders(str(tmp_path))
    assert sum(collect(folder)) == 1
    assert {entry.name for entry in base.iterdir()} == {*before, temps[0].name, *(path.name for path in others)}


def test_a_large_quarantine_loses_its_oldest_folders_too(
    tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtier.ops.gc.QUARANTINE_BYTES_MAX", 100_000)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    quarantine = Path(tier.manager.file_mapper.quarantine_path)
    for number in range(3):
        held = quarantine / f"{number}.bin.kind.00" / "deep"
        held.mkdir(parents=True)
        (held / "file").write_bytes(bytes(60_000))
        (held / "link").symlink_to(outside)
        os.utime(held.parent, (number, number))
    (folder,) = folders(str(tmp_path))
    assert sum(collect(folder)) == 2, "the newest stays: the bytes in a folder count"
    assert [entry.name[0] for entry in quarantine.iterdir()] == ["2"]
    assert (outside / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_quarantined_folder_with_a_mount_in_it_is_left_alone(
    tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtier.ops.gc.QUARANTINE_FILES_MAX", 0)
    mount = Path(tier.manager.file_mapper.quarantine_path) / "1.bin.kind.00" / "mount"
    mount.mkdir(parents=True)
    (folder,) = folders(str(tmp_path))
    subprocess.run(["mount", "-t", "tmpfs", "none", mount], check=True)
    try:
        (mount / "precious").write_text("x")
        assert sum(collect(folder)) == 0
        assert (mount / "precious").exists()
    finally:
        subprocess.run(["umount", mount], check=True)
    assert sum(collect(folder)) == 1
