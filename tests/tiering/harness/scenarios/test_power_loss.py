"""`run power_loss`: a tier that waits for the device loses nothing, one that only says so does, unverified blocks are
wrong; what cannot be had here is skipped in a sentence.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from harness.faults import FaultUnavailable
from harness.hosts.user_mode_kernel import require_kernels
from harness.report.volume_page import power_table
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.power_loss import PowerLossOptions

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="images are mounted by root alone")
FAILURES = ("snapshot", "kernel")


def power_loss(tmp_path: Path, **changes: Any) -> Results:
    options = PowerLossOptions(
        **{"seed": 3, "seconds": 1.0, "file_systems": "xfs", "ways": "direct durable", **changes}
    )
    results = run(scenario("power_loss"), options, tmp_path / "runs")
    if "which is not installed" in results.verdicts[0]["figure"]:
        pytest.skip(results.verdicts[0]["figure"])
    return results


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("failure", FAILURES)
def test_a_tier_that_waits_for_the_device_loses_nothing(tmp_path: Path, failure: str) -> None:
    results = power_loss(tmp_path, failures=failure)
    assert results.verdict == "true", str(results.verdicts)
    data = results.verdicts[0]["data"]
    (case,) = data["cases"]
    assert case["failure"] == failure
    assert 0 < case["reported"] == case["present"]
    assert data["in_the_middle"] == 1


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("failure", FAILURES)
def test_a_tier_that_takes_the_option_and_does_not_wait_is_found(tmp_path: Path, failure: str) -> None:
    results = power_loss(tmp_path, failures=failure, tier="memory")
    assert results.verdict == "false"
    assert "durable blocks are lost" in results.verdicts[0]["findings"][0]


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("failure", FAILURES)
def test_blocks_that_nobody_verifies_are_wrong_afterwards(tmp_path: Path, failure: str) -> None:
    changes = {"file_systems": "ext4 writeback", "ways": "buffered", "seconds": 2.0}
    results = power_loss(tmp_path, failures=failure, tier_option=("integrity=off",), **changes)
    assert results.verdict == "false"
    assert "served with wrong bytes" in results.verdicts[0]["findings"][0]


def test_where_there_are_no_kernels_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FaultUnavailable, match=r"linux\.uml \(package user-mode-linux\), which is not installed"):
        require_kernels("a kernel of its own")


@needs_root
def test_a_failure_that_cannot_be_had_is_told_and_the_run_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    results = run(scenario("power_loss"), PowerLossOptions(seed=3, failures="kernel"), tmp_path / "runs")
    assert results.verdict == "unknown"
    assert results.verdicts[0]["figure"].startswith("power that fails by kernel: a kernel of its own takes the program")


@pytest.mark.parametrize("option", ["file_systems", "ways", "failures"])
def test_what_does_not_exist_is_refused_with_what_does(option: str) -> None:
    with pytest.raises(UsageError, match=r"has lightning; valid choices: \w+"):
        scenario("power_loss").prepare(PowerLossOptions(**{option: "lightning"}))


def test_the_table_has_a_line_for_each_case() -> None:
    counts = {"reported": 9, "present": 7, "missing": 2, "damaged": 0, "wrong": 0}
    table = power_table([{"failure": "kernel", "file_system": "xfs", "way": "direct", **counts}])
    assert table[-1] == "| kernel | xfs | direct | 9 | 7 | 2 | 0 | 0 |"
    assert len(table) == 3
