"""The tree of schedules: what has been tried, what waits to be, and what a finished execution adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.explore.execution import State
from harness.explore.model import Schedule
from harness.explore.races import Race


class Item(NamedTuple):
    """A schedule to run: a path in the tree, what need not be tried before its last choice, and the calls so far."""

    prefix: Schedule
    sleep: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()


@dataclass
class _Node:
    """A state of the program: what can continue, what is asleep, and which choices were issued, in their order."""

    state: State
    names: tuple[str, ...]  # of the calls up to here
    issued: list[str] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)


class Tree:
    """Depth first over all schedules. With `reduction`: source sets with sleep sets, else each choice at each step."""

    def __init__(self, reduction: bool, preemptions_max: int | None = None) -> None:
        self._reduction = reduction and preemptions_max is None
        self._preemptions_max = preemptions_max
        self._root: _Node | None = None
        self._stack: list[Item] = [Item(())]

    def take(self, count: int) -> list[Item]:
        """The next schedules to run, `count` at most."""
        return [self._stack.pop() for _ in range(min(count, len(self._stack)))]

    def __len__(self) -> int:
        return len(self._stack)

    def add(
        self, item: Item, states: Sequence[State], choices: Sequence[str], names: Sequence[str], races: Sequence[Race]
    ) -> None:
        """An execution of `item` took `choices`, calls with these names, through `states`."""
        nodes = self._path(states, choices, names)
        first = len(item.prefix)
        for step in range(first, len(choices)):
            node = nodes[step]
            if choices[step] not in node.issued:
                node.issued.append(choices[step])
        if not self._reduction:
            for step in range(len(states) - 1, first - 1, -1):
                self._all(nodes[step], choices, step)
            return
        for step in range(len(choices) - 1, first - 1, -1):  # deepest last on the stack would be taken first
            self._kills_beside(nodes[step], choices[:step], choices[step])
        if len(states) > len(choices):  # cut off, or stuck: kills that no step of their actor stands for
            for kill in states[-1].kills:
                self._issue(nodes[-1], choices, kill)
        for race in races:
            self._reverse(nodes[race.at], choices[: race.at], race)

    def _path(self, states: Sequence[State], choices: Sequence[str], names: Sequence[str]) -> list[_Node]:
        if self._root is None:
            self._root = _Node(states[0], ())
        nodes = [self._root]
        for step in range(1, len(states)):
            above = nodes[-1]
            if choices[step - 1] not in above.children:
                above.children[choices[step - 1]] = _Node(states[step], tuple(names[:step]))
            nodes.append(above.children[choices[step - 1]])
        return nodes

    def _issue(self, node: _Node, above: Sequence[str], choice: str) -> None:
        if choice in node.issued or (self._reduction and choice in node.state.asleep):
            return
        sleep = node.state.asleep | set(node.issued) if self._reduction else frozenset()
        node.issued.append(choice)
        self._stack.append(Item((*above, choice), frozenset(sleep), node.names))

    def _kills_beside(self, node: _Node, above: Sequence[str], choice: str) -> None:
        """An actor's step may be replaced by its end."""
        kill = choice.partition(".")[0] + "!"
        if kill in node.state.kills:
            self._issue(node, above, kill)

    def _reverse(self, node: _Node, above: Sequence[str], race: Race) -> None:
        tried = node.state.asleep | set(node.issued)
        starts = race.starts or node.state.enabled
        if race.starts and not tried.isdisjoint(race.starts):
            return
        for choice in starts[:1] if race.starts else starts:
            self._issue(node, above, choice)
            self._kills_beside(node, above, choice)

    def _all(self, node: _Node, choices: Sequence[str], step: int) -> None:
        above = choices[:step]
        for choice in node.state.enabled:
            if self._affordable(node, above, choice):
                self._issue(node, above, choice)
        for kill in node.state.kills:
            self._issue(node, above, kill)

    def _affordable(self, node: _Node, above: Sequence[str], choice: str) -> bool:
        """Whether the schedule stays within the bound of preemptions: changes from a thread that could have gone on."""
        if self._preemptions_max is None:
            return True
        node_, count, last = self._root, 0, ""
        for made in (*above, choice):
            assert node_ is not None
            count += last != made and last in node_.state.enabled and not made.endswith("!")
            last = made
            node_ = node_.children.get(made)
        return count <= self._preemptions_max
