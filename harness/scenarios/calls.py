"""The calls that an engine's scheduler makes, timed one by one: on a slow device, and on a root of many files.

Each call of the scheduler's thread (start and end of a request, lookup, step, poll, submit) is timed in windows. On a
fault file system windows in which each call of the device takes longer alternate with windows in which none does. Then
another process does the same on a root of few files, and on the same root with many files.

Proves for these calls that none waits for the device, none holds the interpreter's lock for long, and none takes longer
the more files the root has. It does not prove anything about several processes, or about calls under load, whose
submits the other scenarios time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from harness.adapters import adapter_class
from harness.core import notes
from harness.faults import FaultFs, FaultUnavailable, Rule
from harness.runtime.supervisor import Child
from harness.scenarios.base import CommonOptions, Context, Scenario, option

REPETITIONS = 3
DELAY_SECONDS = 0.02
"""Much longer than a call takes that only computes, or that waits for one switch interval of the interpreter."""
DELAYED = "open create read write getattr readdir mkdir link rename unlink fsync"
WINDOW_SECONDS_MAX = 60.0
FILES_LARGE = 30_000


@dataclass(frozen=True, kw_only=True)
class CallsOptions(CommonOptions):
    """Options of `run calls`."""

    processes: int = option(1, "the calls are timed in one process at a time", low=1, high=1)
    seconds: float = option(4.0, "how long all windows together last, at least", low=0)
    block_bytes: int = option(4096, "size of a block", low=4096, multiple_of=4096)
    files: int = option(FILES_LARGE, "files that are added to the root for the windows of a large root", low=1)


@dataclass(frozen=True)
class Plan:
    """How long one window lasts."""

    seconds: float
    source: str


def prepare(options: CallsOptions) -> Plan:
    windows = 4 * REPETITIONS
    return Plan(options.seconds / windows, f"{windows} windows of {options.seconds / windows:.2g} s")


def run(context: Context, plan: Plan) -> None:
    """A slow device first, then a root that grows."""
    options: CallsOptions = context.options
    _slow_device(context, plan)
    child = _start(context, 1, str(context.root_dir))
    for number in range(REPETITIONS):
        _window(context, child, number, "quiet", plan.seconds, 0)
    child.send(do={"fill": options.files})
    _await(context, child)
    if files := int(child.counts.get("files", 0)):
        for number in range(REPETITIONS):
            _window(context, child, number, "large", plan.seconds, files)
    else:
        context.note(time.monotonic(), notes.Skipped(), "a root of many files: the tier names no files")
    _end(context, child)


def _slow_device(context: Context, plan: Plan) -> None:
    reason = "" if context.sees_mounts else "the workers run on hosts that do not see the fault file system"
    if adapter_class(context.options.tier).runs_in_submit:
        reason = "the tier runs jobs inside submit, so that a slow device is its caller's"
    backing = Path(context.root_dir) / "slow"
    if not reason:
        backing.mkdir()
        try:
            with FaultFs(backing) as fs:
                _alternate(context, plan, fs)
        except FaultUnavailable as error:
            reason = str(error)
    if reason:
        context.note(time.monotonic(), notes.Skipped(), f"a slow device ({reason})")


def _alternate(context: Context, plan: Plan, fs: FaultFs) -> None:
    child = _start(context, 0, str(fs.mount))
    for number in range(REPETITIONS):
        _window(context, child, number, "quiet", plan.seconds, 0)
        fs.inject(Rule(DELAYED, "delay", DELAY_SECONDS))
        _window(context, child, number, "delayed", plan.seconds, 0)
        fs.lift()
    _end(context, child)


def _start(context: Context, process: int, root_dir: str) -> Child:
    child = context.start(process, "calls", root_dir=root_dir)
    context.workers.await_ready([child])
    context.workers.go([child])
    return child


def _window(context: Context, child: Child, number: int, condition: str, seconds: float, files: int) -> None:
    order = {"number": number, "condition": condition, "seconds": seconds, "delay_seconds": DELAY_SECONDS}
    child.send(do={**order, "files": files})
    _await(context, child)


def _await(context: Context, child: Child) -> None:
    """Until the child has carried out its last order."""
    done = child.counts.get("carried_out", 0)
    context.workers.until(lambda: not child.alive or child.counts.get("carried_out", 0) > done, WINDOW_SECONDS_MAX)


def _end(context: Context, child: Child) -> None:
    child.send(stop=True)
    context.workers.wait([child], WINDOW_SECONDS_MAX)


SCENARIO = Scenario(
    name="calls",
    text=__doc__ or "",
    options=CallsOptions,
    checkers=("nonblocking", "integrity", "results"),
    prepare=prepare,
    run=run,
    short={"seconds": 2.0, "read_threads": 2, "write_threads": 2},
)
