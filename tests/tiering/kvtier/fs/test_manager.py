"""`FileSystemTierManager`: the contract, and what files, processes and observers see of it."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvtier.base import JobResult, LookupResult, ReqContext, ScheduleEndContext, SecondaryTierManager, TransferJob
from kvtier.config import ConfigError, FsTierConfig, RootError, RunConfig, SlotError
from kvtier.events import BlockQuarantined, Event, JobFinished, LookupBatch
from kvtier.factory import open_fs_tier
from kvtier.fs.block_io import BlockOutcome
from kvtier.fs.manager import FILE_BYTES, FileSystemTierManager
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key
from tests.tiering.kvtier.contract import TierContract

BLOCK = 16384
SLOTS = 64
REQUEST = ReqContext("r1", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
RUN = RunConfig("org/model")


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def jobs(self) -> list[JobFinished]:
        return [event for event in self.events if isinstance(event, JobFinished)]


def key(number: int) -> OffloadKey:
    return make_offload_key(BlockHash(number.to_bytes(32, "big")), 0)


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * (BLOCK // 4)


class Tier:
    """A tier with its slots, driven as a scheduler would."""

    def __init__(self, root: Path, observer: Recorder | None = None, run: RunConfig = RUN, **options: Any) -> None:
        options = {"n_read_threads": 2, "n_write_threads": 2} | options
        self.memory = mmap.mmap(-1, SLOTS * BLOCK)
        self.view = memoryview(self.memory).cast("B", (SLOTS, BLOCK))
        config = FsTierConfig(root_dir=str(root), block_bytes=BLOCK, **options)
        self.manager = open_fs_tier(config, run, self.view, observer)
        self.job_id = 0

    def slot(self, slot: int) -> memoryview:
        return memoryview(self.memory)[slot * BLOCK : (slot + 1) * BLOCK]

    def submit(self, direction: str, numbers: Sequence[int], slots: Sequence[int] | None = None) -> int:
        slots = list(range(len(numbers))) if slots is None else slots
        self.job_id += 1
        job = TransferJob(self.job_id, tuple(map(key, numbers)), tuple(slots), direction == "load", REQUEST)
        (self.manager.submit_load if direction == "load" else self.manager.submit_store)(job)
        return self.job_id

    def store(self, numbers: Sequence[int]) -> JobResult:
        for slot, number in enumerate(numbers):
            self.slot(slot)[:] = content(number)
        self.submit("store", numbers)
        return self.result()

    def load(self, numbers: Sequence[int]) -> JobResult:
        for slot in range(len(numbers)):
            self.slot(slot)[:] = b"\xee" * BLOCK
        self.submit("load", numbers)
        return self.result()

    def result(self) -> JobResult:
        self.manager.drain_jobs()
        (result,) = self.manager.get_finished_jobs()
        return result

    def settle(self, number: int, request: ReqContext = REQUEST) -> LookupResult:
        while (answer := self.manager.lookup(key(number), request)) is LookupResult.RETRY:
            self.manager.on_schedule_end(ScheduleEndContext())
        return answer

    def path(self, number: int) -> Path:
        return Path(self.manager.file_mapper.get_file_name(key(number)))


class TestContract(TierContract):
    """The contract's tests; files are read, written and deleted without the tier."""

    exposes_files = True

    @pytest.fixture(autouse=True)
    def root(self, tmp_path: Path) -> None:
        self.root_dir = tmp_path

    def make_tier(self, view: memoryview) -> FileSystemTierManager:
        assert view.shape is not None
        config = FsTierConfig(
            root_dir=str(self.root_dir), block_bytes=view.shape[1], n_read_threads=2, n_write_threads=2
        )
        return open_fs_tier(config, RUN, view)

    def block_file(self, tier: SecondaryTierManager, k: OffloadKey) -> Path:
        assert isinstance(tier, FileSystemTierManager)
        return Path(tier.file_mapper.get_file_name(k))

    def raw_write(self, tier: SecondaryTierManager, k: OffloadKey, data: bytes) -> None:
        path = self.block_file(tier, k)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)  # as vLLM would: the block alone

    def raw_read(self, tier: SecondaryTierManager, k: OffloadKey) -> bytes | None:
        path = self.block_file(tier, k)
        assert isinstance(tier, FileSystemTierManager)
        return path.read_bytes()[: tier.config.block_bytes] if path.exists() else None

    def raw_delete(self, tier: SecondaryTierManager, k: OffloadKey) -> None:
        self.block_file(tier, k).unlink()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def tier(tmp_path: Path, recorder: Recorder) -> Iterator[Tier]:
    tier = Tier(tmp_path, recorder)
    yield tier
    tier.manager.shutdown()


