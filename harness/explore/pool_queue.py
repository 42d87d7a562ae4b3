"""All sequences of arrivals, wake-ups and completions of the thread pool's queue, up to a bound.

`DualQueue` decides which thread takes which task, and which thread an arrival wakes. It has no thread and no clock, so
this module is the threads: each is ready (it will pop next), asleep (it popped nothing, and no arrival has woken it)
or running a task of some direction. Three kinds of steps lead from state to state:

    arrival      a task of a direction and size is pushed; the thread that the push names becomes ready
    take         a ready thread pops, and runs what it got or falls asleep
    completion   a running thread ends its task and becomes ready

Any step that is possible may come next, so every duration of tasks and every delay of a woken thread is covered. Equal
states are visited once: threads of one group in one condition are interchangeable, and tasks count by their place. The
search is breadth first, so the first sequence that breaks a rule is a shortest one.

The wait bound of docs/starvation-bound.md has no clock here. Its derivation says: while a task with `a` tasks ahead
waits, the n threads of its group start at most `a` others, so it starts within ceil((a + 1) / n) turns. Checked is
that number of starts.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple, Protocol

from harness.core.history import DIRECTIONS, Direction
from kvtier import DualQueue

GROUP_NAMES: Mapping[Direction, str] = {"load": "read-priority", "store": "write-priority"}

FIFO = "queue/fifo"
OWN_FIRST = "queue/own-direction-first"
CONSERVES_WORK = "queue/work-conserving"
WAKES_SLEEPERS = "queue/wakes-sleepers"
WAKES_OWN_FIRST = "queue/wakes-own-group-first"
TAKES_ONCE = "queue/each-task-once"
WAIT_BOUND = "queue/wait-bound"
COUNTS = "queue/counts"
ANSWERS = "queue/answers"

RULES: Mapping[str, str] = {
    FIFO: "tasks of one direction are taken in the order of their arrival",
    OWN_FIRST: "a thread takes the other direction only while no task of its own waits",
    CONSERVES_WORK: "no thread sleeps while more tasks wait than threads are ready",
    WAKES_SLEEPERS: "an arrival wakes a thread that is asleep, if there is one, and no other",
    WAKES_OWN_FIRST: "an arrival wakes a thread of its own group first",
    TAKES_ONCE: "each task is taken once",
    WAIT_BOUND: "while a task with a tasks ahead waits, its group's threads start at most a others",
    COUNTS: "`tasks` and `bytes` are those of the tasks that wait",
    ANSWERS: "push and pop raise no exception",
}
"""What a correct queue keeps, by the id of each rule."""


class Arrival(NamedTuple):
    """A task as the pool enqueues it (kvtier's `Task`), with a number and without work."""

    number: int
    direction: Direction
    bytes: int
    job: Any = None
    position: int = 0
    run: Any = None
    depth: int = 0
    enqueued_seconds: float = 0.0


class Queue(Protocol):
    """The interface of kvtier's `DualQueue`. Copies made by `copy.deepcopy` must be independent of each other."""

    tasks: Any  # direction -> those that wait
    bytes: Any  # direction -> their bytes
    idle: Any  # group -> threads asleep; who falls asleep adds 1, `push` takes it back

    def push(self, task: Any) -> Direction | None: ...
    def pop(self, group: Direction) -> Any: ...


class QueueBound(NamedTuple):
    """How far the exploration goes: threads of each group, tasks in all, and the sizes that a task may have (bytes)."""

    read_threads: int = 2
    write_threads: int = 2
    tasks: int = 6
    sizes: tuple[int, ...] = (1, 2)
    states_max: int = 5_000_000

    def __str__(self) -> str:
        sizes = " or ".join(map(str, self.sizes))
        return f"{self.read_threads}+{self.write_threads} threads, {self.tasks} tasks of size {sizes}"


DEFAULT_BOUND = QueueBound()


class Broken(NamedTuple):
    """A rule, what was seen, and a shortest sequence of steps that leads there; the last one breaks the rule."""

    rule: str
    text: str
    steps: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.rule}: {self.text}", *(f"  {n:2}. {step}" for n, step in enumerate(self.steps, 1))]
        return "\n".join(lines)


