"""`run determinism` with real interpreters: the rules of sharing hold, or the cell that breaks them is named."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.checkers import CHECKERS
from harness.core.history import History, Note
from harness.faults import FaultUnavailable
from harness.faults.failing_system_calls import Attached
from harness.runner import Results
from harness.scenarios.base import UsageError
from harness.scenarios.determinism import SEEDS, DeterminismOptions, find_pythons, rule
from tests.tiering.harness.together import run_together

pytestmark = pytest.mark.timeout(600)  # of all the runs that the fixture makes
BROKEN = "tests.tiering.harness.broken.processes"


CARELESS = f"{BROKEN}:Careless"
OTHERS = list(find_pythons((), sys.executable).values())[:1] or ["none"]
"""Pythons beside the one that runs these tests."""
Derived = dict[str, tuple[Results, dict[str, Any]]]


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> Derived:
    """Tier -> its run, and the verdict of the checker of settings."""
    return derive({"kvtier": tuple(OTHERS), CARELESS: ("none",)}, tmp_path_factory.mktemp("runs"))


def derive(pythons: Mapping[str, tuple[str, ...]], folder: Path) -> Derived:
    options = {
        tier: DeterminismOptions(tier=tier, seed=3, seconds=0.0, block_bytes=4096, processes=2, python=python)
        for tier, python in pythons.items()
    }
    runs = run_together("determinism", options, folder)
    return {
        tier: (results, next(v for v in results.verdicts if v["name"] == "seed_settings"))
        for tier, results in runs.items()
    }


def can_attach() -> bool:
    try:
        Attached(1, calls="getpid").detach()
    except FaultUnavailable:
        return False
    return True


def test_kvtier_shares_as_the_rules_say_on_two_pythons(derived: Derived) -> None:
    results, settings = derived["kvtier"]
    assert results.verdict == "true", str(results.verdicts)
    assert settings["data"]["instances"] == 2
    assert settings["data"]["refused"] >= 12, "four algorithms, three ways to start"
    assert len(settings["data"]["pythons"]) == (1 if OTHERS == ["none"] else 2)


@pytest.mark.slow
def test_the_oracle_shares_as_the_rules_say(tmp_path: Path) -> None:
    results, settings = derive({"memory": ("none",)}, tmp_path / "runs")["memory"]
    assert results.verdict == "true", str(results.verdicts)
    assert len(settings["data"]["pythons"]) == 1


def test_each_violation_of_a_careless_tier_is_found(derived: Derived) -> None:
    _, settings = derived[CARELESS]
    said = "\n".join(settings["findings"])
    assert "no sharing, though the rules say so" in said
    assert "PYTHONHASHSEED unset" in said
    assert "the seed's digest is common" in said
    assert "accepted without an error, though they share nothing" in said
    assert "2 instances call themselves" in said
    if can_attach():
        assert "processes 0, 1 all made the temp file" in said


def test_the_rules() -> None:
    for algorithm in ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor"):
        for policy in ("fixed", "env", "random"):
            families = [rule(seed, algorithm, policy) for seed in SEEDS]
            assert len(set(families)) == len(SEEDS), "each text is a seed of its own, also the empty one"
    assert rule("0", "sha256", "fixed") == rule("0", "sha256", "random"), "a set seed decides"
    assert [rule(None, "sha256", p) for p in ("fixed", "env", "random")] == ["no seed", "refused", "private"]
    assert [rule(None, "xxhash", p) for p in ("fixed", "env", "random")] == ["private", "refused", "private"]


def cell(expected: str, names: list[str], **changes: Any) -> Note:
    where = {"python": "3.11.0", "start": "fresh", "seed": "0", "algorithm": "sha256", "policy": "fixed"}
    told = {"status": "names", "why": "", "digest": expected, "names": [[i, n, n] for i, n in enumerate(names)]}
    return Note(-1, 0.0, "cell", "", {**where, "expected": expected, **told, **changes})


PAIR = {"first": "a", "second": "b", "shares": True, "status": "names", "why": "", "said": "", "same_names": True}
RIGHT = [cell("seed '0'", ["a", "b"]), cell("seed '0'", ["a", "b"], start="spawn"), cell("seed '1'", ["c", "d"])]


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ([*RIGHT, cell("seed '0'", ["a", "x"])], "no sharing"),
        ([*RIGHT, cell("seed '2'", ["a", "x"])], "the name a is common"),
        ([*RIGHT, cell("private", ["e", "f"]), cell("private", ["e", "g"], digest="other")], "must not share"),
        ([*RIGHT, cell("seed '3'", ["e", "e"])], "different tokens have the same name"),
        ([*RIGHT, cell("refused", ["e", "f"])], "accepted, though"),
        ([*RIGHT, cell("refused", [], status="refused", why="no")], "without naming PYTHONHASHSEED"),
        ([*RIGHT, cell("seed '0'", [], status="refused", why="no")], "though the rules allow it"),
        ([Note(-1, 0.0, "pair", "", {**PAIR, "shares": False, "same_names": False})], "accepted without an error"),
        ([Note(-1, 0.0, "pair", "", {**PAIR, "shares": False, "said": "seed"})], "names are the same"),
        ([Note(-1, 0.0, "pair", "", {**PAIR, "status": "refused", "why": "no"})], "refused, though they share"),
        ([Note(-1, 0.0, "pair", "", {**PAIR, "said": "another seed"})], "yet it complains"),
    ],
)
def test_each_breach_of_a_rule_is_named(notes: list[Note], words: str) -> None:
    pair = Note(-1, 0.0, "pair", "", PAIR)
    assert CHECKERS["seed_settings"](History.of([*RIGHT, pair])).value == "true"
    assert CHECKERS["seed_settings"](History.of([*RIGHT, cell("refused", [], status="missing"), pair])).value == "true"
    assert CHECKERS["seed_settings"](History.of(RIGHT)).value == "unknown"
    assert CHECKERS["seed_settings"](History.of([pair])).value == "unknown"
    verdict = CHECKERS["seed_settings"](History.of([*RIGHT, pair, *notes]))
    assert verdict.value == "false"
    assert words in "\n".join(verdict.findings)


def test_an_interpreter_that_does_not_run_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--python is '/nowhere/python', which does not run"):
        find_pythons(["/nowhere/python"], sys.executable)
