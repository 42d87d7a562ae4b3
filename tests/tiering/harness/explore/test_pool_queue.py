"""`explore_queue`: kvtier's queue keeps all rules in every state, broken queues are detected by a shortest sequence.

The search agrees with one that visits every sequence and recognises no equal states.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.explore import pool_queue as q
from harness.explore.pool_queue import Arrival, QueueBound, explore_queue
from kvtier import DualQueue
from kvtier.events import Direction
from kvtier.fs.thread_pool import OTHER, Task


def test_kvtiers_queue_keeps_all_rules_within_the_bound() -> None:
    for bound in (QueueBound(2, 2, 6, sizes=(1,)), QueueBound(2, 1, 4)):
        result = explore_queue(bound)
        assert result.exhausted, str(result)
        assert not result.broken, str(result)
        assert "all within the bound, 0 of 9 rules broken" in str(result)


@pytest.mark.slow
def test_kvtiers_queue_keeps_all_rules_within_a_larger_bound() -> None:
    for bound in (QueueBound(), QueueBound(4, 4, 8, sizes=(1,)), QueueBound(2, 2, 5, sizes=(1, 2, 3))):
        result = explore_queue(bound)
        assert result.exhausted, str(result)
        assert not result.broken, str(result)


def test_a_cut_exploration_says_so() -> None:
    result = explore_queue(QueueBound(2, 2, 6, states_max=100))
    assert not result.exhausted
    assert "not all within the bound" in str(result)


class _Taking(DualQueue):
    """A queue that takes by place."""

    def take(self, direction: Direction, place: int = 0) -> Task:
        task = self.tasks[direction][place]
        del self.tasks[direction][place]
        self.bytes[direction] -= task.bytes
        return task


class Lifo(_Taking):
    def pop(self, group: Direction) -> Task | None:
        return next((self.take(d, -1) for d in (group, OTHER[group]) if self.tasks[d]), None)


class OtherDirectionFirst(_Taking):
    def pop(self, group: Direction) -> Task | None:
        return next((self.take(d) for d in (OTHER[group], group) if self.tasks[d]), None)


class LosesEveryThirdWakeUp(DualQueue):
    every = 3
    pushed = 0

    def push(self, task: Task) -> Direction | None:
        self.pushed += 1
        if self.pushed % self.every:
            return super().push(task)
        self.tasks[task.direction].append(task)
        self.bytes[task.direction] += task.bytes
        return None


class LosesEverySecondWakeUp(LosesEveryThirdWakeUp):
    every = 2


class GivesATaskTwice(DualQueue):
    """The task that a thread took while another one waited behind it is given out once more."""

    last: Task | None = None

    def pop(self, group: Direction) -> Task | None:
        if (last := self.last) is not None:
            self.last = None
            return last
        task = super().pop(group)
        self.last = task if task is not None and self.tasks[task.direction] else None
        return task


class InvertsPriorityAfterThreeTasks(_Taking):
    taken = 0

    def pop(self, group: Direction) -> Task | None:
        first = OTHER[group] if self.taken == 3 else group
        task = next((self.take(d) for d in (first, OTHER[first]) if self.tasks[d]), None)
        self.taken += task is not None
        return task


class StarvesStores(_Taking):
    def pop(self, group: Direction) -> Task | None:
        return next((self.take(d) for d in OTHER if self.tasks[d]), None)


class ServesItsOwnDirectionAlone(_Taking):
    def pop(self, group: Direction) -> Task | None:
        return self.take(group) if self.tasks[group] else None


class ShortestFirst(_Taking):
    def pop(self, group: Direction) -> Task | None:
        for d in (group, OTHER[group]):
            if self.tasks[d]:
                return self.take(d, min(range(len(self.tasks[d])), key=lambda i: self.tasks[d][i].bytes))
        return None


class WakesTheOtherGroupFirst(DualQueue):
    def push(self, task: Task) -> Direction | None:
        self.tasks[task.direction].append(task)
        self.bytes[task.direction] += task.bytes
        for group in (OTHER[task.direction], task.direction):
            if self.idle[group]:
                self.idle[group] -= 1
                return group
        return None


class ForgetsThatASleeperWoke(DualQueue):
    def push(self, task: Task) -> Direction | None:
        group = super().push(task)
        if group is not None:
            self.idle[group] += 1
        return group


class CountsNoBytes(DualQueue):
    def pop(self, group: Direction) -> Task | None:
        task = super().pop(group)
        if task is not None:
            self.bytes[task.direction] += task.bytes
        return task


class FailsWhenEmpty(DualQueue):
    def pop(self, group: Direction) -> Task | None:
        return self.tasks[group if self.tasks[group] else OTHER[group]].popleft()


BROKEN: list[tuple[type[DualQueue], str, int, str]] = [
    (Lifo, q.FIFO, 3, "takes the load that 1 other came before"),
    (OtherDirectionFirst, q.OWN_FIRST, 3, "takes a store while 1 load waited"),
    (LosesEveryThirdWakeUp, q.WAKES_SLEEPERS, 6, "wakes none of 1 sleeper"),
    (GivesATaskTwice, q.TAKES_ONCE, 4, "takes a load that does not wait"),
    (InvertsPriorityAfterThreeTasks, q.OWN_FIRST, 9, "while 1 store waited"),
    (StarvesStores, q.OWN_FIRST, 3, "a write-priority thread takes a load while 1 store waited"),
    (ServesItsOwnDirectionAlone, q.CONSERVES_WORK, 2, "takes nothing, and 1 wait"),
    (ShortestFirst, q.FIFO, 3, "takes the load that 1 other came before"),
    (WakesTheOtherGroupFirst, q.WAKES_OWN_FIRST, 3, "while a read-priority one is asleep"),
    (ForgetsThatASleeperWoke, q.WAKES_SLEEPERS, 3, "and none is asleep"),
    (CountsNoBytes, q.COUNTS, 2, "0 bytes of loads wait, and the queue counts 1"),
    (FailsWhenEmpty, q.ANSWERS, 1, "IndexError: pop from an empty deque"),
]


@pytest.mark.parametrize(("make", "rule", "steps", "text"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_queue_is_detected_by_a_shortest_sequence(
    make: type[DualQueue], rule: str, steps: int, text: str
) -> None:
    bound = QueueBound(2, 2, 5, sizes=(1, 2) if make is ShortestFirst else (1,), states_max=5_000)
    result = explore_queue(bound, make)
    found = {broken.rule: broken for broken in result.broken}
    assert text in found[rule].text, str(result)
    assert len(found[rule].steps) == steps, str(result)
    until = explore_queue(bound, make, until_broken=True)
    assert until.states <= result.states


def test_a_sequence_reads_as_what_happened() -> None:
    (broken,) = [b for b in explore_queue(QueueBound(1, 1, 3, sizes=(1,)), Lifo).broken if b.rule == q.FIFO]
    assert str(broken).splitlines() == [
        "queue/fifo: a thread takes the load that 1 other came before",
        "   1. load 1 arrives and wakes no thread",
        "   2. load 2 arrives and wakes no thread",
        "   3. read-priority thread 1 takes load 2",
    ]


def test_the_wait_bound_is_broken_only_where_another_rule_is() -> None:
    for make, *_ in BROKEN:
        rules = {broken.rule for broken in explore_queue(QueueBound(1, 2, 4, sizes=(1,)), make).broken}
        assert q.WAIT_BOUND not in rules or rules & {q.FIFO, q.OWN_FIRST}, make.__name__


class _Everything:
    """Every sequence, one by one, with named threads and tasks: slow, and simple enough to be believed."""

    def __init__(self, make: Callable[[int, int], DualQueue], bound: QueueBound) -> None:
        self.bound = bound
        self.shortest: dict[str, int] = {}
        self._numbers = itertools.count()
        threads: dict[Any, str | Direction] = {("load", i): "ready" for i in range(bound.read_threads)}
        threads |= {("store", i): "ready" for i in range(bound.write_threads)}
        self._visit(make(bound.read_threads, bound.write_threads), threads, [], bound.tasks, 1)

    def _note(self, rule: str, steps: int) -> None:
        self.shortest[rule] = min(steps, self.shortest.get(rule, steps))

    def _visit(
        self, queue: DualQueue, threads: dict[Any, Any], waiting: list[Arrival], to_come: int, step: int
    ) -> None:
        for after, then, tasks, left in self._steps(queue, threads, waiting, to_come, step):
            conditions = list(then.values())
            if "asleep" in conditions and len(tasks) > conditions.count("ready"):
                self._note(q.CONSERVES_WORK, step)
            self._visit(after, then, tasks, left, step + 1)

    def _steps(
        self, queue: DualQueue, threads: dict[Any, Any], waiting: list[Arrival], to_come: int, step: int
    ) -> Iterator[tuple[DualQueue, dict[Any, Any], list[Arrival], int]]:
        for direction in ("load", "store") if to_come else ():
            after, then = copy.deepcopy(queue), dict(threads)
            task = Arrival(next(self._numbers), direction, 1)  # type: ignore[arg-type]
            woken = after.push(task)  # type: ignore[arg-type]
            asleep = [thread for thread, condition in threads.items() if condition == "asleep"]
            chosen = [thread for thread in asleep if thread[0] == woken]
            if bool(woken) != bool(asleep) or (woken and not chosen):
                self._note(q.WAKES_SLEEPERS, step)
            elif woken and woken != direction and any(group == direction for group, _ in asleep):
                self._note(q.WAKES_OWN_FIRST, step)
            if chosen:
                then[chosen[0]] = "ready"
            yield after, then, [*waiting, task], to_come - 1
        for thread, condition in threads.items():
            if condition == "ready":
                after, then, tasks = copy.deepcopy(queue), dict(threads), list(waiting)
                got: Any = after.pop(thread[0])
                if got is None:
                    after.idle[thread[0]] += 1
                    then[thread] = "asleep"
                    if tasks:
                        self._note(q.CONSERVES_WORK, step)
                else:
                    then[thread] = got
                    self._check(got, thread[0], tasks, step)
                    tasks = [task for task in tasks if task.number != got.number]
                yield after, then, tasks, to_come
            elif condition != "asleep":
                yield copy.deepcopy(queue), {**threads, thread: "ready"}, waiting, to_come

    def _check(self, got: Arrival, group: Direction, waiting: list[Arrival], step: int) -> None:
        if got not in waiting:
            return self._note(q.TAKES_ONCE, step)
        if next(task for task in waiting if task.direction == got.direction) != got:
            self._note(q.FIFO, step)
        if got.direction != group and any(task.direction == group for task in waiting):
            self._note(q.OWN_FIRST, step)
        return None


@pytest.mark.parametrize(
    "make",
    [DualQueue, Lifo, OtherDirectionFirst, LosesEverySecondWakeUp, ServesItsOwnDirectionAlone, WakesTheOtherGroupFirst],
)
def test_the_search_finds_what_every_single_sequence_shows(make: type[DualQueue]) -> None:
    bound = QueueBound(1, 1, 2, sizes=(1,))
    searched = {b.rule: len(b.steps) for b in explore_queue(bound, make).broken if b.rule != q.WAIT_BOUND}
    assert searched == _Everything(make, bound).shortest
    assert searched or make in (DualQueue, WakesTheOtherGroupFirst)