class QueueExploration(NamedTuple):
    """What an exploration saw. `exhausted`: all states within the bound were visited. `broken`: rules in the order in
    which they broke, shortest sequences first."""

    bound: QueueBound
    states: int
    transitions: int
    steps_max: int  # of the longest shortest sequence to a state
    exhausted: bool
    broken: tuple[Broken, ...]
    seconds: float

    def __str__(self) -> str:
        extent = "all" if self.exhausted else "not all"
        head = (
            f"{self.bound}: {self.states} states, {self.transitions} transitions, {extent} within the bound, "
            f"{len(self.broken)} of {len(RULES)} rules broken"
        )
        return "\n".join([head, *map(str, self.broken)])


_Step = tuple[Any, ...]
"""("arrival", direction, size), ("take", group) or ("completion", group, direction)."""


class _State(NamedTuple):
    """Threads by group and condition, the queue by its number in `_Queues`, and for each waiting task how many more
    starts of its group the wait bound allows."""

    queue: int
    to_come: int
    ready: tuple[int, int]
    asleep: tuple[int, int]
    running: tuple[int, int, int, int]  # of group 0: loads, stores; of group 1: loads, stores
    allowed: tuple[tuple[int, ...], tuple[int, ...]]


def explore_queue(
    bound: QueueBound = DEFAULT_BOUND,
    make: Callable[[int, int], Queue] = DualQueue,
    until_broken: bool = False,
) -> QueueExploration:
    """Visit every state of the queue that `make(read_threads, write_threads)` returns, within the bound.

    A queue that breaks a rule is followed further, so that each rule has its shortest sequence; `until_broken` stops
    at the first. The queue must be deterministic, and keep its state in attributes.
    """
    began = time.monotonic()
    queues = _Queues(make, bound)
    first = _State(0, bound.tasks, (bound.read_threads, bound.write_threads), (0, 0), (0, 0, 0, 0), ((), ()))
    came_by: dict[_State, tuple[_State, _Step] | None] = {first: None}
    layer, steps_max, transitions = [first], 0, 0
    broken: dict[str, Broken] = {}
    while layer and len(came_by) < bound.states_max and not (until_broken and broken):
        following: list[_State] = []
        for state in layer:
            for step in _possible(state, bound):
                transitions += 1
                after, problems = _advance(state, step, queues)
                for rule, text in problems:
                    if rule not in broken:
                        broken[rule] = Broken(rule, text, _readable([*_steps_to(state, came_by), step], make, bound))
                if after not in came_by:
                    came_by[after] = state, step
                    following.append(after)
        layer = following
        steps_max += bool(layer)
    seconds = time.monotonic() - began
    return QueueExploration(bound, len(came_by), transitions, steps_max, not layer, tuple(broken.values()), seconds)


def _possible(state: _State, bound: QueueBound) -> Iterator[_Step]:
    if state.to_come:
        yield from (("arrival", direction, size) for direction in DIRECTIONS for size in bound.sizes)
    for g, group in enumerate(DIRECTIONS):
        if state.ready[g]:
            yield "take", group
        yield from (("completion", group, d) for i, d in enumerate(DIRECTIONS) if state.running[2 * g + i])


def _advance(state: _State, step: _Step, queues: _Queues) -> tuple[_State, list[tuple[str, str]]]:
    """The next state, and the rules that this step breaks, each with what was seen."""
    if step[0] == "arrival":
        after, problems = _arrive(state, step[1], step[2], queues)
    elif step[0] == "take":
        after, problems = _take(state, step[1], queues)
    else:
        g, d = DIRECTIONS.index(step[1]), DIRECTIONS.index(step[2])
        after = state._replace(ready=_plus(state.ready, g), running=_plus(state.running, 2 * g + d, -1))
        problems = []
    waiting, ready, asleep = sum(map(len, after.allowed)), sum(after.ready), sum(after.asleep)
    if asleep and waiting > ready:
        problems.append((CONSERVES_WORK, f"{_count(asleep, 'thread')} asleep, {waiting} waiting, {ready} ready"))
    return after, problems


def _arrive(state: _State, direction: Direction, size: int, queues: _Queues) -> tuple[_State, list[tuple[str, str]]]:
    d = DIRECTIONS.index(direction)
    queue, woken, problems = queues.push(state.queue, direction, size)
    allowed = _with(state.allowed, d, (*state.allowed[d], len(state.allowed[d])))
    after = state._replace(queue=queue, to_come=state.to_come - 1, allowed=allowed)
    if woken is None:
        if sum(state.asleep):
            problems = [
                *problems,
                (WAKES_SLEEPERS, f"the arrival wakes none of {_count(sum(state.asleep), 'sleeper')}"),
            ]
        return after, problems
    g = DIRECTIONS.index(woken)
    if not state.asleep[g]:
        text = f"the arrival wakes a {GROUP_NAMES[woken]} thread, and none is asleep"
        return after, [*problems, (WAKES_SLEEPERS, text)]
    if g != d and state.asleep[d]:
        text = f"a {direction} wakes a {GROUP_NAMES[woken]} thread while a {GROUP_NAMES[direction]} one is asleep"
        problems = [*problems, (WAKES_OWN_FIRST, text)]
    return after._replace(ready=_plus(state.ready, g), asleep=_plus(state.asleep, g, -1)), problems


