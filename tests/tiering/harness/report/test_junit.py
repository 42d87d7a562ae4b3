"""JUnit XML follows the usual schema, and says what results.json says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from click.testing import CliRunner

from harness.checkers import RULES
from harness.cli import cli
from harness.core.findings import About, Finding
from harness.report.junit import cases, write_junit
from tests.tiering.harness.checkers.records import good_history, run_folder

FAILED = Finding("block 2 is short", About("integrity/bytes", seconds=1.5, process=1, block=2))
NAMELESS = Finding("job 0 got 2 results")
NOT_SHOWN = Finding("process 0 has no canary", About("nonblocking/now-and-then"), "doubt")


def verdict(name: str, value: str, *findings: Finding, omitted: int = 0) -> dict[str, Any]:
    figure = f"figure of {name}"
    return {"name": name, "value": value, "figure": figure, "findings": list(findings), "omitted": omitted, "data": {}}


def results(*verdicts: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {"verdict": "false", "scenario": "load", "tier": "module:Tier", "seed": 7, "command": "run load --seed 7"}
    run_dir = "/runs/20260102T030405Z-load-module.Tier"
    return {**fields, "reason": "", "seconds": 2.5, "run_dir": run_dir, "last_output": {}, "verdicts": verdicts, **more}


def check_schema(path: Path) -> ElementTree.Element:
    """What JUnit.xsd of Ant and Jenkins demands: elements in order, attributes with their types, counts that agree."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    for number, suite in enumerate(root):
        assert suite.tag == "testsuite"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert suite.attrib["id"] == f"{number}"
        assert all(suite.attrib[name] for name in ("name", "package", "hostname"))
        float(suite.attrib["time"])
        tags = [child.tag for child in suite]
        assert tags == ["properties", *["testcase"] * (len(tags) - 3), "system-out", "system-err"]
        assert all(child.attrib["name"] and "value" in child.attrib for child in suite[0])
        listed = suite.findall("testcase")
        for case in listed:
            assert case.attrib["name"]
            assert case.attrib["classname"]
            float(case.attrib["time"])
            assert [child.tag for child in case] in ([], ["skipped"], ["failure"])
            assert all("type" in child.attrib for child in case.iter("failure"))
        names = [case.attrib["name"] for case in listed]
        assert len(set(names)) == len(names)
        for name, found in (
            ("tests", listed),
            ("failures", suite.findall("testcase/failure")),
            ("skipped", suite.findall("testcase/skipped")),
            ("errors", suite.findall("testcase/error")),
        ):
            assert int(suite.attrib[name]) == len(found)
    return root


def test_each_rule_is_a_case_that_passes_fails_or_is_skipped(tmp_path: Path) -> None:
    run = results(
        verdict("integrity", "false", FAILED, omitted=3),
        verdict("nonblocking", "unknown", NOT_SHOWN),
        verdict("results", "false", NAMELESS),
        last_output={"0": "a last \x00 line"},
    )
    root = check_schema(write_junit(tmp_path / "junit.xml", [run, results()]))
    found = {case.attrib["name"]: case for case in root[0].findall("testcase")}
    assert {rule for rule in RULES if rule.startswith(("integrity/", "nonblocking/"))} <= set(found)
    failure = found["integrity/bytes"].find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "block 2 is short"
    assert failure.text is not None
    assert "block 2 is short [seconds 1.5, process 1, block 2]" in failure.text
    assert "and 3 more findings" in failure.text
    assert "again: run load --seed 7" in failure.text
    skipped = found["nonblocking/now-and-then"].find("skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "process 0 has no canary"
    assert len(found["nonblocking/habit"]) == 0, "another rule of the checker could be judged"
    assert found["results"].find("failure") is not None, "a finding without a rule counts against its checker"
    assert "a last � line" in (root[0][-1].text or "")


def test_no_verdict_is_lost() -> None:
    said = {case.rule: case for case in cases(results(verdict("integrity", "unknown"), reason="interrupted"))}
    assert (said["integrity/bytes"].value, said["integrity/bytes"].texts) == ("unknown", ["figure of integrity"])
    assert (said["run"].value, said["run"].texts) == ("unknown", ["interrupted"])
    said = {case.rule: case for case in cases(results(verdict("integrity", "false")))}
    assert said["integrity"].value == "false", "a checker that fails without a finding fails"
    assert all(
        case.value == "true" for case in cases(results(verdict("integrity", "true"), verdict("sharing", "true")))
    )


def test_check_writes_the_file_that_junit_names(tmp_path: Path) -> None:
    folder, file = run_folder(tmp_path / "run", good_history()), tmp_path / "junit.xml"
    done = CliRunner().invoke(cli, ["check", str(folder), "--junit", str(file)])
    assert done.exit_code == 0, done.output
    assert check_schema(file)[0].attrib["failures"] == "0"
