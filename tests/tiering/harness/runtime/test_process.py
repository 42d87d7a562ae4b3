"""A real child behind `JsonProcess`: messages, its surroundings, and every way in which it ends."""

from __future__ import annotations

import errno
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.installation import ROOT
from harness.runtime.process import ChildEnded, JsonProcess

CHILD = "tests.tiering.harness.runtime.json_child"
SECONDS = 30.0


@pytest.fixture
def child() -> Iterator[JsonProcess]:
    process = JsonProcess(sys.executable, CHILD, "one", "two")
    yield process
    process.kill()
    process.reap()


def test_each_message_gets_its_answer_and_what_is_printed_is_none(child: JsonProcess) -> None:
    for value in ({"a": [1, None]}, None, "line\nbreak", 1.5):
        assert child.request({"do": "echo", "value": value}, SECONDS) == value
    assert child.request({"do": "print", "value": "a library speaks"}, SECONDS) is True
    assert child.end(SECONDS) == 0
    assert sorted(child.last_output().splitlines()) == ["a library speaks", "raw"], "buffered or not, it goes to stderr"


def test_the_child_runs_in_a_group_of_its_own_on_an_explicit_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/__init__.py").write_text("raise SystemExit('the wrong harness')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("KVTIER_TEST", "3")
    child = JsonProcess(sys.executable, CHILD, "one", environment={"KVTIER_TEST": None, "KVTIER_OTHER": "4"})
    try:
        where = child.request({"do": "where"}, SECONDS)
    finally:
        child.end(SECONDS)
    assert where["argv"] == ["one"]
    assert where["group"] == where["session"] == child.pid != os.getpgrp()
    assert where["env"]["PYTHONPATH"] == str(ROOT)
    assert "KVTIER_TEST" not in where["env"]
    assert where["env"]["KVTIER_OTHER"] == "4"


@pytest.mark.parametrize("named", [True, False])
def test_a_child_that_dies_leaves_its_exit_code_and_its_last_output(tmp_path: Path, named: bool) -> None:
    path = tmp_path / "stderr.txt" if named else None
    child = JsonProcess(sys.executable, CHILD, stderr=path)
    with pytest.raises(ChildEnded):
        child.request({"do": "die", "value": "one\ntwo\nthree", "code": 7}, SECONDS)
    with pytest.raises(ChildEnded):
        child.receive(SECONDS)
    assert child.last_output(2) == "two\nthree"
    assert child.reap() == child.exit_code == 7
    assert not child.send({"do": "echo", "value": 1})
    with pytest.raises(ChildEnded):
        child.request({"do": "echo", "value": 1}, SECONDS)
    assert child.last_output(2) == "two\nthree"
    assert path is None or path.read_text() == "one\ntwo\nthree\n"


def test_half_a_line_of_a_killed_child_is_no_message(child: JsonProcess) -> None:
    child.send({"do": "tear"})
    with pytest.raises(ChildEnded):
        child.receive(SECONDS)


def test_a_child_that_does_not_end_is_killed_by_its_pid(child: JsonProcess) -> None:
    child.send({"do": "hang"})
    with pytest.raises(TimeoutError, match=r"no message within 0\.05 s"):
        child.receive(0.05)
    with pytest.raises(TimeoutError, match=f"process {child.pid} still runs after"):
        child.wait(0.05)
    assert child.end(0.05) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_messages_go_to_a_callback_and_so_does_the_end() -> None:
    seen: queue.SimpleQueue[tuple[Any, bool]] = queue.SimpleQueue()
    child = JsonProcess(sys.executable, CHILD, on_message=lambda message, ended: seen.put((message, ended)))
    child.send({"do": "echo", "value": 1})
    assert seen.get(timeout=SECONDS) == (1, False)
    child.close_stdin()
    assert seen.get(timeout=SECONDS) == (None, True)
    assert child.reap() == 0


def test_what_the_operating_system_refuses_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        JsonProcess("/no/such/python", CHILD)
    with pytest.raises(FileNotFoundError):
        JsonProcess(sys.executable, CHILD, stderr=tmp_path / "missing/stderr.txt")
    before = set(os.listdir("/proc/self/fd"))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread") as caught:
        JsonProcess(sys.executable, CHILD)
    assert caught.value.errno == errno.EAGAIN
    assert set(os.listdir("/proc/self/fd")) == before
