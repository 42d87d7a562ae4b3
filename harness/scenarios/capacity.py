"""A root that is always full: its limit holds, and loads and stores go on.

Writers store new blocks at full speed, all below one root with a limit. Each writer also loads blocks that it stored
before, some of which are being evicted at that moment. Readers load the same few blocks again and again. Evictors are
processes whose tier has no traffic. Every process may evict. Halfway one evictor is killed, and starts again. A walk
over the root adds up the files during the whole run.

The slack: each of W writers may store its grant of the last measurement, whatever the other writers store. A grant is
an eighth of the band between the low water mark (0.9 of the limit) and the limit, so W/8 of 0.1. A measurement is a
sample of 10,000 blocks with a standard error of 1 %, so nearly always within 3 %. With 8 writers the slack is 0.13 of
the limit, the default of `--slack`; other numbers of processes and other tiers have another one. Bytes that were stored
during a walk do not count against the tier.

Proves for this time and root: the limit plus slack holds; no byte is wrong; loads fail only for evicted blocks; stores
fail only if refused; one process evicts at a time; a killed evictor blocks no other process; blocks in use stay; each
writer goes on storing. It proves nothing about several hosts, or about a root that other programs fill.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.adapters import adapter_class
from harness.checkers.base import is_bookkeeping
from harness.core import notes
from harness.core.limits import Needs
from harness.runtime.supervisor import Child
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option

SAMPLE_SECONDS = 0.25
KILL_SECONDS_MIN = 2.0
"""In a shorter run no process is killed."""


@dataclass(frozen=True, kw_only=True)
class CapacityOptions(CommonOptions):
    """Options of `run capacity`."""

    seconds: float = option(60.0, "how long stores are begun", low=1)
    processes: int = option(8, "writer processes", low=1)
    evictors: int = option(2, "processes that only evict", low=0)
    readers: int = option(2, "processes that load the same blocks again and again", low=1)
    block_bytes: int = option(64 << 10, "size of a block", low=4096, multiple_of=4096)
    max_bytes: int = option(1 << 30, "the root's limit", low=1 << 20, high=1 << 60)
    slack: float = option(0.13, "part of the limit by which it may be exceeded", low=0)
    turnovers: float = option(1.5, "multiples of the limit that must have been stored, for a verdict", low=0)
    keeps: float = option(
        0.5, "a block in use may be lost only after other blocks of this part of the limit were used", low=0, high=1
    )
    kept: int = option(64, "blocks that a reader loads again and again", low=1)
    job_blocks: int = option(8, "blocks of a job", low=1)
    slots: int = option(64, "blocks that a process holds in memory at once", low=2)
    read_threads: int = option(2, "read-priority threads of each process", low=1)
    write_threads: int = option(2, "write-priority threads of each process", low=1)


@dataclass(frozen=True)
class Plan:
    """A description only: each process numbers its own blocks."""

    source: str


class Sample(NamedTuple):
    """Bytes of block files, added up from `from_seconds` to `to_seconds` (monotonic)."""

    from_seconds: float
    to_seconds: float
    bytes: int
    files: int


class Sampler:
    """Adds up the files below a root on its own thread, until `close`."""

    def __init__(self, root_dir: Path, bookkeeping: Sequence[str]) -> None:
        self.samples: list[Sample] = []
        self._root_dir, self._bookkeeping = str(root_dir), bookkeeping
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            sizes = list(_sizes(self._root_dir, self._bookkeeping))
            self.samples.append(Sample(started, time.monotonic(), sum(sizes), len(sizes)))
            self._stop.wait(SAMPLE_SECONDS)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _sizes(folder: str, bookkeeping: Sequence[str]) -> Iterator[int]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # an evictor removed the empty folder
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path, bookkeeping)
            elif not is_bookkeeping(entry.path, bookkeeping):
                yield entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue


def prepare(options: CapacityOptions) -> Plan:
    if options.slots < 4 * options.job_blocks:
        raise UsageError(f"--slots is {options.slots}; it must be at least {4 * options.job_blocks}, four times a job")
    used_again = options.readers * options.kept * options.block_bytes
    if 8 * used_again > options.max_bytes:
        raise UsageError(
            f"--max-bytes is {options.max_bytes}; it must be at least {8 * used_again}, 8 times all --kept"
        )
    roles = f"{options.processes} writers, {options.readers} readers, {options.evictors} evictors"
    return Plan(f"{roles}, a limit of {options.max_bytes >> 20} MiB, for {options.seconds:g} s")


def needs(options: CapacityOptions, plan: Plan | None) -> Needs:
    """The root holds what its limit allows, in a run that is long enough for a verdict."""
    fills = options.turnovers >= 1 and options.seconds >= SCENARIO.seconds_min
    blocks = options.max_bytes // options.block_bytes if fills else options.readers * options.kept
    processes = options.processes + options.readers + options.evictors
    return common_needs(options, root_blocks=blocks, processes=processes)


def run(context: Context, plan: Plan) -> None:
    options: CapacityOptions = context.options
    if not adapter_class(options.tier).keeps_limit:
        context.note(time.monotonic(), notes.Unfit(), f"{options.tier} keeps no limit")
        return
    recent = options.max_bytes // options.block_bytes // options.processes
    roles = [("write", recent)] * options.processes + [("read", options.kept)] * options.readers
    roles += [("evict", 0)] * options.evictors
    children = [
        context.start(process, "capacity", _arguments(options, role, blocks), max_bytes=options.max_bytes)
        for process, (role, blocks) in enumerate(roles)
    ]
    context.workers.await_ready(children)
    context.note(time.monotonic(), notes.Fault(), "blocks are evicted, so that loads may find nothing")
    sampler = Sampler(context.root_dir, adapter_class(context.options.tier).bookkeeping)
    try:
        began = context.workers.go(children)
        context.note(began, notes.Phase(source=plan.source), "traffic starts")
        if options.evictors and options.seconds >= KILL_SECONDS_MIN:
            context.workers.until(lambda: False, options.seconds / 2)
            children[-1] = _kill(context, children[-1], began + options.seconds)
        context.workers.wait(children)
    finally:
        sampler.close()
    context.note(time.monotonic(), notes.Phase(), "traffic ended")
    for sample in sampler.samples:
        context.note(sample.to_seconds, notes.Sample(**sample._asdict()))


def _arguments(options: CapacityOptions, role: str, blocks: int) -> dict[str, object]:
    what = {"role": role, "blocks": blocks, "job_blocks": options.job_blocks}
    return {**what, "seconds": options.seconds, "seed": options.seed}


def _kill(context: Context, child: Child, end_seconds: float) -> Child:
    context.note(time.monotonic(), notes.Fault(process=child.process), f"process {child.process} is killed")
    child.kill()
    context.workers.wait([child])
    again = context.workers.restart(child, seconds=max(0.0, end_seconds - time.monotonic()))
    context.workers.await_ready([again])
    context.workers.go([again])
    return again


SCENARIO = Scenario(
    name="capacity",
    text=__doc__ or "",
    options=CapacityOptions,
    checkers=("capacity", "integrity", "results", "leftovers"),
    prepare=prepare,
    run=run,
    needs=needs,
    seconds_min=60.0,
    short={
        "seconds": 6.0,
        "processes": 4,
        "readers": 1,
        "block_bytes": 16384,
        "kept": 16,
        "max_bytes": 8 << 20,
        "turnovers": 0.5,
        "keeps": 0.2,  # down to the low water mark remain 0.3, a fifth of which are trailers
        "slack": 0.4,  # four eighths of 0.7, a sample, and a block for each process
        "tier_option": ('capacity={"high_water": 0.6, "low_water": 0.3}',),
    },
    tiers=("kvtier",),
    lacks=lambda tier: "" if tier.keeps_limit else "the tier keeps no limit",
)
