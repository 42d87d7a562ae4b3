"""What is explored, and what comes out: programs of actors, calls, outcomes, violations. Plain values; no mechanism."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Schedule = tuple[str, ...]
"""One choice a step: "1.0" lets thread 0 of actor 1 make its pending call, "1!" kills actor 1 before its next call.

Threads are numbered in the order in which they first make a call under the root. After the last choice of a schedule
the default policy decides: the same thread again, else the lowest one that can continue.
"""


class Actor(NamedTuple):
    """One process of a program.

    `open(root)` runs before calls are stopped, and makes what `steps` works on: the adapter of a tier, or just the
    root where the opening itself is explored. It must not change the root if `after` is given. `steps(subject)` runs
    with every call under the root stopped, and returns a JSON value, the actor's result, or an iterator over what the
    result is so far, whose last value is the result. It calls the tier from one thread, as an engine does.
    """

    name: str
    open: Callable[[Path], Any]
    steps: Callable[[Any], object]
    after: int | None = None
    """Starts once this other actor has ended or was killed; None: at the beginning."""
    mortal: bool = True
    """Whether kills may hit it."""
    again: Callable[[Any], None] | None = None
    """Makes the subject as new, so that its process runs the next schedule too: several times as fast. The root is
    another by then, at the same path. What it does not reset (a cache, a generator of random numbers) makes schedules
    depend on earlier ones; those whose calls differ are noticed and run again in new processes. None: a new process
    for each schedule."""
    folder_status: bool = True
    """Whether what it does may follow from a folder's size, link count or times."""


class Program(NamedTuple):
    """A few actors on one root, and what must be so after every schedule.

    `setup(root)` fills a fresh root, once; each schedule starts from a copy of it. `check(outcome)` returns one
    sentence for each violation. `state(outcome)` is what the set of final states is made of; None: the results and
    the names, sizes and link groups of all files.
    """

    name: str
    setup: Callable[[Path], None]
    actors: tuple[Actor, ...]
    check: Callable[[Outcome], list[str]]
    state: Callable[[Outcome], Hashable] | None = None


class Call(NamedTuple):
    """One step of a schedule: a system call of a thread, as it was made and as it ended; or a kill (name "SIGKILL").

    Paths are relative to the root; those of descriptors are the names under which their files are known at that
    moment. `result` is "= 5", "= -1 ENOENT", or "" where the process was killed before it could use it. It is deduced
    from the state of files and descriptors before and after the call.
    """

    actor: int
    thread: int
    name: str
    text: str
    paths: tuple[str, ...] = ()
    flags: str = ""
    offset: int = -1
    length: int = -1
    inode: int = 0
    result: str = ""
    data: bytes | None = None  # what a write wrote, where it was to be kept

    @property
    def choice(self) -> str:
        """The choice of a schedule that makes this step."""
        return f"{self.actor}!" if self.name == "SIGKILL" else f"{self.actor}.{self.thread}"

    def __str__(self) -> str:
        return f"{self.text} {self.result}".rstrip()


class Outcome(NamedTuple):
    """The end of one schedule. `root` is its folder, valid until the check returns.

    `results[i]` is what actor i's steps returned; if it was killed, its result so far. It is None if there is none, or
    the actor did not end, or raised (`errors[i]`, the traceback's last line). `stuck` says why nobody could go on
    ("deadlock: ..."), None when all actors ended.
    """

    root: Path
    results: tuple[Any, ...]
    errors: tuple[str | None, ...]
    killed: tuple[int, ...]
    trace: tuple[Call, ...]
    stuck: str | None = None

    @property
    def schedule(self) -> Schedule:
        return tuple(call.choice for call in self.trace)


class Violation(NamedTuple):
    """A schedule after which something was not as it must be, one sentence each in `texts`."""

    schedule: Schedule
    trace: tuple[Call, ...]
    texts: tuple[str, ...]


class Exploration(NamedTuple):
    """What an exploration covered and found.

    `schedules` ran to their end and were checked; `redundant` ones were cut off, because they could only repeat
    others. `complete`: every schedule, up to the order of independent calls, was run; otherwise `incomplete` says why
    not. `violations` holds the shortest of each kind, shortest first; `violating` counts all. `notes` names what the
    engine refused (io_uring) or could not order (mapped files, child processes), a sentence each.
    """

    schedules: int
    redundant: int
    calls: int
    complete: bool
    incomplete: str
    violations: tuple[Violation, ...]
    violating: int
    seconds: float
    final_states: Mapping[Hashable, int]
    notes: tuple[str, ...] = ()
    first_violating: int = 0
    """By which schedule the first violation was found, counted from 1; 0: none was."""


class CannotExplore(Exception):
    """System calls cannot be stopped here, or the program cannot be run; the text says why, in one sentence."""


class Diverged(Exception):
    """A schedule could not be followed: an actor made other calls than when the schedule was recorded."""
