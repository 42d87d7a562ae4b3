"""A root kept below its limits: what goes is the least recently used, and nothing else ever."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvtier.base import ReqContext, ScheduleEndContext, TransferJob
from kvtier.capacity import LEASE_NAME, TEMP_AGE_SECONDS, Capacity, sweep
from kvtier.config import CapacityConfig, ConfigError, FsTierConfig, RunConfig
from kvtier.events import Event, FilesEvicted, JobFinished
from kvtier.fs_tier import FileSystemTierManager
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key
from kvtier.survey import folders

BLOCK = 4096
FILE = BLOCK + 4096
SLOTS = 256


def key(number: int) -> OffloadKey:
    return make_offload_key(BlockHash(number.to_bytes(4, "big")[::-1] * 8), 0)


class Tier:
    def __init__(self, root: Path, model: str = "m", **options: Any) -> None:
        self.events: list[Event] = []
        view = memoryview(mmap.mmap(-1, SLOTS * BLOCK)).cast("B", (SLOTS, BLOCK))
        config = FsTierConfig(str(root), BLOCK, n_read_threads=1, n_write_threads=1, **options)
        self.manager = FileSystemTierManager(config, RunConfig(model), view, self)
        self.jobs = 0

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def run(self, direction: str, numbers: Sequence[int]) -> int:
        self.jobs += 1
        job = TransferJob(self.jobs, tuple(map(key, numbers)), tuple(range(len(numbers))), False, ReqContext("r"))
        (self.manager.submit_store if direction == "store" else self.manager.submit_load)(job)
        self.manager.drain_jobs()
        (result,) = self.manager.get_finished_jobs()
        return len(result.successful_keys)

    def path(self, number: int) -> Path:
        return Path(self.manager.file_mapper.get_file_name(key(number)))

    def age(self, number: int, seconds: float) -> None:
        then = time.time() - seconds
        os.utime(self.path(number), (then, then))


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    tier = Tier(tmp_path)
    yield tier
    tier.manager.shutdown()


def present(tier: Tier, numbers: Sequence[int]) -> list[int]:
    return [number for number in numbers if tier.path(number).exists()]


def test_the_least_recently_used_go_down_to_the_low_water_mark(tmp_path: Path, tier: Tier) -> None:
    assert tier.run("store", range(100)) == 100
    for number in range(100):
        tier.age(number, 100_000 - number)
    capacity = Capacity(str(tmp_path), CapacityConfig(max_bytes=100 * FILE, high_water=0.9, low_water=0.5))
    capacity.step()
    assert present(tier, range(100)) == list(range(50, 100))
    (fact,) = capacity.take_facts()
    assert (fact.reason, fact.files, fact.bytes) == ("max_bytes", 50, 50 * FILE)
    assert sorted(fact.keys) == sorted(map(key, range(50)))
    assert sorted(fact.ages_seconds) == pytest.approx([100_000 - number for number in range(49, -1, -1)], abs=60)
    capacity.step()
    assert capacity.gauges() == {"root_bytes": 50 * FILE, "root_files": 50}
    assert capacity.admit(2, FILE) == 2
    assert capacity.take_facts() == [], "below the high water mark nothing goes"


def test_a_load_is_a_use_and_survives_a_restart(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(10))
    for number in range(10):
        tier.age(number, 100_000)
    reader = Tier(tmp_path)
    assert reader.run("load", [2, 5]) == 2
    reader.manager.shutdown()
    Capacity(str(tmp_path), CapacityConfig(max_bytes=8 * FILE, low_water=0.25)).step()
    assert set(present(tier, range(10))) == {2, 5}


def test_a_fresh_block_is_not_renewed_on_every_load(tier: Tier) -> None:
    tier.run("store", [1])
    tier.age(1, 600)
    before = tier.path(1).stat().st_mtime
    tier.run("load", [1])
    assert tier.path(1).stat().st_mtime == before


def test_a_model_loses_blocks_only_above_its_share(tmp_path: Path, tier: Tier) -> None:
    """One model floods the root; the small one, although older, keeps what it has."""
    small = Tier(tmp_path, model="small")
    small.run("store", range(20))
    for number in range(20):
        small.age(number, 1_000_000)
    tier.run("store", range(180))
    Capacity(str(tmp_path), CapacityConfig(max_bytes=100 * FILE)).step()
    assert len(present(small, range(20))) == 20
    assert len(present(tier, range(180))) == pytest.approx(70, abs=1)
    Capacity(str(tmp_path), CapacityConfig(max_bytes=30 * FILE, shares={"small": 0.25})).step()
    assert len(present(small, range(20))) == pytest.approx(30 * 0.9 * 0.2, abs=1)
    small.manager.shutdown()


def test_evicting_under_a_reader_costs_at_most_a_miss(tmp_path: Path, tier: Tier) -> None:
    """Loads and evictions race: each load is right or a clean miss, stores after it work, folders come and go."""
    stop = threading.Event()
    config = CapacityConfig(max_bytes=20 * FILE, low_water=0.05, high_water=0.1)
    evictor = Capacity(str(tmp_path), config)
    errors: list[BaseException] = []

    def evict() -> None:
        try:
            while not stop.is_set():
                evictor.step()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=evict)
    thread.start()
    lost = 0
    for _ in range(60):
        assert tier.run("store", range(16)) == 16, "a folder that vanishes under a store is made again"
        lost += 16 - tier.run("load", range(16))
    stop.set()
    thread.join()
    assert errors == []
    assert lost, "the race was real"


def test_one_evicts_at_a_time_and_a_dead_one_loses_the_lease(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(40))
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time\n"
            "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
            "fcntl.flock(fd, fcntl.LOCK_EX)\n"
            "print('held', flush=True)\n"
            "sys.stdin.read()\n",
            str(tmp_path / LEASE_NAME),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        capacity = Capacity(str(tmp_path), CapacityConfig(max_bytes=10 * FILE))
        capacity.step()
        assert len(present(tier, range(40))) == 40, "another one has the lease"
        assert capacity.admit(1, FILE) == 0, "and nothing was measured here: stores wait"
    finally:
        holder.kill()
        holder.communicate()
    capacity.step()
    assert len(present(tier, range(40))) == 9
    capacity.step()
    assert capacity.gauges()["root_bytes"] == 9 * FILE


def test_many_writers_stay_at_the_limit(tmp_path: Path) -> None:
    """Writers at full speed, an evictor in each: the root stays about its limit, and stores go on."""
    limit = 512 * FILE
    marks = {"high_water": 0.8, "low_water": 0.6}
    tiers = [Tier(tmp_path, capacity={"max_bytes": limit, **marks}) for _ in range(3)]
    highest = stored = number = 0
    while stored < 800:
        for tier in tiers:
            stored += tier.run("store", range(number, number + 20)) or (threading.Event().wait(0.01) and 0)
            number += 20
            tier.manager.on_schedule_end(ScheduleEndContext())
        (folder,) = folders(str(tmp_path))
        highest = max(highest, sum(block.bytes for block in folder.blocks()))
    for tier in tiers:
        tier.manager.shutdown()
        tier.manager.on_schedule_end(ScheduleEndContext())
    assert limit / 2 < highest <= limit * (1 + 3 / 8 * 0.4) + len(tiers) * FILE, "the slack that three writers have"
    assert sum(e.blocks for tier in tiers for e in tier.events if isinstance(e, FilesEvicted)) >= stored - 512


def test_a_full_root_refuses_stores_and_serves_loads(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(5))
    full = Tier(tmp_path, capacity={"max_bytes": 5 * FILE, "low_water": 0.98, "high_water": 1.0})
    assert full.run("load", range(5)) == 5
    assert full.run("store", [50]) == 0, "now; the refusal makes the next round evict"
    (job,) = [event for event in full.events if isinstance(event, JobFinished) and event.direction == "store"]
    assert job.failures == (("full", 1),)
    full.manager.shutdown()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_pauses_stores_and_they_recover(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", tmp_path], check=True)
    try:
        tier = Tier(tmp_path)
        stored = tier.run("store", range(100))
        assert 0 < stored < 100
        assert tier.run("store", range(100, 110)) == 0, "paused: refused without asking the disk again"
        assert tier.run("load", present(tier, range(100))[:5]) == 5, "loads go on"
        for number in present(tier, range(100)):
            tier.path(number).unlink()
        while tier.run("store", [200]) == 0:
            threading.Event().wait(0.01)
        assert tier.run("store", [201, 202]) == 2
        tier.manager.shutdown()
        assert [record.message.split(": ")[1] for record in caplog.records if "room" in record.message] == [
            "stores pause, loads go on",
            "stores go on",
        ]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_free_space_is_kept(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], check=True)
    try:
        tier = Tier(tmp_path)
        tier.run("store", range(60))
        Capacity(str(tmp_path), CapacityConfig(min_free_bytes=1800 << 10)).step()
        status = os.statvfs(tmp_path)
        assert status.f_bavail * status.f_frsize >= 1800 << 10
        assert present(tier, range(60)), "not more than needed"
        tier.manager.shutdown()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_sweep_removes_what_dead_writers_left_and_only_that(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", [1])
    parent = tier.path(1).parent
    old = time.time() - 10 * TEMP_AGE_SECONDS
    names = {"dead": ".host.1.aa.tmp", "alive": ".host.2.bb.tmp", "young": ".host.3.cc.tmp", "vllm": "x.bin_7.tmp"}
    for name, file in names.items():
        (parent / file).write_bytes(b"part")
        if name != "young":
            os.utime(parent / file, (old, old))
    with open(parent / names["alive"], "r+b") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        (folder,) = folders(str(tmp_path))
        assert sum(sweep(folder)) == 1
    assert sorted(p.name for p in parent.iterdir()) == sorted(
        [names["alive"], names["young"], names["vllm"], tier.path(1).name]
    )


def test_a_living_writers_temp_file_is_locked(tmp_path: Path, tier: Tier) -> None:
    tier.manager.blockio._tmpfile = tier.manager.blockio.batch_writes = False
    parent = tier.path(1).parent
    parent.mkdir(parents=True)
    above = os.open(parent, os.O_PATH)
    descriptor, temp = tier.manager.blockio._create(above)
    os.close(above)
    assert temp
    os.utime(parent / temp, (0, 0))
    (folder,) = folders(str(tmp_path))
    assert sum(sweep(folder)) == 0
    os.close(descriptor)
    assert sum(sweep(folder)) == 1


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, "max_bytes, min_free_bytes"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"max_bytes": 9, "low_water": 0.9, "high_water": 0.8}, "low_water is 0.9, high_water 0.8"),
        ({"max_bytes": 9, "shares": {"m": 0}}, "shares has {'m': 0}"),
        ({"max_byte": 9}, "unknown option 'max_byte'; valid options: max_bytes"),
    ],
)
def test_bad_limits_are_named(tmp_path: Path, options: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        FsTierConfig(str(tmp_path), BLOCK, capacity=options)  # type: ignore[arg-type]
