"""`kvtier-harness findings`: each case is decided by checkers of its scenario, and the page holds the runs' results."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.commands import findings
from harness.scenarios import scenario


@pytest.mark.parametrize("case", findings.CASES, ids=lambda case: case.title)
def test_each_case_is_decided_by_checkers_of_its_scenario(case: findings.Case) -> None:
    assert set(case.checkers) <= set(scenario(case.scenario).checkers)


def test_the_page_has_the_verdict_and_the_command_of_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--processes", "1", "--requests", "8", "--speed", "0", "--seconds", "0")
    case = findings.Case("Traffic", "What is done.", "load", ("results",), options)
    refused = findings.Case("Refused", "Bad option.", "load", ("results",), ("--tier-option", "nonsense=1"))
    monkeypatch.setattr(findings, "CASES", (case, refused))
    monkeypatch.setattr(findings, "TIERS", ("reference",))
    monkeypatch.setattr(findings, "tier_python", lambda tier: "true")
    page = tmp_path / "page.md"
    arguments = ["--seed", "3", "--runs-dir", str(tmp_path / "runs"), "--write", str(page)]
    done = CliRunner().invoke(findings.findings, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    command = f"kvtier-harness run load --tier reference --seed 3 {' '.join(options)}"
    assert f"**reference**: pass. `{command}`\n\n- results, pass: " in text
    assert "**reference**: inconclusive. `kvtier-harness run load --tier reference --seed 3 --tier-option" in text
    assert "nonsense" in text.split("the run ended early: ")[1]
