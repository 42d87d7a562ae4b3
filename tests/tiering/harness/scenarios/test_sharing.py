"""`run sharing` with real processes: right tiers are passed, and each way not to share is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core import notes
from harness.core.history import History
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.sharing import SharingOptions, prepare

BROKEN = "tests.tiering.harness.broken.processes"
MUTANTS = "harness.mutants.jobs"


def share(tmp_path: Path, tier: str, **changes: Any) -> Results:
    options = SharingOptions(tier=tier, seed=3, seconds=0.0, block_bytes=16384, **changes)
    return run(scenario("sharing"), options, tmp_path / "runs")


@pytest.mark.parametrize("tier", ["kvtier", "memory"])
def test_right_tiers_share(tmp_path: Path, tier: str) -> None:
    results = share(tmp_path, tier)
    assert results.verdict == "true", str(results.verdicts)
    data = {v["name"]: v["data"] for v in results.verdicts}
    assert data["visibility"]["hits_of_others"] > 0
    assert data["sharing"]["private_hit_ratio"] < data["sharing"]["hit_ratio"] <= data["sharing"]["shared_hit_ratio"]
    assert data["sharing"]["duplicate_write_factor"] > 1, "the same blocks were stored by several"
    history = History.read(Path(results.run_dir))
    assert sorted((s.process, s.incarnation) for s in history.starts)[-1][0] == 2, "the late one came"
    assert sum(s.incarnation for s in history.starts) == 1, "one started again"
    first_of_late = min(j.submitted_seconds for j in history.jobs if j.process == 2)
    assert first_of_late > min(j.finished_seconds for j in history.jobs)
    asked = {(n.process, n.detail["request"]) for n in history.notes if n.is_a(notes.Asked)}
    assert all(request.looked_up == ((request.process, request.request) in asked) for request in history.requests)


@pytest.mark.parametrize(
    ("tier", "checker", "words"),
    [
        (f"{MUTANTS}:SeesItsOwnStoresOnly", "visibility", "got a miss"),
        (f"{MUTANTS}:CachesMissesForEver", "visibility", "got a miss"),
        (f"{BROKEN}:InPlace", "integrity", "short"),
        (f"{BROKEN}:WritesLater", "visibility", "got a miss"),
    ],
)
def test_a_tier_that_does_not_share_is_detected_by_the_checker_meant_for_it(
    tmp_path: Path, tier: str, checker: str, words: str
) -> None:
    results = share(tmp_path, tier)
    (verdict,) = [v for v in results.verdicts if v["name"] == checker]
    assert verdict["value"] == "false", str(results.verdicts)
    assert any(words in finding for finding in verdict["findings"])


def test_slots_that_cannot_hold_two_chains_are_refused() -> None:
    with pytest.raises(UsageError, match="--slots is 8; it must be at least 16"):
        prepare(SharingOptions(tier="memory", slots=8))
