"""Findings are sentences with a record; rules are declared once."""

from __future__ import annotations

import copy
import json
import re

import pytest

from harness.checkers import CHECKERS, RULES
from harness.core.findings import FINDINGS_MAX, About, Finding, Findings, Rule

BYTES = Rule("integrity/bytes", "Bytes are right.")


def test_a_finding_is_its_sentence_and_carries_its_record() -> None:
    findings = Findings([BYTES])
    findings.add("block 7 is short", rule=BYTES, seconds=1.5, process=0, incarnation=1, block=7, seen="short")
    (finding,) = findings.list()
    assert finding == "block 7 is short"
    assert re.search(r"block \d", finding)
    assert (finding.rule, finding.about.seconds, finding.about.process, finding.about.job) == (BYTES.id, 1.5, 0, None)
    assert copy.deepcopy(finding).about == finding.about, "results are copied before they are written"


def test_a_record_survives_json_and_says_only_what_is_known() -> None:
    finding = Finding("late", About("a/b", seconds=2.0, process=0, expected="1 ms", seen="2 ms"), "doubt")
    record = json.loads(json.dumps(finding.to_json()))
    assert record == {
        "text": "late",
        "kind": "doubt",
        "rule": "a/b",
        "seconds": 2.0,
        "process": 0,
        "expected": "1 ms",
        "seen": "2 ms",
    }
    again = Finding.from_json(record)
    assert (again, again.about, again.kind) == (finding, finding.about, "doubt")
    old = Finding.from_json("a sentence of an earlier version")
    assert (old, old.about, old.kind) == ("a sentence of an earlier version", About(), "finding")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "has no sentence"),
        ({"rule": "a/b"}, "has no sentence"),
        ({"text": "x", "kind": "y"}, "is of kind 'y'; valid: finding, doubt, omitted"),
        ({"text": "x", "block": "7"}, "'block' of a finding is '7'"),
        ({"text": "x", "seconds": True}, "'seconds' of a finding is True"),
    ],
)
def test_a_damaged_record_is_refused(value: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Finding.from_json(value)  # type: ignore[arg-type]


def test_doubts_stand_after_the_findings_and_are_not_counted() -> None:
    findings = Findings()
    findings.doubt("process 0 has no canary")
    assert not findings
    for number in range(FINDINGS_MAX + 3):
        findings.add(f"finding {number}")
    listed = findings.list()
    assert (findings.count, len(listed)) == (FINDINGS_MAX + 3, FINDINGS_MAX + 2)
    assert [(str(f), f.kind) for f in listed[-2:]] == [("and 3 more", "omitted"), ("process 0 has no canary", "doubt")]


def test_a_rule_that_is_not_declared_is_refused() -> None:
    with pytest.raises(AssertionError, match="no rule 'integrity/byte'; declared: \\['integrity/bytes'\\]"):
        Findings([BYTES]).add("wrong", rule="integrity/byte")


def test_each_declared_rule_names_its_checker_and_says_what_it_demands() -> None:
    assert len(RULES) >= 4
    for rule in RULES.values():
        assert rule.checker in CHECKERS
        assert re.fullmatch(r"[a-z_]+/[a-z0-9-]+", rule.id)
        assert re.fullmatch(r"[A-Z].*\.", rule.text)
