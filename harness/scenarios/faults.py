"""Every fault of the registry is injected below a tier: its guarantees hold under the fault, and it recovers after it.

For each fault two processes share one root. Blocks are stored; the fault is injected; one process stores more and both
load what they find; the fault is lifted; one process looks up what is left. Then all blocks, and fresh ones, are stored
again, found and loaded by both, in the same processes (after a kill: started again). A process meets many faults.

Proves for each fault that could be made here: no wrong byte, one result per job, failures reported and counted by
reason, the other blocks of a job unharmed, nothing left behind, and that everything works again once it is lifted; as
far as the registry lists the guarantee for the fault, and the tier lets it be seen. Faults that this machine cannot
make are named as skipped. It does not prove anything about two faults at once, load, or power loss.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.adapters import adapter_class
from harness.checkers.base import is_bookkeeping
from harness.core import notes
from harness.core.history import Name, read_records
from harness.faults import (
    FAULTS,
    Fault,
    FaultFs,
    FaultUnavailable,
    SteppedClock,
    describe_faults,
    fd_limit,
    file_size_limit,
    mangle,
    read_only,
    small_disk,
    stale_temps,
)
from harness.faults.damage import if_possible
from harness.faults.failing_system_calls import Attached
from harness.runtime.supervisor import Child, WorkerFailed
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option

BLOCKS = 8
JOB_BLOCKS = 4
STEP_SECONDS_MAX = 30.0
"""A process that has not carried out a step by then hangs, and is killed."""
HOLD_SECONDS = 0.4
"""How long a hung call hangs at least."""
INSIST_SECONDS = 10.0
"""How long stores are tried again after a fault: a tier may wait a little before it trusts a full disk again."""
DISK_BLOCKS = 96
CLOCK_STEP_SECONDS = 3600
IDS_PER_FAULT = 64
KILLS = "killed_at_"
_DIRECTION_OF = {"read": "load", "write": "store"}


@dataclass(frozen=True, kw_only=True)
class FaultsOptions(CommonOptions):
    """Options of `run faults`."""

    fault: tuple[str, ...] = option((), "only this fault, by name (`*` at its end: all that begin so); may be repeated")
    seconds: float = option(0.0, "not used: the run ends with the last fault", low=0)
    processes: int = option(2, "not used: two processes meet each fault", low=1)
    block_bytes: int = option(64 << 10, "size of a block", low=4096, multiple_of=4096)
    slots: int = option(256, "blocks that a process holds in memory at once", low=64)
    config_every: int = option(4, "of the hostile contents of config.json, try each so-many-th", low=1)


@dataclass(frozen=True)
class Plan:
    """The faults to make, in the order of the registry."""

    faults: tuple[Fault, ...]
    source: str


def prepare(options: FaultsOptions) -> Plan:
    chosen: dict[str, Fault] = {}
    for wanted in options.fault or ("*",):
        found = [n for n in FAULTS if n == wanted or (wanted.endswith("*") and n.startswith(wanted[:-1]))]
        if not found:
            raise UsageError(f"--fault is {wanted!r}; valid: {', '.join(FAULTS)}, or the beginning of names and *")
        chosen |= {name: FAULTS[name] for name in found}
    faults = tuple(fault for name, fault in FAULTS.items() if name in chosen)
    return Plan(faults, f"{len(faults)} of {len(FAULTS)} faults")


Inject = Callable[["Pair", "Ids"], "int | None"]
"""Puts the fault in; called before the step "under"."""


class Ids:
    """Blocks of one fault: `old` stored before it, `new` stored under it, `fresh` stored after it."""

    def __init__(self, number: int) -> None:
        first = number * IDS_PER_FAULT
        self.old = list(range(first, first + BLOCKS))
        self.new = list(range(first + BLOCKS, first + 2 * BLOCKS))
        self.fresh = list(range(first + 2 * BLOCKS, first + 2 * BLOCKS + JOB_BLOCKS))


def _jobs(blocks: Sequence[int]) -> list[list[int]]:
    return [list(blocks[i : i + JOB_BLOCKS]) for i in range(0, len(blocks), JOB_BLOCKS)]


class Pair:
    """Two processes on one root: `tier_root` as they see it, `root` as the harness does. One that ended is started
    again."""

    def __init__(
        self, scene: Scene, tier_root: Path, env: dict[str, str | None] | None = None, root: Path | None = None
    ) -> None:
        self.scene, self.tier_root, self.env = scene, tier_root, env
        self.root = root or tier_root
        self.children: list[Child] = []
        self.given_up = ""  # why no process of it ever came up
        self._seen: set[str] = set()

    def up(self) -> None:
        """Make sure that both run. Raises `WorkerFailed`."""
        context, is_first = self.scene.context, not self.children
        if is_first:
            numbers = [next(self.scene.processes), next(self.scene.processes)]
            self.children = [
                context.start(n, "store_and_find", {}, self.env, root_dir=str(self.tier_root)) for n in numbers
            ]
        else:
            self.children = [c if c.alive else context.workers.restart(c, self.env) for c in self.children]
        try:
            context.workers.await_ready([c for c in self.children if c.state == "starting"] or self.children)
        except WorkerFailed as error:
            self.given_up = str(error) if is_first else ""
            raise

    def step(self, orders: dict[int, dict[str, Any]]) -> int:
        """Order a step of process 0 and/or 1 of the pair, and wait; returns its number."""
        workers, number = self.scene.context.workers, next(self.scene.steps)
        asked = [self.children[who] for who in orders]
        for child, order in zip(asked, orders.values(), strict=True):
            child.send(do={"number": number, **order})

        def over(child: Child) -> bool:
            return not child.alive or child.counts.get("carried_out", 0) >= number

        if not workers.until(lambda: all(map(over, asked)), STEP_SECONDS_MAX):
            for child in asked:
                if not over(child):
                    text = f"process {child.label} hung for {STEP_SECONDS_MAX:g} s in a step"
                    self.scene.context.note(time.monotonic(), notes.Error(), text)
                    child.kill()
            workers.until(lambda: not any(c.alive and not over(c) for c in asked), STEP_SECONDS_MAX)
        return number

    def path_of(self, block: int) -> Path:
        """The block's file as the tier names it."""
        for child in self.children:
            for record in read_records(child.instruction.history_path):
                if isinstance(record, Name) and record.block == block:
                    return self.root / record.name
        raise FaultUnavailable("the tier names no file for the block")

    def shape_of(self, block: int) -> str:
        """What stands in a block's place, in words that are equal for any two whole blocks."""
        try:
            status = self.path_of(block).lstat()
        except OSError as error:
            return type(error).__name__
        return f"a regular file of {status.st_size} bytes" if stat.S_ISREG(status.st_mode) else "no regular file"

    def new_files(self) -> list[str]:
        """Files that have come since the last call, but for the tier's own bookkeeping."""
        found = {
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(self.root)
            for name in names
        }
        new, self._seen = sorted(found - self._seen), found
        return [name for name in new if not is_bookkeeping(name, self.scene.tier.bookkeeping)]

    def end(self) -> None:
        for child in self.children:
            child.send(stop=True)
        self.scene.context.workers.wait(self.children, STEP_SECONDS_MAX)


