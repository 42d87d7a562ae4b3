"""One process checks each promise that an engine relies on, one after the other, each on a root of its own.

Proves that an instance keeps its promises by itself and beside a second instance in the same process: slots, keys,
lookups, exactly one result per job, bytes, close. It does not prove anything about several processes, floods, crashes
or faults, which the other scenarios do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.core import notes
from harness.core.history import History
from harness.core.inputs import near
from harness.drivers.promises import PROMISES, SLOTS_MIN
from harness.runtime.supervisor import Child
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option

PROMISE_SECONDS_MAX = 30.0
"""A promise that takes longer hangs: its process is killed, and the next one goes on behind it."""


@dataclass(frozen=True, kw_only=True)
class ContractOptions(CommonOptions):
    """Options of `run contract`."""

    processes: int = option(1, "the contract is checked in one process", low=1)
    seconds: float = option(0.0, "no duration: the promises end by themselves", low=0)
    block_bytes: int = option(64 << 10, "size of a block", low=4096, multiple_of=4096)
    promise: tuple[str, ...] = option((), "only this promise, by its name; may be repeated (default: all)")
    slots: int = option(64, "blocks that an instance holds in memory at once", low=SLOTS_MIN)


@dataclass(frozen=True)
class Plan:
    """Nothing but words."""

    source: str


def prepare(options: ContractOptions) -> Plan:
    names = [promise.__name__ for promise in PROMISES]
    for name in options.promise:
        if name not in names:
            raise UsageError(f"--promise is {name!r}{near(name, names)}; valid choices: {', '.join(names)}")
    return Plan(f"{len(options.promise) or len(names)} promises, each on a root of its own")


def run(context: Context, plan: Plan) -> None:
    """Let the worker go through them; when it dies or hangs, its next incarnation goes on behind the culprit."""
    child = context.start(0, "contract", {"only": context.options.promise})
    context.workers.await_ready([child])
    go_seconds = context.workers.go([child])
    context.note(go_seconds, notes.Phase(), "promises")
    skip: list[str] = []
    while not _watch(context, child):
        begun = _begun(context)
        if len(begun) <= len(skip):
            return  # it died before it began anything
        skip = begun
        child = context.workers.restart(child, skip=skip)
        context.workers.await_ready([child])
        context.workers.go([child])


def _watch(context: Context, child: Child) -> bool:
    """Until the worker has gone through its promises (True), or died or hung in one (False)."""
    at = 0.0

    def moved() -> bool:
        return not child.alive or child.counts.get("promise", 0.0) != at

    while child.alive:
        if not context.workers.until(moved, PROMISE_SECONDS_MAX):
            what = (_begun(context) or ["the start"])[-1]
            context.note(time.monotonic(), notes.Error(), f"{what} did not end within {PROMISE_SECONDS_MAX:g} s")
            child.kill()
            context.workers.wait([child])
        at = child.counts.get("promise", 0.0)
    return child.state == "done"


def _begun(context: Context) -> list[str]:
    """Names of the promises begun so far, as the history has them."""
    begun = [n for n in History.read(context.run_dir).notes if n.is_a(notes.Promise) and n.detail["outcome"] == "begun"]
    return [n.text for n in sorted(begun, key=lambda n: n.monotonic_seconds)]


SCENARIO = Scenario(
    name="contract",
    text=__doc__ or "",
    options=ContractOptions,
    checkers=("contract",),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=SLOTS_MIN, processes=1),
)
