"""Which steps may not be exchanged: the dependence relation, on inodes and folder entries."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.explore.calls import Decoded
from harness.explore.paths import Object


@dataclass(frozen=True)
class Effect:
    """What a step reads and writes, and of which actor it is. `releases`: it can only let others continue."""

    actor: int
    reads: frozenset[Object] = frozenset()
    writes: frozenset[Object] = frozenset()
    waits_for_lock: bool = False
    releases: bool = False

    @classmethod
    def of(cls, actor: int, call: Decoded) -> Effect:
        lock = call.lock
        releases = bool(call.writes) and not (lock and lock.takes) and all(one[0] == "lock" for one in call.writes)
        return cls(actor, frozenset(call.reads), frozenset(call.writes), lock is not None and lock.waits, releases)


def dependent(a: Effect, b: Effect) -> bool:
    """Whether the order of two steps can matter: they are of one process, or one writes what the other touches.

    Both are seen from states that differ only in steps that neither depends on, so the inodes are comparable.
    """
    if a.actor == b.actor:
        return True
    return not (a.writes.isdisjoint(b.writes) and a.writes.isdisjoint(b.reads) and a.reads.isdisjoint(b.writes))


def both_possible(a: Effect, b: Effect) -> bool:
    """Whether two dependent steps can ever wait side by side: a release and the lock that waits for it cannot."""
    return not ((a.releases and b.waits_for_lock) or (b.releases and a.waits_for_lock))


@dataclass
class Event:
    """A step as it was made, with its vector clock: for each thread, how many of its steps happened before."""

    choice: str
    effect: Effect
    waited_since: int  # the step before which the call had stopped
    start: dict[str, int] = field(default_factory=dict)  # the clock with which its actor began
    clock: dict[str, int] = field(default_factory=dict)