def test_partial_failure_per_key_in_both_directions(tier: Tier, recorder: Recorder) -> None:
    tier.store(range(8))
    os.unlink(tier.path(3))
    tier.path(5).write_bytes(b"short")
    result = tier.load(range(8))
    assert not result.success
    assert result.successful_keys == tuple(key(n) for n in (0, 1, 2, 4, 6, 7))
    for number in (0, 1, 2, 4, 6, 7):
        assert tier.slot(number) == content(number)
    assert dict(recorder.jobs()[-1].failures) == {"ENOENT": 1, "size": 1}
    assert tier.settle(3) is LookupResult.MISS
    assert tier.settle(5) is LookupResult.MISS


def test_a_store_fails_only_where_the_file_system_does(tier: Tier) -> None:
    first, second = BlockHash(b"\x11" * 32), BlockHash(b"\x22" * 32)
    blocked = Path(tier.manager.file_mapper.get_file_name(make_offload_key(first, 0))).parent
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"")  # a file where a folder must be
    keys = (make_offload_key(first, 0), make_offload_key(second, 0))
    tier.manager.submit_store(TransferJob(77, keys, (0, 1), False, REQUEST))
    result = tier.result()
    assert result.successful_keys == keys[1:]
    assert not result.success


def test_events_report_a_whole_job(tmp_path: Path, tier: Tier, recorder: Recorder) -> None:
    tier.store(range(4))
    tier.store(range(6))
    other = Tier(tmp_path, theirs := Recorder())
    other.load(range(6))
    other.manager.shutdown()
    first, second = recorder.jobs()
    assert (first.direction, first.blocks_ok, first.blocks_skipped) == ("store", 4, 0)
    assert (second.blocks_ok, second.blocks_skipped, second.bytes_ok) == (6, 4, 6 * BLOCK)
    (load,) = theirs.jobs()
    assert (load.blocks_ok, load.blocks_cross_process, load.blocks_unverified) == (6, 6, 0)
    assert load.links == (first.own_traceparent, second.own_traceparent), "it links to the stores that wrote its blocks"
    assert load.traceparent == REQUEST.traceparent
    assert sum(fact.bytes for fact in load.tasks) == 6 * BLOCK
    assert load.submitted_seconds <= min(fact.started_seconds for fact in load.tasks) <= load.finished_seconds


def test_lookup_batches_are_reported(tier: Tier, recorder: Recorder) -> None:
    tier.store([1])
    assert tier.settle(2) is LookupResult.MISS
    tier.manager.on_schedule_end(ScheduleEndContext())
    assert [(e.keys, e.hits) for e in recorder.events if isinstance(e, LookupBatch)] == [(1, 0)]


def test_a_corrupt_block_is_quarantined_and_reported(tier: Tier, recorder: Recorder) -> None:
    tier.store([1])
    raw = bytearray(tier.path(1).read_bytes())
    raw[100] ^= 1
    tier.path(1).write_bytes(raw)
    assert tier.load([1]).successful_keys == ()
    (event,) = [e for e in recorder.events if isinstance(e, BlockQuarantined)]
    assert (event.reason, Path(event.path).exists()) == ("checksum", True)


def test_kv_events_are_off_by_default(tmp_path: Path, tier: Tier) -> None:
    tier.store([1])
    assert list(tier.manager.take_events()) == []
    loud = Tier(tmp_path, enable_kv_events=True)
    loud.store([1, 2])
    (stored,) = loud.manager.take_events()
    both = (key(1), key(2))
    assert (stored.keys, stored.medium, stored.removed) == (both, "STORAGE", False), (
        "one was there, a router may not know"
    )
    assert list(loud.manager.take_events()) == []
    loud.manager.shutdown()


