"""Today's copy loop beside the candidates and a contiguous copy, in turns on one device. Never run on one yet.

usage: compare.py TODAY OUT; TODAY is the kvtier/cpu/gpu_worker.py to compare with, OUT gets a JSON line for each
figure. The package kvtier on the path has candidate.patch applied. Prints a Markdown table. Exit code 0: every way was
measured; 3: a way gave wrong bytes; any other: a way could not be measured.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import candidates
import torch

from kvtier.cpu.gpu_worker import CPUOffloadingWorker

KIB = 1024
PAGE_BYTES = (64 * KIB, 32 * KIB, 16 * KIB, 256 * KIB)  # first the size that matters most: a cut run still shows it
LAYERS, JOB_BLOCKS, ROUNDS = 32, 16, 9
TODAY, CEILING = "loop as it is today", "contiguous copy"
DEVICE = "cuda"
WRONG, UNMEASURED = 3, 2
SLEEP_CYCLES = 500_000_000
"""Of the caller's stream, some 0.3 s: long enough to submit all jobs, so that copies and products begin together."""

Job = tuple[str, list[int], list[int]]


class WrongBytes(Exception):
    """A way to copy gave other bytes than it was given, or touched what is not its own."""


def worker_class(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("kvtier_gpu_today", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.CPUOffloadingWorker


def scattered(count: int, of: int, seed: int) -> list[int]:
    """`count` different even numbers below `of`: no two are adjacent, so no pages can be joined."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(of // 2, generator=generator) * 2)[:count].tolist()


def event_seconds(act: Callable[[], object]) -> float:
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started.record()
    act()
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended)) / 1e3


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the median, from order statistics: of 9 values the second lowest and second highest hold it with 96 %."""
    ordered = sorted(values)
    return ordered[1], ordered[-2]


class Study:
    """One page size: the caches of a model with `LAYERS` layers, and a worker for each way to copy."""

    def __init__(self, today: Any, page_bytes: int, ways: dict[str, candidates.Copy | None]) -> None:
        self.page_bytes = page_bytes
        self.blocks = JOB_BLOCKS * (16 if page_bytes < 256 * KIB else 4)
        self.total = 2 * self.blocks + 2
        shape = (self.total, page_bytes)
        self.caches = [torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE) for _ in range(LAYERS)]
        self.workers: dict[str, Any] = {TODAY: self._worker(today)}
        if ways:
            candidate = self._worker(CPUOffloadingWorker)
            self._own_copy, self._ways = candidate._copy, ways
            self.workers |= dict.fromkeys(ways, candidate)
        self.volume = self.blocks * LAYERS * page_bytes
        self.flat = [torch.empty(self.volume, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
        self.pinned = [torch.empty(self.volume, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.side = torch.cuda.Stream()

    def _worker(self, kind: Any) -> Any:
        memory = mmap.mmap(-1, self.total * LAYERS * self.page_bytes)
        return kind(self.caches, memoryview(memory).cast("B", (self.total, LAYERS * self.page_bytes)))

    def use(self, name: str) -> Any:
        """The worker that copies in the named way; the candidates share one, so that pinned memory is needed once."""
        worker = self.workers[name]
        if name != TODAY:
            copy = self._ways[name]
            worker._copy = self._own_copy if copy is None else partial(copy, worker)
        return worker

    def jobs(self, directions: Sequence[str], seed: int) -> list[Job]:
        """Jobs that move `volume` bytes in each direction; loads use odd blocks and slots, stores even ones."""
        blocks, slots = scattered(self.blocks, self.total, seed), scattered(self.blocks, self.total, seed + 100)
        return [
            (way, *([place + (way == "load") for place in ids[at : at + JOB_BLOCKS]] for ids in (blocks, slots)))
            for at in range(0, self.blocks, JOB_BLOCKS)
            for way in directions
        ]

    def check(self, name: str) -> None:
        worker = self.use(name)
        blocks, slots = scattered(self.blocks, self.total, 7), scattered(self.blocks, self.total, 8)
        worker._slots.fill_(0xA5)
        torch.cuda.synchronize()
        worker.submit_store(0, blocks, slots)
        self._end(worker, 1)
        in_slots = worker._slots.view(self.total, LAYERS, self.page_bytes)
        wanted = torch.stack([cache[blocks] for cache in self.caches], 1)
        if not torch.equal(in_slots[slots].to(DEVICE), wanted):
            raise WrongBytes("a store wrote wrong bytes")
        others = sorted(set(range(self.total)) - set(slots))
        if not bool((in_slots[others] == 0xA5).all()):
            raise WrongBytes("a store wrote to slots that are not its own")
        expected = []
        for layer, cache in enumerate(self.caches):
            cache[blocks] = 0
            expected.append(cache.clone())
            expected[-1][blocks[::-1]] = wanted[:, layer]
        worker.submit_load(1, blocks[::-1], slots)
        self._end(worker, 1)
        if not all(torch.equal(*pair) for pair in zip(self.caches, expected, strict=True)):
            raise WrongBytes("a load gave wrong bytes")

    def _end(self, worker: Any, jobs: int) -> None:
        worker.wait()
        outcomes = [report.ok for report in worker.poll()]
        if outcomes != [True] * jobs:
            raise RuntimeError(f"of {jobs} jobs {outcomes.count(True)} ended well")

    def wall_seconds(self, name: str, jobs: list[Job]) -> float:
        worker = self.use(name)
        started = time.perf_counter()
        self._submit(worker, jobs)
        worker.wait()
        wall = time.perf_counter() - started
        self._end(worker, len(jobs))
        return wall

    def _submit(self, worker: Any, jobs: list[Job]) -> None:
        for number, (way, blocks, slots) in enumerate(jobs):
            (worker.submit_store if way == "store" else worker.submit_load)(number, blocks, slots)

    def submission_seconds(self, name: str) -> float:
        """Of one job, with nothing queued before it."""
        worker, seen = self.use(name), []
        for number in range(30):
            _, blocks, slots = self.jobs(["store"], number)[0]
            torch.cuda.synchronize()
            started = time.perf_counter()
            worker.submit_store(number, blocks, slots)
            seen.append(time.perf_counter() - started)
            self._end(worker, 1)
        return median(seen[5:])

    def contiguous(self, directions: Sequence[str]) -> None:
        if "store" in directions:
            self.pinned[0].copy_(self.flat[0], non_blocking=True)
        if "load" in directions:
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self.flat[1].copy_(self.pinned[1], non_blocking=True)
            torch.cuda.current_stream().wait_stream(self.side)

    def slowdowns(self, name: str) -> list[float]:
        """Time of 100 matrix products on the caller's stream while copies run, over their time alone."""
        x = torch.randn(4096, 4096, dtype=torch.bfloat16, device=DEVICE)
        y, worker, ratios = torch.empty_like(x), self.use(name), []

        def products() -> None:
            for _ in range(100):
                torch.mm(x, x, out=y)

        products()
        for number in range(6):
            jobs = self.jobs(["store", "load"], number)
            torch.cuda.synchronize()
            torch.cuda._sleep(SLEEP_CYCLES)
            alone = event_seconds(products)
            torch.cuda._sleep(SLEEP_CYCLES)
            self._submit(worker, jobs)
            beside = event_seconds(products)
            self._end(worker, len(jobs))
            ratios.append(beside / alone)
        return ratios[1:]

    def close(self) -> None:
        for worker in {id(worker): worker for worker in self.workers.values()}.values():
            worker.shutdown()


class Figures:
    """Rows of the table, each written as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = path

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def markdown(self) -> Iterator[str]:
        yield "| page | direction | how | GB/s | share of the contiguous copy (96 %) | one submission, us a job |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for row in (row for row in self.rows if "share" in row):
            low, high = row["interval"]
            submission = f"{row['submission_us']:.0f}" if "submission_us" in row else ""
            yield (
                f"| {row['page_kib']} KiB | {row['direction']} | {row['how']} | {row['gb_per_second']:.1f} "
                f"| {row['share']:.2f} ({low:.2f} to {high:.2f}) | {submission} |"
            )
        yield ""
        yield "| matrix products beside copies of 64 KiB pages | time over that without copies (lowest to highest) |"
        yield "| --- | --- |"
        for row in (row for row in self.rows if "slowdown" in row):
            yield f"| {row['how']} | {row['slowdown']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) |"


@contextmanager
def problems_in(problems: list[tuple[int, str]], where: str) -> Iterator[None]:
    """An exception is a problem of this way or page size alone: the others are measured all the same."""
    try:
        yield
    except WrongBytes as error:
        problems.append((WRONG, f"{where}: {error}"))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        problems.append((UNMEASURED, f"{where}: unmeasured: {type(error).__name__}: {first}"))


def measure(study: Study, figures: Figures, problems: list[tuple[int, str]]) -> None:
    kib = study.page_bytes // KIB
    good, submission = [], {}
    for name in study.workers:
        with problems_in(problems, f"{name}, {kib} KiB"):
            study.check(name)
            submission[name] = study.submission_seconds(name)
            good.append(name)
    for directions in (["store"], ["load"], ["store", "load"]):
        ceiling: list[float] = []
        walls: dict[str, list[float]] = {name: [] for name in good}
        for number in range(ROUNDS + 1):
            jobs = study.jobs(directions, number)
            torch.cuda.synchronize()
            ceiling.append(event_seconds(partial(study.contiguous, directions)))
            for name in good if number % 2 else good[::-1]:
                walls[name].append(study.wall_seconds(name, jobs))
        del ceiling[0]  # the first round warms up
        total, common = study.volume * len(directions), {"page_kib": kib, "direction": " + ".join(directions)}
        best = total / median(ceiling) / 1e9
        figures.add(**common, how=CEILING, gb_per_second=best, share=1.0, interval=[1.0, 1.0])
        for name in good:
            shares = [best / wall for best, wall in zip(ceiling, walls[name][1:], strict=True)]
            figures.add(
                **common,
                how=name,
                gb_per_second=total / median(walls[name][1:]) / 1e9,
                share=median(shares),
                interval=list(interval(shares)),
                submission_us=submission[name] * 1e6,
            )
    for name in good if kib == 64 else ():
        with problems_in(problems, f"matrix products beside {name}"):
            ratios = study.slowdowns(name)
            figures.add(how=name, slowdown=median(ratios), lowest=min(ratios), highest=max(ratios))


def main(today: str, out: str) -> int:
    figures, problems = Figures(Path(out)), []
    ways, absent = candidates.found()
    problems += [(UNMEASURED, f"{name}: unmeasured: {why}") for name, why in absent.items()]
    for page_bytes in PAGE_BYTES:
        with problems_in(problems, f"{page_bytes // KIB} KiB"):
            study = Study(worker_class(today), page_bytes, ways)
            measure(study, figures, problems)
            study.close()
            del study
            torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("\n".join(figures.markdown()))
    print("".join(f"\n- {text}" for _, text in problems))
    return max((code for code, _ in problems), default=0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