class Scene:
    """The run of all faults: what they share is numbers."""

    def __init__(self, context: Context, plan: Plan) -> None:
        self.context, self.plan = context, plan
        self.processes = itertools.count()
        self.steps = itertools.count(1)
        self._ids = itertools.count(1)
        self.tier = adapter_class(context.options.tier)

    def of(self, *mechanisms: str) -> list[Fault]:
        return [f for f in self.plan.faults if f.mechanism in mechanisms]

    def folder(self, name: str) -> Path:
        path = self.context.root_dir / name
        path.mkdir()
        return path

    def skip(self, faults: Sequence[Fault], reason: object) -> None:
        for fault in faults:
            self.context.note(time.monotonic(), notes.Skipped(fault=fault.name), f"{fault.name}: {reason}")

    def meet(self, fault: Fault, pair: Pair, inject: Inject, lift: Callable[[], int | None], **under: Any) -> None:
        """All steps of one fault. `inject` and `lift` may say how many blocks can be hurt at most; None: any number."""
        ids, steps = Ids(next(self._ids)), {}
        if pair.given_up:
            lift()
            self.skip([fault], f"its processes did not come up: {pair.given_up.splitlines()[0]}")
            return
        try:
            pair.up()
            steps["before"] = pair.step({0: {"store": _jobs(ids.old), "name": ids.new}, 1: {"name": ids.old}})
            pair.new_files()
            was = pair.shape_of(ids.old[0]) if fault.mechanism == "damage" else ""
            hurt = if_possible(lambda: inject(pair, ids))
        except FaultUnavailable as error:
            lift()
            self.skip([fault], error)
            return
        except (WorkerFailed, OSError, ValueError) as error:  # no block is where one should have been stored
            lift()
            if isinstance(error, WorkerFailed) and error.outside:
                raise
            text = f"{fault.name}: {error}"
            self.context.note(time.monotonic(), notes.Unready(fault=fault.name), text)
            return
        began = time.monotonic()
        aimed = pair.children[0].process if fault.name.startswith(KILLS) else None
        self.context.note(began, notes.Fault(aimed, fault.name), fault.what)
        find = {"find": _jobs(ids.old), **under}
        steps["under"] = pair.step({0: {"store": _jobs(ids.new), **find}, 1: find})
        acts = lift()
        lifted = time.monotonic()
        self.context.note(lifted, notes.Lifted(fault=fault.name), fault.name)
        died = [c.label for c in pair.children if not c.alive]
        failure = ""
        try:
            pair.up()
            steps["look"] = pair.step({0: {"find": _jobs(ids.old)}, 1: {"find": _jobs(ids.old + ids.new)}})
            store = {"store": _jobs(ids.old + ids.new), "insist_seconds": INSIST_SECONDS}
            # A process writes no file of a block that it holds in memory; each repairs what it did not find itself.
            steps["repair"] = pair.step({0: store, 1: store} if self.tier.keeps_in_memory else {0: store})
            find = {"find": _jobs(ids.old + ids.new)}
            steps["after"] = pair.step({0: find, 1: {**find, "store": [ids.fresh]}})
            steps["last"] = pair.step({0: {"find": [ids.fresh]}})
        except WorkerFailed as error:
            failure = str(error)
        met = notes.Met(
            fault=fault.name,
            steps=steps,
            processes=[c.process for c in pair.children],
            old=ids.old,
            new=ids.new,
            fresh=ids.fresh,
            hurt=hurt if acts is None else acts,
            began_seconds=began,
            lifted_seconds=lifted,
            died=died,
            failure=failure,
            new_files=pair.new_files(),
            shapes=[was, pair.shape_of(ids.old[0])] if was else [],
        )
        self.context.note(time.monotonic(), met, fault.name)


