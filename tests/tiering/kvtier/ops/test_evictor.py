"""A root stays below its limits: the least recently used blocks are evicted, and no others."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.base import LookupResult, ReqContext, ScheduleEndContext
from kvtier.config import CapacityConfig, ConfigError, FsTierConfig
from kvtier.events import FilesEvicted, JobFinished, TierAnswers
from kvtier.fs.block_io import RECENCY_SECONDS
from kvtier.ops.catalog import folders
from kvtier.ops.evictor import Evictor
from kvtier.ops.lease import LEASE_NAME, EvictorLease
from tests.tiering.kvtier.ops.tier import BLOCK, FILE, Tier, key, present


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    tier = Tier(tmp_path)
    yield tier
    tier.manager.shutdown()


def test_the_least_recently_used_are_evicted_down_to_the_low_water_mark(tmp_path: Path, tier: Tier) -> None:
    assert tier.run("store", range(100)) == 100
    for number in range(100):
        tier.age(number, 100_000 - number)
    evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=100 * FILE, high_water=0.9, low_water=0.5))
    evictor.step()
    assert present(tier, range(100)) == list(range(50, 100))
    (fact,) = evictor.take_facts()
    assert (fact.reason, fact.files, fact.bytes) == ("max_bytes", 50, 50 * FILE)
    assert sorted(fact.keys) == sorted(map(key, range(50)))
    assert sorted(fact.ages_seconds) == pytest.approx([100_000 - number for number in range(49, -1, -1)], abs=60)
    evictor.step()
    assert evictor.gauges() == {"root_bytes": 50 * FILE, "root_files": 50}
    assert evictor.reserve(2, FILE) == 2
    assert evictor.take_facts() == [], "nothing is evicted below the high water mark"


def test_eviction_is_urgent_once_another_process_has_used_half_of_its_grant(tmp_path: Path, tier: Tier) -> None:
    for number in range(1500):
        path = tier.path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        os.truncate(path, FILE)
    leader, other = (Evictor(str(tmp_path), CapacityConfig(max_bytes=10_000 * FILE)) for _ in range(2))
    background = working(leader)
    assert (leader.pacing, background < 0.5) == ("background", True)

    def store(blocks: int) -> None:
        other.note_traffic()  # an idle process would lead itself
        assert other.reserve(blocks, FILE) == blocks
        other.release(blocks, FILE)
        other.step()

    store(0)  # the age of the first measurement that it reads is unknown
    leader.step()
    store(0)
    store(60)  # of 125, an eighth of what lies above the low water mark
    assert working(leader) < 2 * background
    store(0)
    store(70)
    assert working(leader) > 3 * background
    store(0)
    assert working(leader) < 2 * background


def working(evictor: Evictor) -> float:
    """The part of a round's time in which this thread computed."""
    began, worked = time.perf_counter(), time.thread_time()
    evictor.step()
    return (time.thread_time() - worked) / (time.perf_counter() - began)


def test_a_load_is_a_use_and_survives_a_restart(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(10))
    for number in range(10):
        tier.age(number, 100_000)
    reader = Tier(tmp_path)
    assert reader.run("load", [2, 5]) == 2
    reader.manager.shutdown()
    Evictor(str(tmp_path), CapacityConfig(max_bytes=8 * FILE, low_water=0.25)).step()
    assert set(present(tier, range(10))) == {2, 5}


def test_a_fresh_block_is_not_renewed_on_every_load(tier: Tier) -> None:
    tier.run("store", [1])
    tier.age(1, 600)
    before = tier.path(1).stat().st_mtime
    tier.run("load", [1])
    assert tier.path(1).stat().st_mtime == before


def test_a_model_loses_blocks_only_above_its_share(tmp_path: Path, tier: Tier) -> None:
    """One model floods the root; the small one, although older, keeps its blocks."""
    small = Tier(tmp_path, model="small")
    small.run("store", range(20))
    for number in range(20):
        small.age(number, 1_000_000)
    tier.run("store", range(180))
    Evictor(str(tmp_path), CapacityConfig(max_bytes=100 * FILE)).step()
    assert len(present(small, range(20))) == 20
    assert len(present(tier, range(180))) == pytest.approx(70, abs=1)
    Evictor(str(tmp_path), CapacityConfig(max_bytes=30 * FILE, shares={"small": 0.25})).step()
    assert len(present(small, range(20))) == pytest.approx(30 * 0.9 * 0.2, abs=1)
    small.manager.shutdown()


def test_evicting_under_a_reader_costs_at_most_a_miss(tmp_path: Path, tier: Tier) -> None:
    """Loads and evictions race: each load is right or a clean miss, stores after it work, folders come and go."""
    stop = threading.Event()
    config = CapacityConfig(max_bytes=20 * FILE, low_water=0.05, high_water=0.1)
    evictor = Evictor(str(tmp_path), config)
    errors: list[BaseException] = []

    def evict() -> None:
        try:
            while not stop.is_set():
                evictor.step()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=evict)
    thread.start()
    lost = rounds = 0
    while rounds < 60 or (not lost and rounds < 6000):  # eviction is in the background
        assert tier.run("store", range(16)) == 16, "a folder that is removed during a store is made again"
        lost += 16 - tier.run("load", range(16))
        rounds += 1
    stop.set()
    thread.join()
    assert errors == []
    assert lost, "the race was real"


