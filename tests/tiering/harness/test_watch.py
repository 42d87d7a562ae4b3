"""A root watched from outside while tiers use it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from harness.watch import STALE_TEMP_SECONDS, Watch
from kvtier.metrics import MetricsObserver, serve_metrics
from tests.tiering.test_survey import BLOCKS, OPTIONS, RUN, path, store


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
    assert any("1 temp files older" in finding for finding in findings)
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
        assert Watch(str(tmp_path), (f"127.0.0.1:{port}",)).look().foreign_hits == 0
    finally:
        server.shutdown()
        server.server_close()
    gone = Watch(str(tmp_path), (f"127.0.0.1:{port}",)).look()
    assert "no metrics at" in gone.findings[0]
