"""`run crash_states`: kvtier and the reference pass in every state; what cannot be recorded is inconclusive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.checkers.crash_states import RULES, check
from harness.core import notes
from harness.core.history import History, note_of
from harness.explore.recording import recorded_python
from harness.faults.rules import FaultUnavailable
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.crash_states import CrashStatesOptions, prepare


def crash_states(tmp_path: Path, **changes: Any) -> Results:
    try:
        recorded_python("python", tmp_path / "log.txt")
    except FaultUnavailable as reason:
        pytest.skip(str(reason))
    options = CrashStatesOptions(**{**scenario("crash_states").short, "seed": 3, **changes})
    return run(scenario("crash_states"), options, tmp_path / "runs")


def test_a_durable_store_survives_every_state(tmp_path: Path) -> None:
    results = crash_states(tmp_path, ways="buffered durable", rules="ordered,writeback")
    assert results.verdict == "true", results.verdicts
    assert {phase["durable"] for phase in results.verdicts[0]["data"]["phases"]} == {True}
    assert sum(phase["states"] for phase in results.verdicts[0]["data"]["phases"]) >= 20


@pytest.mark.slow
def test_a_durable_store_survives_without_order(tmp_path: Path) -> None:
    results = crash_states(tmp_path, ways="buffered durable", rules="ordered,writeback,unordered")
    phases = {phase["phase"]: phase for phase in results.verdicts[0]["data"]["phases"]}
    mixed = phases.pop("a store of a block that was stored without waiting")
    assert len(phases) == 6
    for phase in phases.values():
        assert phase["outcomes"] == {}, phase
        assert phase["points"] > phase["steps"]
    assert "lost" not in mixed["outcomes"], "only a store that did not wait may leave a prefix without order"
    assert mixed["rules"]["ordered"] < mixed["rules"]["writeback"] < mixed["rules"]["unordered"] <= mixed["states"]


@pytest.mark.slow
@pytest.mark.parametrize("block_bytes", [4096, 16384])
def test_kvtier_passes_every_way(tmp_path: Path, block_bytes: int) -> None:
    results = crash_states(tmp_path, block_bytes=block_bytes, rules="ordered,writeback")
    assert results.verdict == "true", results.verdicts
    phases = results.verdicts[0]["data"]["phases"]
    assert len({phase["way"] for phase in phases}) == 5
    assert any(phase["outcomes"].get("missing") for phase in phases), "a store that does not wait may lose its block"


@pytest.mark.slow
def test_kvtier_serves_nothing_wrong_without_order_where_a_trailer_is_required(tmp_path: Path) -> None:
    results = crash_states(tmp_path, ways="buffered,direct", rules="unordered", tier_option=("integrity=require",))
    assert results.verdict == "true", results.verdicts


@pytest.mark.slow
def test_the_reference_tier_passes(tmp_path: Path) -> None:
    results = crash_states(tmp_path, tier="reference", rules="ordered,writeback")
    assert results.verdict == "true", results.verdicts


def test_without_strace_the_run_is_inconclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    options = CrashStatesOptions(seed=3, tier="reference")
    results = run(scenario("crash_states"), options, tmp_path / "runs")
    assert results.verdict == "unknown"
    assert results.verdicts[0]["figure"].startswith("system-call faults take the program strace")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ways": "sideways"}, r"--ways has sideways; valid choices: as it is, buffered, direct"),
        ({"rules": "magic"}, r"--rules has magic; valid choices: ordered, writeback, unordered"),
        ({"tier": "reference", "ways": "direct"}, r"tier 'reference' cannot store: direct"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        prepare(CrashStatesOptions(**options))


def test_a_tier_stores_in_the_ways_that_it_has() -> None:
    assert prepare(CrashStatesOptions(tier="reference")).ways == ["as it is"]
    assert prepare(CrashStatesOptions(tier="vllm")).ways == ["C extension", "Python functions"]
    assert prepare(CrashStatesOptions()).ways == [
        "buffered", "direct", "buffered interpreted", "buffered durable", "direct durable",
    ]  # fmt: skip


def history(*about: notes.About) -> History:
    return History(notes=[note_of(1, 1.0, one, "block 4 is bad") for one in about])


PHASE = notes.CrashPhase("buffered", False, "a store", 5, 7, {"ordered": 18}, 18, {"missing": 3})


def test_a_run_without_a_phase_is_inconclusive_and_one_without_findings_passes() -> None:
    assert check(history()).value == "unknown"
    verdict = check(history(PHASE))
    assert (verdict.value, verdict.findings) == ("true", [])
    assert verdict.figure.endswith("7 crash points, 18 states: 0 served wrong bytes, 0 lost a durable block, "
                                   "3 lost a block of a store that does not wait")  # fmt: skip
    assert check(history(PHASE, notes.Skipped())).value == "unknown"


@pytest.mark.parametrize(
    ("outcome", "rule"), [*zip(("wrong", "lost", "refused", "store", "silent"), (*RULES, RULES[-1]), strict=True)]
)
def test_each_thing_that_goes_wrong_is_one_finding_against_its_rule(outcome: str, rule: Any) -> None:
    phase = PHASE._replace(outcomes={outcome: 2})
    state = notes.CrashState("buffered", "a store", outcome, "crash after link", ["ordered"], 4)
    verdict = check(history(state, state, phase))
    assert verdict.value == "false"
    (finding,) = verdict.findings
    assert finding == "buffered, a store in 2 of 18 states: block 4 is bad; crash after link (ordered)"
    assert (finding.about.rule, finding.about.block) == (rule.id, 4)  # type: ignore[attr-defined]


def test_an_exception_of_the_tier_is_a_finding() -> None:
    verdict = check(history(PHASE, notes.Error()))
    assert verdict.value == "false"
    assert "block 4 is bad" in verdict.findings[0]