def _take(state: _State, group: Direction, queues: _Queues) -> tuple[_State, list[tuple[str, str]]]:
    g, waiting = DIRECTIONS.index(group), [len(tasks) for tasks in state.allowed]
    queue, direction, place, problems = queues.pop(state.queue, group)
    problems = list(problems)
    after = state._replace(queue=queue, ready=_plus(state.ready, g, -1))
    if direction is None:
        if sum(waiting):
            problems.append((CONSERVES_WORK, f"a ready thread takes nothing, and {sum(waiting)} wait"))
        return after._replace(queue=queues.sleep(queue, group), asleep=_plus(state.asleep, g)), problems
    d = DIRECTIONS.index(direction)
    after = after._replace(running=_plus(state.running, 2 * g + d))
    if place is None:
        return after, [*problems, (TAKES_ONCE, f"a thread takes a {direction} that does not wait")]
    if place:
        problems.append((FIFO, f"a thread takes the {direction} that {_count(place, 'other')} came before"))
    if d != g and waiting[g]:
        text = f"a {GROUP_NAMES[group]} thread takes a {direction} while {_count(waiting[g], group)} waited"
        problems.append((OWN_FIRST, text))
    allowed = _with(state.allowed, d, state.allowed[d][:place] + state.allowed[d][place + 1 :])
    allowed = _with(allowed, g, tuple(max(-1, left - 1) for left in allowed[g]))
    if any(left < 0 for left in allowed[g]):
        text = f"{GROUP_NAMES[group]} threads have started more tasks than were ahead of a {group} that still waits"
        problems.append((WAIT_BOUND, text))
    return after._replace(allowed=allowed), problems


class _Queues:
    """The states of the queue, numbered: each operation is carried out once in each state, on a copy."""

    def __init__(self, make: Callable[[int, int], Queue], bound: QueueBound) -> None:
        self._numbers: dict[Any, int] = {}
        self._states: list[tuple[Queue, Mapping[Direction, list[Arrival]]]] = []
        self._results: dict[tuple[Any, ...], Any] = {}
        self._arrivals = itertools.count()
        self._number(make(bound.read_threads, bound.write_threads), {direction: [] for direction in DIRECTIONS})

    def push(self, state: int, direction: Direction, size: int) -> tuple[int, Direction | None, list[tuple[str, str]]]:
        """The state after an arrival, the group that it wakes, and the rules that it breaks."""
        key = state, direction, size
        if key not in self._results:
            queue, waiting = copy.deepcopy(self._states[state])
            task = Arrival(next(self._arrivals), direction, size, depth=len(waiting[direction]))
            waiting[direction].append(task)
            woken, problems = _answer(lambda: queue.push(task))
            self._results[key] = self._number(queue, waiting), woken, problems + _miscounts(queue, waiting)
        return self._results[key]  # type: ignore[no-any-return]

    def pop(self, state: int, group: Direction) -> tuple[int, Direction | None, int | None, list[tuple[str, str]]]:
        """The state after a pop, the direction of the task, its place among those that wait (None: it does not), and
        the rules that it breaks."""
        key = state, group
        if key not in self._results:
            queue, waiting = copy.deepcopy(self._states[state])
            task, problems = _answer(lambda: queue.pop(group))
            direction = place = None
            if task is not None:
                direction = task.direction
                if task in waiting[direction]:
                    place = waiting[direction].index(task)
                    del waiting[direction][place]
            problems += _miscounts(queue, waiting)
            self._results[key] = self._number(queue, waiting), direction, place, problems
        return self._results[key]  # type: ignore[no-any-return]

    def sleep(self, state: int, group: Direction) -> int:
        """The state after a thread of the group fell asleep, as the pool's threads do."""
        key = "sleep", state, group
        if key not in self._results:
            queue, waiting = copy.deepcopy(self._states[state])
            queue.idle[group] += 1
            self._results[key] = self._number(queue, waiting)
        return self._results[key]  # type: ignore[no-any-return]

    def _number(self, queue: Queue, waiting: Mapping[Direction, list[Arrival]]) -> int:
        places = {task.number: place for tasks in waiting.values() for place, task in enumerate(tasks)}
        sizes = tuple(tuple(task.bytes for task in waiting[direction]) for direction in DIRECTIONS)
        key = sizes, _frozen(vars(queue), places)
        if key not in self._numbers:
            self._numbers[key] = len(self._states)
            self._states.append((queue, waiting))
        return self._numbers[key]


