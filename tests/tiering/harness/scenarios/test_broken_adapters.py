"""Every scenario on tiers that raise, end their process or hang in one method: always a verdict, never a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.checkers import CHECKERS
from harness.cli import main
from harness.core.history import History
from harness.runner import Results, judge, run
from harness.runtime import supervisor as launch
from harness.scenarios import determinism, load, scenario, scenarios, sharing
from tests.tiering.harness.broken.adapters import MESSAGE, METHODS, TRACE

TIERS = "tests.tiering.harness.broken.adapters"
CONFORMED = [item.name for item in scenarios() if not item.apart]
DEADLY = ("constructor", "keys", "lookup", "submit_store", "submit_load", "poll", "close")
SHORTER: dict[str, dict[str, Any]] = {
    "faults": {"fault": ("damage_bit_flip", "stale_temps")},
    "determinism": {"python": ("none",)},
    "starvation": {"job_blocks": "1"},
    "soak": {"seconds": 2.0},
    "capacity": {"seconds": 2.0},
}
"""Over `Scenario.short`: whether something grows or starves is not asked here."""


def broken(name: str, tmp_path: Path, method: str, how: str) -> Results:
    tier = "KeepsLimit" if name == "capacity" else "Breaks"
    options = {**scenario(name).short, **SHORTER.get(name, {}), "tier": f"{TIERS}:{tier}", "seed": 5}
    options["tier_option"] = (f"method={method}", f"how={how}")
    return run(scenario(name), scenario(name).options(**options), tmp_path / "runs")


def check(name: str, tmp_path: Path, method: str, how: str) -> None:
    results = broken(name, tmp_path, method, how)
    reached = (Path(results.run_dir) / TRACE).exists()
    # A worker is ready when it has its digest: raising before that is a refusal, as in the constructor.
    refused = (method, how) in (("constructor", "raise"), ("constructor", "hang"), ("none_hash_digest", "raise"))
    if refused:
        assert results.verdict == "unknown", results.verdicts
        said = results.reason + str(results.verdicts)
        assert any(
            words in said for words in (("not ready after", "said nothing for") if how == "hang" else (MESSAGE,))
        )
    elif reached:
        # `crash` kills processes itself and does not yet tell a tier's own SIGKILL from its own: inconclusive there.
        allowed = ("false", "unknown") if (name, method, how) == ("crash", "submit_store", "kill") else ("false",)
        assert results.verdict in allowed, (results.reason, results.verdicts)
    assert "the scenario failed" not in results.reason, results.reason
    assert "the checker failed" not in str(results.verdicts)
    for verdict in (v for v in results.verdicts if v["name"] in ("contract", "faults", "leftovers", "results")):
        assert len(set(verdict["findings"])) == len(verdict["findings"]), verdict["findings"]


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "READY_SECONDS_MAX", 3.0)
    monkeypatch.setattr(launch, "STACKS_SECONDS_MAX", 3.0)
    monkeypatch.setattr(determinism, "PROBE_SECONDS_MAX", 3.0)


@pytest.mark.parametrize(
    ("name", "method", "how"),
    [
        ("contract", "close", "raise"),
        ("contract", "constructor", "exit"),
        ("load", "constructor", "raise"),
        ("load", "submit_store", "kill"),
        ("sharing", "lookup", "raise"),
        ("crash", "poll", "exit"),
        ("faults", "constructor", "kill"),
        ("soak", "step", "raise"),
    ],
)
def test_a_broken_tier_gets_a_verdict(name: str, method: str, how: str, tmp_path: Path) -> None:
    check(name, tmp_path, method, how)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFORMED)
def test_a_tier_that_raises_gets_a_verdict_in_every_scenario(name: str, method: str, tmp_path: Path) -> None:
    check(name, tmp_path, method, "raise")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("method", DEADLY)
@pytest.mark.parametrize("name", CONFORMED)
def test_a_tier_that_ends_its_process_does_so_in_every_scenario(
    name: str, method: str, how: str, tmp_path: Path
) -> None:
    check(name, tmp_path, method, how)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFORMED)
def test_a_tier_that_hangs_in_its_constructor_is_unknown_in_every_scenario(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, "constructor", "hang")


@pytest.mark.slow
def test_conform_goes_on_after_a_scenario_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(context: Any, plan: Any) -> None:
        {}["nowhere"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sharing.SCENARIO.__dict__, "run", fails)
    names = ["--scenario", "sharing", "--scenario", "contract"]
    with pytest.raises(SystemExit) as ended:
        main(["conform", "memory", *names, "--seconds", "0.5", "--seed", "4", "--processes", "2", "--quiet"])
    out = capsys.readouterr().out
    summary = out[out.rindex("\n\n") :]
    assert ended.value.code == 2
    assert "sharing      inconclusive" in summary
    assert "the scenario failed: KeyError: 'nowhere' (traceback in scenario-error.txt)" in summary
    assert "contract     pass" in summary
    (folder,) = (path for path in (tmp_path / "runs").glob("*-sharing-*"))
    assert "Traceback" in (folder / "scenario-error.txt").read_text()


def test_a_checker_that_fails_is_unknown_and_the_others_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(history: History) -> Any:
        return 1 / len([])

    results = run(
        load.SCENARIO,
        load.LoadOptions(tier="memory", processes=2, seconds=0.3, block_bytes=4096, seed=1),
        tmp_path / "runs",
    )
    monkeypatch.setitem(CHECKERS, "integrity", fails)  # type: ignore[arg-type]
    again = {verdict["name"]: verdict for verdict in judge(Path(results.run_dir)).verdicts}
    assert again["integrity"]["value"] == "unknown"
    assert again["integrity"]["figure"] == "the checker failed on this history: ZeroDivisionError: division by zero"
    assert {v["value"] for name, v in again.items() if name in ("results", "leftovers")} == {"true"}


def test_a_traceback_of_several_processes_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    breaks = ["--tier", f"{TIERS}:Breaks", "--tier-option", "method=lookup", "--tier-option", "how=raise"]
    with pytest.raises(SystemExit) as ended:
        main(["run", "sharing", *breaks, "--seconds", "0.2", "--seed", "1", "--quiet"])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert out.count("Traceback") == 1
    assert "results: processes 0, 1, 2: RuntimeError: the tier fell over\n" in out
    assert json.loads((tmp_path / "runs" / "latest" / "results.json").read_text())["reason"] == ""