def test_refused_stores_report_at_once_and_harm_nothing(tmp_path: Path) -> None:
    tier = Tier(tmp_path, n_read_threads=1, n_write_threads=1, store_queue_bytes_max=2 * BLOCK, task_bytes_max=BLOCK)
    gate, inside = threading.Event(), threading.Semaphore(0)

    def stuck(*_: Any) -> Any:
        inside.release()
        assert gate.wait(30)
        raise OSError("the device is gone")

    read_block, tier.manager.blockio.read_block = tier.manager.blockio.read_block, stuck  # type: ignore[method-assign]
    tier.submit("load", [90, 91], [60, 61])
    for _ in range(2):
        assert inside.acquire(timeout=30)
    stored = tier.submit("store", range(5))
    refused = tier.submit("store", [9], [9])
    results = {r.job_id: r for r in tier.manager.get_finished_jobs()}
    assert list(results) == [refused]
    assert not results[refused].success
    gate.set()
    tier.manager.drain_jobs()
    results = {r.job_id: r for r in tier.manager.get_finished_jobs()}
    assert results[stored].successful_keys == (key(0), key(1)), "the first blocks fit: a prefix is worth keeping"
    tier.manager.blockio.read_block = read_block  # type: ignore[method-assign]
    tier.manager.shutdown()


@pytest.fixture
def held(tmp_path: Path, recorder: Recorder) -> Iterator[tuple[Tier, threading.Event]]:
    """A tier whose stores wait for the event, each block a task."""
    tier, gate = Tier(tmp_path, recorder, task_bytes_max=BLOCK), threading.Event()
    write_blocks = tier.manager.blockio.write_blocks

    def gated(*blocks: Any) -> Any:
        assert gate.wait(30)
        return write_blocks(*blocks)

    tier.manager.blockio.write_blocks = gated  # type: ignore[method-assign]
    yield tier, gate
    gate.set()
    tier.manager.shutdown()


def test_a_burst_of_stores_from_all_slots_is_kept(held: tuple[Tier, threading.Event]) -> None:
    tier, gate = held
    jobs = [tier.submit("store", [slot], [slot]) for slot in range(SLOTS)]
    assert not list(tier.manager.get_finished_jobs()), "none is refused"
    gate.set()
    tier.manager.drain_jobs()
    assert {result.job_id for result in tier.manager.get_finished_jobs() if result.success} == set(jobs)


