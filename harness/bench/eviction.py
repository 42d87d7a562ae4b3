"""Load latency beside background eviction over a root of very many files: `kvtier-harness bench eviction`. The
evictor is the command `kvtier evict`, a process of its own that knows nothing of the measurement.

The root's files have right names, sizes and ages and no bytes: they are sparse, so that a million takes the space of
its folders and inodes alone (3 GB on ext4). Beside them lie some hundred real blocks, which are loaded at an even pace.
The evictor is stopped and continued in turn, a second each (SIGSTOP, SIGCONT), so that loads with and without it are
neighbours in time. Once it is killed, and another evictor takes over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil

from harness.adapters import adapter_class
from harness.adapters.base import Adapter, TierSetup
from harness.core.request_traces import tokens_of
from harness.core.statistics import Interval, bootstrap, percentile

BLOCK_BYTES = 64 << 10
LOADED_BLOCKS = 256
JOB_BLOCKS = 4
SLICE_SECONDS = 1.0
PAUSE_SECONDS = 0.01
"""Between two loads, as an engine's steps are."""
HIGH_WATER, LOW_WATER = 0.95, 0.9
ABOVE = 1.02
"""How full the root is at first, in parts of its high water mark: beyond a sample's error, below urgent eviction."""
AGE_SECONDS_MAX = 30 * 86400.0
KILL_AFTER_SLICES = 4
COMMAND = "import sys; from kvtier.ops.cli import main; main()"


class Slice(NamedTuple):
    """Latencies of the loads of one second, with the evictor running or not."""

    running: bool
    seconds: list[float]


