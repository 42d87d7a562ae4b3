"""A root watched from outside while tiers use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from harness.monitoring.audit import STALE_TEMP_SECONDS, Watch
from kvtier.fs.manager import FileSystemTierManager
from kvtier.ops.catalog import folders, verify
from kvtier.telemetry.prometheus import MetricsObserver, serve_metrics
from tests.tiering.kvtier.ops.test_catalog import BLOCK, BLOCKS, OPTIONS, RUN, path, store


def test_growth_writers_and_shrinking_are_seen(tmp_path: Path) -> None:
    tier = store(tmp_path, RUN, range(BLOCKS))
    watch = Watch(str(tmp_path))
    first = watch.look()
    assert (first.blocks, first.verified, len(first.writers), first.findings) == (BLOCKS, BLOCKS, 1, [])
    store(tmp_path, RUN, range(BLOCKS, BLOCKS + 5))
    path(tier, 0).unlink()
    second = watch.look()
    assert (second.blocks, second.new_blocks, second.gone_blocks) == (BLOCKS + 4, 5, 1)
    assert (second.verified, second.seconds > 0) == (5, True)


def test_a_corrupt_new_block_and_leftovers_are_findings_and_nothing_is_moved(tmp_path: Path) -> None:
    tier = store(tmp_path, RUN, range(BLOCKS))
    with open(path(tier, 3), "r+b") as file:
        file.write(b"?")
    temp = path(tier, 1).parent / ".host.1.aa.tmp"
    temp.write_bytes(b"")
    os.utime(temp, (0, time.time() - 2 * STALE_TEMP_SECONDS))
    before = sorted(tmp_path.rglob("*"))
    findings = Watch(str(tmp_path)).look().findings
    assert any(f"checksum: {path(tier, 3)}" in finding for finding in findings)
    (unpublished,) = [finding for finding in findings if str(temp) in finding]
    assert f"temp file unpublished for 600 s, 10 min ago: {temp}: 0 B" in unpublished
    assert len(findings) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_writers_with_different_seeds_are_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, RUN, range(BLOCKS))
    monkeypatch.setenv("PYTHONHASHSEED", "another")
    monkeypatch.setitem(OPTIONS, "on_mismatch", "warn")
    store(tmp_path, RUN, [BLOCKS])
    (finding,) = Watch(str(tmp_path)).look().findings
    assert "writers with different seeds" in finding


def test_cross_process_hits_come_from_the_engines(tmp_path: Path) -> None:
    store(tmp_path, RUN, [1])
    registry = CollectorRegistry()
    MetricsObserver(registry)
    server, port = serve_metrics(registry)
    try:
        assert Watch(str(tmp_path), (f"127.0.0.1:{port}",)).look().cross_process_hits == 0
    finally:
        server.shutdown()
        server.server_close()
    gone = Watch(str(tmp_path), (f"127.0.0.1:{port}",)).look()
    assert gone.unreadable[f"http://127.0.0.1:{port}/metrics"].startswith("cannot be read: ")
    assert gone.findings == [], "an endpoint that is down says nothing of the root"


def quarantine(tier: FileSystemTierManager, number: int) -> str:
    """Corrupt a block and load it: the tier moves it to quarantine. Returns its path there."""
    with open(path(tier, number), "r+b") as file:
        file.write(b"?")
    (folder,) = folders(str(path(tier, number).parents[3]))
    before = {found for found, _ in folder.quarantined()}
    list(verify(folder, fix=True))
    (moved,) = {found for found, _ in folder.quarantined()} - before
    return moved


def test_a_quarantined_file_is_a_finding_of_its_time(tmp_path: Path) -> None:
    tier = store(tmp_path, RUN, range(BLOCKS))
    moved = quarantine(tier, 3)
    watch = Watch(str(tmp_path))
    (finding,) = watch.look().findings
    assert re.fullmatch(
        rf"org/model: quarantined \d s ago: {re.escape(moved)}: reason checksum, {BLOCK + 4096 >> 10} KiB", finding
    )
    assert watch.look().findings == [], "each file once"
    now = time.time()
    later = Watch(str(tmp_path), window_seconds=3600, clock=lambda: now + 3601)
    first = later.look()
    assert (first.findings, first.older) == ([], 1), "an old file is no finding"
    assert later.look().older == 0


def watched(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "watch", str(root), "--seconds", "0", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_lists_what_it_judges_and_what_it_does_not(tmp_path: Path) -> None:
    moved = quarantine(store(tmp_path, RUN, range(BLOCKS)), 3)
    within = watched(tmp_path)
    assert (within.returncode, within.stderr) == (1, "")
    assert f" ago: {moved}: reason checksum, " in within.stdout
    assert "os.stat_result" not in within.stdout
    assert within.stdout.splitlines()[-1].startswith("verdict fail; files in quarantine judged since 2")
    before = watched(tmp_path, "--window", "0")
    assert before.returncode == 2, "nothing moved in no time"
    assert "not judged: 1 file in quarantine or unpublished since before 2" in before.stdout


def test_an_unreadable_folder_is_reported(tmp_path: Path) -> None:
    tier = store(tmp_path, RUN, range(BLOCKS))
    Path(tier.file_mapper.config_path).write_text("{")
    done = watched(tmp_path)
    assert done.returncode == 2
    assert f"not judged: {tier.file_mapper.config_path} is not JSON" in done.stdout
