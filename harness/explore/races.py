"""Happens-before between the steps of one execution, and the races in it whose reversal must be tried too.

Source sets of dynamic partial-order reduction (Abdulla, Aronis, Jonsson and Sagonas, POPL 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from harness.explore.dependence import Effect, Event, both_possible

Clock = dict[str, int]
"""Thread -> number of its steps that happened before, counted by their position + 1 in the execution."""


class Race(NamedTuple):
    """Before step `at` one of `starts` must be tried as well; none of them was possible there if it is empty."""

    at: int
    starts: tuple[str, ...]


def before(event: Event, clock: Mapping[str, int], position: int) -> bool:
    """Whether the event at `position` happened before whatever has this clock."""
    return clock.get(event.choice, 0) > position


def _merge(clock: Clock, other: Mapping[str, int]) -> None:
    for thread, count in other.items():
        if clock.get(thread, 0) < count:
            clock[thread] = count


def join(events: Sequence[Event], event: Event, depends: Callable[[Effect, Effect], bool]) -> Clock:
    """The clock of an event that follows `events`."""
    clock: Clock = dict(event.start)
    for position in range(len(events) - 1, -1, -1):
        earlier = events[position]
        if not before(earlier, clock, position) and depends(earlier.effect, event.effect):
            _merge(clock, earlier.clock)
    clock[event.choice] = len(events) + 1
    return clock


def races(
    events: Sequence[Event], possible: Sequence[frozenset[str]], first: int, depends: Callable[[Effect, Effect], bool]
) -> list[Race]:
    """The reversible races whose later step is at `first` or after it. `possible[i]`: the choices before step i.

    `events` may be longer than `possible`: the rest are calls that were never made, since everybody waits.
    """
    found: list[Race] = []
    for later in range(max(first, 0), len(events)):
        event = events[later]
        clock = _own_clock(events, later)
        for earlier in range(min(later, len(possible)) - 1, -1, -1):
            other = events[earlier]
            if before(other, clock, earlier) or not depends(other.effect, event.effect):
                continue
            if other.effect.actor == event.effect.actor and event.waited_since > earlier:
                _merge(clock, other.clock)  # the earlier step led to this call
            elif both_possible(other.effect, event.effect):
                found.append(Race(earlier, _starts(events, earlier, later, possible[earlier])))
                _merge(clock, other.clock)
    return found


def _own_clock(events: Sequence[Event], position: int) -> Clock:
    """What happened before the thread of an event came to it: up to its last step, or the actor's for a kill."""
    event = events[position]
    for earlier in range(position - 1, -1, -1):
        other = events[earlier]
        if other.choice == event.choice or (event.choice.endswith("!") and other.effect.actor == event.effect.actor):
            return dict(other.clock)
    return dict(event.start)


def _starts(events: Sequence[Event], earlier: int, later: int, possible: frozenset[str]) -> tuple[str, ...]:
    """The threads that can begin a run in which the later step comes without the earlier one."""
    without = [at for at in range(earlier + 1, later) if not before(events[earlier], events[at].clock, earlier)]
    without.append(later)
    starts: list[str] = []
    for index, at in enumerate(without):
        event = events[at]
        if event.choice in starts or event.choice not in possible:
            continue
        if not any(before(events[above], event.clock, above) for above in without[:index]):
            starts.append(event.choice)
    return tuple(reversed(starts))  # the later step's own thread first, where it can begin
