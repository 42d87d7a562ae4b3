"""What is measured of a tier, each in a process of its own that `child` forks: the adapter is new, the result a dict.

Every measure prepares, calls `go` (which returns when all processes of the measurement are ready), then measures.
Times are wall clock of `time.perf_counter`, CPU seconds those of this process. Failed blocks are an error, not a
figure. "Cold" means that the page cache holds no byte of the blocks; folders and inodes stay known to the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness import content
from harness.adapters.base import Adapter, Finished

POLL_SECONDS = 500e-6
"""Between looks for finished jobs: seldom enough that looking costs no CPU worth counting."""
ANSWER_SECONDS = 50e-6
FLOOD_POLL_SECONDS = 200e-6
DISK_RESERVE_BYTES = 256 << 20
"""A flood stops short of filling the disk: what it would measure then is ENOSPC."""

Go = Callable[[], None]


class Wrong(Exception):
    """The tier failed a block, or returned another's bytes: there is no figure."""


def keys_of(label: str, count: int, start: int = 0) -> list[bytes]:
    """Keys as both tiers take them: 32 bytes of hash and group 0. The same label gives the same keys everywhere."""
    return [hashlib.sha256(f"{label} {i}".encode()).digest() + bytes(4) for i in range(start, start + count)]


class Driver:
    """An adapter as an engine would drive it: submit, poll, and nothing else on this thread."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.block_bytes = adapter.setup.block_bytes
        self.slots = adapter.setup.slots
        self.view = adapter.view.cast("B")
        self.finished: dict[int, tuple[float, Finished]] = {}
        self._next = 0
        adapter.request_started("bench")

    def row(self, slot: int) -> memoryview:
        return self.view[slot * self.block_bytes : (slot + 1) * self.block_bytes]

    def fill(self, keys: Sequence[bytes]) -> None:
        for slot, key in enumerate(keys[: self.slots]):
            content.fill(self.row(slot), key)

    def poison(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.row(slot)[:8] = self.row(slot)[-8:] = b"\xa5" * 8

    def check(self, slot: int, key: bytes) -> None:
        """The first and the last word are the key's: enough to see a load that did not happen."""
        first, last = content.seed_of(key), content.seed_of(key) + (self.block_bytes // 8 - 1) * content.STEP
        mask = (1 << 64) - 1
        row = self.row(slot)
        if (int.from_bytes(row[:8], "little"), int.from_bytes(row[-8:], "little")) != (first & mask, last & mask):
            raise Wrong(f"slot {slot} does not hold the block that was loaded into it")

    def submit(self, direction: str, keys: Sequence[bytes], slots: Sequence[int]) -> int:
        self._next += 1
        submit = self.adapter.submit_store if direction == "store" else self.adapter.submit_load
        submit(self._next, keys, slots, "bench")
        return self._next

    def poll(self) -> list[int]:
        """Ids of jobs that have ended since; raises `Wrong` if a block of them failed."""
        now = time.perf_counter()
        ended = []
        for result in self.adapter.poll():
            if result.failed:
                counts = {name: n for name, n in self.adapter.counts().items() if name.startswith("failed")}
                raise Wrong(f"{len(result.failed)} blocks of job {result.job_id} failed {counts or ''}".strip())
            self.finished[result.job_id] = now, result
            ended.append(result.job_id)
        self.adapter.step()
        self.adapter.tasks()
        return ended

    def wait(self, job_ids: Sequence[int], poll_seconds: float = POLL_SECONDS) -> None:
        pending = set(job_ids) - self.finished.keys()
        while pending:
            pending.difference_update(self.poll())
            if pending:
                time.sleep(poll_seconds)

    def run(self, direction: str, keys: Sequence[bytes], slots: Sequence[int], job_blocks: int) -> dict[str, float]:
        """All blocks in jobs of `job_blocks`, at once; how long it took, and on how much CPU."""
        before, started = cpu_seconds(), time.perf_counter()
        jobs = [
            self.submit(direction, keys[i : i + job_blocks], slots[i : i + job_blocks])
            for i in range(0, len(keys), job_blocks)
        ]
        self.wait(jobs)
        seconds = max(self.finished[job][0] for job in jobs) - started
        moved = len(keys) * self.block_bytes
        return {
            "seconds": seconds,
            "mib_per_second": moved / seconds / (1 << 20),
            "cpu_seconds_per_gib": (cpu_seconds() - before) / moved * (1 << 30),
        }

    def path(self, key: bytes) -> str:
        name = self.adapter.file_name(key)
        assert name is not None
        return os.path.join(self.adapter.setup.root_dir, name)

    def cool(self, keys: Sequence[bytes]) -> None:
        """Write out and drop these blocks' pages from the page cache, and have memory for them."""
        _sync(self.adapter.setup.root_dir)
        _have_memory(len(keys) * self.block_bytes)
        for key in keys:
            descriptor = os.open(self.path(key), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _sync(path: str) -> None:
    """Write out what is dirty on this file system, and on no other: a neighbour's writes are not waited for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


def _have_memory(size_bytes: int) -> None:
    """Touch as much free memory, as on a machine that has been in use. The host of a virtual machine may take back what
    lies free there; then the first touch is slow (seconds a GiB were measured), and who fills the page cache pays."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size_bytes, flags=flags).close()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def io_chars(direction: str) -> int:
    """Bytes that this process has passed to write (store) or read (load) calls, also in jobs that have not ended."""
    name = "wchar" if direction == "store" else "rchar"
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


# --- the measures ---


def throughput(adapter: Adapter, go: Go, label: str, blocks: int, job_blocks: int) -> dict[str, Any]:
    """Store, cold load, then the same load again (warm), all jobs submitted at once."""
    driver, keys, slots = Driver(adapter), keys_of(label, blocks), range(blocks)
    driver.fill(keys)
    go()
    results = {"store": driver.run("store", keys, slots, job_blocks)}
    driver.cool(keys)
    for phase in ("cold", "warm"):
        driver.poison(slots)
        results[phase] = driver.run("load", keys, slots, job_blocks)
        for slot, key in enumerate(keys):
            driver.check(slot, key)
    return results


def idle(adapter: Adapter, go: Go, label: str, samples: int) -> dict[str, Any]:
    """One-block jobs, one at a time, on a tier that does nothing else: seconds of each."""
    driver, keys = Driver(adapter), keys_of(label, samples)
    driver.fill(keys)
    go()
    results = {}
    for direction in ("store", "load"):
        latencies = []
        for i, key in enumerate(keys):
            started = time.perf_counter()
            job = driver.submit(direction, [key], [i])
            driver.wait([job], 0)
            latencies.append(driver.finished[job][0] - started)
        results[direction] = latencies
        driver.cool(keys)
    return results


def flood(
    adapter: Adapter,
    go: Go,
    label: str,
    direction: str,
    job_blocks: int,
    jobs_in_flight: int,
    seconds: float,
    probes_per_second: float,
    load_set_blocks: int,
) -> dict[str, Any]:
    """Jobs of one class flood the tier while one-block jobs of the other arrive at a fixed rate.

    Latency counts from the moment at which a probe was due. The flood goes on until the last probe is answered; a probe
    still waiting `seconds` after the window counts with its wait so far, and in `unserved`. Slots [0, samples) are the
    probes', the next the flood's; its loads are of `load_set_blocks` blocks in turn, its stores always of new keys.
    """
    driver = Driver(adapter)
    samples = int(seconds * probes_per_second)
    probe_keys = keys_of(f"{label} probe", samples)
    other = "load" if direction == "store" else "store"
    driver.fill(probe_keys)
    flood_slots = range(samples, samples + max(job_blocks, load_set_blocks))
    flood_keys = keys_of(f"{label} flood", load_set_blocks)
    if other == "load":
        driver.run("store", probe_keys, range(samples), 16)
        driver.cool(probe_keys)
    else:
        for i in range(0, load_set_blocks, job_blocks):  # not all at once: a tier may refuse what fills half its slots
            driver.run("store", flood_keys[i : i + job_blocks], flood_slots[i : i + job_blocks], 16)
        driver.cool(flood_keys)
    root = adapter.setup.root_dir
    flooding: set[int] = set()
    turn = 0

    def pour() -> bool:
        nonlocal turn
        while len(flooding) < jobs_in_flight:
            first = turn * job_blocks
            if direction == "store":
                queued = jobs_in_flight * job_blocks * driver.block_bytes
                if _free_bytes(root) < queued + DISK_RESERVE_BYTES:
                    return False
                keys = keys_of(f"{label} flood", job_blocks, first)
                # Nobody writes to the slots of stores, so all may share them.
                slots = [flood_slots[i % len(flood_slots)] for i in range(job_blocks)]
            else:
                at = first % load_set_blocks
                keys = flood_keys[at : at + job_blocks]
                slots = [flood_slots[(at + i) % len(flood_slots)] for i in range(job_blocks)]
            flooding.add(driver.submit(direction, keys, slots))
            turn += 1
        return True

    go()
    settled = time.perf_counter() + min(1.0, seconds / 3)
    truncated = not pour()
    while time.perf_counter() < settled:
        flooding.difference_update(driver.poll())
        truncated |= not pour()
        time.sleep(FLOOD_POLL_SECONDS)
    started, chars, cpu = time.perf_counter(), io_chars(direction), cpu_seconds()
    due = [started + (i + 0.5) / probes_per_second for i in range(samples)]
    sent: dict[int, int] = {}
    latencies: dict[int, float] = {}
    rate: float | None = None
    cpu_per_gib = 0.0
    while True:
        now = time.perf_counter()
        if now - started >= seconds and rate is None:
            moved = io_chars(direction) - chars
            rate = moved / (now - started)
            cpu_per_gib = (cpu_seconds() - cpu) / max(1, moved) * (1 << 30)
        if rate is not None and (len(latencies) == samples or now - started >= 2 * seconds):
            break
        while len(sent) < samples and due[len(sent)] <= now:
            index = len(sent)
            sent[driver.submit(other, [probe_keys[index]], [index])] = index
        for job in driver.poll():
            if job in sent:
                latencies[sent[job]] = driver.finished[job][0] - due[sent[job]]
            flooding.discard(job)
        truncated |= not pour()
        time.sleep(FLOOD_POLL_SECONDS)
    end = time.perf_counter()
    return {
        "latencies": [latencies.get(i, end - due[i]) for i in range(samples)],
        "unserved": samples - len(latencies),
        "flood_mib_per_second": rate / (1 << 20),
        "cpu_seconds_per_gib": cpu_per_gib,
        "disk_full": truncated,
    }


def _free_bytes(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def single_job(adapter: Adapter, go: Go, label: str, blocks: int) -> dict[str, Any]:
    """One job of `blocks` blocks on an idle tier: seconds of its store, of its cold load."""
    results = throughput(adapter, go, label, blocks, blocks)
    return {phase: results[phase]["seconds"] for phase in ("store", "cold")}


def lookups(adapter: Adapter, go: Go, label: str, planted: int, batches: Sequence[int]) -> dict[str, Any]:
    """Keys a second, by kind and batch size: "hit" and "miss" are first questions of this process, "known" repeats the
    hits in another request. A step is one batch; the next begins when it is answered. Planted keys must be there."""
    driver = Driver(adapter)
    share = planted // len(batches)
    per_kind = {
        "hit": [keys_of(label, share, i * share) for i in range(len(batches))],
        "miss": [keys_of(f"{label} absent {os.getpid()}", share, i * share) for i in range(len(batches))],
    }
    per_kind["known"] = per_kind["hit"]
    go()
    results: dict[str, Any] = {}
    for kind, sets in per_kind.items():
        for batch, keys in zip(batches, sets, strict=True):
            cpu, started = cpu_seconds(), time.perf_counter()
            for number, i in enumerate(range(0, len(keys), batch)):
                _ask(
                    driver.adapter, keys[i : i + batch], f"{kind} {batch} {number}", "miss" if kind == "miss" else "hit"
                )
            seconds = time.perf_counter() - started
            results[f"{kind} {batch}"] = len(keys) / seconds
            results[f"{kind} {batch} cpu"] = (cpu_seconds() - cpu) / len(keys)
    return results


def _ask(adapter: Adapter, keys: Sequence[bytes], req_id: str, expected: str) -> None:
    adapter.request_started(req_id)
    verdicts = adapter.lookup(keys, req_id)
    adapter.step()
    while "retry" in verdicts:
        time.sleep(ANSWER_SECONDS)
        if adapter.lookup(keys[-1:], req_id) != ["retry"]:
            verdicts = adapter.lookup(keys, req_id)
        adapter.step()
    adapter.request_finished(req_id)
    if wrong := [verdict for verdict in verdicts if verdict != expected]:
        raise Wrong(f"{len(wrong)} of {len(keys)} lookups say {wrong[0]} instead of {expected}")


def known_memory(adapter: Adapter, go: Go, label: str, planted: int, count: int) -> dict[str, Any]:
    """Resident bytes that each block costs that this process knows to be there."""
    keys = keys_of(label, min(planted, count))
    go()
    before = _resident_bytes()
    for number, i in enumerate(range(0, len(keys), 1024)):
        _ask(adapter, keys[i : i + 1024], f"known {number}", "hit")
    return {"bytes_per_block": (_resident_bytes() - before) / len(keys)}


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def plant(adapter: Adapter, go: Go, label: str, count: int, processes: int) -> dict[str, Any]:
    """Make `count` files that lookups take for blocks (sparse, no trailer): this process's share of them."""
    driver = Driver(adapter)
    share = -(-count // processes)
    first = adapter.setup.process * share
    go()
    for key in keys_of(label, min(share, count - first), first):
        path = driver.path(key)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, driver.block_bytes)
        os.close(descriptor)
    return {}


def stalled(adapter: Adapter, go: Go, label: str, fuse_pid: int, samples: int, job_blocks: int) -> dict[str, Any]:
    """Seconds of each call on the scheduler's thread while the device answers nothing: its FUSE server is stopped."""
    driver = Driver(adapter)
    keys = keys_of(label, samples * job_blocks)
    driver.fill(keys)
    first = keys[:job_blocks]
    driver.run("store", first, range(job_blocks), job_blocks)
    go()
    calls: dict[str, list[float]] = {"submit_store": [], "submit_load": [], "lookup": [], "poll": []}
    os.kill(fuse_pid, signal.SIGSTOP)
    jobs = []
    try:
        for i in range(1, samples):
            part, slots = keys[i * job_blocks : (i + 1) * job_blocks], range(i * job_blocks, (i + 1) * job_blocks)
            with _timed(calls["submit_store"]):
                jobs.append(driver.submit("store", part, slots))
            with _timed(calls["submit_load"]):
                jobs.append(driver.submit("load", first, slots))
            with _timed(calls["lookup"]):
                adapter.lookup(part, "bench")
            with _timed(calls["poll"]):
                adapter.poll()
                adapter.step()
    finally:
        os.kill(fuse_pid, signal.SIGCONT)
    return calls


@contextlib.contextmanager
def _timed(into: list[float]) -> Any:
    started = time.perf_counter()
    yield
    into.append(time.perf_counter() - started)


def scale(
    adapter: Adapter, go: Go, label: str, seconds: float, processes: int, jobs: int, job_blocks: int
) -> dict[str, Any]:
    """One of several processes on one root: `jobs` of each class in flight for `seconds`; loads are of what its
    neighbour stored before. Bytes moved in the window, and the longest wait of a job, by class."""
    driver, me = Driver(adapter), adapter.setup.process
    half = driver.slots // 2
    mine = keys_of(f"{label} {me} first", half)
    driver.fill(mine)
    driver.run("store", mine, range(half), job_blocks)
    theirs = keys_of(f"{label} {(me + 1) % processes} first", half)
    _sync(adapter.setup.root_dir)
    go()
    started = time.perf_counter()
    sent: dict[int, tuple[str, float, int]] = {}
    moved = {"store": 0, "load": 0}
    waits = {"store": 0.0, "load": 0.0}
    free = {"store": list(range(jobs)), "load": list(range(jobs, 2 * jobs))}  # places for a job's blocks
    turn = 0
    while (now := time.perf_counter()) - started < seconds:
        for direction, places in free.items():
            while places:
                place = places.pop()
                slots = range(place * job_blocks, (place + 1) * job_blocks)
                if direction == "store":
                    keys = keys_of(f"{label} {me} more", job_blocks, turn * job_blocks)
                    turn += 1
                else:
                    at = (turn * job_blocks) % (len(theirs) - job_blocks + 1)
                    keys = theirs[at : at + job_blocks]
                sent[driver.submit(direction, keys, slots)] = direction, time.perf_counter(), place
        for job in driver.poll():
            direction, since, place = sent.pop(job)
            free[direction].append(place)
            moved[direction] += job_blocks * driver.block_bytes
            waits[direction] = max(waits[direction], now - since)
        time.sleep(FLOOD_POLL_SECONDS)
    for direction, since, _ in sent.values():
        waits[direction] = max(waits[direction], time.perf_counter() - since)
    seconds = time.perf_counter() - started
    return {f"{d}_mib_per_second": moved[d] / seconds / (1 << 20) for d in moved} | {
        f"{d}_wait_seconds": waits[d] for d in waits
    }


def turns(
    adapter: Adapter,
    go: Go,
    label: str,
    what: str,
    blocks: int,
    turns: int,
    my_turn: str,
    your_turn: str,
    begins: bool,
    slower: float,
) -> dict[str, Any]:
    """Seconds of each of `turns` turns, taken by turns with another process that does the same: a byte in the pipe
    `my_turn` says that it is this one's, a byte into `your_turn` gives it away. A turn is one job of `blocks` blocks
    ("store", "load"), or one "lookup" of as many keys that are not there. With `slower` above 1 it takes that many
    times longer.

    Lookups have one processor: they are thousands of hand-overs between threads, and what it costs to wake another
    processor changes on a virtual machine by the minute."""
    if what == "lookup":
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {max(os.sched_getaffinity(0))})
    driver, there = Driver(adapter), keys_of(f"{label} there", blocks)
    driver.fill(there)
    driver.run("store", there, range(blocks), blocks)
    # Opened for both directions: else each would wait for the other to open, and one that dies would leave no turn.
    mine, yours = (os.open(path, os.O_RDWR) for path in (my_turn, your_turn))
    seconds = []
    go()
    if begins:
        os.write(mine, b".")
    for turn in range(turns):
        keys = there if what == "load" else keys_of(f"{label} {what}", blocks, turn * blocks)
        os.read(mine, 1)
        started = time.perf_counter()
        if what == "lookup":
            _ask(adapter, keys, f"request {turn}", "miss")
        else:
            driver.wait([driver.submit(what, keys, range(blocks))], ANSWER_SECONDS)
        taken = time.perf_counter() - started
        if slower > 1:
            while time.perf_counter() - started < slower * taken:
                time.sleep(20e-6)
            taken = time.perf_counter() - started
        seconds.append(taken)
        if what == "store":
            for key in keys:
                os.unlink(driver.path(key))
        os.write(yours, b".")
    return {"seconds": seconds}
