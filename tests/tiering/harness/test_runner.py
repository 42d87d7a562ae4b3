"""results.json fits its schema, and older ones stay readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from harness.commands.docs import SCHEMA
from harness.core.findings import About, Finding
from harness.core.history import History
from harness.core.inputs import DamagedFile
from harness.recorded_run import read_results
from harness.runner import RESULTS_VERSION, Results
from tests.tiering.harness.checkers.records import good_history, name_of, run_folder

VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text()))


def bad_history() -> History:
    history = good_history()
    history.jobs[1] = history.jobs[1]._replace(wrong=[(2, "short: bytes from 0 on are zero (4096 of 4096)")])
    history.files.remove(name_of(3))
    return history


def test_the_schema_is_one_and_refuses_what_it_does_not_declare() -> None:
    Draft202012Validator.check_schema(VALIDATOR.schema)
    assert VALIDATOR.schema["properties"]["version"]["const"] == RESULTS_VERSION
    declared = VALIDATOR.schema["$defs"]["finding"]["properties"]
    assert set(declared) == {"text", "kind", *About._fields}
    assert set(VALIDATOR.schema["properties"]) == {"version", "exit_code", *Results.__dataclass_fields__}


@pytest.mark.parametrize("history", [good_history(), bad_history(), History()], ids=["good", "bad", "empty"])
def test_results_fit_their_schema(history: History, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", history)
    VALIDATOR.validate(json.loads((folder / "results.json").read_text()))


def test_a_finding_in_the_file_leads_to_its_moment(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", bad_history())
    written = json.loads((folder / "results.json").read_text())
    (record,) = next(v["findings"] for v in written["verdicts"] if v["name"] == "integrity")
    assert record == {
        "text": "block 2, loaded by process 1 in job 0: short: bytes from 0 on are zero (4096 of 4096)",
        "kind": "finding",
        "rule": "integrity/bytes",
        "seconds": 10.5,
        "process": 1,
        "incarnation": 0,
        "request": 1,
        "job": 0,
        "block": 2,
        "file": name_of(2),
        "writer": "0",
        "expected": "the content of block 2",
        "seen": "short: bytes from 0 on are zero (4096 of 4096)",
    }
    (finding,) = next(v["findings"] for v in read_results(folder)["verdicts"] if v["name"] == "integrity")
    assert finding == record["text"]
    assert finding.to_json() == record


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "results.json"
    results = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in results.items() if value is not None}))
    return folder


def test_results_of_the_first_version_are_read(tmp_path: Path) -> None:
    old = {"name": "results", "value": "false", "figure": "", "findings": ["job 0 is lost", "and 30 more"], "data": {}}
    folder = changed(run_folder(tmp_path / "run", good_history()), version=None, verdicts=[old])
    (verdict,) = read_results(folder)["verdicts"]
    assert (verdict["findings"], verdict["omitted"]) == ([Finding("job 0 is lost")], 30)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 3}, "is of version 3; this version of kvtier-harness reads 1 and 2"),
        (
            {"verdicts": [{"name": "a", "value": "true", "figure": "", "findings": [7], "data": {}}]},
            "a finding is 7, and has no sentence",
        ),
    ],
)
def test_results_that_cannot_be_read_are_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = changed(run_folder(tmp_path / "run", good_history()), **changes)
    with pytest.raises(DamagedFile, match=says):
        read_results(folder)
