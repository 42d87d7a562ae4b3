"""One schedule run with real processes: a prefix of choices is followed, then the default policy decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.explore.calls import Decoded
from harness.explore.child import Child
from harness.explore.dependence import Effect, Event, dependent
from harness.explore.locks import held_by
from harness.explore.model import Call, Diverged, Outcome, Program, Schedule
from harness.explore.process import ActorProcess, Stopped
from harness.explore.races import join

STEPS_MAX = 5000
"""A schedule of more steps ends as stuck: its actors poll without end."""
YIELDS_MAX = 6
"""How often a thread may look again after a sleep while others could go on; then it waits for a step of theirs."""
POLLS_MAX = 50
POLL_SECONDS = 0.005
POLLING_SECONDS = 1.0
"""If all others have ended, a process may sleep so often while it changes nothing; then each of its steps takes that
time, so that a deadline by the clock may come, and after so many seconds the schedule is stuck."""
STALL_SECONDS = 1.0
"""If nobody can continue, timed waits may end by themselves for so long; then the schedule is stuck."""

Dependence = Callable[[Effect, Effect], bool]


@dataclass
class State:
    """Before a step: who can continue, who sleeps (in the sleep set), and who could be killed."""

    enabled: tuple[str, ...]
    asleep: frozenset[str]
    kills: tuple[str, ...]


@dataclass
class Execution:
    """What one schedule did. `redundant`: it was cut off, as everything that could continue was in the sleep set."""

    states: list[State] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    redundant: bool = False
    outcome: Outcome | None = None
    notes: set[str] = field(default_factory=set)


class Runner:
    """Runs schedules of a program on a root that its caller has made afresh. Keeps processes that can be used again."""

    def __init__(self, program: Program, kills: int, depends: Dependence = dependent, keep_data: bool = False) -> None:
        self.program = program
        self.kills = kills
        self.depends = depends
        self.keep_data = keep_data
        self._idle: dict[int, Child] = {}

    def run(
        self,
        root: Path,
        prefix: Schedule,
        sleep: frozenset[str] = frozenset(),
        reduction: bool = False,
        names: Sequence[str] = (),
    ) -> Execution:
        """Follow `prefix`; `sleep` holds what need not be tried before its last choice. Raises Diverged, CannotExplore.

        With `reduction` the execution stops where it can only repeat others. `names` are the calls that the prefix made
        the last time: other ones raise Diverged.
        """
        one = _Run(self, root)
        try:
            found = one.follow(prefix, sleep, reduction, names)
            if found.redundant:  # its root is of no further use
                one.finish()
            return found
        finally:
            one.close()

    def child(self, index: int, root: Path, running: list[Child]) -> Child:
        """A process for an actor: one that has run before, else a new one."""
        idle = self._idle.pop(index, None)
        if idle is not None:
            if idle.renew():
                return idle
            idle.kill()
        return Child(self.program.actors[index], root, [*self._idle.values(), *running])

    def keep(self, index: int, child: Child) -> None:
        """A process that may run the next schedule."""
        self._idle[index] = child

    def forget(self) -> None:
        """End all processes: the next schedule gets new ones."""
        while self._idle:
            self._idle.popitem()[1].kill()


class _Run:
    def __init__(self, runner: Runner, root: Path) -> None:
        self._runner, self._root = runner, root
        self._program, self._kills, self._depends = runner.program, runner.kills, runner.depends
        self._execution = Execution()
        self._actors = [ActorProcess(i, actor, self._execution.notes) for i, actor in enumerate(runner.program.actors)]
        self._started: list[ActorProcess] = []
        self._clocks: dict[int, dict[str, int]] = {}  # of each actor: what happened before its start
        self._killed: list[int] = []
        self._reduction = False
        self._reports: dict[int, int] = {}  # of each actor: how many results it had given after the last step
        self._unchanged: set[int] = set()  # actors whose last step left nothing: the kill before it is the same
        self._linked: set[int] = set()  # inodes of files that were written without a name and have got one
        self._last = ""
        self._sleeps, self._polling_since = 0, 0.0

    def follow(self, prefix: Schedule, sleep: frozenset[str], reduction: bool, names: Sequence[str]) -> Execution:
        execution = self._execution
        self._reduction = reduction
        self._start_due()
        asleep: frozenset[str] = frozenset()
        stuck = None
        while True:
            step = len(execution.calls)
            if step == len(prefix) - 1 or (step == 0 and not prefix):
                asleep = sleep
            enabled = self._enabled()
            if not enabled and not (step < len(prefix) and prefix[step] in self._killable()):
                if all(actor.ended for actor in self._actors):
                    break
                if (stuck := self._stalled()) is None:
                    continue
                execution.states.append(State((), asleep, self._killable()))
                for actor in self._started:
                    for number in actor.stopped:
                        choice = actor.choice(number)
                        start = self._clocks.get(actor.index, {})
                        self._record(Event(choice, self._effect(choice), actor.stopped[number].since, start))
                break
            if self._polls():
                stuck = f"it looks again and again, and all others have ended: {self._who_waits()}"
                break
            if step >= STEPS_MAX:
                stuck = f"no end after {STEPS_MAX} steps: {self._who_waits()}"
                break
            stopped = {choice: self._stopped(choice) for choice in enabled}
            execution.states.append(State(tuple(enabled), asleep, self._killable()))
            if step < len(prefix):
                choice = prefix[step]
                if choice not in stopped and choice not in execution.states[-1].kills:
                    raise Diverged(f"step {step}: {choice} cannot go on; {', '.join(stopped)} can")
            else:
                awake = [one for one in enabled if one not in asleep]
                if reduction and not awake:
                    execution.redundant = True
                    return execution
                choice = self._default(awake or enabled, stopped)
            effect = self._effect(choice)
            if absent := sorted(one for one in asleep if not one.endswith("!") and not self._waits(one)):
                raise Diverged(f"step {step}: {absent[0]} does not wait to go on; {', '.join(stopped)} do")
            asleep = frozenset(one for one in asleep if not self._depends(self._effect(one), effect))
            self._step(choice, effect, step)
            made = execution.calls[-1].name
            if step < len(names) and made != names[step]:
                raise Diverged(f"step {step}: {choice} makes the call {made}, not {names[step]}")
            self._aftermath(effect)
        execution.outcome = self._outcome(stuck)
        return execution

    # Who can go on.

    def _stopped(self, choice: str) -> Stopped:
        actor, _, number = choice.partition(".")
        return self._actors[int(actor)].stopped[int(number)]

    def _waits(self, choice: str) -> bool:
        actor, _, number = choice.partition(".")
        return int(number) in self._actors[int(actor)].stopped

    def _enabled(self) -> list[str]:
        found: list[str] = []
        late: list[str] = []
        for actor in self._started:
            for number, stopped in sorted(actor.stopped.items()):
                if not stopped.call.must_wait(actor.pid):
                    (late if stopped.yields >= YIELDS_MAX else found).append(actor.choice(number))
        return found or late

    def _killable(self) -> tuple[str, ...]:
        if len(self._killed) >= self._kills:
            return ()
        mortal = [one for one in self._started if not one.ended and one.actor.mortal]
        return tuple(f"{one.index}!" for one in mortal if one.index not in self._unchanged)

    def _polls(self) -> bool:
        """Whether the only process that has not ended looks at the same files without end."""
        going = [actor for actor in self._actors if not actor.ended]
        if len(going) != 1 or going[0].sleeps - self._sleeps < POLLS_MAX:
            return False
        self._polling_since = self._polling_since or time.monotonic()
        time.sleep(POLL_SECONDS)
        return time.monotonic() - self._polling_since > POLLING_SECONDS

    def _default(self, awake: list[str], stopped: dict[str, Stopped]) -> str:
        """The same thread again; else the first one of those that have slept least."""
        least = min(stopped[choice].yields for choice in awake)
        eager = [choice for choice in awake if stopped[choice].yields == least]
        return self._last if self._last in eager else eager[0]

    # Steps.

    def _effect(self, choice: str) -> Effect:
        """What a pending choice would do now. A kill depends on its own actor and on those that wait for its locks."""
        if choice.endswith("!"):
            actor = self._actors[int(choice[:-1])]
            held = frozenset(("lock", one.inode) for one in held_by(actor.pid)) if actor.holds_locks else frozenset()
            return Effect(actor.index, writes=held, releases=True)
        stopped = self._stopped(choice)
        return Effect.of(int(choice.split(".")[0]), stopped.call, self._fades(stopped.call))

    def _fades(self, call: Decoded) -> bool:
        """Whether a call writes into an unnamed file that never had a name: it vanishes with its only process."""
        file = call.places[0] if len(call.places) == 1 else None
        if file is None or not file.unnamed or file.inode in self._linked or call.updates:
            return False
        return all(written[1] == file.inode for written in call.writes)

    def _step(self, choice: str, effect: Effect, step: int) -> None:
        actor = self._actors[effect.actor]
        since = step
        if choice.endswith("!"):
            before = next(iter(actor.stopped.values()), None)
            call = Call(actor.index, 0, "SIGKILL", f"SIGKILL before {before.call.text if before else 'it goes on'}")
            self._killed.append(actor.index)
            actor.kill()
        else:
            number = int(choice.split(".")[1])
            stopped = actor.stopped[number]
            since = stopped.since
            decoded = stopped.call
            data = actor.data(decoded) if self._runner.keep_data and decoded.buffers else None
            if decoded.name.startswith("link"):
                self._linked.add(decoded.inode)
            result = actor.let_run(number)
            call = Call(
                actor.index, number, decoded.name, decoded.text, decoded.paths, decoded.flags, decoded.offset,
                decoded.length, decoded.inode, result, data,
            )  # fmt: skip
        self._last = choice
        if effect.writes or effect.updates or choice.endswith("!"):
            self._sleeps, self._polling_since = actor.sleeps, 0.0
        self._unchanged.discard(actor.index)
        if self._reduction and effect.fades:
            self._unchanged.add(actor.index)
        self._execution.calls.append(call)
        self._record(Event(choice, effect, since, self._clocks.get(actor.index, {})))

    def _record(self, event: Event) -> None:
        event.clock = join(self._execution.events, event, self._depends)
        self._execution.events.append(event)

    def _aftermath(self, effect: Effect) -> None:
        """What the step lets happen without a choice: sleeps end, waits in the kernel end, restarts begin."""
        for actor in self._started:
            if actor.ended:
                continue
            if actor.index != effect.actor:
                actor.others_moved()
                if actor.is_waiting_in_kernel():
                    actor.settle(0)
            # A sleeper that was woken after its own process's last step, and made no call, looks at memory only.
            if actor.index == effect.actor or not actor.stopped:
                actor.wake()
        self._start_due()
        for actor in self._started:
            for number, stopped in actor.stopped.items():
                if stopped.since >= 0 and dependent(effect, Effect.of(actor.index, stopped.call)):
                    actor.decode_again(number)
            if actor.reports != self._reports.get(actor.index, 0):  # it has promised more: a kill now is another one
                self._reports[actor.index] = actor.reports
                self._unchanged.discard(actor.index)
        self._since_now()

    def _start_due(self) -> None:
        for actor in self._actors:
            above = actor.actor.after
            if actor not in self._started and (above is None or self._actors[above].ended):
                if self._execution.events:
                    self._clocks[actor.index] = dict(self._execution.events[-1].clock)
                running = [one.child for one in self._started if one.child]
                actor.start(self._runner.child(actor.index, self._root, running))
                self._started.append(actor)
        self._since_now()

    # The end.

    def _stalled(self) -> str | None:
        """Nobody can continue. None if somebody can by now, else the reason."""
        deadline, looks = time.monotonic() + STALL_SECONDS, 0
        while not looks or (any(actor.may_wake() for actor in self._started) and time.monotonic() < deadline):
            looks += 1
            for actor in self._started:
                if not actor.ended:
                    actor.wake()
                    actor.settle(0.02)
            if self._enabled() or all(actor.ended for actor in self._actors):
                self._since_now()
                return None
        return f"deadlock: {self._who_waits()}"

    def _since_now(self) -> None:
        for actor in self._started:
            for stopped in actor.stopped.values():
                stopped.since = len(self._execution.calls) if stopped.since < 0 else stopped.since

    def _who_waits(self) -> str:
        parts = []
        for actor in self._started:
            if not actor.ended:
                calls = [stopped.call.text for stopped in actor.stopped.values()] + actor.calls_in_kernel()
                parts.append(f"{actor.actor.name} waits in {' and '.join(calls) or 'memory'}")
        return ", ".join(parts)

    def _outcome(self, stuck: str | None) -> Outcome:
        actors = self._actors
        errors = tuple(None if actor.killed else actor.error for actor in actors)
        results = tuple(actor.so_far if actor.killed else actor.result for actor in actors)
        return Outcome(self._root, results, errors, tuple(self._killed), tuple(self._execution.calls), stuck)

    def finish(self) -> None:
        """Let the processes that can be used again run to their end, without a schedule."""
        going = [actor for actor in self._started if not actor.ended]
        moved = all(actor.actor.again for actor in going)
        steps = 0
        while moved and steps < STEPS_MAX:
            moved = False
            for actor in going:
                for number in [n for n, one in actor.stopped.items() if not one.call.must_wait(actor.pid)]:
                    if number in actor.stopped:
                        actor.let_run(number)
                        moved, steps = True, steps + 1
                actor.wake()

    def close(self) -> None:
        """End each process, or keep it for the next schedule."""
        for actor in self._started:
            if not actor.ended:
                actor.kill()
            elif actor.child:
                self._runner.keep(actor.index, actor.child)
