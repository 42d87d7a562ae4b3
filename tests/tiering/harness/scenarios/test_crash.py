"""`run crash` with real processes that really die: right tiers are passed, and what others suffer is named."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from harness.checkers import CHECKERS
from harness.core.history import History, Job, Note, Record, Start, Stop
from harness.faults import PUBLISH_STEPS
from harness.runner import Results
from harness.scenarios import scenario
from harness.scenarios.crash import MOMENT, CrashOptions, blows, prepare, unnamed_files_work
from tests.tiering.harness.together import run_together, stored_files

pytestmark = pytest.mark.timeout(600)  # of all the runs that the fixture makes
BROKEN = "tests.tiering.harness.broken.processes"


SHORT: dict[str, Any] = {"seed": 3, "seconds": 0.0, "block_bytes": 4096}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """Tier -> its run."""
    processes = {
        "kvtier": 4,
        f"{BROKEN}:TempOfTheKey": 4,
        f"{BROKEN}:InPlace": 3,
        f"{BROKEN}:WritesLater": 3,
    }
    options = {tier: CrashOptions(tier=tier, processes=count, **SHORT) for tier, count in processes.items()}
    return run_together("crash", options, tmp_path_factory.mktemp("runs"))


def findings(results: Results) -> dict[str, str]:
    return {v["name"]: "\n".join(v["findings"]) for v in results.verdicts if v["value"] == "false"}


def test_kvtier_survives(tmp_path: Path, crashed: dict[str, Results]) -> None:
    survived(crashed["kvtier"], tmp_path)


@pytest.mark.slow
def test_the_oracle_survives(tmp_path: Path) -> None:
    options = CrashOptions(tier="memory", processes=4, **SHORT)
    survived(run_together("crash", {"memory": options}, tmp_path / "runs")["memory"], tmp_path)


def survived(results: Results, root: Path) -> None:
    assert results.verdict == "true", str(results.verdicts)
    history = History.read(Path(results.run_dir))
    assert {-9, 0} == {s.exit_code for s in history.stops}
    assert any(n.detail.get("how") == "paused" for n in history.notes if n.kind == "fault")
    (data,) = [v["data"] for v in results.verdicts if v["name"] == "recovery"]
    assert data["cut jobs"] > 0
    assert data["found of the dead"] > 0
    if unnamed_files_work(root):
        assert data["faults"].get("killed at link"), "the exact step of publishing"


def test_a_run_stores_at_least_its_declared_needs(crashed: dict[str, Results]) -> None:
    options = CrashOptions(tier="kvtier", processes=4, **SHORT)
    needs = scenario("crash").needs(options, prepare(options))
    assert stored_files(crashed["kvtier"]) >= needs.root_blocks > 0


def test_a_temp_name_that_comes_again_loses_stores_after_a_restart(crashed: dict[str, Results]) -> None:
    said = findings(crashed[f"{BROKEN}:TempOfTheKey"])
    assert "lost its first store after its restart" in said["recovery"]
    assert ".tmp was left under the root" in said["leftovers"]


def test_a_block_published_in_place_is_seen_torn(crashed: dict[str, Results]) -> None:
    said = findings(crashed[f"{BROKEN}:InPlace"])
    assert "short" in said["integrity"]


def test_a_store_reported_before_it_is_done_dies_with_its_process(crashed: dict[str, Results]) -> None:
    said = findings(crashed[f"{BROKEN}:WritesLater"])
    assert "got a miss" in said["visibility"]


@pytest.mark.parametrize("by_step", [True, False])
def test_each_fault_has_its_turn_before_any_comes_again(by_step: bool) -> None:
    coming = blows(Random(1), by_step)
    first = [next(coming) for _ in range(len(PUBLISH_STEPS) + 3)] if by_step else [next(coming) for _ in range(7)]
    assert {b.signal for b in first} == {"SIGKILL", "SIGSTOP"}
    assert {b.step for b in first} == ({*PUBLISH_STEPS, MOMENT} if by_step else {MOMENT})
    if by_step:
        assert [b.when for b in first if b.step == "rename"] == [1]


def life(process: int, incarnation: int, begin: float, end: float, exit_code: int) -> list[Record]:
    start = Start(process, incarnation, 100 + process, "memory", "digest", begin, begin, {})
    return [start, Stop(process, incarnation, end, exit_code, 0, 0, [])]


def job(process: int, job_id: int, direction: Any, begin: float, block: int, outcome: Any = "ok") -> Job:
    ok, failed = ([block] if outcome == "ok" else []), ([block] if outcome == "fail" else [])
    times = (begin, begin, begin + 0.1, begin)
    return Job(process, job_id, job_id, direction, [block], *times, outcome, ok, failed, outcome != "info", [], 4096)


def asked(process: int, at: float, block: int, verdict: str) -> Note:
    return Note(process, at, "asked", "", {"request": 0, "asked_seconds": at, "blocks": [block], "verdicts": verdict})


# Process 1 stores block 1, dies at 3.0 while storing block 2, starts again at 4.0 and stores it; process 0 looks on.
DEATH: list[Record] = [
    *life(0, 0, 0.0, 9.0, 0),
    *life(1, 0, 0.0, 3.0, -9),
    *life(1, 1, 4.0, 9.0, 0),
    Note(-1, 2.9, "fault", "", {"process": 1, "how": "killed", "step": "link"}),
    job(1, 0, "store", 1.0, 1),
    job(1, 1, "store", 2.0, 2, "info"),
    job(1, 2, "store", 5.0, 2),
    asked(0, 6.0, 1, "h"),
    job(0, 0, "load", 6.1, 1),
]


@pytest.mark.parametrize(
    ("checker", "record", "words"),
    [
        ("recovery", job(1, 9, "store", 4.5, 3, "fail"), "process 1 (start 1) lost its first store after its restart"),
        ("recovery", job(0, 9, "store", 4.5, 3, "fail"), "process 0 could not store block 3"),
        ("recovery", job(0, 9, "load", 6.5, 2, "fail"), "got a hit for block 2 and could not load it"),
        ("recovery", Note(-1, 4.0, "error", "after its restart process 1.1 hangs", {}), "after its restart"),
        ("visibility", asked(0, 7.0, 1, "m"), "process 0 got a miss for block 1, 5.900 s after process 1"),
        ("visibility", asked(0, 7.0, 8, "r"), "asked for block 8 and never got an answer"),
    ],
)
def test_what_a_death_costs_others_is_named(checker: str, record: Record, words: str) -> None:
    assert CHECKERS[checker](History.of(DEATH)).value == "true"
    verdict = CHECKERS[checker](History.of([*DEATH, record]))
    assert verdict.value == "false"
    assert words in "\n".join(verdict.findings)


@pytest.mark.parametrize("left_out", [2, 3, 7, 8, 9])
def test_a_run_in_which_nothing_was_at_stake_proves_nothing(left_out: int) -> None:
    rest = [record for number, record in enumerate(DEATH) if number not in (left_out, left_out + (left_out == 2))]
    assert CHECKERS["recovery"](History.of(rest)).value != "false"
    verdicts = {CHECKERS[name](History.of(rest)).value for name in ("recovery", "visibility")}
    assert "unknown" in verdicts


def test_a_block_may_be_found_late_by_as_many_lookups_as_are_allowed() -> None:
    late = [*DEATH, asked(0, 5.5, 1, "m")]
    assert CHECKERS["visibility"](History.of(late)).value == "false"
    assert CHECKERS["visibility"](History.of(late, options={"lookups": 2})).value == "true"