def test_one_process_evicts_at_a_time_and_a_killed_one_loses_the_lease(tmp_path: Path, tier: Tier) -> None:
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
        evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=10 * FILE))
        evictor.step()
        assert len(present(tier, range(40))) == 40, "another process holds the lease"
        assert evictor.reserve(1, FILE) == 0, "nothing was measured here: stores wait"
    finally:
        holder.kill()
        holder.communicate()
    evictor.step()
    assert len(present(tier, range(40))) == 9
    evictor.step()
    assert evictor.gauges()["root_bytes"] == 9 * FILE


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A file system of its own in `folder`."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("option", "band"), [("max_bytes", 1 - 0.6), ("min_free_bytes", 1 / 0.6 - 1)])
def test_many_writers_stay_at_the_limit(tmp_path: Path, option: str, band: float) -> None:
    """Writers at full speed, an evictor in each: the root stays about its limit, and stores go on."""
    limit = 512 * FILE  # of blocks, and of what they leave free on the disk
    options = {option: limit, "high_water": 0.8, "low_water": 0.6}
    highest = stored = number = 0
    with small_disk(tmp_path, 2 * limit) if option == "min_free_bytes" else contextlib.nullcontext():
        tiers = [Tier(tmp_path, capacity=options) for _ in range(3)]
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
    assert limit / 2 < highest <= limit * (1 + 3 / 8 * band) + len(tiers) * FILE, "the slack of three writers"
    evicted = [event for tier in tiers for event in tier.events if isinstance(event, FilesEvicted)]
    assert sum(event.blocks for event in evicted) >= stored - 512
    assert {event.reason for event in evicted} == {option}


def test_of_two_limits_the_narrower_holds(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(10))
    free = os.statvfs(tmp_path)
    wide, narrow = 1000 * FILE, free.f_bavail * free.f_frsize
    evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=wide))
    evictor.step()
    assert evictor.reserve(5, FILE) == 5
    evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=wide, min_free_bytes=2 * narrow))
    evictor.step()
    assert evictor.reserve(5, FILE) == 0
    assert {fact.reason for fact in evictor.take_facts()} == {"min_free_bytes"}


def test_a_full_root_refuses_stores_and_serves_loads(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(5))
    full = Tier(tmp_path, capacity={"max_bytes": 5 * FILE, "low_water": 0.98, "high_water": 1.0})
    assert full.run("load", range(5)) == 5
    assert full.run("store", [50]) == 0, "the refusal makes the next round evict"
    (job,) = [event for event in full.events if isinstance(event, JobFinished) and event.direction == "store"]
    assert job.failures == (("full", 1),)
    full.manager.shutdown()


def test_a_full_disk_pauses_stores_and_they_recover(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path, 512 << 10):
        tier = Tier(tmp_path)
        stored = tier.run("store", range(100))
        assert 0 < stored < 100
        assert tier.run("store", range(100, 110)) == 0, "paused: refused without a write"
        assert tier.run("load", present(tier, range(100))[:5]) == 5, "loads go on"
        for number in present(tier, range(100)):
            tier.path(number).unlink()
        while tier.run("store", [200]) == 0:
            threading.Event().wait(0.01)
        assert tier.run("store", [201, 202]) == 2
        tier.manager.shutdown()
        assert [record.message.split(": ")[1] for record in caplog.records if "space" in record.message] == [
            "stores pause, loads go on",
            "stores go on",
        ]


def test_free_space_is_kept(tmp_path: Path) -> None:
    with small_disk(tmp_path, 2 << 20):
        tier = Tier(tmp_path)
        tier.run("store", range(60))
        Evictor(str(tmp_path), CapacityConfig(min_free_bytes=1800 << 10)).step()
        status = os.statvfs(tmp_path)
        assert status.f_bavail * status.f_frsize >= 1800 << 10
        assert present(tier, range(60)), "not more than needed"
        tier.manager.shutdown()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, "max_bytes, min_free_bytes"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"max_bytes": 9, "low_water": 0.9, "high_water": 0.8}, "low_water is 0.9, high_water 0.8"),
        ({"max_bytes": 9, "shares": {"m": 0}}, "capacity: the weight of 'm' in shares is 0; it takes a number"),
        ({"max_byte": 9}, "capacity: unknown option 'max_byte'; valid options: max_bytes"),
        ({"max_bytes": FILE}, "capacity: max_bytes is 8192; it must be at least 8624: a file of 8192 bytes below"),
        ("8191", "capacity: max_bytes is 8191; it must be at least 8624"),
    ],
)
def test_bad_limits_are_named(tmp_path: Path, options: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        FsTierConfig(str(tmp_path), BLOCK, capacity=options)  # type: ignore[arg-type]


def test_a_reserve_that_the_file_system_does_not_have_is_refused(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    size = status.f_blocks * status.f_frsize
    with pytest.raises(ConfigError, match=f"min_free_bytes is {size}; the file system at .* has {size} bytes in all"):
        Evictor(str(tmp_path), CapacityConfig(min_free_bytes=size))
    Evictor(str(tmp_path), CapacityConfig(min_free_bytes=size - 1))


# --- what must not happen ---


def test_a_pass_may_stop_anywhere_and_the_next_continues_there(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(100))
    for number in range(100):
        tier.age(number, 1000 - number)
    evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=100 * FILE, high_water=0.9, low_water=0.5))
    (excess,) = evictor.plan().folders
    assert len(excess.sample.folder.prefixes()) == 100
    excess.sample.blocks, excess.sample.is_whole = [], False  # as in a large root, of which it holds a small part
    for _ in range(100):  # each ends after its first folder
        evictor.evict(excess, "max_bytes", deadline=0.0)
    assert present(tier, range(100)) == list(range(50, 100)), "each folder was visited once"
    assert all(fact.files == 1 for fact in evictor.take_facts())