def _answer(call: Callable[[], Any]) -> tuple[Any, list[tuple[str, str]]]:
    try:
        return call(), []
    except Exception as error:
        return None, [(ANSWERS, f"it raises {type(error).__name__}: {error}")]


def _miscounts(queue: Queue, waiting: Mapping[Direction, list[Arrival]]) -> list[tuple[str, str]]:
    problems = []
    for direction, tasks in waiting.items():
        for what, counted, right in (
            ("tasks", len(queue.tasks[direction]), len(tasks)),
            ("bytes", queue.bytes[direction], sum(task.bytes for task in tasks)),
        ):
            if counted != right:
                problems.append((COUNTS, f"{right} {what} of {direction}s wait, and the queue counts {counted}"))
    return problems


def _frozen(value: Any, places: Mapping[int, int]) -> Any:
    """A hashable picture of a queue's state. A task counts by its place; one that does not wait by what it is."""
    if isinstance(value, Arrival):
        return value.direction, value.bytes, places.get(value.number, "gone")
    if isinstance(value, Mapping):
        return tuple(
            sorted(((repr(key), _frozen(item, places)) for key, item in value.items()), key=lambda pair: pair[0])
        )
    if isinstance(value, (list, tuple, deque)):
        return tuple(_frozen(item, places) for item in value)
    if isinstance(value, Set):
        return tuple(sorted(repr(_frozen(item, places)) for item in value))
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    return (type(value).__name__, _frozen(vars(value), places)) if hasattr(value, "__dict__") else repr(value)


def _steps_to(state: _State, came_by: Mapping[_State, tuple[_State, _Step] | None]) -> list[_Step]:
    steps = []
    while (came := came_by[state]) is not None:
        state, step = came
        steps.append(step)
    return steps[::-1]


def _readable(steps: Sequence[_Step], make: Callable[[int, int], Queue], bound: QueueBound) -> tuple[str, ...]:
    """The steps with numbered tasks and threads, carried out once more. Of equal threads the first one moves."""
    queue = make(bound.read_threads, bound.write_threads)
    numbers = itertools.count(1)
    threads: dict[Direction, list[Any]] = {
        "load": ["ready"] * bound.read_threads,
        "store": ["ready"] * bound.write_threads,
    }

    def called(group: Direction, thread: int) -> str:
        return f"{GROUP_NAMES[group]} thread {thread + 1}"

    lines = []
    for step in steps:
        if step[0] == "arrival":
            task = Arrival(next(numbers), step[1], step[2])
            woken, _ = _answer(lambda: queue.push(task))  # noqa: B023
            size = f" of size {task.bytes}" if len(bound.sizes) > 1 else ""
            says = "wakes no thread"
            if woken is not None:
                says = f"wakes a {GROUP_NAMES[woken]} thread"
                if "asleep" in threads[woken]:
                    thread = threads[woken].index("asleep")
                    threads[woken][thread] = "ready"
                    says = f"wakes {called(woken, thread)}"
            lines.append(f"{task.direction} {task.number}{size} arrives and {says}")
        elif step[0] == "take":
            group = step[1]
            thread = threads[group].index("ready")
            task, _ = _answer(lambda: queue.pop(group))  # noqa: B023
            if task is None:
                queue.idle[group] += 1
            threads[group][thread] = task or "asleep"
            got = f"takes {task.direction} {task.number}" if task else "finds nothing and falls asleep"
            lines.append(f"{called(group, thread)} {got}")
        else:
            group = step[1]
            thread = next(
                i for i, at in enumerate(threads[group]) if isinstance(at, Arrival) and at.direction == step[2]
            )
            task, threads[group][thread] = threads[group][thread], "ready"
            lines.append(f"{called(group, thread)} ends {task.direction} {task.number}")
    return tuple(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plus(values: tuple[int, ...], index: int, change: int = 1) -> Any:
    return (*values[:index], values[index] + change, *values[index + 1 :])


def _with(values: tuple[Any, ...], index: int, value: Any) -> Any:
    return (*values[:index], value, *values[index + 1 :])
