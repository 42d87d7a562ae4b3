"""Floods of jobs of one direction; single blocks of the other direction must end during the flood.

Each thread split (1+1, 4+4, 16+16, 31+1, 1+31 read- and write-priority threads) is a process of its own, one after the
other. In each, loads are flooded with stores and stores with loads, in jobs of 1, 16 and 512 blocks, in a closed loop
always deeper than the threads; then a class is flooded with large jobs of its own, and what a single block waits behind
them is reported. On a fault file system the same is done on a slow device, and while calls hang for ever: one, or a
given number, which may be as many as there are threads where the tier replaces those that hang. On hosts that share a
volume it is no single call: in a flood of each class a host is really cut off from the volume, and healed, so that all
calls of its processes hang or fail, of both classes, while those of the other host go on.

Proves for these floods: no thread takes the other class while its own waits, each class is served first in first out,
no thread idles while a task waits, no task waits longer or is overtaken more often than the derived bound, and both
classes go on while a call hangs. On a host that is cut off nothing can go on; what must hold there is that lookups are
answered in time, that hung threads are replaced in time, so that no class waits for threads which hang in the other's
jobs, and that after the heal every job ends and both classes succeed again, without a restart. Where the tier does not
say how it schedules: each class gets through each flood. It does not prove fairness between jobs of one class, nor
anything about sharing, crashes or other faults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.adapters import adapter_class
from harness.adapters.base import other
from harness.core import notes
from harness.core.history import Direction
from harness.core.limits import Needs
from harness.faults import FaultFs, FaultUnavailable, Rule
from harness.runtime.device_probe import device_probe
from harness.runtime.supervisor import Child
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option
from harness.scenarios.on_hosts import OnHosts

SPLITS = ((1, 1), (4, 4), (16, 16), (31, 1), (1, 31))
SPLIT_UNDER_FAULTS = (4, 4)
THREADS_DEFAULT = 4
JOB_BLOCKS = (1, 16, 512)
JOB_BLOCKS_MAX = 1 << 16
STORED_BLOCKS = 512
SLOTS_FACTOR = 4
"""A tier may refuse stores that take too large a share of the slots: a flood is to be queued, not refused."""
PHASE_GRACE_SECONDS = 60.0
"""A phase that is not over so long after its time hangs: its process is stopped."""
REPETITIONS = 3
"""So often each flood is repeated in a process: a defect comes again, a pause of the machine does not."""
PROBES_MIN = 5  # of each repetition
LARGE_BLOCKS = 16
"""Floods of larger jobs are repeated in one split only: with many threads each takes seconds."""
STEADY_SECONDS = 1.0
"""A flood of single blocks lasts so long in one split: of its thousands of jobs each must get its turn."""
HANG_SECONDS_MAX = 5.0
DELAY_SECONDS = 0.005
UNDER_FAULTS = 4  # floods on the fault file system: two slow ones, two with a hung call
HEAL_SECONDS = 1.0
"""A flood on a host that was cut off goes on for so long at least after the heal."""
RECOVERY_SECONDS_MAX = 30.0
DIRECTIONS: tuple[Direction, Direction] = ("load", "store")


@dataclass(frozen=True, kw_only=True)
class StarvationOptions(CommonOptions):
    """Options of `run starvation`. Threads given by hand replace the splits; zero is taken to the tier as it is."""

    seconds: float = option(10.0, "how long all floods together last, at least", low=0)
    processes: int = option(1, "processes that flood one root at a time", low=1)
    block_bytes: int = option(4096, "size of a block", low=4096, multiple_of=4096)
    read_threads: int | None = option(  # type: ignore[assignment]
        None, "read-priority threads, 0 too (default: five splits, or 4 where the other is given)", low=0
    )
    write_threads: int | None = option(  # type: ignore[assignment]
        None, "write-priority threads, 0 too (default: five splits, or 4 where the other is given)", low=0
    )
    job_blocks: str = option(",".join(map(str, JOB_BLOCKS)), "blocks of the jobs of the floods, one flood each")
    hung_calls: int = option(
        1, "calls of each flood that hang for ever at once; more than 1 only for tiers that replace hung threads", low=1
    )
    cut_seconds: float = option(24.0, "how long a host is cut off in each of two floods, where there are hosts", low=0)
    hung_seconds_max: float = option(
        15.0, "by when a lookup on a device that hangs must be answered, and a hung thread replaced", low=0
    )
    slots: int = option(0, "blocks that a process holds in memory at once (0: what the floods take)", low=0)


@dataclass(frozen=True)
class Phase:
    """One flood: its jobs, and of which class the single blocks are that must get through it."""

    probe: Direction
    flood: Direction
    blocks: int


@dataclass(frozen=True)
class Plan:
    """Which floods in which split, the split that meets faults as well, and how long one flood lasts."""

    floods: dict[tuple[int, int], tuple[Phase, ...]]
    under_faults: tuple[int, int]
    seconds: float
    steady_seconds: float
    source: str


def prepare(options: StarvationOptions) -> Plan:
    given = (options.read_threads, options.write_threads)
    splits = SPLITS if given == (None, None) else ((_or_default(given[0]), _or_default(given[1])),)
    try:
        sizes = tuple(int(text) for text in options.job_blocks.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or max(sizes) > JOB_BLOCKS_MAX:
        valid = f"it takes numbers from 1 to {JOB_BLOCKS_MAX} between commas"
        raise UsageError(f"--job-blocks is {options.job_blocks!r}; {valid}")
    if not options.cut_seconds > options.hung_seconds_max:
        least = f"above --hung-seconds-max, which is {options.hung_seconds_max:g}"
        raise UsageError(f"--cut-seconds is {options.cut_seconds:g}; it must be {least}")
    crossed = [Phase(other(flood), flood, size) for size in sizes for flood in DIRECTIONS]
    own = [Phase(flood, flood, max(sizes)) for flood in DIRECTIONS if max(sizes) > 1]
    under_faults = SPLIT_UNDER_FAULTS if splits == SPLITS else splits[0]
    floods = {split: (*crossed, *(own if split == under_faults else ())) for split in splits}
    count = sum(map(len, floods.values())) + UNDER_FAULTS
    seconds = options.seconds / count
    words = " ".join(f"{n}+{m}" for n, m in splits)
    steady_seconds = max(seconds / REPETITIONS, min(STEADY_SECONDS, options.seconds / 2))
    return Plan(
        floods, under_faults, seconds, steady_seconds, f"threads {words}, {count} floods of {seconds:.2g} s each"
    )


def _or_default(threads: int | None) -> int:
    return THREADS_DEFAULT if threads is None else threads


def flood_jobs(threads: int, blocks: int) -> int:
    """Jobs that a flood keeps in flight: more than the threads, and many more where they are small."""
    return threads + 2 if blocks > LARGE_BLOCKS else 4 * threads + 8


def _flood_slots(split: tuple[int, int], phases: tuple[Phase, ...]) -> int:
    """Slots that the jobs of the largest flood take."""
    return max(flood_jobs(sum(split), phase.blocks) * phase.blocks for phase in phases)


def needs(options: StarvationOptions, plan: Plan | None) -> Needs:
    """Splits come one after the other; each stores the blocks that it will load."""
    if plan is None:
        return common_needs(options)
    slots = options.slots or max(_flood_slots(split, phases) for split, phases in plan.floods.items())
    blocks = STORED_BLOCKS * options.processes * len(plan.floods)
    needed = common_needs(options, root_blocks=blocks, slots=slots)
    return dataclasses.replace(needed, threads=max(map(sum, plan.floods))) if needed.threads else needed


def run(context: Context, plan: Plan) -> None:
    """Each split in turn, then one split on the fault file system."""
    options: StarvationOptions = context.options
    with device_probe(context.root_dir, options.block_bytes, context.note):
        _floods(context, plan)
        if not isinstance(context, OnHosts) and not adapter_class(options.tier).runs_in_submit:
            _models(context, plan)
    with _fault_fs(context, plan) as fs:
        if fs is not None:
            _under_faults(context, plan, fs, len(plan.floods) * options.processes)
    if isinstance(context, OnHosts) and not adapter_class(options.tier).runs_in_submit:
        _cut_off(context, plan, (len(plan.floods) + 1) * options.processes)


def _floods(context: Context, plan: Plan) -> None:
    """Each flood in each split, `REPETITIONS` times."""
    options: StarvationOptions = context.options
    for index, (split, phases) in enumerate(plan.floods.items()):
        children = _start(context, index * options.processes, split, phases, str(context.root_dir))
        for number, (repetition, phase) in enumerate(itertools.product(range(REPETITIONS), phases), 1):
            large = phase.blocks > LARGE_BLOCKS and split != plan.under_faults
            if repetition and (large or phase.probe == phase.flood):
                continue  # takes long, or is reported and not judged
            least = {"repetition": repetition, "probes_min": PROBES_MIN}
            steady = phase.blocks == 1 and split == plan.under_faults
            seconds = plan.steady_seconds if steady else plan.seconds / REPETITIONS
            _order(children, number, seconds, phase, split, **least)
            _await(context, children, "carried_out", number, seconds)
        _end(context, children)


def _models(context: Context, plan: Plan) -> None:
    """Two processes of different models at a time, with the same floods of single blocks."""
    split, phases = plan.under_faults, tuple(Phase(other(flood), flood, 1) for flood in DIRECTIONS)
    first = (len(plan.floods) + 2) * context.options.processes
    children = [
        _start(context, first + i, split, phases, str(context.root_dir), 1, model_name=f"harness/model-{i}")[0]
        for i in range(2)
    ]
    for number, (repetition, phase) in enumerate(itertools.product(range(REPETITIONS), phases), 1):
        least = {"repetition": repetition, "probes_min": PROBES_MIN}
        _order(children, number, plan.seconds / REPETITIONS, phase, split, **least)
        _await(context, children, "carried_out", number, plan.seconds)
    _end(context, children)


def _start(
    context: Context,
    first: int,
    split: tuple[int, int],
    phases: tuple[Phase, ...],
    root_dir: str,
    processes: int = 0,
    **more: Any,
) -> list[Child]:
    options: StarvationOptions = context.options
    needed = _flood_slots(split, phases)
    changes: dict[str, Any] = {"n_read_threads": split[0], "n_write_threads": split[1], "root_dir": root_dir, **more}
    changes["slots"] = options.slots or SLOTS_FACTOR * max(needed, STORED_BLOCKS)
    children = [
        context.start(first + i, "flood", {"stored_blocks": STORED_BLOCKS}, **changes)
        for i in range(processes or options.processes)
    ]
    context.workers.await_ready(children)
    context.workers.go(children)
    return children


def _order(
    children: list[Child], number: int, seconds: float, phase: Phase, split: tuple[int, int], **least: float
) -> None:
    order = {"number": number, "seconds": seconds, "probe": phase.probe, "flood": phase.flood, **least}
    order |= {"flood_blocks": phase.blocks, "flood_jobs": flood_jobs(sum(split), phase.blocks)}
    for child in children:
        child.send(do=order)


def _await(context: Context, children: list[Child], what: str, number: int, seconds: float) -> bool:
    return context.workers.until(
        lambda: all(not c.alive or c.counts.get(what, 0) >= number for c in children), seconds + PHASE_GRACE_SECONDS
    )


def _end(context: Context, children: list[Child]) -> None:
    for child in children:
        child.send(stop=True)
    context.workers.wait(children, PHASE_GRACE_SECONDS)


@contextlib.contextmanager
def _fault_fs(context: Context, plan: Plan) -> Iterator[FaultFs | None]:
    """The fault file system over a folder of the root, or None and a note that says why not."""
    reason = ""
    if adapter_class(context.options.tier).runs_in_submit:
        reason = "the tier runs jobs inside submit, so that a slow or hung device is its caller's"
    if not context.sees_mounts:
        reason = "the workers run on hosts that do not see the fault file system"
    backing = Path(context.root_dir) / "slow"
    with contextlib.ExitStack() as stack:
        fs = None
        if not reason:
            backing.mkdir()
            try:
                fs = stack.enter_context(FaultFs(backing))
            except FaultUnavailable as error:
                reason = str(error)
        if reason:
            context.note(time.monotonic(), notes.Skipped(), f"a slow device and a hung call ({reason})")
        yield fs


def _under_faults(context: Context, plan: Plan, fs: FaultFs, first: int) -> None:
    """A slow device, then one call that hangs, for floods of both classes. What hangs is a call of the flood."""
    children = _start(context, first, plan.under_faults, (Phase("load", "store", 1),), str(fs.mount))
    number = 0
    for flood in DIRECTIONS:
        number += 1
        delay = Rule("read write", "delay", DELAY_SECONDS)
        _order(children, number, plan.seconds, Phase(other(flood), flood, 1), plan.under_faults)
        _await(context, children, "started", number, 0.0)
        fs.inject(delay)
        _await(context, children, "carried_out", number, plan.seconds)
        fs.lift()
    if isinstance(context, OnHosts):
        pass  # a host that is cut off is the real thing
    elif min(plan.under_faults) > 1 or context.options.hung_calls > 1:
        for flood in DIRECTIONS:
            number += 1
            _hang(context, plan, fs, children, number, flood)
    else:
        text = f"a hung call: it would take the only thread of a group of {plan.under_faults[0]}+{plan.under_faults[1]}"
        context.note(time.monotonic(), notes.Skipped(), text)
    _end(context, children)


def _hang(context: Context, plan: Plan, fs: FaultFs, children: list[Child], number: int, flood: Direction) -> None:
    calls: int = context.options.hung_calls
    # Long enough for what is submitted during the hang to come to its turn.
    least = {"probes_min": 8, "rounds_min": 3, "counts_when_told": True}
    _order(children, number, plan.seconds, Phase(other(flood), flood, 1), plan.under_faults, **least)
    _await(context, children, "started", number, 0.0)
    fs.inject(Rule("read" if flood == "load" else "write", "hang", times=calls))
    try:
        fs.await_counts(lambda counts: counts["held"] >= calls, HANG_SECONDS_MAX)
    except TimeoutError:
        context.note(time.monotonic(), notes.Skipped(), f"{calls} hung calls of {flood}s: not so many were made")
    else:
        for child in children:
            text = f"one call of a {flood} hangs" if calls == 1 else f"{calls} calls of {flood}s hang"
            context.note(time.monotonic(), notes.Hang(process=child.process), text)
    for child in children:
        child.send(count=True)
    _await(context, children, "over", number, plan.seconds)
    context.note(time.monotonic(), notes.Lifted(), "the call goes on")
    fs.lift()
    _await(context, children, "carried_out", number, plan.seconds)


def _cut_off(context: OnHosts, plan: Plan, first: int) -> None:
    """In a flood of each class one host after the other is cut off from the volume and healed."""
    options: StarvationOptions = context.options
    children = _start(context, first, plan.under_faults, (Phase("load", "store", 1),), str(context.root_dir))
    for number, flood in enumerate(DIRECTIONS, 1):
        host = context.host(first + number - 1)
        seconds = options.cut_seconds + HEAL_SECONDS
        least = {"probes_min": 1, "rounds_min": 1, "recovery_seconds_max": RECOVERY_SECONDS_MAX}
        _order(children, number, seconds, Phase(other(flood), flood, 1), plan.under_faults, **least)
        _await(context, children, "started", number, 0.0)
        host.cut()
        for child in children:
            cut = context.host(child.process) is host
            about: dict[str, Any] = {"process": child.process, "cut": cut, "number": number}
            text = f"{host.name} is cut off in a flood of {flood}s"
            context.note(time.monotonic(), notes.Hang(**about), text)
            if cut:  # whose temp files it could not remove
                context.note(time.monotonic(), notes.Fault(files_left_max=sum(plan.under_faults), **about), text)
        context.workers.until(lambda: False, options.cut_seconds)
        host.heal()
        context.note(time.monotonic(), notes.Lifted(), f"{host.name} is on the network again")
        _await(context, children, "carried_out", number, seconds + RECOVERY_SECONDS_MAX)
    _end(context, children)


SCENARIO = Scenario(
    name="starvation",
    text=__doc__ or "",
    options=StarvationOptions,
    checkers=("starvation", "floods", "nonblocking", "integrity", "results", "leftovers"),
    prepare=prepare,
    run=run,
    needs=needs,
    short={"seconds": 2.0, "job_blocks": "1,16", "read_threads": 2, "write_threads": 2},
    on_hosts={"processes": 2, "seconds": 10.0, "read_threads": 4, "write_threads": 4, "job_blocks": "1,16"},
)