def test_a_follower_reads_the_leaders_measurement(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(10))
    config = CapacityConfig(max_bytes=1000 * FILE)
    leader, other = Evictor(str(tmp_path), config), Evictor(str(tmp_path), config)
    leader.step()
    lease = EvictorLease(str(tmp_path))
    with lease.acquire() as held:
        assert held is not None
        other.step()
        assert other.root is None, "the age of the first measurement that it reads is unknown"
    before = (tmp_path / LEASE_NAME).read_bytes()
    tier.run("store", range(10, 30))
    leader.step()
    assert (tmp_path / LEASE_NAME).read_bytes() != before
    with lease.acquire():
        other.step()
    assert other.gauges() == {"root_bytes": 30 * FILE, "root_files": 30}
    assert other.reserve(5, FILE) == 5


def test_eviction_is_urgent_from_the_limit_down_to_the_low_water_mark(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(40))
    evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=10 * FILE))
    assert evictor.pacing == "background"
    evictor.step()
    assert evictor.pacing == "urgent"
    evictor.step()
    assert (evictor.pacing, evictor.excess_bytes) == ("background", 0)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_tier_logs_once_which_blocks_it_may_not_remove(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(10))
    leaves = [tier.path(number).parent for number in range(10)]
    for leaf in leaves:
        leaf.chmod(0o500)
    code = """
import logging, sys
from kvtier.config import CapacityConfig
from kvtier.ops.evictor import Evictor
logging.basicConfig(format="%(message)s", stream=sys.stdout)
evictor = Evictor(sys.argv[1], CapacityConfig(max_bytes=5 * int(sys.argv[2])))
for _ in range(3):
    evictor.step()
"""
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    command = [*(without if os.geteuid() == 0 else []), sys.executable, "-c", code, str(tmp_path), str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    for leaf in leaves:
        leaf.chmod(0o700)
    problem = f"cannot be removed: EACCES (Permission denied); give user {os.geteuid()} access to it"
    assert done.stderr == ""
    named = done.stdout.splitlines()
    assert set(named) <= {f"{tier.path(number)} {problem}" for number in range(10)}
    assert 6 <= len(named) == len(set(named)), "each once, in three rounds"


def test_reserved_bytes_count_against_the_next_grant(tmp_path: Path, tier: Tier) -> None:
    evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=160 * FILE, low_water=0.5))
    evictor.step()
    assert evictor.reserve(100, FILE) == 10, "an eighth of what lies above the low water mark"
    evictor.step()
    assert evictor.reserve(100, FILE) == 0, "they are not written yet"
    evictor.release(4, FILE)
    evictor.step()
    assert evictor.reserve(100, FILE) == 4


def test_an_evicted_block_that_is_wanted_again_is_counted_once(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(20))
    small = Tier(tmp_path, capacity={"max_bytes": 10 * FILE})
    while not any(isinstance(event, FilesEvicted) for event in small.events):
        small.manager.on_schedule_end(ScheduleEndContext())
    (fact,) = [e for e in small.events if isinstance(e, FilesEvicted)]
    assert (fact.blocks, fact.started_seconds <= fact.finished_seconds) == (11, True)
    for req_id in "ab":
        for number in range(20):
            while small.manager.lookup(key(number), ReqContext(req_id)) is LookupResult.RETRY:
                small.manager.on_schedule_end(ScheduleEndContext())
        small.manager.on_schedule_end(ScheduleEndContext())
    assert sum(e.evicted for e in small.events if isinstance(e, TierAnswers)) == 11
    small.manager.shutdown()


def test_recency_follows_the_turnover(tmp_path: Path, tier: Tier) -> None:
    """In a root whose blocks live for seconds, an hour's recency would be none."""
    evictor = Evictor(str(tmp_path), CapacityConfig(max_bytes=10**9))
    assert evictor.recency_seconds == 0, "nothing is known of the age of its blocks: each load renews"
    tier.run("store", range(4))
    tier.age(2, 80)
    evictor.step()
    assert evictor.recency_seconds == pytest.approx(10, abs=1)
    tier.age(2, 10_000_000)
    evictor.step()
    assert evictor.recency_seconds == RECENCY_SECONDS