@pytest.mark.parametrize("found_slot", [True, False])
def test_queued_stores_give_slots_back_once_a_hit_found_none(
    held: tuple[Tier, threading.Event], recorder: Recorder, found_slot: bool
) -> None:
    """A hit without a load in the same step found no slot. The newest stores go: the first blocks of a prefix stay."""
    tier, gate = held
    tier.manager._lookup.mark_present([key(900)])
    jobs = [tier.submit("store", [slot], [slot]) for slot in range(SLOTS)]
    while tier.manager._pool.queued_bytes("store") > (SLOTS - 4) * BLOCK:  # each of the four threads takes one
        os.sched_yield()
    refused = [] if found_slot else jobs[SLOTS // 2 + 4 :]
    assert tier.manager.lookup(key(900), REQUEST) is LookupResult.HIT
    if found_slot:
        tier.submit("load", [900], [SLOTS - 1])
    tier.manager.on_schedule_end(ScheduleEndContext())
    refused = [] if found_slot else jobs[-(SLOTS // 2 - 4) :]  # four threads hold a task each
    assert sorted(result.job_id for result in tier.manager.get_finished_jobs() if result.job_id in jobs) == refused
    gate.set()
    tier.manager.drain_jobs()
    list(tier.manager.get_finished_jobs())
    stores = [event for event in recorder.jobs() if event.direction == "store"]
    assert sum(event.blocks_ok for event in stores) == SLOTS - len(refused)
    assert {event.failures for event in stores if event.job_id in refused} <= {(("backlog", 1),)}


@pytest.mark.parametrize(
    ("blocks", "bound", "tasks"),
    [(24, 16, 4), (16, 16, 4), (10, 16, 3), (4, 16, 1), (24, 5, 5), (6, 2, 3), (3, 1, 3)],
)
def test_a_job_is_split_over_idle_threads_as_far_as_a_task_is_worth_the_wake_up(
    tmp_path: Path, blocks: int, bound: int, tasks: int
) -> None:
    """`bound` blocks are `task_bytes_max`, which always holds; else a task has 4 at least. There are four threads."""
    seen = Recorder()
    tier = Tier(tmp_path, seen, task_bytes_max=bound * FILE_BYTES)
    while tier.manager._pool.idle_threads() < 4:  # its threads are starting
        os.sched_yield()
    tier.store(range(blocks))
    assert len(seen.jobs()[-1].tasks) == tasks
    tier.manager.shutdown()


def test_a_busy_tier_gets_whole_tasks(tmp_path: Path) -> None:
    seen, gate = Recorder(), threading.Event()
    tier = Tier(tmp_path, seen, task_bytes_max=8 * FILE_BYTES)  # 8 blocks, since they are small
    idle = tier.manager._pool.idle_threads
    tier.store(range(16))
    read_blocks = tier.manager.blockio.read_blocks

    def gated(*block: Any) -> Any:
        assert gate.wait(30)
        return read_blocks(*block)

    tier.manager.blockio.read_blocks = gated  # type: ignore[method-assign]
    while idle() < 4:
        os.sched_yield()
    first = tier.submit("load", range(16))
    while idle():
        os.sched_yield()
    second = tier.submit("load", range(8), range(16, 24))
    gate.set()
    tier.manager.drain_jobs()
    assert {result.job_id for result in tier.manager.get_finished_jobs()} == {first, second}
    assert {job.job_id: len(job.tasks) for job in seen.jobs()[1:]} == {first: 4, second: 1}
    tier.manager.shutdown()


@pytest.mark.parametrize("slot", [-1, SLOTS, 10**9])
@pytest.mark.parametrize("direction", ["load", "store"])
def test_a_slot_out_of_range_is_refused_before_anything_happens(tier: Tier, direction: str, slot: int) -> None:
    with pytest.raises(SlotError, match=f"slot {slot} is out of range; the CPU tier has {SLOTS} slots"):
        tier.submit(direction, [1, 2], [0, slot])
    assert not tier.manager.has_pending_work()
    assert not tier.path(1).exists()


def unreadable(monkeypatch: pytest.MonkeyPatch, tier: Tier) -> list[int]:
    """From here on every block exists and none can be read, as on a bad disk. Returns a list that grows by loads."""
    loads: list[int] = []

    def read_blocks(paths: Sequence[str], *_: object) -> list[BlockOutcome]:
        loads.append(len(paths))
        return [BlockOutcome("EIO")] * len(paths)

    monkeypatch.setattr(tier.manager.blockio, "read_blocks", read_blocks)
    return loads


def test_a_known_block_that_cannot_be_read_is_a_miss_after_one_load(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.store([1])
    loads = unreadable(monkeypatch, tier)
    for _ in range(20):  # the steps of one request: a load for each HIT, as an engine does
        if tier.settle(1) is LookupResult.HIT:
            assert not tier.load([1]).success
    assert loads == [1]
    assert tier.settle(1) is LookupResult.MISS
    tier.manager.on_request_finished(REQUEST)
    assert tier.settle(1, ReqContext("r2")) is LookupResult.HIT, "a new request may probe anew"


def test_newcomers_do_not_undo_the_miss_of_a_request_whose_load_failed(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.store([1])
    loads = unreadable(monkeypatch, tier)
    for step in range(60):
        newcomer = ReqContext(f"newcomer {step}")
        tier.manager.lookup(key(1), newcomer)
        if tier.settle(1) is LookupResult.HIT:
            assert not tier.load([1]).success
        tier.manager.on_request_finished(newcomer)
    assert loads == [1]
    assert tier.settle(1) is LookupResult.MISS


def test_the_time_of_a_job_is_the_span_of_its_tasks_not_their_sum(tier: Tier, recorder: Recorder) -> None:
    result = tier.store(range(SLOTS))
    (job,) = recorder.jobs()
    assert len(job.tasks) > 1
    first, last = min(t.started_seconds for t in job.tasks), max(t.finished_seconds for t in job.tasks)
    assert result.transfer_seconds == pytest.approx(last - first)


def test_view_must_fit_the_block_size(tmp_path: Path) -> None:
    config = FsTierConfig(root_dir=str(tmp_path), block_bytes=BLOCK)
    for view in (memoryview(bytearray(BLOCK)), memoryview(bytearray(2 * BLOCK)).cast("B", (4, BLOCK // 2))):
        with pytest.raises(ConfigError, match="shape"):
            open_fs_tier(config, RUN, view)


def test_a_slice_of_unaligned_memory_still_works(tmp_path: Path) -> None:
    memory = mmap.mmap(-1, 2 * BLOCK)
    view = memoryview(memory)[8 : BLOCK + 8].cast("B", (1, BLOCK))
    manager = open_fs_tier(FsTierConfig(root_dir=str(tmp_path), block_bytes=BLOCK), RUN, view)
    assert not manager.blockio.direct
    memory[8 : BLOCK + 8] = content(1)
    manager.submit_store(TransferJob(1, (key(1),), (0,), False, REQUEST))
    manager.drain_jobs()
    assert [r.success for r in manager.get_finished_jobs()] == [True]
    manager.shutdown()


def test_failed_construction_leaks_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(RootError):
            Tier(root)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, fds)


def test_too_few_descriptors_fail_cleanly_and_recover(tmp_path: Path) -> None:
    """EMFILE is a failed block, not a crash; when descriptors are back, so is the tier."""
    script = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.tiering.kvtier.fs.test_manager import Tier, Recorder
recorder = Recorder()
tier = Tier(Path(sys.argv[1]), recorder)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
held = [os.open("/dev/null", os.O_RDONLY)]
resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, hard))
assert not tier.store(range(4)).success
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
assert tier.store(range(4)).success
assert tier.load(range(4)).success
print(dict(recorder.jobs()[0].failures))
tier.manager.shutdown()
"""
    child = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parents[4])], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "{'EMFILE': 4}"


SHARER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.tiering.kvtier.fs.test_manager import Tier, Recorder, content
recorder = Recorder()
tier = Tier(Path(sys.argv[1]), recorder)
print("ready", flush=True)
first = int(sys.stdin.readline())
for start in range(first, first + 40, 8):
    assert tier.store(range(start, start + 8)).success
print("stored", flush=True)
other = int(sys.stdin.readline())
for start in range(other, other + 40, 8):
    result = tier.load(range(start, start + 8))
    assert result.success, result
    for slot in range(8):
        assert tier.slot(slot) == content(start + slot)
print(sum(job.blocks_cross_process for job in recorder.jobs()), flush=True)
tier.manager.shutdown()
"""


def test_two_processes_share_one_root(tmp_path: Path) -> None:
    """Each stores blocks, half of them the same at the same time; each then loads what the other one stored."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SHARER, str(tmp_path), str(Path(__file__).parents[4])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for word, numbers in (("ready", (0, 20)), ("stored", (20, 0))):
            for child in children:
                assert child.stdout
                assert child.stdout.readline().strip() == word
            for child, number in zip(children, numbers, strict=True):
                assert child.stdin
                child.stdin.write(f"{number}\n")
                child.stdin.flush()
        foreign = [int(child.stdout.readline()) for child in children if child.stdout]
        assert all(count >= 20 for count in foreign), "the trailer says who wrote a block"
    finally:
        for child in children:
            child.communicate(timeout=30)
    assert [child.returncode for child in children] == [0, 0]
    assert len(list(tmp_path.rglob("*.bin"))) == 60
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_process_with_another_seed_is_refused_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    Tier(tmp_path).manager.shutdown()
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    with pytest.raises(RootError, match="PYTHONHASHSEED"):
        Tier(tmp_path)
    Tier(tmp_path, on_mismatch="warn").manager.shutdown()
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    Tier(tmp_path).manager.shutdown()


def test_files_are_where_vllm_looks_for_them(tier: Tier, tmp_path: Path) -> None:
    tier.store([7])
    digest = key(7).hex()[:64]
    base = Path(tier.manager.file_mapper.base_path)
    assert tier.path(7) == Path(f"{base}_r0/{digest[:3]}/{digest[3:5]}_g0/{digest}.bin")
    assert json.loads((base / "config.json").read_text())["model_name"] == "org/model"


def test_the_status_line_has_the_state_of_all_parts(tier: Tier, tmp_path: Path) -> None:
    tier.store([1, 2])
    tier.manager.lookup(key(9), REQUEST)
    assert repr(tier.manager).split("; ") == [
        f"<FileSystemTierManager 'fs' at {tmp_path}: 0 jobs in flight",
        "(<AsyncLookupManager: 0 batches sent, the oldest 0.000 s ago",
        "<PresenceCache: 2 present, 1 requests, 1 probes, 1 unsent>>, "
        "<DualQueueThreadPool: loads 0 queued, 0 running, stores 0 queued, 0 running",
        "2+2 threads, 0 hung",
        "0 jobs in flight>, <Admission: stores go on, quota not set>)>",
    ]
