"""Even traffic for an hour: nothing grows, and in the end counters, history and files agree.

Several processes ask for blocks of one working set, load what is there and store what is not, while block files are
removed from outside, as a cleaner would. Memory, descriptors, threads and queues of each process are sampled all along.

Proves for this time: no trend upwards in any of them beyond their own noise once warm; every loaded byte right; each
job one result; no load fails but of removed blocks; the tier's own counts equal the history's; the files at the end are
those that the history expects. It does not prove anything about load, crashes or faults, or growth slower than the
noise of this run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.adapters import adapter_class
from harness.core import notes
from harness.drivers.soak import REQUEST_BLOCKS_MAX
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option


@dataclass(frozen=True, kw_only=True)
class SoakOptions(CommonOptions):
    """Options of `run soak`."""

    seconds: float = option(3600.0, "how long requests are begun", low=1)
    processes: int = option(2, "worker processes, each an interpreter of its own", low=1)
    block_bytes: int = option(64 << 10, "size of a block", low=4096, multiple_of=4096)
    blocks: int = option(512, "distinct blocks that are asked for", low=REQUEST_BLOCKS_MAX)
    pace: float = option(5.0, "requests per second of each process", low=0.01)
    window: int = option(4, "requests in flight per process", low=1)
    removals: float = option(0.5, "block files removed per request", low=0)


@dataclass(frozen=True)
class Plan:
    """Nothing but words: requests are drawn from the seed as they come."""

    source: str


def prepare(options: SoakOptions) -> Plan:
    least = 4 * options.window * REQUEST_BLOCKS_MAX
    if options.slots < least:
        raise UsageError(f"--slots is {options.slots}; it must be at least {least} for a window of {options.window}")
    return Plan(f"{options.blocks} blocks, {options.pace:g} requests a second and process, for {options.seconds:g} s")


def run(context: Context, plan: Plan) -> None:
    options: SoakOptions = context.options
    arguments = {
        "blocks": options.blocks,
        "window": options.window,
        "seconds": options.seconds,
        "requests_per_second": options.pace,
        "removals_per_request": options.removals,
        "seed": options.seed,
    }
    children = [context.start(process, "soak", arguments) for process in range(options.processes)]
    context.workers.await_ready(children)
    if options.removals and adapter_class(options.tier).exposes_files:
        text = "block files are removed from outside, so that loads may find nothing"
        context.note(time.monotonic(), notes.Fault(), text)
    context.note(context.workers.go(children), notes.Phase(source=plan.source), "traffic starts")
    context.workers.wait(children)
    context.note(time.monotonic(), notes.Phase(), "traffic ended")


SCENARIO = Scenario(
    name="soak",
    text=__doc__ or "",
    options=SoakOptions,
    checkers=("soak", "integrity", "results", "leftovers"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=options.blocks // 4, slots_filled=1.0),
    seconds_min=15.0,
    short={"seconds": 12.0, "pace": 20.0, "blocks": 128, "block_bytes": 4096},
)
