"""kvtier.cpu.gpu_worker: every test runs on CPU tensors and, where there is a CUDA device, on it; each page has its own
bytes.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import ConfigError
from kvtier.cpu.gpu_worker import CPUOffloadingWorker
from kvtier.events import CopyFinished

POISON = 0xA5
CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")]
# (dtype, shape of one block): pages of 96, 20, 7 and 12 bytes, so that a run of one cache never fits another.
CACHES = [(torch.bfloat16, (2, 8, 3)), (torch.float32, (5,)), (torch.uint8, (7,)), (torch.float16, (3, 2))]
PAGE_BYTES = (96, 20, 7, 12)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 1 << 20) as memory:
        yield memory


def make_caches(device: str, num_blocks: int, seed: int = 0) -> list[torch.Tensor]:
    """Caches of random bytes (never compared as numbers, so NaNs are fine)."""
    generator = torch.Generator().manual_seed(seed)
    caches = []
    for (dtype, shape), page_bytes in zip(CACHES, PAGE_BYTES, strict=True):
        raw = torch.randint(0, 256, (num_blocks, page_bytes), dtype=torch.uint8, generator=generator)
        caches.append(raw.view(dtype).view(num_blocks, *shape).to(device))
    return caches


def pages(caches: Sequence[torch.Tensor], block: int) -> bytes:
    return b"".join(page_of(cache, block) for cache in caches)


def page_of(cache: torch.Tensor, block: int) -> bytes:
    return bytes(cache[block].cpu().contiguous().flatten().view(torch.uint8).tolist())


def make_slots(memory: mmap.mmap, num_slots: int, block_bytes: int) -> memoryview:
    memory[: num_slots * block_bytes] = bytes([POISON]) * (num_slots * block_bytes)
    return memoryview(memory)[: num_slots * block_bytes].cast("B", (num_slots, block_bytes))


def slot_bytes(slots: memoryview, slot: int) -> bytes:
    assert slots.shape is not None
    return slots.cast("B")[slot * slots.shape[1] : (slot + 1) * slots.shape[1]].tobytes()


def settle(worker: CPUOffloadingWorker) -> list[CopyFinished]:
    worker.wait()
    return worker.poll()


def expected_slot(caches: Sequence[torch.Tensor], blocks: Sequence[int], block_bytes: int) -> bytes:
    """Caches in order, the chunk's pages in order, zeros: the layout in one line, written apart from the worker."""
    return b"".join(page_of(cache, block) for cache in caches for block in blocks).ljust(block_bytes, b"\0")


@pytest.mark.parametrize("blocks_per_chunk", [1, 3])
def test_a_store_fills_exactly_its_slots(device: str, memory: mmap.mmap, blocks_per_chunk: int) -> None:
    caches, slots = make_caches(device, 12), make_slots(memory, 6, 512)
    worker = CPUOffloadingWorker(caches, slots, blocks_per_chunk)
    blocks, chunk_ids = [7, 8, 9, 3, 0, 11, 4, 5, 6][: 3 * blocks_per_chunk], [4, 5, 1]
    worker.submit_store(1, blocks, chunk_ids)
    (report,) = settle(worker)
    assert report[:4] == ("store", 1, 3, 3 * blocks_per_chunk * sum(PAGE_BYTES))
    assert report.ok
    for index, slot in enumerate(chunk_ids):
        chunk = blocks[index * blocks_per_chunk : (index + 1) * blocks_per_chunk]
        assert slot_bytes(slots, slot) == expected_slot(caches, chunk, 512)
    for slot in {0, 2, 3}:
        assert slot_bytes(slots, slot) == bytes([POISON]) * 512
    worker.shutdown()


