"""Worker processes, one a core, each of which runs schedules of one program, one after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Hashable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from harness.explore.dependence import dependent
from harness.explore.execution import Dependence, Runner, State
from harness.explore.model import CannotExplore, Diverged, Outcome, Program, Schedule, Violation
from harness.explore.races import Race, races
from harness.explore.schedule_tree import Item
from harness.explore.snapshot import Snapshot

ATTEMPTS = 3
"""A schedule that an actor did not follow is run again so often: timers may have come in between."""


class Ran(NamedTuple):
    """What a worker says of one schedule. `failed` is why the exploration cannot go on."""

    states: Sequence[State] = ()
    choices: Sequence[str] = ()
    names: Sequence[str] = ()
    races: Sequence[Race] = ()
    redundant: bool = False
    violation: Violation | None = None
    final_state: Hashable = None
    notes: frozenset[str] = frozenset()
    diverged: str = ""
    lists: bool = False
    """Whether a process listed a folder."""
    failed: str = ""


def default_folder() -> Path:
    """Where roots are made unless told otherwise: in memory."""
    shm = Path("/dev/shm")
    return shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def final_state(program: Program, outcome: Outcome) -> Hashable:
    """What is counted as the end of a schedule."""
    if program.state is not None:
        return program.state(outcome)
    files: list[tuple[str, int]] = []
    for path in sorted(outcome.root.rglob("*")):
        name = re.sub(r"[0-9a-f]{8,}|\d{3,}", "#", path.relative_to(outcome.root).as_posix())
        files.append((name, path.lstat().st_size if path.is_file() else -1))
    return repr(outcome.results), repr(outcome.errors), outcome.killed, bool(outcome.stuck), tuple(sorted(files))


class Bench:
    """A program on a root of its own, ready to run any schedule of it. Closed by `close`."""

    def __init__(
        self,
        program: Program,
        kills: int,
        folder: Path,
        depends: Dependence = dependent,
        keep_data: bool = False,
    ) -> None:
        self.program = program
        self._depends = depends
        self._folder = Path(tempfile.mkdtemp(prefix="explore-", dir=folder))
        self._snapshot = Snapshot(self._folder.resolve() / "root", program.setup)
        self._runner = Runner(program, kills, depends, keep_data)

    def outcome(self, schedule: Schedule) -> Outcome:
        """Run one schedule to its end; its root stays until the next one. Raises Diverged."""
        found = self._runner.run(self._snapshot.restore(), schedule).outcome
        assert found is not None
        return found

    def checked(self, schedule: Schedule) -> Violation | None:
        """What is wrong after this schedule, if anything."""
        outcome = self.outcome(schedule)
        texts = tuple(self.program.check(outcome))
        return Violation(outcome.schedule, outcome.trace, texts) if texts else None

    def run(self, item: Item, reduction: bool) -> Ran:
        """Run a schedule of the tree. Raises nothing of its own: the reason is in the result."""
        last = ""
        for _ in range(ATTEMPTS):
            try:
                return self._once(item, reduction)
            except Diverged as error:
                last = str(error)
                self._runner.forget()
            except CannotExplore as error:
                return Ran(failed=str(error))
        return Ran(diverged=last)

    def _once(self, item: Item, reduction: bool) -> Ran:
        one = self._runner.run(self._snapshot.restore(), item.prefix, item.sleep, reduction, item.names)
        choices = [call.choice for call in one.calls]
        found: list[Race] = []
        if reduction:
            possible = [frozenset((*state.enabled, *state.kills)) for state in one.states[: len(choices)]]
            found = races(one.events, possible, len(item.prefix) - 1, self._depends)
        violation, state = None, None
        if one.outcome is not None:
            if texts := tuple(self.program.check(one.outcome)):
                violation = Violation(one.outcome.schedule, one.outcome.trace, texts)
            state = final_state(self.program, one.outcome)
        names = [call.name for call in one.calls]
        lists = any(name.startswith("getdents") for name in names)
        notes = frozenset(one.notes)
        return Ran(one.states, choices, names, found, one.redundant, violation, state, notes, lists=lists)

    def close(self) -> None:
        self._runner.forget()
        self._snapshot.remove()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class Workers:
    """`jobs` processes that run items; answers come in the order of the items."""

    def __init__(self, jobs: int, reduction: bool, *bench: Any) -> None:
        context = multiprocessing.get_context("fork")  # programs are closures
        self._ends: list[Connection] = []
        self._processes = []
        cores = sorted(os.sched_getaffinity(0))
        for index in range(jobs):
            ours, theirs = context.Pipe()
            arguments = (theirs, [*self._ends, ours], cores[index % len(cores)], reduction, bench)
            process = context.Process(target=_work, args=arguments)
            with warnings.catch_warnings():  # Python 3.12 warns of threads; the child uses none of theirs
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, items: Sequence[Item]) -> list[Ran]:
        """All items, spread over the workers."""
        answers: dict[int, Ran] = {}
        waiting = list(enumerate(items))[::-1]
        busy: dict[Connection, int] = {}
        idle = list(self._ends)
        while waiting or busy:
            while waiting and idle:
                index, item = waiting.pop()
                end = idle.pop()
                end.send(item)
                busy[end] = index
            for ready in multiprocessing.connection.wait(list(busy)):
                assert isinstance(ready, Connection)
                index = busy.pop(ready)
                try:
                    answers[index] = ready.recv()
                except EOFError:
                    answers[index] = Ran(failed="a worker of the exploration died")
                    continue
                idle.append(ready)
            if not idle and not busy:
                break
        return [answers.get(index, Ran(failed="the workers of the exploration died")) for index in range(len(items))]

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join()


def _work(end: Connection, others: list[Connection], core: int, reduction: bool, bench: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its root is removed
    for other in others:
        other.close()
    os.sched_setaffinity(0, {core})  # a stopped call costs half as much if both sides share a core
    try:
        ready = Bench(*bench)
    except Exception as error:
        with contextlib.suppress(EOFError, OSError):
            end.recv()
            end.send(Ran(failed=f"the program cannot be set up: {error}"))
        return
    try:
        while True:
            try:
                answer: Ran = ready.run(end.recv(), reduction)
            except EOFError:
                return
            except Exception as error:  # a check that raises, or a defect of the explorer
                answer = Ran(failed=f"{type(error).__name__}: {error}")
            end.send(answer)
    except (KeyboardInterrupt, BrokenPipeError):  # the explorer has ended
        return
    finally:
        ready.close()