def fill(adapter: Adapter, root_dir: Path, files: int, seed: int) -> float:
    """Make the sparse files. Returns the age in seconds from which on they should be evicted."""
    random, now = Random(seed), time.time()
    ages = []
    for number in range(files):
        (key,) = adapter.keys(tokens_of(number + LOADED_BLOCKS, adapter.setup.tokens_per_block))
        path = root_dir / str(adapter.file_name(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        age = 3600 + random.random() * AGE_SECONDS_MAX
        with open(path, "wb") as file:
            file.truncate(BLOCK_BYTES + 4096)
        os.utime(path, (now - age, now - age))
        ages.append(age)
    return sorted(ages)[-round(files * (1 - LOW_WATER / HIGH_WATER / ABOVE))]


class Loads:
    """Stores some real blocks, and loads them, timing each job from its submission to its result."""

    def __init__(self, adapter: Adapter, random: Random) -> None:
        self.adapter, self._random, self._job = adapter, random, 0
        tokens = [tokens_of(number, adapter.setup.tokens_per_block) for number in range(LOADED_BLOCKS)]
        self._keys = [adapter.keys(one)[0] for one in tokens]
        for start in range(0, LOADED_BLOCKS, JOB_BLOCKS):
            assert self._run(adapter.submit_store, self._keys[start : start + JOB_BLOCKS]) is not None

    def _run(self, submit: Any, keys: list[bytes]) -> float:
        self._job += 1
        req_id = str(self._job)
        self.adapter.request_started(req_id)
        started = time.perf_counter()
        submit(self._job, keys, list(range(len(keys))), req_id)
        while not (finished := self.adapter.poll()):
            time.sleep(0.0001)
        seconds = time.perf_counter() - started
        self.adapter.request_finished(req_id)
        self.adapter.step()
        self.adapter.tasks()
        assert not finished[0].failed, "a block in use was evicted"
        return seconds

    def during(self, seconds: float) -> Iterator[float]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            yield self._run(self.adapter.submit_load, self._random.sample(self._keys, JOB_BLOCKS))
            time.sleep(PAUSE_SECONDS)


def evictor(root_dir: Path, max_bytes: int, high_water: float = HIGH_WATER) -> psutil.Popen:
    """`kvtier evict`, in the background: no store waits for headroom."""
    limits = ["--max-bytes", str(max_bytes), "--high-water", str(high_water), "--low-water", str(LOW_WATER)]
    command = [sys.executable, "-c", COMMAND, "evict", str(root_dir), *limits, "--json"]
    return psutil.Popen(command, stdout=subprocess.PIPE)


def measure(folder: Path, files: int, seconds_max: float, seed: int) -> dict[str, Any]:
    """One measurement below an empty `folder`, which is left full. `seconds_max` limits the pass."""
    setup = TierSetup(str(folder), BLOCK_BYTES, JOB_BLOCKS, n_read_threads=4, n_write_threads=4)
    adapter = adapter_class("kvtier")(setup)
    try:
        loads = Loads(adapter, Random(seed))
        began = time.monotonic()
        cutoff_seconds = fill(adapter, folder, files, seed)
        filled_seconds = time.monotonic() - began
        limit = int((files + LOADED_BLOCKS) * (BLOCK_BYTES + 4096) / HIGH_WATER / ABOVE)
        return {"files": files, "fill_seconds": filled_seconds} | _pass(
            folder, loads, limit, cutoff_seconds, seconds_max
        )
    finally:
        adapter.close()


def _pass(folder: Path, loads: Loads, limit: int, cutoff_seconds: float, seconds_max: float) -> dict[str, Any]:
    slices: list[Slice] = []
    began = time.monotonic()
    process, killed, running, rss = evictor(folder, limit), False, True, 0
    try:
        while process.poll() is None and time.monotonic() - began < seconds_max:
            rss = max(rss, process.memory_info().rss)  # a small root may be done before the slice is
            process.send_signal(signal.SIGCONT if running else signal.SIGSTOP)
            slices.append(Slice(running, list(loads.during(SLICE_SECONDS))))
            rss = max(rss, process.memory_info().rss) if process.poll() is None else rss
            if not killed and len(slices) == KILL_AFTER_SLICES:
                killed, before = True, _count(folder)[0]
                process.kill()
                process.communicate()
                # The root may be below the high water mark now; this evictor must end the pass all the same.
                process = evictor(folder, limit, high_water=LOW_WATER + 0.001)
            running = not running
        finished = process.poll() is not None
    finally:
        if process.poll() is None:
            process.kill()
        said = process.communicate()[0]
    left, too_old = _count(folder, cutoff_seconds)
    pairs = [(a, b) for a, b in zip(slices[::2], slices[1::2], strict=False) if a.seconds and b.seconds]
    return {
        "finished": finished,
        "seconds": time.monotonic() - began,
        "left_when_killed": before if killed else None,
        "left": left,
        "left_but_older_than_the_cutoff": too_old,
        "evictor_rss_bytes": rss,
        "evictor_said": json.loads(said.splitlines()[-1]) if said else None,
        "p50_seconds": {name: _over(slices, running, 0.5) for name, running in (("with", True), ("without", False))},
        "p99_seconds": {name: _over(slices, running, 0.99) for name, running in (("with", True), ("without", False))},
        "p99_ratio": _ratio(pairs),
        "loads": [sum(len(s.seconds) for s in slices if s.running is way) for way in (True, False)],
    }


def _over(slices: list[Slice], running: bool, share: float) -> float:
    return percentile([seconds for one in slices if one.running is running for seconds in one.seconds], share)


def _ratio(pairs: list[tuple[Slice, Slice]]) -> Interval | None:
    """p99 with to p99 without, over all pairs of neighbours; its interval by drawing pairs."""
    if not pairs:
        return None

    def over(drawn: Any) -> float:
        on, off = ([s for i in drawn for s in pairs[int(i)][side].seconds] for side in (0, 1))
        return percentile(on, 0.99) / percentile(off, 0.99)

    return bootstrap(list(range(len(pairs))), over)


def _count(folder: Path, cutoff_seconds: float = 0.0) -> tuple[int, int]:
    """Block files, and how many of them have not been used for longer than that and an hour of grace."""
    old = time.time() - cutoff_seconds - 3600
    files = aged = 0
    for path in _files(str(folder)):
        files += 1
        aged += cutoff_seconds > 0 and path.stat().st_mtime < old
    return files, aged


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.name.endswith(".bin"):
                yield entry
