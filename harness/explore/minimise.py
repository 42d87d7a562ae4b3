"""The shortest schedule that still fails: fewest changes between actors, then fewest calls, by replaying variants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from harness.explore.model import Diverged, Schedule, Violation

Block = tuple[str, int]
"""A thread, and how many calls in a row it makes."""


def blocks(schedule: Schedule) -> list[Block]:
    """The schedule as runs of one thread each."""
    found: list[Block] = []
    for choice in schedule:
        if found and found[-1][0] == choice and not choice.endswith("!"):
            found[-1] = choice, found[-1][1] + 1
        else:
            found.append((choice, 1))
    return found


def cost(violation: Violation) -> tuple[int, int]:
    """Changes between threads, then calls: what a reader has to follow."""
    return len(blocks(violation.schedule)), len(violation.trace)


def shortest(violation: Violation, attempt: Callable[[Schedule], Violation | None], deadline: float) -> Violation:
    """Replay simpler variants until none fails in the same way, or until the deadline (monotonic, seconds)."""
    best, improved = violation, True
    tried: set[Schedule] = {violation.schedule}
    while improved:
        improved = False
        for schedule in _simpler(best.schedule):
            if time.monotonic() > deadline:
                return best
            if schedule in tried:
                continue
            tried.add(schedule)
            try:
                found = attempt(schedule)
            except Diverged:
                continue
            if found is not None and cost(found) < cost(best):
                best, improved = found, True
                break
    return best


def _simpler(schedule: Schedule) -> Iterator[Schedule]:
    """Variants with fewer changes: a prefix that leaves the rest to the default, a block left out or merged with a
    later one of its thread, an earlier kill."""
    parts = blocks(schedule)
    for length in range(len(parts)):
        yield _flat(parts[:length])
    for index, (choice, count) in enumerate(parts):
        yield _flat(parts[:index] + parts[index + 1 :])
        later = next((at for at in range(index + 1, len(parts)) if parts[at][0] == choice), None)
        if later is not None:
            merged = (choice, count + parts[later][1])
            yield _flat([*parts[:index], merged, *parts[index + 1 : later], *parts[later + 1 :]])
            yield _flat([*parts[:index], *parts[index + 1 : later], merged, *parts[later + 1 :]])
        if choice.endswith("!"):
            for at in range(index):
                yield _flat([*parts[:at], (choice, 1), *parts[at:index], *parts[index + 1 :]])
    for index, (choice, count) in enumerate(parts):
        if count > 1:
            yield _flat([*parts[:index], (choice, count - 1), *parts[index + 1 :]])


def _flat(parts: list[Block]) -> Schedule:
    return tuple(choice for choice, count in parts for _ in range(count))
