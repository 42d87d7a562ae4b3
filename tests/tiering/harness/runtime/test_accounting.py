"""The kernel's account of a worker's threads: a busy process is delayed, a stopped one does not run."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.core.history import Note, read_records
from harness.runtime.accounting import Accounting, Watched

BUSY = "print(flush=True)\nwhile True: pass"


MANY = "import threading\nfor _ in range(40): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def account(
    tmp_path: Path, process: int, pid: int, until: Callable[[list[Note]], bool], act: Callable[[], None]
) -> None:
    """Sample one process until the notes are as they should be."""
    accounting = Accounting(tmp_path, lambda: [Watched(process, pid)])
    try:
        act()
        deadline = time.monotonic() + 20
        while not until(written(tmp_path)):
            assert time.monotonic() < deadline, written(tmp_path)
            time.sleep(0.02)
    finally:
        accounting.close()


def written(tmp_path: Path) -> list[Note]:
    path = tmp_path / "history-accounting.jsonl"
    return [record for record in read_records(path) if isinstance(record, Note)] if path.exists() else []


def test_a_thread_that_shares_its_cpu_was_delayed(tmp_path: Path, busy: subprocess.Popen[bytes]) -> None:
    other = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.DEVNULL)
    try:
        os.sched_setaffinity(other.pid, os.sched_getaffinity(busy.pid))
        account(tmp_path, 3, busy.pid, lambda notes: any(n.kind == "delayed" for n in notes), lambda: None)
    finally:
        other.kill()
        other.wait()
    delayed = next(n for n in written(tmp_path) if n.kind == "delayed")
    assert delayed.process == 3
    assert 0 < delayed.detail["seconds"] <= delayed.monotonic_seconds - delayed.detail["from_seconds"]


def test_a_stopped_process_did_not_run(tmp_path: Path, busy: subprocess.Popen[bytes]) -> None:
    def stopped(notes: list[Note]) -> bool:
        return any(n.detail.get("stopped") for n in notes)

    account(tmp_path, 0, busy.pid, stopped, lambda: os.kill(busy.pid, signal.SIGSTOP))


def test_evidence_that_cannot_be_written_leaves_no_file_open(
    tmp_path: Path, busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full folder of runs. Python 3.13 and later also report the error of a file that nothing closed."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: unraisable.append(seen.exc_value))
    (tmp_path / "history-accounting.jsonl").symlink_to("/dev/full")
    accounting = Accounting(tmp_path, lambda: [Watched(3, busy.pid)])
    try:
        busy.send_signal(signal.SIGSTOP)  # there is something to write
        deadline = time.monotonic() + 20
        while any(thread.name == "accounting" for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "the thread did not meet the full device"
            time.sleep(0.02)
    finally:
        busy.send_signal(signal.SIGCONT)
        accounting.close()
    assert not unraisable


def test_a_process_that_has_ended_is_no_error(tmp_path: Path, busy: subprocess.Popen[bytes]) -> None:
    busy.kill()
    busy.wait()
    account(tmp_path, 0, busy.pid, lambda notes: (tmp_path / "history-accounting.jsonl").exists(), lambda: None)


def test_each_process_that_was_sampled_is_noted_once(tmp_path: Path, busy: subprocess.Popen[bytes]) -> None:
    """Where nothing is notable of a process, its threads had no delay; where it was not sampled, nothing is known."""
    hidden = Watched(4, 2**22 + 1)  # no process has such a pid
    rounds: list[int] = []

    def workers() -> list[Watched]:
        rounds.append(1)
        return [Watched(3, busy.pid), hidden]

    accounting = Accounting(tmp_path, workers)
    try:
        deadline = time.monotonic() + 20
        while len(rounds) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        accounting.close()
    sampled = [n for n in written(tmp_path) if n.kind == "sampled"]
    assert [(n.process, n.detail) for n in sampled] == [(3, {"pid": busy.pid})]


@pytest.mark.parametrize("is_named", [True, False])
def test_a_process_that_is_over_keeps_no_descriptor(tmp_path: Path, is_named: bool) -> None:
    """It has ended, or is a worker no longer."""
    child = subprocess.Popen(["sleep", "60"])
    named = [Watched(0, child.pid)]
    accounting = Accounting(tmp_path, lambda: list(named))
    try:
        until_open(child.pid, True)
        if is_named:
            child.kill()
            child.wait()
        else:
            named.clear()
        until_open(child.pid, False)
    finally:
        accounting.close()
        child.kill()
        child.wait()


def until_open(pid: int, is_open: bool) -> None:
    """Until the account of the process is open in this one, or is closed."""
    deadline = time.monotonic() + 20
    while any(f"/proc/{pid}/" in target for target in own_files()) != is_open:
        assert time.monotonic() < deadline, own_files()
        time.sleep(0.005)


def own_files() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_the_account_leaves_descriptors_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (40, 1024))
    child = subprocess.Popen([sys.executable, "-c", MANY + BUSY], stdout=subprocess.PIPE)
    assert child.stdout
    try:
        child.stdout.readline()
        most = [own]

        def stopped(notes: list[Note]) -> bool:
            most.append(len(os.listdir("/proc/self/fd")))
            return any(n.detail.get("stopped") for n in notes)

        account(tmp_path, 0, child.pid, stopped, lambda: os.kill(child.pid, signal.SIGSTOP))
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert max(most) <= own + 10 + 5, "a quarter of the descriptors, the history, and those of this test"
    assert len(os.listdir("/proc/self/fd")) <= own
