"""A root kept below its limits: what goes is the least recently used, and nothing else ever."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvtier.base import LookupResult, ReqContext, ScheduleEndContext, TransferJob
from kvtier.config import CapacityConfig, ConfigError, FsTierConfig, RunConfig
from kvtier.events import Event, FilesEvicted, JobFinished, TierAnswers
from kvtier.factory import open_fs_tier
from kvtier.fs.block_io import RECENCY_SECONDS
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key
from kvtier.ops.catalog import BlockFile, folders
from kvtier.ops.cli import EXIT_BAD_INPUT, main
from kvtier.ops.evictor import LEASE_NAME, Capacity
from kvtier.ops.gc import TEMP_AGE_SECONDS, remove_block, sweep

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
        self.manager = open_fs_tier(config, RunConfig(model), view, self)
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
    assert capacity.reserve(2, FILE) == 2
    assert capacity.take_facts() == [], "below the high water mark nothing goes"


def test_who_evicts_rests_unless_another_process_has_used_half_of_its_grant(tmp_path: Path, tier: Tier) -> None:
    for number in range(1500):
        path = tier.path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        os.truncate(path, FILE)
    leader, other = (Capacity(str(tmp_path), CapacityConfig(max_bytes=10_000 * FILE)) for _ in range(2))
    unhurried = working(leader)
    assert unhurried < 0.5

    def store(blocks: int) -> None:
        other.traffic_seconds = time.monotonic()  # else it would lead itself
        assert other.reserve(blocks, FILE) == blocks
        other.release(blocks, FILE)
        other.step()

    store(0)  # hears what the leader says for the first time, so cannot know how old it is
    leader.step()
    store(0)
    store(60)  # of 125, an eighth of what lies above the low water mark
    assert working(leader) < 2 * unhurried
    store(0)
    store(70)
    assert working(leader) > 3 * unhurried
    store(0)
    assert working(leader) < 2 * unhurried


def working(capacity: Capacity) -> float:
    """The part of a round's time that this thread computed."""
    began, worked = time.perf_counter(), time.thread_time()
    capacity.step()
    return (time.thread_time() - worked) / (time.perf_counter() - began)


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
    lost = rounds = 0
    while rounds < 60 or (not lost and rounds < 6000):  # the evictor is in no hurry
        assert tier.run("store", range(16)) == 16, "a folder that vanishes under a store is made again"
        lost += 16 - tier.run("load", range(16))
        rounds += 1
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
        assert capacity.reserve(1, FILE) == 0, "and nothing was measured here: stores wait"
    finally:
        holder.kill()
        holder.communicate()
    capacity.step()
    assert len(present(tier, range(40))) == 9
    capacity.step()
    assert capacity.gauges()["root_bytes"] == 9 * FILE


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
    assert limit / 2 < highest <= limit * (1 + 3 / 8 * band) + len(tiers) * FILE, "the slack that three writers have"
    evicted = [event for tier in tiers for event in tier.events if isinstance(event, FilesEvicted)]
    assert sum(event.blocks for event in evicted) >= stored - 512
    assert {event.reason for event in evicted} == {option}


def test_of_two_limits_the_narrower_holds(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(10))
    free = os.statvfs(tmp_path)
    wide, narrow = 1000 * FILE, free.f_bavail * free.f_frsize
    capacity = Capacity(str(tmp_path), CapacityConfig(max_bytes=wide))
    capacity.step()
    assert capacity.reserve(5, FILE) == 5
    capacity = Capacity(str(tmp_path), CapacityConfig(max_bytes=wide, min_free_bytes=2 * narrow))
    capacity.step()
    assert capacity.reserve(5, FILE) == 0
    assert {fact.reason for fact in capacity.take_facts()} == {"min_free_bytes"}


def test_a_full_root_refuses_stores_and_serves_loads(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(5))
    full = Tier(tmp_path, capacity={"max_bytes": 5 * FILE, "low_water": 0.98, "high_water": 1.0})
    assert full.run("load", range(5)) == 5
    assert full.run("store", [50]) == 0, "now; the refusal makes the next round evict"
    (job,) = [event for event in full.events if isinstance(event, JobFinished) and event.direction == "store"]
    assert job.failures == (("full", 1),)
    full.manager.shutdown()


