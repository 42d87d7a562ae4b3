"""The table of measurements: its sections, sizes and contestants. The command `bench table` runs it.

A section runs round by round, contestants in turn, each measurement on an empty file system where there is one. It
yields `Sample`s, which `targets` compares with the targets.

Tiers get twice the slots that their stores can fill, since a tier may refuse stores that fill more than half of them;
slots beyond those in use are never touched, and cost no memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.bench.compared_tiers import Contestant, in_turn
from harness.bench.disk import Disk
from harness.core.statistics import percentile
from harness.faults.mounts import FaultFs
from harness.faults.rules import FaultUnavailable

KIB, MIB = 1 << 10, 1 << 20
JOB_BLOCKS = 16
TIERS = ("kvtier", "kvtier-direct", "kvtier-buffered", "kvtier-pure", "vllm")
LARGE_JOB_BLOCKS = 512
FLOOR, PEER_FLOOR = "C program, kvtier's calls", "C program, vllm's calls"
LOAD_SET_BYTES = 256 * MIB
"""Of the blocks that a flood of loads reads in turn."""
SCALE_JOBS = 32
"""Jobs of each direction in flight, over all processes together."""
SCALE_SLOTS = 4
"""Slots for each block of a direction in flight: a tier may refuse stores that would fill half of its slots."""
PROBES_PER_SECOND = 50.0
PLANT_SECONDS_MAX = 600.0


class Sample(NamedTuple):
    """One figure of one round. `row` names the line of the table, `metric` its column; `unit` is how it is shown."""

    section: str
    row: str
    metric: str
    unit: str
    contestant: str
    round: int
    value: float


@dataclass(frozen=True)
class Size:
    """Sizes of all sections: the full table takes about ten minutes on a quiet machine, the quick one about two."""

    rounds: int
    flood_rounds: int
    block_sizes: tuple[int, ...]
    volume_bytes: int  # moved by one throughput measurement, at most
    blocks_max: int
    flood_seconds: float
    flood_jobs: int  # in flight; more than the peer's 32 threads, so that a queue forms
    idle_samples: int
    planted: int
    planted_large: int
    lookup_batches: tuple[int, ...]
    process_counts: tuple[int, ...]
    scale_seconds: float
    stalled_samples: int
    burst_slots: int
    disk_bytes: int


FULL = Size(
    *(5, 3, (64 * KIB, 256 * KIB, MIB, 4 * MIB), 512 * MIB, 2048, 5.0, 40, 300),
    *(12_288, 1_000_000, (1, 16, 128, 1024), (1, 2, 4, 8, 16), 2.0, 200, 1024, 18 << 30),
)
QUICK = Size(
    *(3, 1, (64 * KIB, 256 * KIB, MIB), 256 * MIB, 1024, 2.5, 40, 150),
    *(6_144, 100_000, (1, 16, 128, 1024), (1, 4, 16), 1.0, 100, 512, 9 << 30),
)
SMOKE = Size(*(1, 1, (64 * KIB,), 4 * MIB, 64, 0.3, 2, 8, 96, 192, (16,), (1, 2), 0.2, 8, 32, 1 << 30))
"""Proves only that everything runs; its figures mean nothing."""


class Bench:
    """A section's surroundings: sizes, a disk, the contestants, and a folder that outlives a measurement."""

    def __init__(self, size: Size, disk: Disk, contestants: Sequence[Contestant], ceiling_folder: Path) -> None:
        self.size = size
        self.disk = disk
        self.contestants = {contestant.name: contestant for contestant in contestants}
        self.ceiling_file = ceiling_folder / "ceiling"
        self.notes: list[str] = []

    def turns(self, round_number: int, *names: str) -> list[Contestant]:
        return in_turn([self.contestants[name] for name in names if name in self.contestants], round_number)

    def root(self, name: str = "root", keep: Sequence[str] = ()) -> Path:
        """An empty folder on the disk; everything else there but `keep` is gone."""
        self.disk.fresh(*keep)
        path = self.disk.path / name
        path.mkdir(mode=0o700)
        return path

    def blocks(self, block_bytes: int) -> int:
        count = min(self.size.blocks_max, self.size.volume_bytes // block_bytes)
        return count // JOB_BLOCKS * JOB_BLOCKS


Section = Callable[[Bench], Iterator[Sample]]


def throughput(bench: Bench) -> Iterator[Sample]:
    """Jobs of 16 blocks, all submitted at once: store, cold load, second load, warm load, and the CPU they take."""
    for block_bytes in bench.size.block_sizes:
        row, blocks = f"{block_bytes // KIB} KiB", bench.blocks(block_bytes)
        for number in range(bench.size.rounds):
            for who in bench.turns(number, *TIERS):
                arguments = {"label": f"throughput {number}", "blocks": blocks, "job_blocks": JOB_BLOCKS}
                root = bench.root()
                for result in who.measure(
                    "throughput", root, arguments=arguments, block_bytes=block_bytes, slots=2 * blocks
                ):
                    for phase, figures in result.items():
                        yield Sample("throughput", row, phase, "MiB/s", who.name, number, figures["mib_per_second"])
                        cpu = figures["cpu_seconds_per_gib"]
                        yield Sample("throughput", row, f"{phase} CPU", "s/GiB", who.name, number, cpu)
                        if bench.disk.is_own:
                            requests = figures["device_requests_per_block"]
                            yield Sample("throughput", row, f"{phase} requests", "a block", who.name, number, requests)
            yield from _ceilings(bench, row, block_bytes, blocks, number)


def _ceilings(bench: Bench, row: str, block_bytes: int, blocks: int, number: int) -> Iterator[Sample]:
    raw = bench.contestants["raw"]
    on_file = {"path": str(bench.ceiling_file), "block_bytes": block_bytes, "volume_bytes": blocks * block_bytes}
    measured: dict[str, tuple[str, dict[str, Any]]] = {
        "device, 16 threads": ("device", {**on_file, "threads": 16}),
        "device, fio": ("fio", on_file),
        "file per block": ("files", {"threads": 16}),
        FLOOR: ("floor", {"calls": "kvtier", "threads": 32}),
        PEER_FLOOR: ("floor", {"calls": "vllm", "threads": 32}),
    }
    for name, (measure, arguments) in measured.items():
        if measure in ("files", "floor"):
            folder = {"folder": str(bench.root("files")), "block_bytes": block_bytes, "blocks": blocks}
            arguments = folder | arguments
        for result in raw.measure(measure, arguments=arguments):
            for phase, value in result.items():
                unit = "s/GiB" if phase.endswith("CPU") else "MiB/s"
                yield Sample("throughput", row, phase, unit, name, number, value)
    for result in raw.measure("memcpy", arguments={"size_bytes": 64 * MIB, "repeats": 5}):
        yield Sample("throughput", row, "warm", "MiB/s", "memcpy", number, result["mib_per_second"])


def durability(bench: Bench) -> Iterator[Sample]:
    """The cost of durable stores: the same tier with and without waiting for the device, in turns."""
    for block_bytes in (size for size in bench.size.block_sizes if size <= MIB):
        row, blocks = f"{block_bytes // KIB} KiB", bench.blocks(block_bytes)
        for number in range(bench.size.rounds):
            for who in bench.turns(number, "kvtier", "kvtier-durable"):
                arguments = {"label": f"durability {number}", "blocks": blocks, "job_blocks": JOB_BLOCKS}
                root = bench.root()
                for result in who.measure(
                    "throughput", root, arguments=arguments, block_bytes=block_bytes, slots=2 * blocks
                ):
                    value = result["store"]["mib_per_second"]
                    yield Sample("durability", row, "store", "MiB/s", who.name, number, value)


def idle(bench: Bench) -> Iterator[Sample]:
    """One block at a time on an idle tier."""
    for number in range(bench.size.rounds):
        for who in bench.turns(number, "kvtier", "vllm"):
            samples = bench.size.idle_samples
            arguments = {"label": f"idle {number}", "samples": samples}
            for result in who.measure("idle", bench.root(), arguments=arguments, block_bytes=256 * KIB, slots=samples):
                for direction, latencies in result.items():
                    yield from _latency("idle", f"one-block {direction}", who.name, number, latencies)


def floods(bench: Bench) -> Iterator[Sample]:
    """One-block jobs of one direction under a flood of large or small jobs of the other."""
    seconds, rate = bench.size.flood_seconds, PROBES_PER_SECOND
    probes = int(seconds * rate)
    for direction, job_blocks, block_bytes in (
        ("store", LARGE_JOB_BLOCKS, 256 * KIB),
        ("store", LARGE_JOB_BLOCKS, 64 * KIB),
        ("store", JOB_BLOCKS, 256 * KIB),
        ("load", LARGE_JOB_BLOCKS, 64 * KIB),
        ("load", JOB_BLOCKS, 256 * KIB),
    ):
        other = "load" if direction == "store" else "store"
        row = f"one-block {other} under {job_blocks}-block {direction}s, {block_bytes // KIB} KiB"
        load_set = LOAD_SET_BYTES // block_bytes if direction == "load" else 0
        slots = probes + max(load_set, 2 * bench.size.flood_jobs * job_blocks)
        for number in range(bench.size.flood_rounds):
            for who in bench.turns(number, "kvtier", "vllm"):
                arguments = {
                    "label": f"flood {number}",
                    "direction": direction,
                    "job_blocks": job_blocks,
                    "jobs_in_flight": bench.size.flood_jobs,
                    "seconds": seconds,
                    "probes_per_second": rate,
                    "load_set_blocks": load_set,
                }
                root = bench.root()
                for result in who.measure("flood", root, arguments=arguments, block_bytes=block_bytes, slots=slots):
                    yield from _latency("floods", row, who.name, number, result["latencies"])
                    for metric, unit, value in (
                        ("flood", "MiB/s", result["flood_mib_per_second"]),
                        ("flood CPU", "s/GiB", result["cpu_seconds_per_gib"]),
                        ("unserved", "", result["unserved"]),
                    ):
                        yield Sample("floods", row, metric, unit, who.name, number, value)
                    if result["disk_full"]:
                        bench.notes.append(f"{who.name}, {row}: the disk was full before the time was up")


def single_job(bench: Bench) -> Iterator[Sample]:
    """One job of 512 blocks of 256 KiB on an idle tier."""
    blocks = min(LARGE_JOB_BLOCKS, bench.size.blocks_max)
    for number in range(bench.size.rounds):
        for who in bench.turns(number, "kvtier", "vllm"):
            arguments = {"label": f"single {number}", "blocks": blocks}
            for result in who.measure(
                "single_job", bench.root(), arguments=arguments, block_bytes=256 * KIB, slots=blocks
            ):
                for phase, value in result.items():
                    yield Sample("single", f"{blocks}-block job, 256 KiB", phase, "ms", who.name, number, value * 1e3)


def bursts(bench: Bench) -> Iterator[Sample]:
    """One-block stores from a quarter, half and all of the slots at once: the share of the blocks that is stored."""
    slots, block_bytes = bench.size.burst_slots, min(MIB, bench.size.block_sizes[-1])
    for number in range(bench.size.flood_rounds):
        for percent in (25, 50, 100):
            for who in bench.turns(number, "kvtier", "vllm"):
                arguments = {"label": f"burst {number}", "blocks": slots * percent // 100}
                for result in who.measure(
                    "burst", bench.root(), arguments=arguments, block_bytes=block_bytes, slots=slots
                ):
                    row = f"burst from {percent} % of {slots:,} slots"
                    yield Sample("bursts", row, "stored", "of the blocks", who.name, number, result["kept"])


def lookups(bench: Bench) -> Iterator[Sample]:
    """Keys a second of batched lookups: hits, misses, and hits in this process's presence cache."""
    size = bench.size
    bench.disk.fresh()
    roots = {}
    for who in bench.turns(0, "kvtier", "vllm"):
        roots[who.name] = _planted(bench, who, f"lookups-{who.name}", size.planted, 64 * KIB)
    for number in range(size.rounds):
        for who in bench.turns(number, "kvtier", "vllm"):
            arguments = {"label": "planted", "planted": size.planted, "batches": size.lookup_batches}
            for result in who.measure("lookups", roots[who.name], arguments=arguments, block_bytes=64 * KIB):
                for name, value in result.items():
                    kind, batch, *cpu = name.split()
                    row, metric = f"{kind}, batches of {batch}", "CPU" if cpu else "lookups"
                    unit = "us/key" if cpu else "keys/s"
                    yield Sample("lookups", row, metric, unit, who.name, number, value * 1e6 if cpu else value)


def _planted(bench: Bench, who: Contestant, name: str, count: int, block_bytes: int) -> Path:
    root = bench.disk.path / name
    root.mkdir(mode=0o700)
    processes = 2 if count > 50_000 else 1
    arguments = {"label": "planted", "count": count, "processes": processes}
    who.measure(
        *("plant", root),
        arguments=arguments,
        block_bytes=block_bytes,
        processes=processes,
        seconds_max=PLANT_SECONDS_MAX,
    )
    return root


def stalled(bench: Bench) -> Iterator[Sample]:
    """Calls on the scheduler's thread while the device does not answer (a stopped FUSE server)."""
    samples = bench.size.stalled_samples
    for number in range(bench.size.flood_rounds):
        for who in bench.turns(number, "kvtier", "vllm"):
            backing = bench.root("backing")
            with contextlib.ExitStack() as stack:
                try:
                    fuse = stack.enter_context(FaultFs(backing))
                except FaultUnavailable as error:
                    bench.notes.append(f"calls under a stalled device are unmeasured: {error}")
                    return
                arguments = {
                    "label": f"stalled {number}",
                    "fuse_pid": fuse.pid,
                    "samples": samples,
                    "job_blocks": JOB_BLOCKS,
                }
                slots = 2 * samples * JOB_BLOCKS
                for result in who.measure("stalled", fuse.mount, arguments=arguments, block_bytes=4 * KIB, slots=slots):
                    for call, seconds in result.items():
                        yield from _latency("stalled", f"{call}, device stalled", who.name, number, seconds)


def scale(bench: Bench) -> Iterator[Sample]:
    """1 to 16 processes on one root, both directions at once: the total, and of each direction the throughput of the
    least served process and the longest wait of a job. The jobs in flight over all processes together are the same for
    every number of processes."""
    seconds = bench.size.scale_seconds
    for number in range(bench.size.flood_rounds):
        for processes in bench.size.process_counts:
            for who in bench.turns(number, "kvtier", "vllm"):
                jobs = SCALE_JOBS // processes
                arguments = {"label": f"scale {number}", "seconds": seconds, "processes": processes, "jobs": jobs}
                results = who.measure(
                    "scale",
                    bench.root(),
                    arguments={**arguments, "job_blocks": JOB_BLOCKS},
                    block_bytes=256 * KIB,
                    slots=SCALE_SLOTS * jobs * JOB_BLOCKS,
                    processes=processes,
                )
                if not results:
                    continue
                row = f"{processes} process" + ("es" if processes > 1 else "")
                total = sum(result[f"{d}_mib_per_second"] for result in results for d in ("store", "load"))
                yield Sample("scale", row, "total", "MiB/s", who.name, number, total)
                for direction in ("store", "load"):
                    rates = [result[f"{direction}_mib_per_second"] for result in results]
                    longest = max(result[f"{direction}_wait_seconds"] for result in results)
                    least = processes * min(rates) / sum(rates) if any(rates) else 0.0
                    for metric, unit, value in (
                        (direction, "MiB/s", sum(rates)),
                        (f"least {direction}", "of the mean", least),
                        (f"longest {direction}", "ms", longest * 1e3),
                    ):
                        yield Sample("scale", row, metric, unit, who.name, number, value)


def root_size(bench: Bench) -> Iterator[Sample]:
    """A root of a million blocks against one of ten thousand: lookups, store, load, and memory per known block."""
    size, who = bench.size, bench.contestants["kvtier"]
    bench.disk.fresh()
    counts = (max(size.planted_large // 100, min(size.planted_large, size.planted)), size.planted_large)
    roots = {count: _planted(bench, who, f"planted-{count}", count, 64 * KIB) for count in counts}
    blocks = min(512, size.blocks_max)
    planted = counts[0] // len(size.lookup_batches) * len(size.lookup_batches)
    for number in range(size.rounds):
        for count in counts if number % 2 else reversed(counts):
            row = f"root of {count:,} blocks"
            order: dict[str, Any] = {"label": "planted", "planted": planted, "batches": size.lookup_batches}
            for result in who.measure("lookups", roots[count], arguments=order, block_bytes=64 * KIB):
                for kind in ("hit", "miss"):
                    value = result[f"{kind} {size.lookup_batches[-1]}"]
                    yield Sample("root size", row, f"lookup, {kind}", "keys/s", who.name, number, value)
            order = {"label": f"root {number}", "blocks": blocks, "job_blocks": JOB_BLOCKS}
            for result in who.measure(
                "throughput", roots[count], arguments=order, block_bytes=64 * KIB, slots=2 * blocks
            ):
                for phase in ("store", "cold"):
                    value = result[phase]["mib_per_second"]
                    yield Sample("root size", row, phase, "MiB/s", who.name, number, value)
    order = {"label": "planted", "planted": counts[1], "count": 200_000}
    for result in who.measure("known_memory", roots[counts[1]], arguments=order, block_bytes=64 * KIB):
        value = result["bytes_per_block"]
        yield Sample("root size", f"root of {counts[1]:,} blocks", "memory per known block", "B", who.name, 0, value)


SECTIONS: dict[str, Section] = {
    "throughput": throughput,
    "durability": durability,
    "idle": idle,
    "single": single_job,
    "floods": floods,
    "bursts": bursts,
    "lookups": lookups,
    "stalled": stalled,
    "scale": scale,
    "root size": root_size,
}


def _latency(section: str, row: str, who: str, number: int, seconds: Sequence[float]) -> Iterator[Sample]:
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        value = percentile(seconds, share)
        if not math.isnan(value):
            yield Sample(section, row, name, "ms", who, number, value * 1e3)
