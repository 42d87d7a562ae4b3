"""`run calls`: kvtier's calls wait for nothing, and a call that does is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.calls import CallsOptions

CALLS = scenario("calls")


def time_calls(tmp_path: Path, **changes: Any) -> Results:
    options = {**CALLS.short, "seed": 5, "files": 2000, "seconds": 0.5, **changes}
    return run(CALLS, CallsOptions(**options), tmp_path / "runs")


def test_kvtiers_calls_wait_for_no_device(tmp_path: Path) -> None:
    results = time_calls(tmp_path, tier="kvtier")
    assert results.verdict == "true", str(results.verdicts)
    (verdict,) = [v for v in results.verdicts if v["name"] == "nonblocking"]
    for call in ("lookup", "poll", "request_finished", "request_started", "step"):
        assert f"{call} " in verdict["figure"]


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["kvtier-stack", "reference", "tests.tiering.harness.broken.hidden:HidesItsSchedule"])
def test_right_tiers_pass(tmp_path: Path, tier: str) -> None:
    results = time_calls(tmp_path, tier=tier)
    assert results.verdict == "true", str(results.verdicts)
