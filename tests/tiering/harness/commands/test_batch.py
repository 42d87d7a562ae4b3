"""Several runs in one command: the worst verdict, and nothing after an interrupt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import harness.mutants.trial
from harness.commands.batch import Batch, worst
from harness.commands.conform import LONG_SECONDS, plan
from harness.entry_point import Terminated
from harness.scenarios import scenario
from harness.scenarios.base import CommonOptions, Scenario

CONTRACT = scenario("contract")
OPTIONS: dict[str, Any] = {"tier": "reference", "seed": 1}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["true", "true"], "true"),
        (["true", "unknown"], "unknown"),
        (["unknown", "false", "true"], "false"),
        ([], "unknown"),
    ],
)
def test_the_worst_verdict_is_that_of_all(values: list[str], expected: str) -> None:
    assert worst(values) == expected


def interrupted(error: type[BaseException]) -> Scenario:
    """A scenario that a signal ends."""

    def run(context: Any, plan: Any) -> None:
        raise error

    return dataclasses.replace(CONTRACT, run=run)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interrupted_run_is_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    batch = Batch(tmp_path / "runs", Console(), silent=True)
    with pytest.raises(SystemExit) as ended:
        batch.run(interrupted(error), CONTRACT.options(**OPTIONS))
    assert ended.value.code == code
    assert [results.interrupted for results in batch.done] == [True]
    monkeypatch.setattr(harness.mutants.trial, "scenario", lambda name: interrupted(error))
    with pytest.raises(error):
        harness.mutants.trial.try_control("reference", "contract", 1, tmp_path / "runs")


def test_full_runs_keep_each_scenarios_own_seconds_and_leave_out_the_long_ones() -> None:
    planned, left_out = plan("kvtier", (), 1, {"seconds": 3.0, "full": True})
    asked = {item.name: options for item, options in planned}
    assert asked["load"].seconds == CommonOptions().seconds
    assert max(options.seconds for options in asked.values()) <= LONG_SECONDS
    assert left_out["soak"] == "takes 3,600 s: kvtier-harness run soak"
    assert {"outage", "power_loss", "soak"} <= set(left_out)
