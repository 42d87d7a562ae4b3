"""Instances open, drain, close and die while other processes store and load on the same root; no job is lost or wrong.

Two processes store and find chains of blocks without a pause. Beside them others open instances, use them, drain and
close them with loads and stores in flight, and check the promises of the contract about that; each in turn is killed in
the middle of it and started again, so that garbage of dead processes is there to be collected. One of the steady
processes ends and starts again, too. Whatever was reported stored is found by every process, each time.

Proves for these numbers of processes and rounds: each job has exactly one result, also those in flight at a drain or a
close; each result is true; an instance that comes, goes or dies takes nothing from others. It does not prove anything
about faults of the device, nor about a death at each step of a store, which `crash` does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

from harness.core import notes
from harness.core.seeds import stream
from harness.runtime.supervisor import Child
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option
from harness.scenarios.contract import PROMISE_SECONDS_MAX
from harness.scenarios.crash import unnamed_files_work
from harness.scenarios.worker_group import Chain, WorkerGroup

STEADY = 2
FOUND_AGAIN = 4
"""Earlier chains that each steady process looks for in each round."""
END_SECONDS_MAX = 60.0


@dataclass(frozen=True, kw_only=True)
class LifecycleOptions(CommonOptions):
    """Options of `run lifecycle`."""

    seconds: float = option(6.0, "how long instances come and go; each kind of round is made once at least", low=0)
    processes: int = option(4, "worker processes; two are steady, the others come and go", low=3, high=64)
    block_bytes: int = option(16 << 10, "size of a block", low=4096, multiple_of=4096)
    read_threads: int = option(2, "read-priority threads of each instance", low=1)
    write_threads: int = option(2, "write-priority threads of each instance", low=1)
    slots: int = option(64, "blocks that an instance holds in memory at once", low=32)
    blocks: int = option(6, "blocks of a chain", low=1)


class Plan(NamedTuple):
    """Nothing but words."""

    source: str


def prepare(options: LifecycleOptions) -> Plan:
    if options.slots < 4 * options.blocks:
        raise UsageError(f"--slots is {options.slots}; it must be at least {4 * options.blocks}, four times --blocks")
    return Plan(f"{STEADY} steady processes, {options.processes - STEADY} that come and go, chains of {options.blocks}")


def run(context: Context, plan: Plan) -> None:
    """Rounds until `seconds` are over; each third one ends a steady process, each second one kills another."""
    options: LifecycleOptions = context.options
    random = stream(options.seed or 0, "lifecycle")
    group = WorkerGroup(context)
    group.start(range(STEADY))
    comers = {p: context.start(p, "lifecycle", {"seed": options.seed}) for p in range(STEADY, options.processes)}
    context.workers.await_ready(comers.values())
    context.workers.go(comers.values())
    # A death may fall into an opening, which may try with a named file what the file system can.
    temp_files = 1 if unnamed_files_work(context.root_dir) else 1 + options.read_threads + options.write_threads
    stored: list[Chain] = []
    began, number = time.monotonic(), 0
    while number < 6 or time.monotonic() - began < options.seconds:
        if len(group.alive()) < STEADY:
            return
        fresh = {process: [group.chain(options.blocks) for _ in range(3)] for process in group.alive()}
        earlier = random.sample(stored, min(len(stored), FOUND_AGAIN))
        group.do({process: {"store": chains, "find": earlier} for process, chains in fresh.items()}, together=True)
        stored += [chain for chains in fresh.values() for chain in chains]
        if number % 3 == 2:
            leaver = random.randrange(STEADY)
            context.note(time.monotonic(), notes.Phase(), f"process {leaver} ends and starts again")
            group.end([leaver])
            group.restart([leaver])
        elif number % 2 == 1:
            victim = random.choice(sorted(comers))
            _kill(context, comers[victim], temp_files)
            comers[victim] = context.workers.restart(comers[victim])
            context.workers.await_ready([comers[victim]])
            context.workers.go([comers[victim]])
        number += 1
    for child in comers.values():
        child.send(stop=True)
    context.workers.wait(comers.values(), END_SECONDS_MAX)
    group.find(dict.fromkeys(group.alive(), stored), at_once=max(1, options.slots // (2 * options.blocks)))
    group.end(group.alive())


def _kill(context: Context, child: Child, temp_files: int) -> None:
    """Kill it just after it has begun another promise; one that hangs in the last is recorded as an error."""
    promises = child.counts.get("promise", 0)
    moved = context.workers.until(
        lambda: not child.alive or child.counts.get("promise", 0) > promises, PROMISE_SECONDS_MAX
    )
    if moved and child.alive:
        fault = notes.Fault(child.process, how="killed", files_left_max=temp_files)
        context.note(time.monotonic(), fault, f"process {child.process} killed")
    elif child.alive:
        about = notes.Error(process=child.process)
        context.note(time.monotonic(), about, f"a promise did not end within {PROMISE_SECONDS_MAX:g} s")
    child.kill()
    context.workers.wait([child])


SCENARIO = Scenario(
    name="lifecycle",
    text=__doc__ or "",
    options=LifecycleOptions,
    checkers=("contract", "visibility", "integrity", "results", "leftovers"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=200),
    short={"seconds": 1.0},
    tiers=("kvtier", "kvtier-stack", "reference"),
)