def test_a_full_disk_pauses_stores_and_they_recover(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path, 512 << 10):
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
        assert [record.message.split(": ")[1] for record in caplog.records if "space" in record.message] == [
            "stores pause, loads go on",
            "stores go on",
        ]


def test_free_space_is_kept(tmp_path: Path) -> None:
    with small_disk(tmp_path, 2 << 20):
        tier = Tier(tmp_path)
        tier.run("store", range(60))
        Capacity(str(tmp_path), CapacityConfig(min_free_bytes=1800 << 10)).step()
        status = os.statvfs(tmp_path)
        assert status.f_bavail * status.f_frsize >= 1800 << 10
        assert present(tier, range(60)), "not more than needed"
        tier.manager.shutdown()


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


def test_quarantine_keeps_the_newest(tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.ops.gc.QUARANTINE_FILES_MAX", 4)
    monkeypatch.setattr("kvtier.ops.gc.QUARANTINE_BYTES_MAX", 250)
    aside = Path(tier.manager.file_mapper.quarantine_path)
    for number in range(6):
        (aside / f"{number}.bin.size.00").write_bytes(bytes(10 if number else 100))
        os.utime(aside / f"{number}.bin.size.00", (number, number))
    (folder,) = folders(str(tmp_path))
    assert sum(sweep(folder)) == 2
    (aside / "6.bin.size.00").write_bytes(bytes(240))
    assert sum(sweep(folder)) == 3
    assert sorted(entry.name[0] for entry in aside.iterdir()) == ["5", "6"]
    said = CliRunner().invoke(main, ["inspect", str(tmp_path), "--aside"]).stdout
    assert f"{aside}/6.bin.size.00" in said


def test_a_living_writers_temp_file_is_locked(tmp_path: Path, tier: Tier) -> None:
    tier.manager.blockio._tmpfile = tier.manager.blockio.native_writes = False
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


PROBE_THAT_BLOCKS = """
import sys
from kvtier.fs import block_io as blockio, posix as file_system
from kvtier.config import FsTierConfig

def block(path, *rest):
    print(path, flush=True)
    sys.stdin.read()
    return False

setattr(file_system, sys.argv[2], block)
blockio.BlockIO(FsTierConfig(sys.argv[1], 4096), sys.argv[1]).probe(sys.argv[1])
"""


@pytest.mark.parametrize("blocked", ["direct_io_works", "unlink_quietly"])
def test_sweep_removes_what_a_killed_probe_left_and_only_that(tmp_path: Path, tier: Tier, blocked: str) -> None:
    base = Path(tier.manager.file_mapper.base_path)
    (folder,) = folders(str(tmp_path))
    before = {entry.name for entry in base.iterdir()}
    vllm = base / "config.json_7.tmp"
    vllm.write_bytes(b"{}")
    os.utime(vllm, (0, 0))
    command = [sys.executable, "-c", PROBE_THAT_BLOCKS, str(base), blocked]
    probing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert probing.stdout
        temp = base / os.path.basename(probing.stdout.readline().strip())
        assert temp.exists()
        assert temp.name not in before
        os.utime(temp, (0, 0))
        if blocked == "direct_io_works":
            assert sum(sweep(folder)) == 0, "its writer lives"
    finally:
        probing.kill()
        probing.communicate()
    os.utime(temp)
    assert sum(sweep(folder)) == 0, "young: its writer may not have locked it yet"
    os.utime(temp, (0, 0))
    assert sum(sweep(folder)) == 1
    assert {entry.name for entry in base.iterdir()} == {*before, vllm.name}


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
        Capacity(str(tmp_path), CapacityConfig(min_free_bytes=size))
    Capacity(str(tmp_path), CapacityConfig(min_free_bytes=size - 1))


# --- the command line ---


def kvtier(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_evict_brings_a_root_within_its_limits_and_says_what_it_did(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(100))
    for number in range(100):
        tier.age(number, 100_000 - number)
    limit = ("--max-bytes", f"{100 * FILE / 1024}KiB", "--low-water", "0.5")
    code, said, _ = kvtier("evict", tmp_path, *limit, "--dry-run")
    assert (code, present(tier, range(100))) == (1, list(range(100)))
    assert re.fullmatch(r"would evict about 400 KiB of m, rank 0, not used for 28 h \(max_bytes\)\n", said)
    code, said, _ = kvtier("evict", tmp_path, *limit)
    assert (code, present(tier, range(100))) == (0, list(range(50, 100)))
    assert said.splitlines() == [
        "evicted 50 blocks, 400 KiB, last used 28 h to 28 h ago (max_bytes)",
        "left: 50 blocks, 400 KiB",
    ]
    code, said, _ = kvtier("evict", tmp_path, *limit, "--json", "--once")
    assert (code, json.loads(said)["evicted_files"], json.loads(said)["root"]["files"]) == (0, 0, 50)


def test_evict_sweeps(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", [1, 2])
    old = time.time() - 10 * TEMP_AGE_SECONDS
    dead = tier.path(1).with_name(".host.1.aa.tmp")
    dead.write_bytes(b"part")
    os.utime(dead, (old, old))
    tier.path(2).unlink()
    os.utime(tier.path(2).parent, (old, old))
    assert kvtier("evict", tmp_path, "--max-bytes", "1TB")[:2] == (
        0,
        "removed 1 temp files of dead writers and quarantined files beyond the limit\nleft: 1 blocks, 8 KiB\n",
    )
    assert not dead.exists()
    assert not tier.path(2).parent.exists()
    assert tier.path(1).exists()


def test_evict_knows_when_it_cannot_help(tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.ops.evict_command.STUCK_SECONDS", 0.2)
    status = os.statvfs(tmp_path)
    most = status.f_blocks * status.f_frsize - 1
    code, said, _ = kvtier("evict", tmp_path, "--min-free-bytes", str(most))
    assert (code, "too many" in said) == (1, True)
    with open(tmp_path / LEASE_NAME, "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert kvtier("evict", tmp_path, "--max-bytes", "1GB")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "no limit is set; give max_bytes, min_free_bytes, or both"),
        (("--max-bytes", "ten"), "--max-bytes is 'ten'; it takes a whole number of bytes, or a number with a unit"),
        (("--max-bytes", "1GB", "--share", "m"), "--share is 'm'; it takes MODEL=WEIGHT"),
        (("--max-bytes", "1GB", "--low-water", "2"), "low_water is 2.0"),
        (("--max-bytes", "1GB", "--once", "--every", "3"), "--once and --every"),
        (("--max-byte", "1GB"), "No such option"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: Sequence[str], sentence: str) -> None:
    code, said, complaint = kvtier("evict", tmp_path, *arguments)
    assert (code, said) == (EXIT_BAD_INPUT, "")
    assert complaint.startswith(f"kvtier: {sentence}")
    assert complaint.count("\n") == 1


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert kvtier("evict", tmp_path / "x", "--max-bytes", "1GB")[0] == EXIT_BAD_INPUT


def test_evict_every_so_often_keeps_a_growing_root_small(tmp_path: Path, tier: Tier) -> None:
    code = "from kvtier.ops.cli import main; main()"
    arguments = ["evict", str(tmp_path), "--max-bytes", str(50 * FILE), "--every", "0.1", "--json"]
    evictor = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        for start in range(0, 200, 20):
            tier.run("store", range(start, start + 20))
        assert evictor.stdout
        gone = 0
        while gone < 150:
            gone += json.loads(evictor.stdout.readline()).get("evicted_files", 0)
        assert len(present(tier, range(200))) <= 50
    finally:
        evictor.kill()
        evictor.communicate()


def test_remove_shows_first_and_takes_one_fingerprint_only(tmp_path: Path, tier: Tier) -> None:
    other = Tier(tmp_path, model="org/other")
    tier.run("store", range(5))
    other.run("store", range(3))
    other.manager.shutdown()
    name = os.path.basename(other.manager.file_mapper.base_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (Path(other.manager.file_mapper.blocks_path) / "link").symlink_to(outside)
    code, said, _ = kvtier("remove", tmp_path, name)
    assert code == 0
    assert "org/other, rank 0" in said
    assert "3, 24 KiB" in said
    assert f"nothing is removed; to remove it, for ever: kvtier remove {tmp_path} {name} --yes" in said
    assert len(present(other, range(3))) == 3
    digest = name.rpartition("_")[2]
    assert kvtier("remove", tmp_path, digest, "--yes")[0] == 0
    kept = {
        os.path.basename(path) for path in (tier.manager.file_mapper.base_path, tier.manager.file_mapper.blocks_path)
    }
    assert {entry.name for entry in tmp_path.iterdir()} == {*kept, "outside"}
    assert (outside / "precious").exists()
    assert len(present(tier, range(5))) == 5
    code, _, complaint = kvtier("remove", tmp_path, digest)
    assert code == EXIT_BAD_INPUT
    assert min(kept) in complaint


# --- what must not happen ---


def test_no_symbolic_link_leads_an_evictor_out_of_the_root(tmp_path: Path, tier: Tier) -> None:
    """Folders inside the root that are links to places with files of right names: listed or not, nothing goes there."""
    tier.run("store", range(20))
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    leaf = tier.path(3).parent
    names = [path.name for path in leaf.iterdir()]
    leaf.rename(outside / "leaf")
    leaf.symlink_to(outside / "leaf")
    prefix = tier.path(7).parent.parent
    prefix.rename(outside / "prefix")
    prefix.symlink_to(outside / "prefix")
    (outside / "leaf" / ".host.1.aa.tmp").write_bytes(b"")
    os.utime(outside / "leaf" / ".host.1.aa.tmp", (0, 0))
    (folder,) = folders(str(tmp_path))
    listed = [block for block in folder.blocks() if block.key in (key(3), key(7))]
    assert listed == []
    status = tier.path(3).stat()
    for number in (3, 7):  # also when the link is put there after the folder was listed
        block = BlockFile(str(tier.path(number)), key(number), FILE, tier.path(number).stat().st_mtime)
        assert not remove_block(block)
    assert sum(sweep(folder)) == 0
    Capacity(str(tmp_path), CapacityConfig(max_bytes=FILE, low_water=0.01)).step()
    assert sorted(os.listdir(outside / "leaf")) == sorted([*names, ".host.1.aa.tmp"])
    assert tier.path(3).stat().st_mtime == status.st_mtime
    assert tier.path(7).exists()
    assert len(present(tier, range(20))) == 2, "all others went"


def test_a_pass_may_stop_anywhere_and_the_next_goes_on_there(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(100))
    for number in range(100):
        tier.age(number, 1000 - number)
    capacity = Capacity(str(tmp_path), CapacityConfig(max_bytes=100 * FILE, high_water=0.9, low_water=0.5))
    ((measured, quota, cutoff),) = capacity.plan().quotas
    assert len(measured.folder.prefixes()) == 100
    measured.sample, measured.whole = [], False  # as in a large root, where it holds a few of many
    for _ in range(100):  # each is over after its first folder
        capacity._evict(measured, quota, cutoff, "max_bytes", deadline=0.0)
    assert present(tier, range(100)) == list(range(50, 100)), "each folder was visited once"
    assert all(fact.files == 1 for fact in capacity.take_facts())


def test_who_does_not_evict_hears_what_was_measured(tmp_path: Path, tier: Tier) -> None:
    tier.run("store", range(10))
    config = CapacityConfig(max_bytes=1000 * FILE)
    leader, other = Capacity(str(tmp_path), config), Capacity(str(tmp_path), config)
    leader.step()
    with other._lease() as lease:
        assert lease is not None
        other.step()
        assert other.root is None, "what was told before it came may be a year old"
        leader_told = leader._told
    tier.run("store", range(10, 30))
    leader.step()
    assert leader._told != leader_told
    with other._lease():
        other.step()
    assert other.gauges() == {"root_bytes": 30 * FILE, "root_files": 30}
    assert other.reserve(5, FILE) == 5


def test_what_is_still_being_written_counts_against_the_next_grant(tmp_path: Path, tier: Tier) -> None:
    capacity = Capacity(str(tmp_path), CapacityConfig(max_bytes=160 * FILE, low_water=0.5))
    capacity.step()
    assert capacity.reserve(100, FILE) == 10, "an eighth of what lies above the low water mark"
    capacity.step()
    assert capacity.reserve(100, FILE) == 0, "they are not written yet"
    capacity.release(4, FILE)
    capacity.step()
    assert capacity.reserve(100, FILE) == 4


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
    capacity = Capacity(str(tmp_path), CapacityConfig(max_bytes=10**9))
    assert capacity.recency_seconds == RECENCY_SECONDS
    tier.run("store", range(4))
    tier.age(2, 80)
    capacity.step()
    assert capacity.recency_seconds == pytest.approx(10, abs=1)
    tier.age(2, 10_000_000)
    capacity.step()
    assert capacity.recency_seconds == RECENCY_SECONDS
