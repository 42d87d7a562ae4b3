"""Histories survive being written by a process that dies in the middle of a line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.core.history import (
    Gauge,
    History,
    HistoryWriter,
    Job,
    Name,
    Note,
    Record,
    Request,
    Start,
    Stop,
    Task,
    decode,
    encode,
    note_of,
    read_records,
)
from harness.core.notes import KINDS, Canary, Error, Fault, Met, Phase, Skipped

RECORDS: list[Record] = [
    Start(0, 0, 4711, "kvtier", "abcd", 1.5, 1e9, {"python": "3.11"}),
    Request(0, 3, [1, 2, 3], 2, 1.0, 1.25, 1.5, 1e9, "ok"),
    Job(0, 7, 3, "load", [1, 2], 1.0, 1.125, 1.5, 1e9, "fail", [1], [2], 1, [(1, "short: bytes from 0 on")], 4096),
    Task(0, 7, "load", "store", 2, 4096, 0, 1.0, 1.25, 1.5),
    Name(0, 1, "a/b.bin"),
    Gauge(0, 1.0, {"load_queue": 3.0}),
    Note(-1, 1.0, "phase", "traffic\nstarts \u20ac", {}),
    Stop(0, 0, 2.0, -9, 0, 0, ["killed"]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_its_line(record: Record) -> None:
    line = encode(record)
    assert "\n" not in line
    assert decode(line) == record
    assert type(decode(line)) is type(record)


@pytest.mark.parametrize(
    "line", ["", "null", "3", "[]", "[[]]", "{}", '["nothing",1]', '["name",1]', '["name",1,2,3,4]', '["na']
)
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        decode(line)


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        (0, "process", "0"),
        (1, "blocks", None),
        (1, "short_of_room", 1),
        (2, "direction", "sideways"),
        (2, "finished_seconds", "soon"),
        (2, "refused", True),
    ],
)
def test_a_record_with_a_value_of_another_kind_is_refused(record: int, field: str, value: Any) -> None:
    wrong = RECORDS[record]._replace(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        decode(encode(wrong))


def test_a_run_folder_is_read_back(tmp_path: Path) -> None:
    for process in (0, 1):
        writer = HistoryWriter(tmp_path / f"history-{process}.jsonl")
        writer.write(*RECORDS)
        writer.close()
    (tmp_path / "files.json").write_text(json.dumps(["a/b.bin"]))
    (tmp_path / "options.json").write_text(json.dumps({"seed": 7}))
    history = History.read(tmp_path)
    for part in ("starts", "requests", "jobs", "tasks", "names", "gauges", "notes", "stops"):
        assert len(getattr(history, part)) == 2, part
    assert history.files == ["a/b.bin"]
    assert history.options == {"seed": 7}
    assert History.of(RECORDS).jobs == [RECORDS[2]]


def test_a_torn_last_line_is_dropped_and_a_torn_line_in_between_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history-0.jsonl"
    lines = [encode(r) + "\n" for r in RECORDS]
    path.write_text("".join(lines[:-1]) + lines[-1][:10])
    assert list(read_records(path)) == RECORDS[:-1]
    path.write_text(lines[0] + lines[1][:10] + "\n" + lines[2])
    with pytest.raises(ValueError, match=r"history-0\.jsonl, line 2"):
        list(read_records(path))


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from typing import Any
from harness.core.history import HistoryWriter, Name
writer = HistoryWriter(Path(sys.argv[1]))
for block in range(1000):
    writer.write(Name(0, block, "x" * 50))
writer.flush()
writer.write(Name(0, 1000, "never flushed"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "history-0.jsonl"
    code = subprocess.run([sys.executable, "-c", program, str(path)], cwd=os.getcwd(), check=False).returncode
    assert code == -signal.SIGKILL
    assert [r.block for r in read_records(path) if isinstance(r, Name)] == list(range(1000))


def test_a_note_is_of_a_declared_kind_and_its_defaults_are_not_written() -> None:
    note = note_of(3, 1.0, Fault(process=0, how="killed"), "process 0 is killed")
    assert note == Note(3, 1.0, "fault", "process 0 is killed", {"process": 0, "how": "killed"})
    assert decode(encode(note)) == note
    assert note.is_a(Fault)
    assert note.is_a(Phase, Fault)
    assert not note.is_a(Error)
    assert note_of(0, 1.0, Canary(0.5)).detail == {"late_seconds": 0.5}
    assert len(KINDS) == len({kind.__doc__ for kind in KINDS.values()}), "each says what it is"


@pytest.mark.parametrize(
    ("kind", "detail", "words"),
    [
        ("leak", {}, "a note of kind 'leak'; known kinds: phase, fault, "),
        ("fault", {"colour": "blue"}, r"a note of kind 'fault' with \['colour'\]; its fields: process, fault, "),
        ("canary", {}, r"a note of kind 'canary' without \['late_seconds'\]"),
        ("met", {"fault": "x"}, f"a note of kind 'met' without .*{Met._fields[-1]}"),
    ],
)
def test_a_note_of_another_kind_or_with_other_fields_is_refused(
    tmp_path: Path, kind: str, detail: dict[str, Any], words: str
) -> None:
    path = tmp_path / "history-0.jsonl"
    path.write_text(encode(Note(0, 1.0, kind, "", detail)) + "\n" + encode(RECORDS[0]) + "\n")
    with pytest.raises(ValueError, match=r"history-0\.jsonl, line 1: " + words):
        list(read_records(path))


def test_a_kind_of_an_earlier_version_is_read_under_its_name_of_today() -> None:
    assert decode(encode(Note(0, 1.0, "skip", "no strace here", {"step": "link"}))).is_a(Skipped)  # type: ignore[union-attr]


def test_no_module_names_a_kind_of_note_by_a_string() -> None:
    folder = Path(__file__).parents[4] / "harness"
    for path in folder.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"\b(n|note|record)\.kind (==|!=|in) ", text), path
