"""`explore`, `replay` and `minimise`: what callers use. docs/interleavings.md says how it works and what it proves."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

from harness.explore import seccomp
from harness.explore.dependence import dependent, dependent_unless_listed
from harness.explore.execution import Dependence
from harness.explore.minimise import shortest
from harness.explore.model import CannotExplore, Exploration, Outcome, Program, Schedule, Violation
from harness.explore.schedule_tree import Tree
from harness.explore.workers import Bench, Ran, Workers, default_folder

T = TypeVar("T")

BATCH = 8
"""Schedules given to the workers at a time, whatever their number, so that the order of the search never varies."""
VIOLATIONS_MAX = 50
"""Kinds of violations that are kept, the shortest of each."""


def unavailable() -> str | None:
    """Why system calls cannot be stopped and scheduled here, one clause; None if they can."""
    return seccomp.unavailable()


def explore(
    program: Program,
    *,
    kills: int = 0,
    preemptions_max: int | None = None,
    reduction: bool = True,
    limit_seconds: float = 60.0,
    limit_schedules: int | None = None,
    jobs: int | None = None,
    folder: Path | None = None,
    depends: Dependence | None = None,
) -> Exploration:
    """Run every schedule of `program`, up to the order of independent calls, and check each.

    `kills`: how many SIGKILLs, each before any call of a mortal actor. `preemptions_max` bounds the changes away from
    a thread that could have gone on; reduction is then off, since the two do not combine. `reduction=False` runs each
    order of calls, for comparison. `jobs`: worker processes, one a core by default. `folder`: where the roots are made,
    /dev/shm by default. `depends` replaces the dependence relation, for tests of it; by default it is the finer one
    until a process lists a folder, when the exploration begins again with the other. Deterministic: no seed, and
    neither `jobs` nor time changes the order. Raises CannotExplore.

    Call it from a process without other threads: it forks.
    """
    if reason := unavailable():
        raise CannotExplore(f"system calls cannot be stopped: {reason}")
    started = time.monotonic()
    reduced = reduction and preemptions_max is None
    jobs = jobs or len(os.sched_getaffinity(0))
    for relation in (depends,) if depends else (dependent_unless_listed, dependent):
        tree = Tree(reduced, preemptions_max)
        count = _Count(limit_seconds, limit_schedules, may_list=relation is not dependent_unless_listed)
        workers = Workers(jobs, reduced, program, kills, folder or default_folder(), relation)
        try:
            _walk(tree, count, workers)
        finally:
            workers.close()
        if not count.lists:
            break
    return count.exploration(time.monotonic() - started)


def _walk(tree: Tree, count: _Count, workers: Workers) -> None:
    """Run the schedules of the tree until there are none, or `count` has had enough."""
    while len(tree) and (left := count.left()):
        items = tree.take(min(BATCH, left))
        for item, ran in zip(items, workers.run(items), strict=True):
            if ran.failed:
                raise CannotExplore(ran.failed)
            count.add(ran)
            if ran.states:
                tree.add(item, ran.states, ran.choices, ran.names, ran.races)


class _Count:
    """Adds up what the workers say, and says when to stop: at a limit, and where a process lists a folder and none
    may."""

    def __init__(self, limit_seconds: float, limit_schedules: int | None, may_list: bool) -> None:
        self.schedules = 0
        self.stopped = ""
        self.lists = False
        self._limit_seconds, self._deadline = limit_seconds, time.monotonic() + limit_seconds
        self._limit_schedules = limit_schedules
        self._may_list = may_list
        self._redundant = self._calls = self._violating = self._diverged = 0
        self._first_violating = 0
        self._last_divergence = ""
        self._violations: dict[tuple[str, ...], Violation] = {}
        self._final_states: Counter[Hashable] = Counter()
        self._notes: set[str] = set()

    def left(self) -> int:
        """How many more schedules may be run; 0: none, and why is in `stopped`."""
        left = BATCH if self._limit_schedules is None else self._limit_schedules - self.schedules
        if left <= 0:
            self.stopped = f"cut at {self._limit_schedules} schedules"
        elif time.monotonic() > self._deadline:
            self.stopped = f"cut at {self._limit_seconds:g} s"
        return 0 if self.stopped or self.lists else left

    def add(self, ran: Ran) -> None:
        self.lists |= ran.lists and not self._may_list
        self._calls += len(ran.choices)
        self._notes |= ran.notes
        if ran.diverged:
            self._diverged += 1
            self._last_divergence = ran.diverged
            return
        self._redundant += ran.redundant
        if ran.redundant:
            return
        self.schedules += 1
        self._final_states[ran.final_state] += 1
        if violation := ran.violation:
            self._violating += 1
            self._first_violating = self._first_violating or self.schedules
            kind = kind_of(violation)
            known = self._violations.get(kind)
            if len(violation.trace) < (len(known.trace) if known else 1 << 30) and (
                known or len(self._violations) < VIOLATIONS_MAX
            ):
                self._violations[kind] = violation

    def exploration(self, seconds: float) -> Exploration:
        why = [self.stopped] if self.stopped else []
        if self._diverged:
            why.append(f"{self._diverged} schedules could not be followed ({self._last_divergence})")
        why += sorted(note for note in self._notes if note.endswith("not ordered"))
        violations = sorted(self._violations.values(), key=lambda one: (len(one.trace), one.texts))
        return Exploration(
            self.schedules,
            self._redundant,
            self._calls,
            not why,
            "; ".join(why),
            tuple(violations),
            self._violating,
            seconds,
            dict(self._final_states),
            tuple(sorted(self._notes)),
            self._first_violating,
        )


def kind_of(violation: Violation) -> tuple[str, ...]:
    """Its texts without what differs from run to run: numbers, and names that are hexadecimal."""
    return tuple(sorted(re.sub(r"[0-9a-f]{6,}|\d+", "#", text) for text in violation.texts))


def replay(
    program: Program,
    schedule: Schedule,
    look: Callable[[Outcome], T],
    *,
    folder: Path | None = None,
    keep_data: bool = False,
) -> T:
    """Run exactly this schedule and return what `look` makes of its outcome, whose root is removed afterwards.

    After its last choice the default policy decides. `keep_data`: calls hold the bytes that they wrote. Raises Diverged
    when an actor does not make the calls that the schedule asks for.
    """
    if reason := unavailable():
        raise CannotExplore(f"system calls cannot be stopped: {reason}")
    kills = sum(choice.endswith("!") for choice in schedule)
    bench = Bench(program, kills, folder or default_folder(), keep_data=keep_data)
    try:
        return look(bench.outcome(schedule))
    finally:
        bench.close()


def minimise(
    program: Program, violation: Violation, *, limit_seconds: float = 10.0, folder: Path | None = None
) -> Violation:
    """The same kind of violation with the fewest preemptions, then the fewest calls, that replays find in the time."""
    kills = sum(choice.endswith("!") for choice in violation.schedule)
    bench = Bench(program, kills, folder or default_folder())
    kind = kind_of(violation)

    def attempt(schedule: Schedule) -> Violation | None:
        found = bench.checked(schedule)
        return found if found is not None and kind_of(found) == kind else None

    try:
        return shortest(violation, attempt, time.monotonic() + limit_seconds)
    finally:
        bench.close()
