"""Small programs of two or three processes, run in each order of their system calls that can differ, with kills.

A program is a text, for example "A short: load A | store A": under the root is a block A whose file was cut short, one
process loads it, another stores it. Each call of each process below the root is stopped in the kernel until it is its
turn (seccomp user notification). One order is run of each class of equivalent orders: those that differ only in calls
that do not affect each other, and so lead to the same end. A kill may come before each call. After each schedule the
results, the files, and a next process that opens the root, loads and stores are checked.

Shows that no order of these processes' system calls breaks a rule, and how many schedules that took. A program whose
schedules were not all run makes the verdict inconclusive. It does not show anything about programs that were not run,
other block sizes and thread counts, orders of memory accesses within a process, network file systems, and power loss.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from harness.core import notes
from harness.core.inputs import UsageError, read_json
from harness.core.seeds import SEED_MAX
from harness.explore.programs import parse
from harness.scenarios.base import CommonOptions, Context, Scenario, common_needs, option

SHORT = (
    "store A",
    "store A | lookup A",
    "store A | load A",
    "store A | lookup A, load A",
    "store A | store A",
    "store A | store B",
    "A: store A | load A",
    "A: load A | load A",
    "A corrupt: load A | load A",
    "A corrupt: load A | store A",
    "A short: load A | load A",
    "A short: load A | store A",
    "A short: store A | store A",
    "A long: load A | store A",
    "A foreign: load A | store A",
    "A, B: load A | evict",
    "A, B: store A | evict",
    "store A | collect",
    "collect | collect",
    "store A | then store A, load A",
)
"""Programs of two processes that take seconds."""
LONG = (
    "open | open",
    "open | open other",
    "A: store B | evict",
    "A, B: evict | evict",
    "A short: load A | then load A, store A",
    "store A | store A | load A",
    "store A | load A | then store A",
    "A short: load A | load A | store A",
)
"""Programs of minutes: openings make many calls, and three processes have many orders."""
QUICK = ("store A | load A", "A short: load A | store A", "A, B: evict | evict")


@dataclass(frozen=True, kw_only=True)
class InterleavingsOptions(CommonOptions):
    """Options of `run interleavings`."""

    processes: int = option(1, "worker processes; the first explores, and each program has processes of its own", low=1)
    seconds: float = option(60.0, "how long the schedules of one program are run; 0: until all were", low=0)
    seed: int | None = option(0, "no choice is random; the seed stands in reports only", low=0, high=SEED_MAX)
    block_bytes: int = option(4096, "size of a block", low=4096, multiple_of=4096)
    read_threads: int = option(1, "read-priority threads of the worker; a program's processes have one", low=1)
    write_threads: int = option(1, "write-priority threads of the worker; a program's processes have one", low=1)
    slots: int = option(6, "blocks that the worker holds in memory at once; a program's processes hold 6", low=6)
    program: tuple[str, ...] = option((), "a program as text; may be repeated (default: those that take seconds)")
    long: bool = option(False, "programs of minutes, too: openings of a root, and three processes")
    kills: int = option(1, "how many processes are killed in a schedule, each before any of its calls", low=0, high=2)
    preemptions: int | None = option(
        None, "only schedules in which so many times at most a process is stopped that could go on", low=0, high=100
    )
    schedules: int | None = option(None, "so many schedules of each program at most", low=1)
    replay: str | None = option(None, "run the one schedule in this file, counterexample-N.json of a run", is_path=True)


@dataclass(frozen=True)
class Plan:
    """The programs, or the content of the counterexample to replay."""

    programs: tuple[str, ...]
    replay: dict[str, Any] | None
    source: str


def prepare(options: InterleavingsOptions) -> Plan:
    if options.replay is not None:
        found = read_json(options.replay, dict)
        schedule = found.get("schedule")
        if not isinstance(found.get("program"), str) or not isinstance(schedule, list):
            lacks = "it has no program or schedule"
            raise UsageError(f"--replay is {options.replay!r}, which is no counterexample: {lacks}")
        parse(found["program"])
        return Plan((found["program"],), found, f"one schedule of {len(schedule)} steps of {found['program']!r}")
    programs = options.program or (SHORT + LONG if options.long else SHORT)
    for text in programs:
        parse(text)
    return Plan(tuple(programs), None, f"{len(programs)} programs, {options.kills} kills")


def run(context: Context, plan: Plan) -> None:
    """One worker explores all programs."""
    options: InterleavingsOptions = context.options
    arguments = {
        "programs": list(plan.programs),
        "kills": options.kills,
        "preemptions_max": options.preemptions,
        "limit_seconds": options.seconds or 1e9,
        "limit_schedules": options.schedules,
        "replay": plan.replay,
        "folder": str(context.root_dir) if options.root_dir else None,
    }
    child = context.start(0, "interleavings", arguments)
    context.workers.await_ready([child])
    context.note(context.workers.go([child]), notes.Phase(source=plan.source), "schedules")
    context.workers.wait([child])


SCENARIO = Scenario(
    name="interleavings",
    text=__doc__ or "",
    options=InterleavingsOptions,
    checkers=("interleavings",),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: dataclasses.replace(common_needs(options), processes=4),
    seconds_min=60.0,  # of one program: a limit that comes first gives no verdict
    short={"program": QUICK, "kills": 0},
)
