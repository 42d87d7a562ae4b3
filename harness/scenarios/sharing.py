"""Every process finds at once what any process reported stored, and loads it right; processes join, leave and restart.

Rounds in turn: all store the same blocks at the same instant while all read them; one stores while the others read
these blocks as they are published; each stores its own and reads those of the others. After each round every process
looks up all blocks of the round and one earlier chain, and compares every byte. One process joins late, one ends and
starts again; both find all that was stored before. The hit ratio lies between two computed oracles, and the writes per
distinct block are counted.

Proves for this number of processes, this root's file system and these rounds: a block reported stored is found by each
process within the stated number of lookups, a reader never gets a part or another's bytes, names are equal, each job
has one result, nothing is left behind. It does not prove anything about crashes, faults, floods, or caches of several
hosts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from harness.core import notes
from harness.core.seeds import stream
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option
from harness.scenarios.worker_group import Chain, WorkerGroup

CHASE_SECONDS = 1.0
"""A reader of blocks that are being published gives up after so long; later lookups must find them."""
ROUNDS_MIN = 4


@dataclass(frozen=True, kw_only=True)
class SharingOptions(CommonOptions):
    """Options of `run sharing`."""

    seconds: float = option(3.0, "how long rounds are begun; at least one of each kind is", low=0)
    processes: int = option(3, "worker processes, each an interpreter of its own; the last one comes late", low=2)
    block_bytes: int = option(64 << 10, "size of a block", low=4096, multiple_of=4096)
    blocks: int = option(8, "blocks of a chain", low=1)
    lookups: int = option(1, "by which lookup a process must find what was reported stored before it asked", low=1)


@dataclass(frozen=True)
class Plan:
    """Nothing but words: rounds are drawn from the seed as they come."""

    source: str


def prepare(options: SharingOptions) -> Plan:
    if options.slots < 2 * options.blocks:
        raise UsageError(f"--slots is {options.slots}; it must be at least {2 * options.blocks}, twice --blocks")
    return Plan(f"chains of {options.blocks} blocks, a late process and one that starts again")


def run(context: Context, plan: Plan) -> None:
    """Rounds until `seconds` are over; the late process joins after the first, one restarts after the second."""
    options: SharingOptions = context.options
    random = stream(options.seed or 0, "sharing")
    group = WorkerGroup(context)
    late = options.processes - 1
    group.start(range(late))
    began = time.monotonic()  # starting processes does not count
    stored: list[Chain] = []
    number = 0
    while number < ROUNDS_MIN or time.monotonic() - began < options.seconds:
        if not group.alive():
            return
        kind = ("the same at once", "one stores, others read", "each its own")[number % 3]
        context.note(time.monotonic(), notes.Phase(), f"round {number}: {kind}")
        fresh = _round(group, kind, number, options.blocks)
        stored += fresh
        earlier = random.choice(stored)
        wanted = [*fresh, *([] if earlier in fresh else [earlier])]
        group.do({p: {"find": wanted, "asks": options.lookups} for p in group.alive()})
        before = time.monotonic()
        if number == 0:
            context.note(time.monotonic(), notes.Phase(), f"process {late} comes late")
            group.start([late])
            group.do({late: {"find": stored, "asks": options.lookups}})
        elif number == 1:
            leaver = random.randrange(late)
            context.note(time.monotonic(), notes.Phase(), f"process {leaver} ends and starts again")
            group.end([leaver])
            if group.restart([leaver]):
                group.do({leaver: {"find": stored, "asks": options.lookups}})
        began += time.monotonic() - before
        number += 1
    group.end(group.alive())


def _round(group: WorkerGroup, kind: str, number: int, blocks: int) -> list[Chain]:
    """One round of stores with readers beside them; returns what was stored."""
    members = group.alive()
    chase: dict[str, Any] = {"chase_seconds": CHASE_SECONDS}
    if kind == "the same at once":
        fresh = [group.chain(blocks)]
        orders = {p: {"store": fresh, "find": fresh, **chase} for p in members}
    elif kind == "one stores, others read":
        fresh = [group.chain(blocks)]
        writer = members[number % len(members)]
        orders = {p: {"store": fresh} if p == writer else {"find": fresh, **chase} for p in members}
    else:
        own = {p: group.chain(blocks) for p in members}
        fresh = list(own.values())
        orders = {p: {"store": [own[p]], "find": [own[q] for q in members if q != p], **chase} for p in members}
    group.do(orders, together=True)
    return fresh


SCENARIO = Scenario(
    name="sharing",
    text=__doc__ or "",
    options=SharingOptions,
    checkers=("sharing", "visibility", "integrity", "results", "determinism", "leftovers"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=ROUNDS_MIN * options.blocks),
    short={"seconds": 1.0},
    on_hosts={"processes": 4, "seconds": 3.0},
    on_nodes=True,
)
