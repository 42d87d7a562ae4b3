"""`kvtier evict` and `kvtier remove`: what they remove, print and return."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtier.ops.cli import EXIT_BAD_INPUT, main
from kvtier.ops.gc import TEMP_AGE_SECONDS
from kvtier.ops.lease import LEASE_NAME
from tests.tiering.kvtier.ops.tier import FILE, Tier, present


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    tier = Tier(tmp_path)
    yield tier
    tier.manager.shutdown()


def kvtier(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_evict_brings_a_root_within_its_limits_and_prints_what_it_did(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(100))
    for number in range(100):
        tier.age(number, 100_000 - number)
    limit = ("--max-bytes", f"{100 * FILE / 1024}KiB", "--low-water", "0.5")
    code, said, _ = kvtier("evict", tmp_path, *limit, "--dry-run")
    assert (code, present(tier, range(100))) == (1, list(range(100)))
    assert re.fullmatch(r"would evict about 400 KiB of m, rank 0, not used for 28 h \(max_bytes\)\n", said)
    code, said, _ = kvtier("evict", tmp_path, *limit)
    assert (code, present(tier, range(100))) == (0, list(range(50, 100)))
    assert said.splitlines() == [
        "evicted 50 blocks, 400 KiB, last used 28 h to 28 h ago (max_bytes)",
        "left: 50 blocks, 400 KiB",
    ]
    code, said, _ = kvtier("evict", tmp_path, *limit, "--json", "--once")
    assert (code, json.loads(said)["evicted_files"], json.loads(said)["root"]["files"]) == (0, 0, 50)


def test_evict_collects_garbage(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", [1, 2])
    old = time.time() - 10 * TEMP_AGE_SECONDS
    dead = tier.path(1).with_name(".host.1.aa.tmp")
    dead.write_bytes(b"part")
    os.utime(dead, (old, old))
    tier.path(2).unlink()
    os.utime(tier.path(2).parent, (old, old))
    assert kvtier("evict", tmp_path, "--max-bytes", "1TB")[:2] == (
        0,
        "removed 1 temp files of killed writers and quarantined files beyond the limit\nleft: 1 blocks, 8 KiB\n",
    )
    assert not dead.exists()
    assert not tier.path(2).parent.exists()
    assert tier.path(1).exists()


def test_evict_fails_when_a_limit_is_out_of_reach(tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.ops.evict_command.STUCK_SECONDS", 0.2)
    status = os.statvfs(tmp_path)
    size = status.f_blocks * status.f_frsize
    code, said, _ = kvtier("evict", tmp_path, "--min-free-bytes", size - 1)
    assert (code, "too many" in said) == (1, True)
    with open(tmp_path / LEASE_NAME, "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert kvtier("evict", tmp_path, "--max-bytes", "1GB")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "no limit is set; give max_bytes, min_free_bytes, or both"),
        (("--max-bytes", "ten"), "--max-bytes is 'ten'; it takes a whole number of bytes, or a number with a unit"),
        (("--max-bytes", "1GB", "--share", "m"), "--share is 'm'; it takes MODEL=WEIGHT"),
        (("--max-bytes", "1GB", "--low-water", "2"), "low_water is 2.0"),
        (("--max-bytes", "1GB", "--once", "--every", "3"), "--once and --every"),
        (("--max-byte", "1GB"), "No such option"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: Sequence[str], sentence: str) -> None:
    code, said, complaint = kvtier("evict", tmp_path, *arguments)
    assert (code, said) == (EXIT_BAD_INPUT, "")
    assert complaint.startswith(f"kvtier: {sentence}")
    assert complaint.count("\n") == 1


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert kvtier("evict", tmp_path / "x", "--max-bytes", "1GB")[0] == EXIT_BAD_INPUT


def test_evict_every_keeps_a_growing_root_below_its_limit(tmp_path: Path, tier: Tier) -> None:
    code = "from kvtier.ops.cli import main; main()"
    arguments = ["evict", str(tmp_path), "--max-bytes", str(50 * FILE), "--every", "0.1", "--json"]
    evictor = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        for start in range(0, 200, 20):
            tier.run("store", range(start, start + 20))
        assert evictor.stdout
        gone = 0
        while gone < 150:
            gone += json.loads(evictor.stdout.readline()).get("evicted_files", 0)
        assert len(present(tier, range(200))) <= 50
    finally:
        evictor.kill()
        evictor.communicate()


def test_remove_shows_first_and_takes_one_fingerprint_only(tmp_path: Path, tier: Tier) -> None:
    other = Tier(tmp_path, model="org/other")
    tier.run("store", range(5))
    other.run("store", range(3))
    other.manager.shutdown()
    name = os.path.basename(other.manager.file_mapper.base_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (Path(other.manager.file_mapper.blocks_path) / "link").symlink_to(outside)
    code, said, _ = kvtier("remove", tmp_path, name)
    assert code == 0
    assert "org/other, rank 0" in said
    assert "3, 24 KiB" in said
    assert f"nothing is removed; to remove it, for ever: kvtier remove {tmp_path} {name} --yes" in said
    assert len(present(other, range(3))) == 3
    digest = name.rpartition("_")[2]
    assert kvtier("remove", tmp_path, digest, "--yes")[0] == 0
    kept = {
        os.path.basename(path) for path in (tier.manager.file_mapper.base_path, tier.manager.file_mapper.blocks_path)
    }
    assert {entry.name for entry in tmp_path.iterdir()} == {*kept, "outside"}
    assert (outside / "precious").exists()
    assert len(present(tier, range(5))) == 5
    code, _, complaint = kvtier("remove", tmp_path, digest)
    assert code == EXIT_BAD_INPUT
    assert min(kept) in complaint
