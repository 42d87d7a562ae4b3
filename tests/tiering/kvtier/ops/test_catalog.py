"""The catalog of a root: every block is counted, every damage is named, nothing is changed."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvtier.base import ReqContext, TransferJob
from kvtier.config import FsTierConfig, KVCacheGroup, RootError, RunConfig
from kvtier.factory import open_fs_tier
from kvtier.fs.manager import FileSystemTierManager
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key
from kvtier.ops.catalog import folders, summarise, verify
from kvtier.ops.cli import EXIT_BAD_INPUT, main

BLOCK = 8192
BLOCKS = 12
RUN = RunConfig("org/model", kv_cache_groups=(KVCacheGroup(16, ("layer.0", "layer.1")),), tp_size=2, rank=1)
OPTIONS: dict[str, str] = {}
AGNOSTIC = RunConfig("other", parallel_agnostic=True)


def key(number: int) -> OffloadKey:
    return make_offload_key(BlockHash(bytes([number]) * 32), number % 2)


def store(root: Path, run: RunConfig, numbers: Sequence[int]) -> FileSystemTierManager:
    memory = mmap.mmap(-1, len(numbers) * BLOCK)
    view = memoryview(memory).cast("B", (len(numbers), BLOCK))
    for row, number in enumerate(numbers):
        memory[row * BLOCK : (row + 1) * BLOCK] = bytes([number]) * BLOCK
    tier = open_fs_tier(FsTierConfig(str(root), BLOCK, n_read_threads=1, n_write_threads=1, **OPTIONS), run, view)
    tier.submit_store(TransferJob(1, tuple(map(key, numbers)), tuple(range(len(numbers))), False, ReqContext("r")))
    tier.drain_jobs()
    assert all(result.success for result in tier.get_finished_jobs())
    tier.shutdown()
    return tier


def path(tier: FileSystemTierManager, number: int) -> Path:
    return Path(tier.file_mapper.get_file_name(key(number)))


@pytest.fixture
def tier(tmp_path: Path) -> FileSystemTierManager:
    return store(tmp_path, RUN, range(BLOCKS))


@pytest.fixture
def damaged(tier: FileSystemTierManager) -> FileSystemTierManager:
    os.truncate(path(tier, 3), BLOCK - 1)
    with open(path(tier, 5), "r+b") as file:
        file.write(b"?")
    path(tier, 7).unlink()
    path(tier, 7).write_bytes(path(tier, 8).read_bytes())
    return tier


def test_folders_are_found_with_their_fields(tmp_path: Path, tier: FileSystemTierManager) -> None:
    store(tmp_path, AGNOSTIC, [1])
    (tmp_path / "unrelated").mkdir()
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "config.json").write_text("[" * 100_000)
    found = {folder.mapper.run.model_name: folder for folder in folders(str(tmp_path))}
    assert sorted(found) == ["org/model", "other"]
    assert found["org/model"].mapper.blocks_path == tier.file_mapper.blocks_path
    assert found["org/model"].block_bytes == BLOCK
    assert [block.key for block in found["other"].blocks()] == [key(1)]


def test_summary_counts_blocks_writers_and_leftovers(tmp_path: Path, tier: FileSystemTierManager) -> None:
    store(tmp_path, RUN, range(BLOCKS, BLOCKS + 4))
    path(tier, 0).write_bytes(bytes(BLOCK))  # as vLLM writes
    (path(tier, 1).parent / ".host.1.00.tmp").write_bytes(b"")
    (path(tier, 1).parent / "stray.bin").write_bytes(b"")
    (folder,) = folders(str(tmp_path))
    summary = summarise(folder)
    assert (summary.blocks, summary.temps, summary.unsealed, summary.quarantined) == (BLOCKS + 4, 1, 1, 0)
    assert summary.bytes == (BLOCKS + 3) * (BLOCK + 4096) + BLOCK
    assert sorted(summary.writers.values()) == [4, BLOCKS - 1], "two instances wrote"
    assert 0 <= summary.newest_seconds <= summary.oldest_seconds


def test_verify_names_each_damage_and_moves_nothing(tmp_path: Path, damaged: FileSystemTierManager) -> None:
    (folder,) = folders(str(tmp_path))
    found = {checked.block.key: checked.outcome.reason for checked in verify(folder)}
    assert {number: found[key(number)] for number in range(BLOCKS) if found[key(number)]} == {
        3: "size",
        5: "checksum",
        7: "key",
    }
    assert folder.quarantined() == []
    assert len(list(folder.blocks())) == BLOCKS


def test_fix_quarantines_and_then_all_blocks_are_right(tmp_path: Path, damaged: FileSystemTierManager) -> None:
    (folder,) = folders(str(tmp_path))
    assert sum(not checked.outcome.ok for checked in verify(folder, fix=True)) == 3
    assert len(folder.quarantined()) == 3
    assert all(checked.outcome.ok for checked in verify(folder))
    assert len(list(folder.blocks())) == BLOCKS - 3


def test_a_folder_of_vllm_alone_is_read_as_unverified(tmp_path: Path, tier: FileSystemTierManager) -> None:
    os.unlink(tier.file_mapper.record_path)
    for number in range(BLOCKS):
        path(tier, number).write_bytes(bytes(BLOCK))
    os.truncate(path(tier, 4), 100)
    (folder,) = folders(str(tmp_path))
    assert folder.block_bytes is None
    outcomes = {checked.block.key: checked.outcome for checked in verify(folder)}
    assert outcomes[key(4)].reason == "size"
    assert sum(outcome.ok and outcome.writer is None for outcome in outcomes.values()) == BLOCKS - 1


def test_writers_with_different_seeds_are_distinguished(
    tmp_path: Path, tier: FileSystemTierManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "another")
    monkeypatch.setattr(sys.modules[__name__], "OPTIONS", {"on_mismatch": "warn"})
    store(tmp_path, RUN, [BLOCKS])
    (folder,) = folders(str(tmp_path))
    assert sorted(summarise(folder).seeds.values()) == [1, BLOCKS]
    assert "writers with different seeds share nothing" in run("inspect", str(tmp_path)).output


# --- the command line ---


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_inspect_prints_text_and_json(tmp_path: Path, tier: FileSystemTierManager) -> None:
    text = run("inspect", str(tmp_path)).output
    for part in ("org/model, rank 1", "1 instance of kvtier", "sha256, seed digest", f"blocks     {BLOCKS}, "):
        assert part in text
    folder, root = map(json.loads, run("inspect", "--json", str(tmp_path)).output.splitlines())
    assert folder["blocks"] == BLOCKS
    assert root["coverage"]["complete"]


def test_verify_exit_codes(tmp_path: Path, damaged: FileSystemTierManager) -> None:
    result = run("verify", str(tmp_path))
    assert result.exit_code == 1
    assert f"checksum: {path(damaged, 5)}" in result.output
    assert json.loads(run("verify", "--json", str(tmp_path)).stdout)["blocks"]["right"] == BLOCKS - 3
    assert run("verify", "--fix", str(tmp_path)).exit_code == 1
    result = run("verify", str(tmp_path))
    assert (result.exit_code, result.output) == (0, f"{BLOCKS - 3} blocks: {BLOCKS - 3} right\n")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_missing_root_is_one_sentence(command: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "from kvtier.ops.cli import main; main()", command, "/nowhere"],
        capture_output=True,
        text=True,
    )
    assert child.returncode == EXIT_BAD_INPUT
    assert child.stdout == ""
    assert child.stderr.startswith("kvtier: root_dir '/nowhere' does not exist")
    assert child.stderr.count("\n") == 1


@pytest.mark.parametrize(("root", "why"), [("a" * 300, "File name too long"), ("/etc/passwd/x", "Not a directory")])
def test_a_root_that_is_no_path_of_a_directory_is_bad_input(root: str, why: str) -> None:
    result = run("inspect", root)
    assert (result.exit_code, result.stdout) == (EXIT_BAD_INPUT, "")
    assert result.stderr.startswith(f"kvtier: root_dir {root!r} cannot be used: {why}; ")
    assert result.stderr.count("\n") == 1


def test_folders_of_a_missing_root_raise() -> None:
    with pytest.raises(RootError):
        list(folders("/nowhere"))
