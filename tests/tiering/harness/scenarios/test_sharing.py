"""`run sharing` with real processes: right tiers are passed, and each way not to share is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core import notes
from harness.core.history import History
from harness.runner import Results
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.sharing import SharingOptions, prepare
from tests.tiering.harness.together import run_together, stored_files

pytestmark = pytest.mark.timeout(600)  # of all the runs that the fixture makes
BROKEN = "tests.tiering.harness.broken.processes"
MUTANTS = "harness.mutants.wrong_results"


SHORT: dict[str, Any] = {"seed": 3, "seconds": 0.0, "block_bytes": 16384}
RIGHT = ("kvtier", "memory")
WRONG = [
    (f"{MUTANTS}:SeesItsOwnStoresOnly", "visibility", "got a miss"),
    (f"{MUTANTS}:CachesMissesForEver", "visibility", "got a miss"),
]
WRONG_AS_IN_CRASHES = [
    (f"{BROKEN}:InPlace", "integrity", "short"),
    (f"{BROKEN}:WritesLater", "visibility", "got a miss"),
]
"""By default runs with crashes show them."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """Tier -> its run."""
    tiers = (*RIGHT, *(tier for tier, *_ in WRONG))
    options = {tier: SharingOptions(tier=tier, **SHORT) for tier in tiers}
    return run_together("sharing", options, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("tier", RIGHT)
def test_right_tiers_share(shared: dict[str, Results], tier: str) -> None:
    results = shared[tier]
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


@pytest.mark.parametrize(("tier", "checker", "words"), WRONG)
def test_a_tier_that_does_not_share_is_detected_by_its_checker(
    shared: dict[str, Results], tier: str, checker: str, words: str
) -> None:
    detected(shared[tier], checker, words)


@pytest.mark.slow
@pytest.mark.parametrize(("tier", "checker", "words"), WRONG_AS_IN_CRASHES)
def test_a_tier_that_publishes_too_early_is_detected_by_its_checker(
    tmp_path: Path, tier: str, checker: str, words: str
) -> None:
    (results,) = run_together("sharing", {tier: SharingOptions(tier=tier, **SHORT)}, tmp_path / "runs").values()
    detected(results, checker, words)


def detected(results: Results, checker: str, words: str) -> None:
    (verdict,) = [v for v in results.verdicts if v["name"] == checker]
    assert verdict["value"] == "false", str(results.verdicts)
    assert any(words in finding for finding in verdict["findings"])


def test_a_run_stores_at_least_its_declared_needs(shared: dict[str, Results]) -> None:
    options = SharingOptions(tier="memory", **SHORT)
    needs = scenario("sharing").needs(options, prepare(options))
    assert stored_files(shared["memory"]) >= needs.root_blocks > 0


def test_slots_that_cannot_hold_two_chains_are_refused() -> None:
    with pytest.raises(UsageError, match="--slots is 8; it must be at least 16"):
        prepare(SharingOptions(tier="memory", slots=8))