@given(st.data())
def test_what_was_stored_comes_back_wherever_it_goes(data: st.DataObject) -> None:
    device = data.draw(st.sampled_from(["cpu"] + ["cuda"] * torch.cuda.is_available()))
    num_blocks, num_slots, per_chunk = 24, 10, data.draw(st.integers(1, 4))
    chunks = data.draw(st.integers(0, min(num_slots, num_blocks // per_chunk)))
    distinct = lambda count, limit: data.draw(  # noqa: E731
        st.lists(st.integers(0, limit - 1), min_size=count, max_size=count, unique=True)
    )
    padding = data.draw(st.sampled_from([0, 1, 77]))
    block_bytes = per_chunk * sum(PAGE_BYTES) + padding
    with mmap.mmap(-1, num_slots * block_bytes) as memory:
        slots = make_slots(memory, num_slots, block_bytes)
        caches = make_caches(device, num_blocks)
        worker = CPUOffloadingWorker(caches, slots, per_chunk)
        sources, targets, chunk_ids = (
            distinct(chunks * per_chunk, num_blocks),
            distinct(chunks * per_chunk, num_blocks),
            distinct(chunks, num_slots),
        )
        before = [pages(caches, block) for block in range(num_blocks)]
        worker.submit_store(1, sources, chunk_ids)
        settle(worker)
        for block in targets:
            for cache in caches:
                cache[block].zero_()
        untouched = set(range(num_blocks)) - set(targets)
        worker.submit_load(2, targets, chunk_ids)
        settle(worker)
        assert [pages(caches, block) for block in targets] == [before[block] for block in sources]
        assert all(pages(caches, block) == before[block] for block in untouched)
        worker.shutdown()
        slots.release()


@pytest.mark.parametrize("order", ["consecutive", "reversed"])
def test_neighbours_are_copied_together_and_strangers_apart(memory: mmap.mmap, order: str) -> None:
    """A single cache that fills its slots is one contiguous piece; nothing else may be joined."""
    cache = torch.arange(32 * 16, dtype=torch.int32).view(32, 16)
    slots = make_slots(memory, 8, 4 * 64)
    worker = CPUOffloadingWorker([cache], slots, blocks_per_chunk=4)
    blocks = list(range(32)) if order == "consecutive" else list(reversed(range(32)))
    runs = list(worker._runs(blocks, list(range(8))))
    assert len(runs) == (1 if order == "consecutive" else 32)
    assert sum(run.length for run in runs) == 32
    worker.shutdown()


def test_blocks_with_gaps_between_them(device: str, memory: mmap.mmap) -> None:
    """A cache that is a slice of a wider one: its blocks are contiguous, the cache is not."""
    wide = torch.arange(8 * 16, dtype=torch.int32, device=device).view(8, 16)
    slots = make_slots(memory, 8, 32)
    worker = CPUOffloadingWorker([wide[:, 4:12]], slots)
    assert len(list(worker._runs(range(8), range(8)))) == 8
    worker.submit_store(1, range(8), range(8))
    settle(worker)
    wide.zero_()
    worker.submit_load(2, range(8), range(8))
    settle(worker)
    expected = torch.arange(8 * 16, dtype=torch.int32).view(8, 16)
    assert torch.equal(wide[:, 4:12].cpu(), expected[:, 4:12])
    assert not wide[:, :4].any()
    assert not wide[:, 12:].any()
    worker.shutdown()


def test_each_job_is_reported_once_and_in_order_of_its_direction(device: str, memory: mmap.mmap) -> None:
    caches, slots = make_caches(device, 16), make_slots(memory, 16, 256)
    worker = CPUOffloadingWorker(caches, slots)
    for number in range(8):
        worker.submit_store(number, [number], [number])
    worker.submit_load(100, [15], [15])
    worker.submit_store(101, [], [])
    reports: list[CopyFinished] = []
    deadline = time.monotonic() + 60
    while len(reports) < 10 and time.monotonic() < deadline:
        reports += worker.poll()
    assert [r.job_id for r in reports if r.direction == "store"] == [*range(8), 101]
    assert [r.job_id for r in reports if r.direction == "load"] == [100]
    assert worker.poll() == []
    worker.submit_store(102, [1], [1])
    worker.shutdown()
    assert [r.job_id for r in worker.poll()] == [102]
    assert worker.poll() == []


def test_after_shutdown_the_slots_memory_can_be_given_back(device: str) -> None:
    memory = mmap.mmap(-1, 4096)
    slots = make_slots(memory, 1, 4096)
    worker = CPUOffloadingWorker(make_caches(device, 2), slots)
    worker.submit_store(1, [0], [0])
    with pytest.raises(BufferError):
        memory.close()
    worker.shutdown()
    slots.release()
    memory.close()


@pytest.mark.parametrize(
    ("blocks", "chunk_ids", "words"),
    [
        ([8], [0], "block 8 is out of range; there are 8"),
        ([-1], [0], "block -1 is out of range"),
        ([0], [4], "slot 4 is out of range; there are 4"),
        ([0], [-1], "slot -1 is out of range"),
        ([0, 1], [0], "2 blocks for 1 slots of 1 blocks"),
        ([0, 0], [1, 1], "names a target twice"),
    ],
)
@pytest.mark.parametrize("direction", ["store", "load"])
def test_a_bad_job_touches_nothing(
    device: str, memory: mmap.mmap, direction: str, blocks: list[int], chunk_ids: list[int], words: str
) -> None:
    caches, slots = make_caches(device, 8), make_slots(memory, 4, 256)
    before = [pages(caches, block) for block in range(8)]
    worker = CPUOffloadingWorker(caches, slots)
    with pytest.raises(AssertionError, match=words):
        getattr(worker, f"submit_{direction}")(1, blocks, chunk_ids)
    assert settle(worker) == []
    assert bytes(slots) == bytes([POISON]) * (4 * 256)
    assert [pages(caches, block) for block in range(8)] == before
    worker.shutdown()


def test_one_block_may_be_stored_to_two_slots(device: str, memory: mmap.mmap) -> None:
    caches, slots = make_caches(device, 8), make_slots(memory, 4, 256)
    worker = CPUOffloadingWorker(caches, slots)
    worker.submit_store(1, [5, 5], [0, 3])
    settle(worker)
    assert slot_bytes(slots, 0) == slot_bytes(slots, 3) == expected_slot(caches, [5], 256)
    worker.shutdown()


@pytest.mark.parametrize(
    ("caches", "blocks_per_chunk", "words"),
    [
        ([], 1, "0 caches, 1 blocks a chunk"),
        ([torch.zeros(4, 8)], 0, "1 caches, 0 blocks a chunk"),
        ([torch.zeros(4, 8)], 9, "block_bytes is 256; a chunk needs at least 288"),
        ([torch.zeros(4, 8, 2).transpose(1, 2)], 1, r"shape \(4, 2, 8\) has strides \(16, 1, 2\)"),
        ([torch.zeros(4, 8), torch.zeros(4, 8, device="meta")], 1, "the caches are on cpu, meta"),
    ],
)
def test_what_cannot_fit_is_refused(
    memory: mmap.mmap, caches: list[torch.Tensor], blocks_per_chunk: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        CPUOffloadingWorker(caches, make_slots(memory, 4, 256), blocks_per_chunk)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_copy_follows_what_the_callers_stream_was_given_and_submit_returns_before_it(memory: mmap.mmap) -> None:
    cache = torch.zeros(4, 64, device="cuda")
    worker = CPUOffloadingWorker([cache], make_slots(memory, 4, 256))
    assert worker._slots.is_pinned()
    torch.cuda._sleep(int(1e9))
    cache.fill_(7)
    worker.submit_store(1, range(4), range(4))
    assert worker.poll() == []  # the caller's stream still sleeps
    settle(worker)
    assert torch.equal(worker._slots[:1024].clone().view(torch.float32), torch.full((256,), 7.0))
    worker.shutdown()
