"""Pages of findings: what a record says of a guarantee, and what the pages say of the record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.adapters import adapter_class
from harness.adapters.peers import PEERS
from harness.checkers import RULES
from harness.findings import pages
from harness.findings.promises import PROMISES, REPRO
from harness.findings.record import keep, read, record, records, shortest
from harness.findings.suite import CONTROLS, DOCUMENTED, ROWS, SUITE, Row
from harness.scenarios import scenario

CASES = {case.name: case for case in SUITE}
ROW = {row.name: row for row in ROWS}


def judged(tier: str, **cases: Mapping[str, str]) -> dict[str, Any]:
    """A record with the value of each rule of each case."""
    kept = {
        case: {
            "command": f"replay {case}",
            "reason": "",
            "facts": "Seed 1.",
            "rules": {rule: {"value": value, "texts": [f"{rule} was seen"]} for rule, value in rules.items()},
        }
        for case, rules in cases.items()
    }
    return {"tier": tier, "label": tier, "version": "1", "cases": kept}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_is_judged_by_rules_of_the_cases_that_it_names(row: Row) -> None:
    for pattern in row.judged:
        case, _, _ = pattern.partition(":")
        checkers = scenario(CASES[case].scenario).checkers
        rules = [rule for rule in RULES if row.decides(case, rule) and rule.partition("/")[0] in checkers]
        assert rules or case in ("load", "sharing", "crash", "retention", "lifecycle", "calls"), pattern
    calm = [case for case in CASES if any(row.decides(case, rule) for rule in RULES)]
    assert calm, row.name


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (("true", "true"), "true"),
        (("true", "unknown"), "unknown"),
        (("false", "unknown"), "false"),
        ((), "unknown"),
    ],
)
def test_a_cell_is_the_worst_of_its_rules_and_inconclusive_without_any(values: tuple[str, ...], word: str) -> None:
    rules = dict(zip(("faults/no-wrong-byte", "integrity/bytes"), values, strict=False))
    assert pages.cell(judged("reference", content=rules), ROW["content"]).value == word


def test_a_tier_without_a_queue_is_not_judged_by_its_waits() -> None:
    found = pages.cell(judged("sglang", calls={"nonblocking/habit": "false"}), ROW["waits"])
    assert (found.value, "no queue" in found.reason) == ("", True)


def test_a_row_with_a_case_that_was_not_run_does_not_pass() -> None:
    rules = {"size": {"faults/no-wrong-byte": "true"}}
    assert pages.cell(judged("reference", **rules), ROW["size"]).value == "unknown"
    rules["short-file"] = {"interleavings/wrong-bytes": "true"}
    assert pages.cell(judged("reference", **rules), ROW["size"]).value == "true"


def test_what_a_tier_says_that_it_does_not_promise_is_no_finding() -> None:
    rules = {"errors": {"faults/others-unharmed": "false"}, "size": {"faults/others-unharmed": "true"}}
    rules["contract"] = {"contract/a-vanished-block-is-no-data": "true"}
    assert pages.cell(judged("lmcache", **rules), ROW["others"]).value == "true"
    assert pages.cell(judged("sglang", **rules), ROW["others"]).value == "false"
    assert "coarse-grained error handling" in pages.conformance([judged("lmcache", **rules)])


def test_a_failing_cell_links_to_its_finding_with_the_replay_command_and_the_counterexample() -> None:
    one = judged("lmcache", kills={"interleavings/lost-store": "false"})
    one["cases"]["kills"]["counterexamples"] = {
        "interleavings/lost-store": {"program": "store A", "calls": 3, "text": "it is lost", "diagram": "1 open"}
    }
    page = pages.conformance([one])
    assert "[fail](findings/lmcache-0.5.6.md#killed)" in page
    text = pages.findings(one)
    assert "\n## killed\n" in text
    assert "```\nreplay kills\n```" in text
    assert "3 calls of `store A`: it is lost\n\n```text\n1 open\n```" in text
    assert "**Severity**: lost store." in text
    assert "critical for multi-node shared-FS setups" in text
    assert "repro/lmcache_killed.py" in text


def test_a_case_that_runs_again_replaces_its_record_and_the_others_stay(tmp_path: Path) -> None:
    results = {"verdicts": [], "reason": "", "command": "first", "seconds": 1.0}
    for name in ("load", "contract"):
        keep(tmp_path, "reference", 1, "facts", CASES[name], record(CASES[name], results, tmp_path))
    keep(
        tmp_path,
        "reference",
        2,
        "facts",
        CASES["load"],
        record(CASES["load"], {**results, "command": "second"}, tmp_path),
    )
    (kept,) = records(tmp_path)
    assert [(name, one["command"], one["seed"]) for name, one in kept["cases"].items()] == [
        ("contract", "first", 1),
        ("load", "second", 2),
    ]


def test_a_rule_of_a_program_that_was_cut_off_does_not_pass(tmp_path: Path) -> None:
    results: dict[str, Any] = {"reason": "", "command": "run", "seconds": 1.0}
    for whole, word in (("yes", "true"), ("no", "unknown")):
        data = {"programs": [{"program": "store A", "all of them": whole}]}
        verdict = {"name": "interleavings", "value": "true", "figure": "", "findings": [], "omitted": 0, "data": data}
        found = record(CASES["kills"], {**results, "verdicts": [verdict]}, tmp_path)
        assert found["rules"]["interleavings/lost-store"]["value"] == word


def test_the_shortest_counterexample_of_each_kind_is_kept(tmp_path: Path) -> None:
    for number, calls in enumerate((3, 2)):
        example = {
            "program": f"store {number}",
            "schedule": [],
            "actors": ["0: store A"],
            "texts": ["lost store: it is lost"],
            "trace": [[0, "open(A.bin)", "= 3"]] * calls,
            "step": 0,
        }
        (tmp_path / f"counterexample-{number}-x.json").write_text(json.dumps(example))
    found = shortest(tmp_path)
    assert (found["interleavings/lost-store"]["program"], found["interleavings/lost-store"]["calls"]) == ("store 1", 2)


def test_every_promise_and_script_belongs_to_a_peer_and_a_row() -> None:
    pairs = [*PROMISES, *(tuple(path.stem.split("_", 1)) for path in REPRO.glob("*.py"))]
    assert {tier for tier, _ in pairs} <= set(PEERS)
    assert {row for _, row in pairs} <= set(ROW)
    assert {tier for tier, _ in DOCUMENTED} <= set(PEERS)
    assert all(adapter_class(tier) for tier in (*CONTROLS, *PEERS))


def test_the_controls_pass_every_guarantee_of_the_kept_records() -> None:
    folder = Path(__file__).parents[4] / "docs" / "findings"
    for one in [read(path) for path in folder.glob("*.json")]:
        if one["tier"] in CONTROLS:
            failing = [row.name for row in ROWS if pages.cell(one, row).value == "false"]
            assert not failing, one["label"]
