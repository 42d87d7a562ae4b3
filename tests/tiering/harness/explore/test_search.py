"""The explorer on small programs: blocked calls, threads, sleeps, restarts, results of calls, replay, minimising."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.explore.model import Actor, CannotExplore, Diverged, Outcome, Program
from harness.explore.schedule_tree import Item
from harness.explore.search import explore, minimise, replay, unavailable
from harness.explore.workers import Bench
from tests.tiering.harness.explore.small import (
    SOUND,
    a_file,
    contents,
    counts_under_lock,
    get,
    lock_twice,
    program,
    put,
    reads_b,
    tries,
    two_names,
    writes_a,
)

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def two_files(root: Path) -> None:
    put(root / "a", b"a")
    put(root / "b", b"b")


def not_stuck(outcome: Outcome) -> list[str]:
    return [outcome.stuck] if outcome.stuck else []


def test_results_that_a_killed_process_had_given_are_kept_and_a_kill_after_each_is_tried() -> None:
    def reports(root: Path) -> object:
        put(root / "a", b"1")
        for count in range(3):
            yield count
            os.path.exists(root / "a")  # reads: the kill after it equals the kill before it, but for what was given

    found = explore(program(reports), kills=1)
    assert found.complete, found.incomplete
    given = {state[0] for state in found.final_states}  # type: ignore[index]
    assert given == {"(None,)", "(0,)", "(1,)", "(2,)"}


def test_a_sleeping_choice_whose_thread_did_not_come_is_a_path_that_was_not_followed(tmp_path: Path) -> None:
    bench = Bench(SOUND["two names of one inode"], 0, tmp_path)
    ran = bench.run(Item(("0.0",), frozenset({"1.0", "0.9"})), True)
    bench.close()
    assert ran.diverged.startswith("step 0: 0.9 does not wait to go on; 0.0, 1.0 do")


def test_a_process_that_polls_for_a_dead_one_is_stuck_and_one_with_a_deadline_is_not() -> None:
    def polls(root: Path, deadline: float) -> object:
        while not (root / "a").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        return "done"

    for seconds, stuck in ((1e6, True), (0.3, False)):
        one = program(lambda root, seconds=seconds: polls(root, time.monotonic() + seconds))
        assert {state[3] for state in explore(one).final_states} == {stuck}  # type: ignore[index]


def test_two_locks_taken_in_opposite_orders_are_a_deadlock() -> None:
    actors = lock_twice("a", "b"), lock_twice("b", "a")
    found = explore(program(*actors, setup=two_files, check=not_stuck))
    assert found.complete, found.incomplete
    assert found.violating
    text = found.violations[0].texts[0]
    assert text.startswith("deadlock: steps-0 waits in flock(b, LOCK_EX), steps-1 waits in flock(a, LOCK_EX)"), text
    same_order = lock_twice("a", "b"), lock_twice("a", "b")
    assert not explore(program(*same_order, setup=two_files, check=not_stuck)).violating


def test_a_kill_releases_the_lock_that_others_wait_for() -> None:
    found = explore(program(counts_under_lock, counts_under_lock, setup=a_file, check=not_stuck), kills=1)
    assert found.complete, found.incomplete
    assert not found.violating


def test_a_record_lock_waits_too() -> None:
    def counts(root: Path) -> object:
        descriptor = os.open(root / "a", os.O_RDWR)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        text = os.pread(descriptor, 10, 0)
        os.pwrite(descriptor, text + b"+", 0)
        return len(text)

    found = explore(program(counts, counts, setup=a_file, check=not_stuck))
    assert found.complete, found.incomplete
    assert {state[-1] for state in found.final_states} == {(("a", b"old++"),)}  # type: ignore[index]


def fifo(root: Path) -> None:
    os.mkfifo(root / "pipe")


def test_a_fifo_without_a_writer_blocks_its_reader() -> None:
    reads = program(lambda root: get(root / "pipe"), lambda root: put(root / "pipe", b"hello"), setup=fifo)
    found = explore(reads)
    assert {state[0] for state in found.final_states} == {"('hello', None)"}  # type: ignore[index]
    alone = replay(program(lambda root: get(root / "pipe"), setup=fifo), (), lambda outcome: outcome)
    assert alone.stuck is not None
    assert alone.stuck.endswith("waits in openat(pipe, O_RDONLY)")


def test_threads_of_one_process_are_scheduled_one_by_one() -> None:
    reduced = explore(SOUND["two threads and a reader"])
    assert reduced.complete, reduced.incomplete
    files = {state[-1] for state in reduced.final_states}  # type: ignore[index]
    assert files == {(("x", b"second"),), (("x", b"firstd"),)}
    read = {state[0] for state in reduced.final_states}  # type: ignore[index]
    assert len(read) == 5, read  # no file, empty, first, second, firstd


def test_a_poll_with_sleeps_ends_without_waiting() -> None:
    def waits(root: Path) -> object:
        for attempt in range(1000):
            if os.path.exists(root / "flag"):
                return attempt
            time.sleep(60)
        return "gave up"

    found = explore(program(waits, lambda root: put(root / "flag", b"")))  # real sleeps would exceed the test's limit
    assert found.complete, found.incomplete
    assert "gave up" not in str(found.final_states)


def test_an_actor_starts_after_another_was_killed() -> None:
    def restart(root: Path) -> object:
        return sorted(os.listdir(root))

    actors = (
        Actor("writer", lambda root: root, lambda root: put(root / "x", b"1")),
        Actor("restarted", lambda root: root, restart, after=0, mortal=False),
    )
    found = explore(Program("restart", lambda root: None, actors, lambda outcome: [], contents), kills=1)
    assert {(state[0], state[2]) for state in found.final_states} == {  # type: ignore[index]
        ("(None, ['x'])", ()),
        ("(None, ['x'])", (0,)),
        ("(None, [])", (0,)),
    }


def test_calls_have_arguments_and_results() -> None:
    def calls(root: Path) -> object:
        put(root / "x", b"12345")
        return tries(
            lambda: os.mkdir(root / "d"),
            lambda: os.mkdir(root / "d"),
            lambda: os.link(root / "x", root / "d/y"),
            lambda: os.rename(root / "d/y", root / "z"),
            lambda: os.stat(root / "z").st_size,
            lambda: os.unlink(root / "nothing"),
            lambda: os.rmdir(root / "d"),
            lambda: os.truncate(root / "z", 3),
            lambda: get(root / "x"),
            lambda: os.open(root / "x", os.O_CREAT | os.O_EXCL),
        )

    texts = [str(call) for call in replay(program(calls), (), lambda outcome: outcome.trace)]
    assert [re.sub(r"^(openat.*) = \d+$", r"\1", text) for text in texts] == [
        "openat(x, O_WRONLY|O_CREAT, 0600)",
        "write(x, 5 B at 0) = 5",
        "mkdir(d, 0777) = 0",
        "mkdir(d, 0777) = -1 EEXIST",
        "link(x -> d/y) = 0",
        "rename(d/y -> z) = 0",
        "newfstatat(z) = 0, size 5",
        "unlink(nothing) = -1 ENOENT",
        "rmdir(d) = 0",
        "truncate(z, 3 B) = 0",
        "openat(x, O_RDONLY)",
        "read(x, 100 B at 0) = 3",
        "openat(x, O_RDONLY|O_CREAT|O_EXCL, 0777) = -1 EEXIST",
    ]


def test_a_write_keeps_its_bytes_on_request() -> None:
    kept = replay(program(lambda root: put(root / "x", b"12345")), (), lambda outcome: outcome.trace, keep_data=True)
    assert [call.data for call in kept if call.name == "write"] == [b"12345"]


def both_read_then_write(root: Path) -> object:
    text = get(root / "a")
    os.listdir(root)
    put(root / "a", text.encode() + b"+")
    return text


def lost_update(outcome: Outcome) -> list[str]:
    text = (outcome.root / "a").read_bytes()
    return [] if text == b"old++" else [f"one update is lost: {text!r}"]


def test_a_failing_schedule_is_replayed_and_made_short() -> None:
    racy = program(both_read_then_write, both_read_then_write, setup=a_file, check=lost_update)
    found = explore(racy)
    assert found.violating
    first = found.violations[0]
    again = replay(racy, first.schedule, lambda outcome: (outcome.schedule, lost_update(outcome)))
    assert again == (first.schedule, list(first.texts))
    short = minimise(racy, first)
    assert short.texts == first.texts
    changes = sum(a != b for a, b in zip(short.schedule, short.schedule[1:], strict=False))
    assert changes == 2, short.schedule


def test_bounded_preemptions_find_the_same_with_fewer_schedules() -> None:
    racy = program(both_read_then_write, both_read_then_write, setup=a_file, check=lost_update)
    none, one = (explore(racy, preemptions_max=bound) for bound in (0, 1))
    assert not none.violating
    assert one.violating
    assert none.schedules < one.schedules


def test_a_schedule_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(Diverged, match=r"step 0: 7\.0 cannot go on; 0\.0, 1\.0 can"):
        replay(program(writes_a, reads_b, setup=two_names), ("7.0",), lambda outcome: outcome)


def test_a_subject_that_cannot_be_opened_is_named() -> None:
    def refuses(root: Path) -> object:
        raise ValueError("no such option")

    actors = (Actor("writer", refuses, lambda subject: None),)
    with pytest.raises(CannotExplore, match="actor writer could not be started: ValueError: no such option"):
        explore(Program("p", lambda root: None, actors, lambda outcome: []))


def test_io_uring_is_refused_and_noted() -> None:
    def asks(root: Path) -> object:
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.syscall(425, 1, ctypes.create_string_buffer(256)), ctypes.get_errno()

    found = explore(program(asks))
    assert found.notes == ("asks-0 asked for asynchronous I/O (io_uring_setup), which was refused with ENOSYS",)
    assert found.complete


def test_a_mapped_file_makes_the_exploration_incomplete() -> None:
    def maps(root: Path) -> object:
        import mmap

        with open(root / "a", "r+b") as file:
            mmap.mmap(file.fileno(), 0)[0] = 65
        return None

    found = explore(program(maps, setup=a_file))
    assert not found.complete
    assert found.incomplete == "maps-0 maps a into memory: its accesses are not ordered"


def test_a_process_that_is_used_again_reaches_the_same_states() -> None:
    def actors(again: bool) -> tuple[Actor, ...]:
        reset = (lambda root: None) if again else None
        return tuple(Actor(str(i), lambda root: root, one, again=reset) for i, one in enumerate((writes_a, reads_b)))

    programs = [Program("p", two_names, actors(again), lambda outcome: [], contents) for again in (False, True)]
    for kills in (0, 1):
        new, used = (explore(one, kills=kills) for one in programs)
        assert (new.schedules, new.final_states) == (used.schedules, used.final_states)


def test_the_order_does_not_depend_on_the_number_of_workers() -> None:
    racy = program(both_read_then_write, both_read_then_write, setup=a_file, check=lost_update)
    one, two = (explore(racy, jobs=jobs) for jobs in (1, 2))
    assert (one.schedules, one.redundant, one.calls, one.final_states) == (
        two.schedules,
        two.redundant,
        two.calls,
        two.final_states,
    )
    assert [violation.schedule for violation in one.violations] == [violation.schedule for violation in two.violations]


def test_a_process_that_remembers_an_earlier_schedule_is_noticed_and_replaced() -> None:
    class Remembers:
        def __init__(self, root: Path) -> None:
            self.root, self.known = root, False

        def reads(self) -> object:
            if not self.known:
                self.known = os.path.exists(self.root / "a")
            return get(self.root / "a")

    reader = Actor("reader", Remembers, Remembers.reads, again=lambda subject: None)
    writer = Actor("writer", lambda root: root, writes_a, again=lambda root: None)
    found = explore(Program("p", a_file, (writer, reader), lambda outcome: [], contents))
    fresh = Program("p", a_file, (writer, reader._replace(again=None)), lambda outcome: [], contents)
    assert found.complete, found.incomplete
    assert found.final_states.keys() == explore(fresh).final_states.keys()


def test_a_known_path_must_make_the_calls_that_it_made_before(tmp_path: Path) -> None:
    bench = Bench(program(writes_a, reads_b, setup=two_names), 0, tmp_path)
    try:
        assert not bench.run(Item(("0.0",), frozenset(), ("openat",)), True).diverged
        other = bench.run(Item(("0.0",), frozenset(), ("mkdir",)), True)
    finally:
        bench.close()
    assert other.diverged == "step 0: 0.0 makes the call openat, not mkdir"
    assert not list(tmp_path.iterdir())


def test_a_child_process_makes_the_exploration_incomplete() -> None:
    def starts(root: Path) -> object:
        return subprocess.run(["cat", str(root / "a")], capture_output=True, text=True, check=True).stdout

    found = explore(program(starts, writes_a, setup=a_file))
    assert not found.complete
    assert "starts-0 starts a child process" in found.incomplete


BUSY = """
import sys
from pathlib import Path
from harness.explore.search import explore
from tests.tiering.harness.explore.small import SOUND

def check(outcome):
    print("one", flush=True)
    return []

explore(SOUND["three processes"]._replace(check=check), reduction=False, folder=Path(sys.argv[1]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_explorer_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", BUSY, str(tmp_path)]
    explorer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert explorer.stdout is not None
    assert explorer.stdout.readline() == "one\n"
    assert list(tmp_path.iterdir())
    if how == signal.SIGKILL:
        explorer.kill()
    else:
        os.killpg(explorer.pid, how)  # the workers too, as `timeout` and a terminal do
    explorer.communicate(timeout=60)  # the workers have its standard output open: it ends when they have
    assert not list(tmp_path.iterdir())
