"""The tier opens every state of its files that a crash may leave: no block is wrong, no durable one lost.

A process opens the tier, stores, stores again, loads a damaged block, closes and evicts, while strace records its calls
with all bytes. For each crash, before each call, all states are computed that a file system may then hold: names and
sizes that never reached the device, pages that are zeros or another file's, within the rules of ordered and of
writeback journalling, or of a file system that orders nothing (docs/interleavings.md). Another process makes each state
in a folder, opens the tier on it, looks up, loads and stores every block.

Proves for the recorded calls that no such state lets the tier serve a wrong byte, refuse the root, or fail the next
store, and that a store that waits for the device (`durability`) survives them all once it is reported. It does not
prove anything about calls that were not recorded: several processes at once, and devices that lose what they
acknowledged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.adapters import OptionRefused, check_options
from harness.adapters.base import TierSetup
from harness.core import notes
from harness.explore.crash_states import RULES
from harness.explore.recording import recorded_python
from harness.faults.rules import FaultUnavailable
from harness.runtime.worker import Instruction
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option, tier_setup

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "buffered": {"io": "buffered", "durability": "cache"},
    "direct": {"io": "auto", "durability": "cache"},
    "buffered interpreted": {"io": "buffered", "durability": "cache", "compiled": False},
    "buffered durable": {"io": "buffered", "durability": "durable"},
    "direct durable": {"io": "auto", "durability": "durable"},
    "C extension": {"c_extension": True},
    "Python functions": {"c_extension": False},
}
"""Ways to store, as options of a tier; one that has no such options stores as it is."""
SECONDS_MAX = 600.0


@dataclass(frozen=True, kw_only=True)
class CrashStatesOptions(CommonOptions):
    """Options of `run crash_states`."""

    processes: int = option(2, "one that is recorded and one that judges, for each way to store", low=2)
    block_bytes: int = option(8 << 10, "size of a block", low=4096, multiple_of=4096)
    read_threads: int = option(1, "read-priority threads of each process", low=1)
    write_threads: int = option(1, "write-priority threads of each process", low=1)
    slots: int = option(4, "blocks that a process holds in memory at once", low=4)
    ways: str = option("all", "ways to store, between commas; all: those that the tier has")
    rules: str = option("ordered,writeback", f"rules of file systems, between commas: {', '.join(RULES)}")


class Plan(NamedTuple):
    """The ways to store and the rules of this run."""

    ways: list[str]
    rules: list[str]
    source: str


def prepare(options: CrashStatesOptions) -> Plan:
    rules = [rule.strip() for rule in options.rules.split(",")]
    if unknown := sorted(set(rules) - set(RULES)):
        raise UsageError(f"--rules has {', '.join(unknown)}; valid choices: {', '.join(RULES)}")
    ways = [way.strip() for way in options.ways.split(",")] if options.ways != "all" else []
    if unknown := sorted(set(ways) - set(WAYS)):
        raise UsageError(f"--ways has {', '.join(unknown)}; valid choices: {', '.join(WAYS)}")
    setup = tier_setup(options, "/", "")
    accepted = [way for way in WAYS if way != "as it is" and _accepts(options.tier, setup, way)]
    if refused := sorted(set(ways) - {*accepted, "as it is"}):
        raise UsageError(f"tier {options.tier!r} cannot store: {', '.join(refused)}")
    ways = ways or accepted or ["as it is"]
    return Plan(ways, rules, f"{len(ways)} ways to store, rules {', '.join(rules)}")


def _accepts(tier: str, setup: TierSetup, way: str) -> bool:
    """Whether the tier has the options of a way; one that does not check options has none."""
    try:
        check_options(tier, replace(setup, options={**setup.options, "no such option": 0}))
    except OptionRefused:
        try:
            check_options(tier, replace(setup, options={**setup.options, **WAYS[way]}))
        except OptionRefused:
            return False
        return True
    return False


def run(context: Context, plan: Plan) -> None:
    """Record and judge each way, one after the other."""
    for number, way in enumerate(plan.ways):
        log = context.run_dir / f"calls-{2 * number}.txt"
        root = context.root_dir / f"way-{number}"
        root.mkdir()
        try:
            python = recorded_python(context.python, log)
        except FaultUnavailable as reason:
            context.note(time.monotonic(), notes.Skipped(), str(reason))
            return
        context.note(time.monotonic(), notes.Phase(), f"{way}: recording")
        if not _process(context, 2 * number, root, way, python, {}):
            return
        context.note(time.monotonic(), notes.Phase(), f"{way}: judging")
        _process(context, 2 * number + 1, root, way, context.python, {"log": str(log), "way": way, "rules": plan.rules})


def _process(context: Context, process: int, root: Path, way: str, python: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the process came to a good end."""
    options = {**WAYS[way], **context.options.tier_options()}
    setup = context.setup(process, root_dir=str(root), options=options)
    instruction = Instruction(context.options.tier, setup, dict(arguments), "crash_states")
    child = context.workers.start(instruction, None, python)
    context.workers.await_ready([child])
    context.workers.go([child])
    context.workers.wait([child], SECONDS_MAX)
    return child.exit_code == 0


SCENARIO = Scenario(
    name="crash_states",
    text=__doc__ or "",
    options=CrashStatesOptions,
    checkers=("crash_states",),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, processes=1),
    short={"block_bytes": 4096, "rules": "writeback"},
)
