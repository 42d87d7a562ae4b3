"""`run crash` with real processes that really die: right tiers are acquitted, and what others suffer is named."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from harness.faults import PUBLISH_STEPS
from harness.history import History
from harness.run import Results, run
from harness.scenarios import scenario
from harness.scenarios.crash import MOMENT, CrashOptions, blows, unnamed_files_work

BROKEN = "tests.tiering.harness.broken_processes"


def crash(tmp_path: Path, tier: str, **changes: Any) -> Results:
    options = CrashOptions(tier=tier, seed=3, seconds=0.0, block_bytes=4096, **changes)
    return run(scenario("crash"), options, tmp_path / "runs")


def findings(results: Results) -> dict[str, str]:
    return {v["name"]: "\n".join(v["findings"]) for v in results.verdicts if v["value"] == "false"}


@pytest.mark.parametrize("tier", ["kvtier", "memory"])
def test_right_tiers_survive(tmp_path: Path, tier: str) -> None:
    results = crash(tmp_path, tier)
    assert results.verdict == "true", results.verdicts
    history = History.read(Path(results.run_dir))
    assert {-9, 0} == {s.exit_code for s in history.stops}
    assert any(n.detail.get("how") == "paused" for n in history.notes if n.kind == "fault")
    (data,) = [v["data"] for v in results.verdicts if v["name"] == "recovery"]
    assert data["cut jobs"] > 0
    assert data["found of the dead"] > 0
    if unnamed_files_work(tmp_path):
        assert data["faults"].get("killed at link"), "the exact step of publishing"


def test_a_temp_name_that_comes_again_loses_stores_after_a_restart(tmp_path: Path) -> None:
    said = findings(crash(tmp_path, f"{BROKEN}:TempOfTheKey"))
    assert "lost its first store after its restart" in said["recovery"]
    assert ".tmp was left under the root" in said["leftovers"]


def test_a_block_published_in_place_is_seen_torn(tmp_path: Path) -> None:
    said = findings(crash(tmp_path, f"{BROKEN}:InPlace", processes=3))
    assert "short" in said["integrity"]


def test_a_store_reported_before_it_is_done_dies_with_its_process(tmp_path: Path) -> None:
    said = findings(crash(tmp_path, f"{BROKEN}:WritesLater", processes=3))
    assert "is not there" in said["visibility"]


@pytest.mark.parametrize("by_step", [True, False])
def test_each_fault_has_its_turn_before_any_comes_again(by_step: bool) -> None:
    coming = blows(Random(1), by_step)
    first = [next(coming) for _ in range(len(PUBLISH_STEPS) + 3)] if by_step else [next(coming) for _ in range(7)]
    assert {b.signal for b in first} == {"SIGKILL", "SIGSTOP"}
    assert {b.step for b in first} == ({*PUBLISH_STEPS, MOMENT} if by_step else {MOMENT})
    if by_step:
        assert [b.when for b in first if b.step == "rename"] == [1]
