"""Many blocks stay found: over time, over restarts, in every process, however many there are and however old they are.

Each process stores its share of the blocks. The times of half of their files are set back by a year, where the tier
shows its files. Then in each round every process looks for a random part of all blocks, loads what it finds, and
compares every byte; one process ends and starts again; a few more blocks are stored. At last each process looks for
every block. The processes idle between the rounds, so that the rounds fill the whole time.

Proves for this time and this number of blocks: no block is lost, unless the tier says that it evicted one. It does not
prove anything about crashes, faults, or a root that is full.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.core import notes
from harness.core.history import History
from harness.core.seeds import stream
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option
from harness.scenarios.worker_group import Chain, WorkerGroup

ROUNDS = 8
JOBS_AT_ONCE = 4
YEAR_SECONDS = 365 * 86400


@dataclass(frozen=True, kw_only=True)
class RetentionOptions(CommonOptions):
    """Options of `run retention`."""

    seconds: float = option(90.0, "how long the blocks must stay, at least", low=0)
    processes: int = option(3, "worker processes, each an interpreter of its own", low=2)
    block_bytes: int = option(4 << 10, "size of a block", low=4096, multiple_of=4096)
    blocks: int = option(6000, "blocks that are stored", low=16, high=1 << 22)
    chain: int = option(16, "blocks of a chain", low=1)
    lookups: int = option(1, "by which lookup a process must find what was reported stored before it asked", low=1)


class Plan(NamedTuple):
    """Nothing but words."""

    source: str


def prepare(options: RetentionOptions) -> Plan:
    if options.slots < 2 * options.chain:
        raise UsageError(f"--slots is {options.slots}; it must be at least {2 * options.chain}, twice --chain")
    return Plan(f"{options.blocks} blocks in chains of {options.chain}")


def run(context: Context, plan: Plan) -> None:
    """Store, age, then rounds over `seconds`, then everything once more."""
    options: RetentionOptions = context.options
    random = stream(options.seed or 0, "retention")
    group = WorkerGroup(context)
    group.start(range(options.processes))
    chains = [group.chain(options.chain) for _ in range(max(1, options.blocks // options.chain))]
    context.note(time.monotonic(), notes.Phase(), f"{len(chains)} chains are stored")
    shares = {p: chains[p :: options.processes] for p in range(options.processes)}
    group.do({p: {"store": share, "window": JOBS_AT_ONCE} for p, share in shares.items()})
    aged = _set_back(context, random.sample(chains, len(chains) // 2))
    context.note(time.monotonic(), notes.Phase(), f"the times of {aged} files are set back by a year")
    at_once = max(1, options.slots // (2 * options.chain))
    began = time.monotonic()
    for number in range(ROUNDS):
        if not group.alive():
            return
        part = max(1, len(chains) // ROUNDS)
        group.find({p: random.sample(chains, part) for p in group.alive()}, at_once, options.lookups)
        fresh = group.chain(options.chain)
        group.do({random.choice(group.alive()): {"store": [fresh]}})
        chains.append(fresh)
        leaver = random.choice(group.alive())
        context.note(time.monotonic(), notes.Phase(), f"process {leaver} ends and starts again")
        group.end([leaver])
        group.restart([leaver])
        time.sleep(max(0.0, began + options.seconds * (number + 1) / ROUNDS - time.monotonic()))
    context.note(time.monotonic(), notes.Phase(), "every process looks for every block")
    group.find(dict.fromkeys(group.alive(), chains), at_once, options.lookups)
    group.end(group.alive())


def _set_back(context: Context, chains: list[Chain]) -> int:
    """Set the times of the files of these blocks back by a year; how many there were."""
    wanted = {block for chain in chains for block in chain}
    names = {name.name for name in History.read(context.run_dir).names if name.block in wanted}
    count, then = 0, time.time() - YEAR_SECONDS
    for name in names:
        path = Path(context.root_dir, name)
        if path.exists():
            os.utime(path, (then, then))
            count += 1
    return count


SCENARIO = Scenario(
    name="retention",
    text=__doc__ or "",
    options=RetentionOptions,
    checkers=("visibility", "integrity", "results", "determinism", "leftovers"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=options.blocks),
    seconds_min=20.0,
    short={"seconds": 1.0, "blocks": 640},
    tiers=("kvtier", "kvtier-stack", "reference"),
)
