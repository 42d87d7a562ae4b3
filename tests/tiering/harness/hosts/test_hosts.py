"""Hosts that share a volume: programs run there as if here, hosts come and go, nothing stays, outages are judged."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from harness.checkers import outage, power_loss
from harness.checkers.base import Verdict
from harness.core.history import Gauge, History, Job, Note, Start, Stop, Task
from harness.faults import FaultUnavailable, is_mounted
from harness.hosts import Volume, gluster_hosts, moosefs_hosts, remote
from harness.hosts.namespaces import Daemon

BLOCKS = [1, 2]


# --- programs on another kernel ---


@pytest.fixture
def agent() -> Iterator[list[str]]:
    """The words that run a program through an agent of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    serving = subprocess.Popen([sys.executable, "-m", "harness.hosts.remote", "serve", "127.0.0.1", port])
    run = [sys.executable, remote.__file__, "run", "127.0.0.1", port]
    try:
        while subprocess.run([*run, "true"], capture_output=True).returncode:
            assert serving.poll() is None, "the agent ended"
        yield run
    finally:
        serving.kill()
        serving.wait()


def test_a_program_run_elsewhere_has_its_streams_environment_and_exit_code(agent: list[str]) -> None:
    script = "cat; echo $COLOUR >&2; exit 7"
    done = subprocess.run(
        [*agent, "sh", "-c", script], input=b"in\n" * 50_000, capture_output=True, env={**os.environ, "COLOUR": "red"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\n" * 50_000, b"red\n")


def test_a_program_on_a_host_and_its_local_end_die_together(agent: list[str]) -> None:
    with subprocess.Popen([*agent, "sh", "-c", "echo $$; exec sleep 600"], stdout=subprocess.PIPE, text=True) as here:
        assert here.stdout is not None
        there = int(here.stdout.readline())
        here.kill()
    deadline = time.monotonic() + 20
    while _runs(there):
        assert time.monotonic() < deadline, "the program outlived its other end"
    killed = subprocess.run([*agent, "sh", "-c", "kill -9 $$"])
    assert killed.returncode == -signal.SIGKILL


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interpreter_elsewhere_has_the_clock_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import sys, time; print(time.monotonic(), time.monotonic_ns(), *sys.argv[1:])")
    words = [sys.executable, "-m", "harness.hosts.clock", str(10**15), "told", "word"]
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    told = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    seconds, nanoseconds, word = told.stdout.split()
    assert 0 <= time.monotonic() + 1e6 - float(seconds) < 60
    assert abs(int(nanoseconds) * 1e-9 - float(seconds)) < 1
    assert word == "word"


# --- hosts ---


@contextlib.contextmanager
def _hosts(bring_up: Callable[[], AbstractContextManager[Volume]] = gluster_hosts) -> Iterator[Volume]:
    with contextlib.ExitStack() as stack:
        try:
            volume = stack.enter_context(bring_up())
        except FaultUnavailable as reason:
            pytest.skip(str(reason))
        yield volume


@pytest.mark.parametrize("bring_up", [gluster_hosts, moosefs_hosts])
def test_hosts_share_a_volume_have_a_network_of_their_own_and_leave_nothing(
    bring_up: Callable[[], AbstractContextManager[Volume]],
) -> None:
    with _hosts(bring_up) as volume:
        first, second = volume.hosts
        (first.mount / "word").write_text("hello")
        told = subprocess.run(
            [second.python(), "-c", f"print(open({str(second.mount / 'word')!r}).read())"],
            capture_output=True,
            text=True,
        )
        assert told.stdout == "hello\n"
        links = subprocess.run(first.command(["ls", "/sys/class/net"]), capture_output=True, text=True)
        addresses = [subprocess.run(h.command(["ip", "-o", "addr"]), capture_output=True).stdout for h in volume.hosts]
        assert links.returncode == 0
        assert b"10.0.0.11" in addresses[0]
        assert b"10.0.0.12" in addresses[1]
        first.lose_power()
        assert (second.mount / "word").read_text() == "hello"
        first.power_on()
        assert (first.mount / "word").read_text() == "hello"
        volume.restart_server(0.0)
        assert volume.server_death() == ""
        mounts = [host.mount for host in volume.hosts]
    assert not any(is_mounted(mount) or mount.exists() for mount in mounts)
    names = os.listdir("/run/netns") if Path("/run/netns").exists() else []
    assert not [name for name in names if name.startswith(f"kvt{os.getpid()}-")]


@pytest.mark.slow
def test_a_host_that_is_cut_off_fails_alone_and_comes_back() -> None:
    with _hosts() as volume:
        first, second = volume.hosts
        first.cut()
        with pytest.raises(OSError, match="not connected"):
            (first.mount / "mine").write_text("x")
        (second.mount / "yours").write_text("y")
        first.heal()
        deadline = time.monotonic() + 60
        while True:
            try:
                assert (first.mount / "yours").read_text() == "y"
                break
            except OSError:
                assert time.monotonic() < deadline, "the host did not come back"


# --- what is made of a history ---


def store(process: int, at: float, until: float, ok: list[int] = BLOCKS, failed: list[int] | None = None) -> Job:
    failed = failed or []
    outcome: Any = "fail" if failed else "ok"
    blocks = [*ok, *failed]
    return Job(process, int(at * 10), 0, "store", blocks, at, at, until, until, outcome, ok, failed, 1, [], 0)


def asked(process: int, at: float, verdicts: str, blocks: list[int] = BLOCKS) -> Note:
    return Note(process, at, "asked", "", {"asked_seconds": at, "blocks": blocks, "verdicts": verdicts})


def fault(process: int, at: float, until: float, what: str = "cut") -> list[Note]:
    return [
        Note(-1, at, "fault", f"host {what}", {"process": process, "what": what}),
        Note(-1, until, "lifted", "well again", {"process": process}),
    ]


SOON = Note(-1, 0.5, "soon", "never asked for", {"blocks": [90], "missed": False})
WELL = [SOON, store(0, 0.6, 0.7, [90]), asked(1, 0.8, "h", [90]), *fault(0, 10.0, 20.0)]
WORKS_AGAIN = store(0, 21.0, 22.0, [91])
IN_FLIGHT = store(0, 9.5, 20.5, [], [92])
LIMITS = {"recovery_seconds_max": 5.0, "visible_seconds_max": 1.0}


def judge(*records: Any) -> Verdict:
    return outage.check(History.of(records, options=dict(LIMITS)))


def test_an_outage_that_cost_only_what_was_under_way_is_true() -> None:
    verdict = judge(*WELL, IN_FLIGHT, WORKS_AGAIN, store(1, 12.0, 12.1), asked(1, 30.0, "hh"))
    assert verdict.value == "true", verdict
    assert verdict.data["recovery_seconds"] == {"cut": 2.0}
    assert verdict.data["visible_seconds"]["never asked for"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([store(1, 12.0, 12.1, [], [5])], "was not hit"),
        ([store(0, 27.0, 28.0, [], [5])], "was not hit"),  # long after the heal
        ([store(1, 12.0, 12.1), asked(0, 30.0, "mh")], "got a miss"),
        ([store(1, 12.0, 12.1), asked(0, 30.0, "rh")], "never got an answer"),
        (
            [SOON._replace(detail={"blocks": [93]}), store(0, 1.0, 1.1, [93]), asked(1, 3.0, "h", [93])],
            "the bound is 1 s",
        ),
        ([SOON._replace(detail={"blocks": [93]}), store(0, 1.0, 1.1, [93])], "never"),
    ],
)
def test_a_loss_beyond_what_an_outage_allows_is_found(records: list[Any], says: str) -> None:
    verdict = judge(*WELL, IN_FLIGHT, WORKS_AGAIN, *records)
    assert verdict.value == "false"
    assert any(says in finding for finding in verdict.findings), verdict.findings


def test_a_process_that_does_not_work_again_in_time_is_found() -> None:
    assert judge(*WELL, IN_FLIGHT).value == "false"
    assert judge(*WELL, IN_FLIGHT, store(0, 26.0, 27.0, [91])).value == "false"


def test_a_host_without_power_may_lose_only_what_it_had_just_reported() -> None:
    power = [SOON, store(0, 0.6, 0.7, [90]), asked(1, 0.8, "h", [90]), *fault(0, 10.0, 20.0, "power")]
    verdict = judge(*power, IN_FLIGHT, WORKS_AGAIN, store(0, 9.0, 9.9), asked(1, 30.0, "mh"))
    assert verdict.value == "true", verdict
    assert verdict.data["lost with the power"] == 1
    assert judge(*power, IN_FLIGHT, WORKS_AGAIN, store(1, 9.0, 9.9), asked(1, 30.0, "mh")).value == "false"


def test_a_call_that_hung_in_an_outage_was_to_be_seen_in_the_gauges() -> None:
    hung = Task(0, 1, "store", "store", 4, 1, 0, 9.5, 9.6, 20.4)

    def told(seconds: float) -> Gauge:
        return Gauge(0, 19.9, {"store_running_oldest_seconds": seconds, "load_running_oldest_seconds": 60.0})

    well = judge(*WELL, IN_FLIGHT, WORKS_AGAIN, hung, told(10.3))
    assert well.value == "true", well
    assert well.data["hung_seconds"] == {"cut": 10.0}
    assert judge(*WELL, IN_FLIGHT, WORKS_AGAIN, hung, told(1.0)).value == "false"
    assert judge(*WELL, IN_FLIGHT, WORKS_AGAIN, hung).value == "false"


def test_a_thread_that_never_came_back_from_a_hung_call_is_found() -> None:
    lives = [Start(0, 0, 1, "t", "d", 0.0, 0.0, {}), Stop(0, 0, 90.0, 0, 0, 0, [])]
    hung = Gauge(0, 19.0, {"store_threads_hung": 2.0, "load_threads_hung": 1.0})
    back = Gauge(0, 80.0, {"store_threads_hung": 0.0, "load_threads_hung": 0.0})
    verdict = judge(*WELL, IN_FLIGHT, WORKS_AGAIN, *lives, hung, back)
    assert (verdict.value, verdict.data["threads_hung"]) == ("true", 3)
    assert judge(*WELL, IN_FLIGHT, WORKS_AGAIN, *lives, hung).value == "false"


def test_a_server_that_ends_by_itself_differs_from_one_that_was_killed(tmp_path: Path) -> None:
    server = Daemon("the server", ["sh", "-c", "read line"], tmp_path / "log")
    server.start()
    server.kill()
    assert server.death() == ""
    deadly = Daemon("the server", ["sh", "-c", "kill -SEGV $$"], tmp_path / "log")
    deadly.start()
    deadline = time.monotonic() + 20
    while not deadly.death():
        assert time.monotonic() < deadline
    assert deadly.death() == "the server ended by itself, by SIGSEGV"


def test_an_outage_that_met_nothing_is_unknown() -> None:
    assert judge(*WELL, WORKS_AGAIN).value == "unknown"
    assert judge().value == "unknown"


def _after_power(load: Job | None, durable: bool) -> Verdict:
    case = {"failure": "snapshot", "file_system": "ext4", "way": "direct", "writer": 0, "reader": 1}
    case |= {"durable": durable, "found_seconds": 2.1}
    jobs = [store(0, 1.0, 1.5), store(0, 1.9, 2.5, [3])]
    power = Note(-1, 2.0, "power", "ext4, direct", case)
    return power_loss.check(History.of([power, *jobs, *([load] if load else [])]))


def load(ok: list[int], failed: list[int], wrong: list[tuple[int, str]] | None = None) -> Job:
    outcome: Any = "fail" if failed else "ok"
    return Job(1, 1, 0, "load", [*ok, *failed], 3.0, 3.0, 3.1, 3.1, outcome, ok, failed, 1, wrong or [], 0)


def test_after_a_loss_of_power_blocks_may_be_missing_but_not_durable_ones_and_never_wrong() -> None:
    assert _after_power(load([1, 2], []), durable=True).value == "true"
    assert _after_power(load([1], [2]), durable=False).value == "true"
    assert _after_power(None, durable=False).data["cases"][0]["missing"] == 2
    assert _after_power(load([1], [2]), durable=True).value == "false"
    assert _after_power(load([1, 2], [], [(2, "garbage")]), durable=False).value == "false"
    assert power_loss.check(History()).value == "unknown"
