"""Measurements of a tier, each in a process of its own that `child` forks: the adapter is new, the result a dict.

Every measure prepares, calls `go` (which returns when all processes of the measurement are ready), then measures.
Times are wall clock of `time.perf_counter`, CPU seconds those of this process. Failed blocks are an error, not a
figure. "Cold" means that the page cache holds no byte of the blocks; folders and inodes stay known to the kernel.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.adapters.base import Adapter
from harness.bench.driver import Driver, Wrong, cpu_seconds, io_chars, keys_of, sync

ANSWER_SECONDS = 50e-6
FLOOD_POLL_SECONDS = 200e-6
DISK_RESERVE_BYTES = 256 << 20
"""A flood stops before the disk is full, because it would measure ENOSPC then."""

Go = Callable[[], None]


def throughput(adapter: Adapter, go: Go, label: str, blocks: int, job_blocks: int) -> dict[str, Any]:
    """Store, cold load, then the same load again, all jobs submitted at once. A tier may fill the page cache at the
    second load, so "warm" is the third."""
    driver, keys, slots = Driver(adapter), keys_of(label, blocks), range(blocks)
    driver.fill(keys)
    go()
    results = {"store": driver.run("store", keys, slots, job_blocks)}
    driver.cool(keys)
    for phase in ("cold", "second", "warm"):
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
                # No load writes to the slots of stores, so all stores may share them.
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


def burst(adapter: Adapter, go: Go, label: str, blocks: int) -> dict[str, Any]:
    """One-block stores from `blocks` slots, all submitted at once: the share of them that is stored."""
    driver, keys = Driver(adapter), keys_of(label, blocks)
    driver.fill(keys)
    go()
    pending, failed = {driver.submit("store", [key], [slot]) for slot, key in enumerate(keys)}, 0
    while pending:
        for result in adapter.poll():
            pending.remove(result.job_id)
            failed += len(result.failed)
        adapter.step()
        time.sleep(FLOOD_POLL_SECONDS)
    return {"kept": 1 - failed / blocks}


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
        raise Wrong(f"{len(wrong)} of {len(keys)} lookups return {wrong[0]} instead of {expected}")


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
    sync(adapter.setup.root_dir)
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
    """Seconds of each of `turns` turns, in alternation with another process that does the same. A byte read from
    the pipe `my_turn` starts a turn, and a byte written to `your_turn` ends it. A turn is one job of `blocks` blocks
    ("store", "load"), or one "lookup" of as many keys that are not there. With `slower` above 1 it takes that many
    times longer.

    Lookups run on one processor: they switch between threads thousands of times, and on a virtual machine the cost of
    waking another processor changes by the minute."""
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
            while time.perf_counter() - started < slower * taken:  # a sleep would take what it takes, a third of a turn
                pass
            taken = time.perf_counter() - started
        seconds.append(taken)
        if what == "store":
            for key in keys:
                os.unlink(driver.path(key))
        os.write(yours, b".")
    return {"seconds": seconds}
