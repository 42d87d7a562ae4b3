"""Two hosts share a volume; one is cut off, loses power, or the server restarts, and only jobs in flight there fail.

First, how soon a block that one host reported stored is found by the other, without and with an earlier miss. Then, in
rounds: a host is cut off while it stores, and while it loads, and healed after a while; a host loses power while it
stores, and comes back; the server is killed and started again. In each round the other host goes on storing and reading
what was there before. After each outage every process looks up every block that any process reported stored. What was
not finished is stored again, and every process looks it up once more.

Proves for this file system and these mount options: the visibility bound; that nothing fails on the host that was not
hit, and nothing but the jobs of that time on the one that was; that all get their results, and go on without a restart;
that no late write reaches a published block. What hangs are the tier's own calls on the mount that is cut off: where
it tells of them they show in its gauges, and threads that it replaced are none any more afterwards. After a loss of
power what that host had reported stored may be missing. It does not prove anything about a loss of power at the server,
nor about locks and leases.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from harness.core import notes
from harness.core.seeds import stream
from harness.hosts.base import Host
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, option
from harness.scenarios.on_hosts import OnHosts
from harness.scenarios.worker_group import Chain, WorkerGroup

SOON_ROUNDS = 4
DELAY_SECONDS_MAX = 0.15
"""A fault comes at a random moment within this time after the last of those that it hits has a job in flight."""
SERVER_DOWN_SECONDS = 2.0
PAUSE_SECONDS = 0.3
SHOWN_CHAINS = 6
"""Chains of each process that the unharmed host reads while another is away."""


@dataclass(frozen=True, kw_only=True)
class OutageOptions(CommonOptions):
    """Options of `run outage`; hosts come from `kvtier-harness shared-volume`."""

    seconds: float = option(0.0, "how long rounds are begun; each kind happens at least once", low=0)
    processes: int = option(4, "worker processes, on the hosts in turn", low=2)
    block_bytes: int = option(128 << 10, "size of a block", low=4096, multiple_of=4096)
    blocks: int = option(4, "blocks of a chain", low=1)
    slots: int = option(320, "blocks that a process holds in memory at once", low=2)
    chains: int = option(32, "chains that a process stores or loads in a round", low=1)
    cut_seconds: float = option(12.0, "how long a host is cut off, or without power", low=0)
    recovery_seconds_max: float = option(30.0, "by when after the heal a process must work again", low=0)
    visible_seconds_max: float = option(1.0, "by when another host must find what was reported stored", low=0)


class Plan(NamedTuple):
    """Nothing but words: moments are drawn from the seed as they come."""

    source: str


def prepare(options: OutageOptions) -> Plan:
    needed = 2 * options.chains * options.blocks  # a tier may shed stores that would take more than half of its slots
    if options.slots < needed:
        raise UsageError(f"--slots is {options.slots}; it must be at least {needed}, twice --chains times --blocks")
    return Plan(f"{options.chains} chains of {options.blocks} blocks, a host away for {options.cut_seconds:g} s")


def run(context: Context, plan: Plan) -> None:
    """See how soon, then one round of each kind, again until `seconds` are over."""
    if not isinstance(context, OnHosts):
        raise UsageError("outage takes hosts that can be cut off; run it by `kvtier-harness shared-volume`")
    options: OutageOptions = context.options
    outage = _Outage(context)
    outage.group.start(range(options.processes))
    context.note(time.monotonic(), notes.Phase(), "how soon blocks are visible")
    outage.see_how_soon()
    outage.fill()
    began = time.monotonic()
    rounds: tuple[Callable[[], None], ...] = (
        lambda: outage.cut("store"),
        lambda: outage.cut("load"),
        outage.lose_power,
        outage.restart_server,
    )
    number = 0
    while number < len(rounds) or time.monotonic() - began < options.seconds:
        context.note(time.monotonic(), notes.Phase(), f"round {number}")
        rounds[number % len(rounds)]()
        number += 1
    outage.group.end(outage.group.alive())


class _Outage:
    """The group, what was stored so far, and the rounds."""

    def __init__(self, context: OnHosts) -> None:
        self.context = context
        self.options: OutageOptions = context.options
        self.group = WorkerGroup(context)
        self._random = stream(self.options.seed or 0, "outage")
        self._all = range(self.options.processes)
        self._victim = self._random.randrange(len(context.volume.hosts))
        self._chains: dict[int, list[Chain]] = {}  # stored while all was well, by process

    # --- how soon ---

    def see_how_soon(self) -> None:
        """One host stores, the other looks up at once until it hits; in half of the rounds it had looked up before."""
        limit = self.options.visible_seconds_max
        for number in range(SOON_ROUNDS):
            writer, reader = (0, 1) if number % 4 < 2 else (1, 0)
            chain, missed = self.group.chain(self.options.blocks), bool(number % 2)
            text = "seen as missing before" if missed else "never asked for"
            self._note(notes.Soon(blocks=chain, missed=missed), text)
            if missed:
                self.group.do({reader: {"find": [chain]}})
            self.group.do({writer: {"store": [chain]}})
            self.group.do({reader: {"find": [chain], "chase_seconds": limit}})

    def fill(self) -> None:
        """Each process stores what will be read while a host is away."""
        self._chains = {p: self._fresh() for p in self._all}
        self.group.do({p: {"store": chains} for p, chains in self._chains.items()})

    # --- rounds ---

    def cut(self, what: str) -> None:
        """One host is cut off while its processes store or load."""
        host = self._next_victim()
        victims = self.context.processes(host, self._all)
        others = [p for p in self._all if p not in victims]
        stored = {p: self._fresh() for p in self._all}
        read = [chain for p in self._all for chain in self._chains[p]]
        parts = {p: {"store": stored[p]} if what == "store" else {"find": read} for p in victims}
        number = self.group.order(parts, together=True)
        self._wait_a_moment(number, victims)
        self._fault(victims, f"{host.name} is cut off while it {what}s", "cut")
        host.cut()
        last = self._go_on(others, stored)
        host.heal()
        self._lifted(victims, f"{host.name} is on the network again")
        self.group.settle(number, victims)
        self.group.settle(last, others)
        self._afterwards(victims, stored)

    def lose_power(self) -> None:
        """One host is switched off while its processes store, and on again."""
        host = self._next_victim()
        victims = self.context.processes(host, self._all)
        others = [p for p in self._all if p not in victims]
        stored = {p: self._fresh() for p in self._all}
        number = self.group.order({p: {"store": stored[p]} for p in victims}, together=True)
        self._wait_a_moment(number, victims)
        self._fault(victims, f"{host.name} loses power while it stores", "power")
        host.lose_power()
        self.group.settle(number, victims)
        last = self._go_on(others, stored)
        host.power_on()
        self._lifted(victims, f"{host.name} is back")
        self.group.settle(last, others)
        self.group.restart(victims)
        self._afterwards(victims, stored)

    def restart_server(self) -> None:
        """The server is killed while all store, and started again."""
        stored = {p: self._fresh() for p in self._all}
        number = self.group.order({p: {"store": stored[p]} for p in self._all}, together=True)
        self._wait_a_moment(number, self._all)
        self._fault(self._all, f"the server is down for {SERVER_DOWN_SECONDS:g} s", "server")
        self.context.volume.restart_server(SERVER_DOWN_SECONDS)
        self._lifted(self._all, "the server is up again")
        self.group.settle(number, self._all)
        self._afterwards(self._all, stored)

    # --- parts of a round ---

    def _go_on(self, others: list[int], stored: dict[int, list[Chain]]) -> int:
        """The unharmed store theirs and read what all had stored before, while the host is away, and not longer
        even where the file system makes them wait for it. Returns their last order."""
        until = time.monotonic() + self.options.cut_seconds
        known = [chain for p in self._all for chain in self._chains[p][:SHOWN_CHAINS]]
        number = self.group.order({p: {"store": stored[p], "find": known} for p in others})
        while (left := until - time.monotonic()) > 0:
            if self.context.workers.until(lambda number=number: self._done(number, others), left):  # type: ignore[misc]
                self.context.workers.until(lambda: False, min(PAUSE_SECONDS, max(0.0, until - time.monotonic())))
                number = self.group.order({p: {"find": known} for p in others})
        return number

    def _done(self, number: int, processes: list[int]) -> bool:
        members = self.group.members
        return all(not members[p].alive or members[p].counts.get("carried_out", 0) >= number for p in processes)

    def _afterwards(self, victims: list[int] | range, stored: dict[int, list[Chain]]) -> None:
        """The victims work until they succeed; every process looks up each block of this round once; the victims store
        theirs again, and every process looks up until all blocks hit."""
        self.context.workers.until(lambda: self._works_again(victims), self.options.recovery_seconds_max)
        known = [chain for chains in stored.values() for chain in chains]
        known += [chain for p in self._all for chain in self._chains[p][:SHOWN_CHAINS]]
        limit = self.options.visible_seconds_max
        parts = self._shared_out(known)
        self.group.do({p: {"find": parts[p]} for p in self.group.alive()})
        self.group.do({p: {"store": stored[p]} for p in victims if self.group.members[p].alive})
        self.group.do({p: {"find": parts[p], "chase_seconds": limit} for p in self.group.alive()})

    def _shared_out(self, chains: list[Chain]) -> dict[int, list[Chain]]:
        """All chains for each host, dealt to those of its processes that live."""
        parts: dict[int, list[Chain]] = {}
        for host in self.context.volume.hosts:
            here = [p for p in self.context.processes(host, self._all) if self.group.members[p].alive]
            parts |= {p: chains[index :: len(here)] for index, p in enumerate(here)}
        return parts

    def _works_again(self, victims: list[int] | range) -> bool:
        """Whether a store of each victim has just succeeded. The checker determines when it first did."""
        alive = [p for p in victims if self.group.members[p].alive]
        before = {p: self.group.members[p].counts.get("stores", 0) for p in alive}
        self.group.do({p: {"store": [self.group.chain(1)]} for p in alive})
        return all(self.group.members[p].counts.get("stores", 0) > before[p] for p in alive)

    def _next_victim(self) -> Host:
        """The hosts in turn; the first is drawn from the seed."""
        self._victim += 1
        return self.context.volume.hosts[self._victim % len(self.context.volume.hosts)]

    def _fresh(self) -> list[Chain]:
        return [self.group.chain(self.options.blocks) for _ in range(self.options.chains)]

    def _wait_a_moment(self, number: int, processes: list[int] | range) -> None:
        """Until all have jobs of the order in flight, and then for a random moment."""
        self.group.await_begun(number, processes)
        self.context.workers.until(lambda: False, self._random.uniform(0.0, DELAY_SECONDS_MAX))

    def _fault(self, processes: list[int] | range, text: str, what: str) -> None:
        left = 1 + self.options.read_threads + self.options.write_threads
        for process in processes:
            self._note(notes.Fault(process=process, what=what, files_left_max=left), text)

    def _lifted(self, processes: list[int] | range, text: str) -> None:
        for process in processes:
            self._note(notes.Lifted(process=process), text)

    def _note(self, about: notes.About, text: str) -> None:
        self.context.note(time.monotonic(), about, text)


SCENARIO = Scenario(
    name="outage",
    text=__doc__ or "",
    options=OutageOptions,
    checkers=("outage", "integrity", "results", "determinism", "leftovers"),
    prepare=prepare,
    run=run,
    apart="takes two hosts that can be cut off: make shared-volume",
    tiers=("kvtier",),
    on_hosts={},
)