def run(context: Context, plan: Plan) -> None:
    """The faults by how they are made, each kind with processes of its own."""
    scene = Scene(context, plan)
    tier = scene.tier
    _on_plain_files(scene, tier.exposes_files)
    _on_a_small_disk(scene)
    _with_a_stepped_clock(scene)
    _on_the_fault_fs(scene, tier.runs_in_submit)
    _openings(scene, tier.exposes_files)


def _on_plain_files(scene: Scene, has_files: bool) -> None:
    """Damage at rest, look-alike temp files, limits of the process, system calls that fail or kill."""
    context, seed = scene.context, scene.context.options.seed
    at_rest = scene.of("damage", "stale_temps")
    if at_rest and not has_files:
        scene.skip(at_rest, "the tier keeps no file per block")
        at_rest = []
    others = scene.of("fd_limit", "file_size_limit", "injection")
    if not at_rest and not others:
        return
    pair = Pair(scene, scene.folder("plain"))

    def spoil(fault: Fault) -> Inject:
        def act(pair: Pair, ids: Ids) -> int | None:
            if fault.mechanism == "stale_temps":
                for block in (ids.old[0], ids.new[0]):
                    path = pair.path_of(block)
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    stale_temps(path.parent, path.name, context.options.block_bytes)
                pair.path_of(ids.old[0]).unlink()
                return 1
            mangle(pair.path_of(ids.old[0]), fault.damage, seed, other=pair.path_of(ids.old[1]))
            return 2 if fault.damage == "swap" else 1

        return act

    for fault in at_rest:
        scene.meet(fault, pair, spoil(fault), lambda: None)
    for fault in others:
        with contextlib.ExitStack() as stack:

            def tamper(pair: Pair, _: Ids, fault: Fault = fault, stack: contextlib.ExitStack = stack) -> int | None:
                for child in pair.children:
                    if fault.mechanism == "fd_limit":
                        stack.enter_context(fd_limit(0, child.pid))
                    elif fault.mechanism == "file_size_limit":
                        stack.enter_context(file_size_limit(context.options.block_bytes // 2, child.pid))
                if fault.mechanism == "injection":
                    stack.enter_context(Attached(pair.children[0].pid, *fault.injections))
                    options: FaultsOptions = context.options
                    return options.read_threads + options.write_threads
                return None

            def heal(stack: contextlib.ExitStack = stack) -> None:
                stack.close()

            own = Pair(scene, pair.tier_root) if fault.mechanism == "file_size_limit" else pair
            scene.meet(fault, own, tamper, heal, quiet=fault.mechanism == "fd_limit")
            if own is not pair:  # a process's own history must stay below the limit on files: it is a fresh one
                own.end()
    pair.end()


def _on_a_small_disk(scene: Scene) -> None:
    faults = scene.of("disk_full", "read_only")
    if not faults:
        return
    options = scene.context.options
    try:
        with small_disk(max(16 << 20, DISK_BLOCKS * (options.block_bytes + 8192)), "ext4") as disk:
            root = disk.mount / "root"
            root.mkdir()
            pair = Pair(scene, root)
            for fault in faults:
                with contextlib.ExitStack() as stack:
                    if fault.mechanism == "disk_full":
                        scene.meet(fault, pair, lambda *_: _nothing(disk.fill()), disk.free)
                    else:
                        frozen = read_only(disk.mount)
                        freeze = functools.partial(stack.enter_context, frozen)
                        scene.meet(fault, pair, lambda *_, freeze=freeze: _nothing(freeze()), stack.close)
            pair.end()
    except FaultUnavailable as error:
        scene.skip(faults, error)


def _with_a_stepped_clock(scene: Scene) -> None:
    for fault in scene.of("clock"):
        try:
            with SteppedClock() as clock:
                pair = Pair(scene, scene.folder("clock"), dict(clock.environment))
                forth, back = functools.partial(clock.step, CLOCK_STEP_SECONDS), -CLOCK_STEP_SECONDS
                scene.meet(fault, pair, lambda *_, forth=forth: _nothing(forth()), functools.partial(clock.step, back))
                pair.end()
        except FaultUnavailable as error:
            scene.skip([fault], error)


def _on_the_fault_fs(scene: Scene, in_submit: bool) -> None:
    faults = scene.of("rule", "disconnect")
    if in_submit:
        late = [f for f in faults if any(rule.action in ("hang", "delay") for rule in f.rules)]
        scene.skip(late, "the tier runs jobs inside submit, so that what its calls wait for, its caller does")
        faults = [f for f in faults if f not in late]
    if not faults:
        return
    try:
        with FaultFs(scene.folder("faulty")) as fs:
            pair = Pair(scene, fs.mount, root=fs.backing)
            for fault in faults:
                _meet_a_rule(scene, fault, pair, fs)
            pair.end()
    except FaultUnavailable as error:
        met = {f.name for f in faults if f.name in _met(scene)}
        scene.skip([f for f in faults if f.name not in met], error)


def _nothing(_: object) -> None:
    return


def _met(scene: Scene) -> Iterator[str]:
    for record in read_records(scene.context.run_dir / "history-harness.jsonl"):
        if name := getattr(record, "detail", {}).get("fault"):
            yield name


def _meet_a_rule(scene: Scene, fault: Fault, pair: Pair, fs: FaultFs) -> None:
    seed = scene.context.options.seed
    acts_hurt = all(rule.error or rule.action in ("short", "bit_flip", "vanish", "truncate") for rule in fault.rules)

    def inject(*_: object) -> None:
        if fault.mechanism == "disconnect":
            fs.disconnect()
        else:
            fs.inject(*(dataclasses.replace(rule, seed=seed) for rule in fault.rules))

    def lift() -> int | None:
        counts = fs.lift()
        if fault.mechanism == "disconnect" or not acts_hurt:
            return None
        # Both processes miss what is gone or quarantined.
        lasting = any(rule.action in ("vanish", "truncate", "bit_flip") for rule in fault.rules)
        acts: int = sum(rule["acts"] for rule in counts["rules"])
        return 2 * acts if lasting else acts

    if fault.hits == ("start",):
        inject()
        own = Pair(scene, fs.mount, root=fs.backing)
        try:
            own.up()
        except WorkerFailed as error:  # to refuse is right, if it says so
            fs.lift()
            text = str(error).split(": ", 1)[-1]
            scene.context.note(time.monotonic(), notes.Refused(fault=fault.name), text)
            return
        scene.meet(fault, own, lambda *_: None, lift)
        own.end()
        return
    hung = sorted({_DIRECTION_OF[o] for rule in fault.rules for o in rule.operations.split() if rule.action == "hang"})
    scene.meet(fault, pair, inject, lift, **({"leave": hung, "hold_seconds": HOLD_SECONDS} if hung else {}))


def _openings(scene: Scene, has_files: bool) -> None:
    context = scene.context
    for fault in scene.of("hostile_config"):
        if not has_files:
            scene.skip([fault], "the tier keeps no files")
            continue
        root = scene.folder("openings")
        context.note(time.monotonic(), notes.Fault(fault=fault.name), fault.what)
        child = context.start(
            next(scene.processes), "hostile_configs", {"every": context.options.config_every}, root_dir=str(root)
        )
        try:
            context.workers.await_ready([child])
        except WorkerFailed as error:
            context.note(time.monotonic(), notes.Unready(fault=fault.name), f"{fault.name}: {error}")
            continue
        context.workers.go([child])
        context.workers.wait([child])


SCENARIO = Scenario(
    name="faults",
    text=__doc__ or "",
    options=FaultsOptions,
    checkers=("faults", "integrity", "results"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=2 * BLOCKS, processes=2),
    short={"fault": ("damage_*", "stale_temps", "short_third_write")},
)

PAGE_HEAD = """\
# Faults, and what a tier guarantees under each

{count} faults. The scenario `faults` injects one after the other into a root that two processes share, and checks the
guarantees in its row: with the fault, after it is lifted, or after the killed process is started again. Run it with
`kvtier-harness run faults --tier TIER`; `--fault 'damage_*'` selects by name. Faults that a machine cannot make (no
FUSE, no root, no `strace`) are skipped, each with its reason.

*mechanism*: `rule` is a FUSE file system that fails chosen calls; `injection` is `strace` at one system call; `damage`
changes a block's file; the others have the name of what they do. [Guarantees](#guarantees) defines the words.

Written by `kvtier-harness docs faults` from `harness/faults/table.py`.

"""


def page() -> str:
    """docs/faults.md."""
    return PAGE_HEAD.format(count=len(FAULTS)) + describe_faults()
