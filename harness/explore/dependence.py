"""Which steps may not be exchanged: the dependence relation, on inodes and folder entries."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.explore.calls import Decoded
from harness.explore.path_resolution import Object


@dataclass(frozen=True)
class Effect:
    """What a step reads and writes, and of which actor it is. `releases`: it can only let others continue.

    `updates` are writes that commute with each other: names that come into one folder, in whatever order.
    """

    actor: int
    reads: frozenset[Object] = frozenset()
    writes: frozenset[Object] = frozenset()
    updates: frozenset[Object] = frozenset()
    waits_for_lock: bool = False
    releases: bool = False
    fades: bool = False  # nothing of it is left when its actor is killed, which releases its locks anyway

    @classmethod
    def of(cls, actor: int, call: Decoded, fades: bool = False) -> Effect:
        lock = call.lock
        only_locks = bool(call.writes) and not call.updates and all(one[0] == "lock" for one in call.writes)
        releases = only_locks and not (lock and lock.takes)
        waits = lock is not None and lock.waits
        touched = frozenset(call.reads), frozenset(call.writes), frozenset(call.updates)
        return cls(actor, *touched, waits, releases, fades or releases or not (call.writes or call.updates))


def dependent(a: Effect, b: Effect) -> bool:
    """Whether the order of two steps can matter: they are of one process, or one writes what the other touches.

    Both are seen from states that differ only in steps that neither depends on, so the inodes are comparable. Two names
    that come into one folder depend on each other, since a file system may list them in the order of their coming.
    """
    return dependent_unless_listed(a, b) or not a.updates.isdisjoint(b.updates)


def dependent_unless_listed(a: Effect, b: Effect) -> bool:
    """The same where no process lists a folder: two changes of a folder's names then depend on each other by the name
    alone."""
    if a.actor == b.actor:
        return True
    if not (a.writes.isdisjoint(b.writes) and a.writes.isdisjoint(b.reads) and a.reads.isdisjoint(b.writes)):
        return True
    return _touches(a, b.updates) or _touches(b, a.updates)


def _touches(step: Effect, updates: frozenset[Object]) -> bool:
    return not (updates.isdisjoint(step.reads) and updates.isdisjoint(step.writes))


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
