"""`run load` with real processes on the oracle tier: what it concludes, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.adapters.base import TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.core.history import History
from harness.runner import Results, judge, run
from harness.runtime.supervisor import Child
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.load import LoadOptions, prepare
from kvtier.config import CapacityConfig, ConfigError
from tests.tiering.harness.scenarios.certain_trace import REQUESTS, write_certain_trace

LOAD = scenario("load")
BROKEN = "tests.tiering.harness.broken.tiers"
MUTANTS = "harness.mutants.wrong_results"
SMALL: dict[str, Any] = {"tier": "memory", "processes": 2, "seed": 5, "block_bytes": 4096, "slots": 64}


def certain(tmp_path: Path) -> dict[str, Any]:
    trace = tmp_path / "certain.jsonl"
    write_certain_trace(trace)
    return {**SMALL, "trace": str(trace), "speed": 1.0}


def load(tmp_path: Path, on_tick: Any = lambda children: None, **changes: Any) -> tuple[Results, Path]:
    results = run(LOAD, LoadOptions(**{**certain(tmp_path), **changes}), tmp_path / "runs", on_tick=on_tick)
    return results, Path(results.run_dir)


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """A right run that several tests look at."""
    return load(tmp_path_factory.mktemp("right"))


def test_the_oracle_is_passes_and_the_folder_is_whole(passed: tuple[Results, Path]) -> None:
    results, run_dir = passed
    assert (results.verdict, results.exit_code) == ("true", 0), str(results.verdicts)
    assert {v["name"] for v in results.verdicts} == set(LOAD.checkers)
    names = {path.name for path in run_dir.iterdir()}
    assert {"options.json", "environment.json", "files.json", "results.json", "run.json"} <= names
    assert {f"{kind}-{p}.{end}" for p in range(2) for kind, end in (("history", "jsonl"), ("stderr", "txt"))} <= names
    assert "root" not in names, "the blocks are removed"
    assert (run_dir.parent / "latest").resolve() == run_dir.resolve()
    written = json.loads((run_dir / "results.json").read_text())
    assert written["seed"] == 5
    assert "--seed 5" in written["command"]
    history = History.read(run_dir)
    assert sorted(r.request for r in history.requests) == list(range(REQUESTS))
    stored = {n.name for n in history.names if n.block >= 0}  # the others are those of a second group
    assert len([f for f in history.files if f.endswith(".bin")]) == len(stored)


def test_kvtier_is_passes(tmp_path: Path) -> None:
    results, _ = load(tmp_path, tier="kvtier", read_threads=2, write_threads=2)
    assert results.verdict == "true", str(results.verdicts)


def test_the_synthetic_trace_is_replayed_to_its_end_and_never_fails_the_oracle(tmp_path: Path) -> None:
    results, run_dir = load(tmp_path, trace=None, speed=None, seconds=1.0)
    planned = {r.request for mine in prepare(LoadOptions(**SMALL, seconds=1.0)).plans for r in mine}
    assert {r.request for r in History.read(run_dir).requests} == planned
    assert results.verdict != "false", str(results.verdicts)


def test_judging_again_gives_the_same_verdicts(passed: tuple[Results, Path]) -> None:
    results, run_dir = passed
    written = (run_dir / "results.json").read_text()
    assert dataclasses.asdict(judge(run_dir)) == dataclasses.asdict(results)
    assert (run_dir / "results.json").read_text() == written


@pytest.mark.parametrize(
    ("tier", "name"),
    [
        (f"{MUTANTS}:ReturnsStaleSlots", "integrity"),
        (f"{MUTANTS}:ReportsTwice", "results"),
        (f"{BROKEN}:Leaks", "leftovers"),
    ],
)
def test_a_broken_tier_is_detected_by_the_checker_meant_for_it(tmp_path: Path, tier: str, name: str) -> None:
    results, _ = load(tmp_path, tier=tier)
    assert (results.verdict, results.exit_code) == ("false", 1)
    (verdict,) = [v for v in results.verdicts if v["name"] == name]
    assert verdict["value"] == "false"
    assert verdict["findings"]


def test_a_killed_worker_is_never_a_pass_and_its_last_words_are_told(tmp_path: Path) -> None:
    def kill_one_and_stop_the_other(children: Sequence[Child]) -> None:
        first, second = children
        if first.state == "running" and first.counts.get("requests", 0) >= 1:
            first.kill()
        if first.state == "dead":
            second.send(stop=True)

    # Most of the traffic lies minutes ahead: neither comes to its end by itself.
    ahead = {"trace": None, "speed": None, "seconds": 600.0, "requests": 200}
    results, run_dir = load(tmp_path, kill_one_and_stop_the_other, **ahead)
    assert results.verdict == "false"
    findings = [f for v in results.verdicts for f in v["findings"]]
    assert any("process 0" in f and ("SIGKILL" in f or "signal 9" in f) for f in findings), findings
    others = [s for s in History.read(run_dir).stops if s.process == 1]
    assert [s.exit_code for s in others] == [0], "the other process ended in good order"


def test_one_process_has_nobody_to_share_with_and_that_is_unknown(tmp_path: Path) -> None:
    results, _ = load(tmp_path, processes=1)
    assert (results.verdict, results.exit_code) == ("unknown", 2)


def test_a_tier_that_refuses_its_setup_makes_an_unknown_run_that_says_why(tmp_path: Path) -> None:
    results, _ = load(tmp_path, tier=f"{BROKEN}:Refuses")
    assert (results.verdict, results.exit_code) == ("unknown", 2)
    assert "block_bytes is 4096; this tier wants more" in results.reason


def test_a_root_of_ones_own_is_used_in_a_folder_of_the_run_and_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "precious").write_text("data")
    load(tmp_path, root_dir=str(root), keep=False, requests=4)
    assert [p.name for p in root.iterdir()] == ["precious"]
    _, run_dir = load(tmp_path, root_dir=str(root), keep=True, requests=4)
    (kept,) = [p for p in root.iterdir() if p.name != "precious"]
    assert kept.name == f"harness-{run_dir.name}"
    assert sorted(str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()) == sorted(
        History.read(run_dir).files
    )


def test_a_recorded_trace_is_cut_by_requests_and_by_seconds(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"timestamp": 1000 * i, "input_length": 1, "output_length": 1, "hash_ids": [0, i + 1]} for i in range(10)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def planned(**changes: Any) -> list[tuple[int, float]]:
        options = LoadOptions(**{**SMALL, "trace": str(trace), **changes})
        return sorted((r.request, r.start_seconds) for mine in prepare(options).plans for r in mine)

    assert planned(seconds=2.0, speed=2.0) == [(i, i / 2) for i in range(4)]
    assert planned(seconds=0.0, speed=10.0, requests=3) == [(i, i / 10) for i in range(3)]
    assert planned(seconds=1.0, speed=0.0) == [(i, 0.0) for i in range(10)], "a closed loop takes what it manages"
    results, _ = load(tmp_path, trace=str(trace), seconds=0.0, speed=0.0)
    assert results.totals["requests"] == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": 0}, "--processes is 0; it must be at least 1"),
        ({"processes": -3}, "--processes is -3"),
        ({"block_bytes": 5000}, "--block-bytes is 5000; it must be a multiple of 4096"),
        ({"read_threads": 0}, "--read-threads is 0"),
        ({"seconds": float("nan")}, "--seconds is nan"),
        ({"tier_option": ("x",)}, "--tier-option is 'x'; it takes NAME=VALUE"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LoadOptions(**{**SMALL, **changes})


def test_sizes_of_the_tier_have_units_and_its_root_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    options = LoadOptions(tier_option=("task_bytes_max=64KiB", 'capacity={"low_water": 0.5, "min_free_bytes": "1MB"}'))
    adapter = KvtierAdapter(TierSetup("root", 4096, 4, 1, 1, max_bytes=1 << 30, options=options.tier_options()))
    adapter.close()
    config = adapter._tier.config
    assert (config.root_dir, config.task_bytes_max) == (str(tmp_path / "root"), 64 << 10)
    assert config.capacity == CapacityConfig(max_bytes=1 << 30, min_free_bytes=10**6, low_water=0.5)
    with pytest.raises(ConfigError, match="capacity is 'plenty'"):
        KvtierAdapter(TierSetup("root", 4096, 4, max_bytes=1 << 30, options={"capacity": "plenty"}))


def test_options_of_the_tier_reach_it(tmp_path: Path) -> None:
    options = LoadOptions(**{**SMALL, "tier_option": ("integrity=off", "deep=3", "metrics=true")})
    assert options.tier_options() == {"integrity": "off", "deep": 3, "metrics": True}
