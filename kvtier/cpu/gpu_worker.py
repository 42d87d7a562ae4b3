"""KV blocks between a device's caches and the CPU tier's slots; an engine's worker process owns one per device.

The only importer of torch. It decides nothing about caching, never synchronises the caller's stream, and never blocks
but in `wait` and `shutdown`. On CPU tensors the same calls copy at once and report in `poll` all the same.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from kvtier.config import ConfigError, KvtierError
from kvtier.events import CopyFinished, Direction

logger = logging.getLogger(__name__)


class _Copy(NamedTuple):
    """A job under way on a device: its events are recorded before and after its copies."""

    finished: CopyFinished
    started: torch.cuda.Event
    ended: torch.cuda.Event


class _Run(NamedTuple):
    """`length` pages of a cache, adjacent there from `page` on and in the slots from byte `offset` on."""

    cache: int
    page: int
    offset: int
    length: int


class CPUOffloadingWorker:
    """Copies chunks between `kv_caches` and `slots`.

    A chunk is `blocks_per_chunk` GPU blocks and fills one slot: for each cache in order, the pages of its blocks, then
    padding, which a store sets to zero, so equal KV data gives equal bytes in the slot. A cache is a tensor of shape
    (num_blocks, ...), all on one device; page size = bytes of one block of it; pages may differ between caches.
    `slots` is the CPU tier's memory, writable, C-contiguous, shape (slots, block_bytes); on CUDA it is pinned here and
    stays so until `shutdown`, after which it is no longer referenced. Raises `ConfigError` when a chunk does not fit.

    Each direction has a stream of its own, so loads never queue behind stores. Between `submit_*` and its
    `CopyFinished` the caller keeps off the blocks and slots of a job; what its current stream had been given before
    the call is finished before the copy begins. Jobs of one direction finish in order. One thread calls everything.
    """

    def __init__(self, kv_caches: Sequence[torch.Tensor], slots: memoryview, blocks_per_chunk: int = 1) -> None:
        if not kv_caches or blocks_per_chunk < 1:
            raise ConfigError(f"{len(kv_caches)} caches, {blocks_per_chunk} blocks a chunk; each must be at least 1")
        self.device = kv_caches[0].device
        if self.device.type not in ("cpu", "cuda") or any(cache.device != self.device for cache in kv_caches):
            devices = ", ".join(sorted({str(cache.device) for cache in kv_caches}))
            raise ConfigError(f"the caches are on {devices}; one worker serves one device, of type cpu or cuda")
        shape = slots.shape
        assert shape and len(shape) == 2 and slots.c_contiguous and not slots.readonly, f"slots of shape {shape}"
        self._num_slots, self._block_bytes = shape
        self._pages = [_as_pages(cache) for cache in kv_caches]
        self._num_blocks = min(pages.shape[0] for pages in self._pages)
        self._blocks_per_chunk = blocks_per_chunk
        self.chunk_bytes = blocks_per_chunk * sum(pages.shape[1] for pages in self._pages)
        if self.chunk_bytes > self._block_bytes:
            raise ConfigError(f"block_bytes is {self._block_bytes}; a chunk needs at least {self.chunk_bytes}")
        self._slots = torch.frombuffer(slots.cast("B"), dtype=torch.uint8)
        self._done: deque[CopyFinished] = deque()
        self._copies: dict[Direction, deque[_Copy]] = {"load": deque(), "store": deque()}
        self._streams: dict[Direction, torch.cuda.Stream] = {}
        if self.device.type == "cuda":
            self._pin()
            # A lower number is a higher priority: a request waits for a load, none for a store.
            self._streams = {"load": torch.cuda.Stream(self.device, -1), "store": torch.cuda.Stream(self.device, 0)}

    def submit_store(self, job_id: int, block_ids: Sequence[int], chunk_ids: Sequence[int]) -> None:
        """Device -> slots: blocks [i * blocks_per_chunk, (i + 1) * blocks_per_chunk) of `block_ids` fill slot
        `chunk_ids[i]`. Returns at once."""
        self._submit("store", job_id, block_ids, chunk_ids)

    def submit_load(self, job_id: int, block_ids: Sequence[int], chunk_ids: Sequence[int]) -> None:
        """Slots -> device, with the meaning of `submit_store`. Returns at once."""
        self._submit("load", job_id, block_ids, chunk_ids)

    def poll(self) -> list[CopyFinished]:
        """Jobs that ended since the last call, each exactly once; never blocks."""
        for copies in self._copies.values():
            while copies and self._reap(copies[0]):
                copies.popleft()
        finished = list(self._done)
        self._done.clear()
        return finished

    def wait(self) -> None:
        """Block until every submitted job has ended; `poll` reports them."""
        for copies in self._copies.values():
            for copy in copies:
                try:
                    copy.ended.synchronize()
                except RuntimeError:
                    break  # `poll` reports the device's error, job by job

    def shutdown(self) -> None:
        """Wait, then unpin and let go of the slots. `poll` still reports what had ended."""
        self.wait()
        self._done.extend(self.poll())
        if self._streams:
            torch.cuda.cudart().cudaHostUnregister(self._slots.data_ptr())
        self._slots = torch.empty(0, dtype=torch.uint8)
        self._pages = []

    def _submit(self, direction: Direction, job_id: int, block_ids: Sequence[int], chunk_ids: Sequence[int]) -> None:
        self._check(direction, block_ids, chunk_ids)
        byte_count = len(chunk_ids) * self.chunk_bytes
        finished = CopyFinished(direction, job_id, len(chunk_ids), byte_count, 0.0, True)
        runs = self._runs(block_ids, chunk_ids)
        if direction == "store" and self.chunk_bytes < self._block_bytes:
            for slot in chunk_ids:  # no device copy touches these bytes, so the host may write them now
                self._slots[slot * self._block_bytes + self.chunk_bytes : (slot + 1) * self._block_bytes].zero_()
        if not self._streams:
            started_seconds = time.monotonic()
            self._copy(direction, runs)
            now = time.monotonic()
            self._done.append(finished._replace(seconds=now - started_seconds, finished_seconds=now))
            return
        stream = self._streams[direction]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        copy = _Copy(finished, torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        with torch.cuda.stream(stream):
            copy.started.record()
            self._copy(direction, runs)
            copy.ended.record()
        self._copies[direction].append(copy)

    def _check(self, direction: Direction, block_ids: Sequence[int], chunk_ids: Sequence[int]) -> None:
        per_chunk, targets = self._blocks_per_chunk, block_ids if direction == "load" else chunk_ids
        assert len(block_ids) == len(chunk_ids) * per_chunk, (
            f"{len(block_ids)} blocks for {len(chunk_ids)} slots of {per_chunk} blocks each"
        )
        assert len(set(targets)) == len(targets), f"a {direction} names a target twice: {sorted(targets)}"
        for name, ids, count in (("block", block_ids, self._num_blocks), ("slot", chunk_ids, self._num_slots)):
            bad = [number for number in ids if not 0 <= number < count]
            assert not bad, f"{name} {bad[0]} is out of range; there are {count}, numbered from 0"

    def _runs(self, block_ids: Sequence[int], chunk_ids: Sequence[int]) -> Iterator[_Run]:
        """Every page of the job once, neighbours joined: a strided copy would go through a temporary and wait for it,
        so each run is contiguous on both sides."""
        start = 0  # of this cache's pages within the slot
        for cache, pages in enumerate(self._pages):
            page_bytes, joinable = pages.shape[1], pages.is_contiguous()
            run: _Run | None = None
            for position, page in enumerate(block_ids):
                chunk, block = divmod(position, self._blocks_per_chunk)
                offset = chunk_ids[chunk] * self._block_bytes + start + block * page_bytes
                if run and joinable and (page, offset) == (run.page + run.length, run.offset + run.length * page_bytes):
                    run = run._replace(length=run.length + 1)
                    continue
                if run:
                    yield run
                run = _Run(cache, page, offset, 1)
            if run:
                yield run
            start += self._blocks_per_chunk * page_bytes

    def _copy(self, direction: Direction, runs: Iterator[_Run]) -> None:
        for cache, page, offset, length in runs:
            pages = self._pages[cache]
            on_device = pages[page : page + length]
            in_slot = self._slots[offset : offset + length * pages.shape[1]].view(on_device.shape)
            source, target = (on_device, in_slot) if direction == "store" else (in_slot, on_device)
            target.copy_(source, non_blocking=True)

    def _reap(self, copy: _Copy) -> bool:
        """Whether the job has ended; if so its report is in `_done`."""
        try:
            if not copy.ended.query():
                return False
            seconds = copy.started.elapsed_time(copy.ended) / 1e3
            report = copy.finished._replace(seconds=seconds, finished_seconds=time.monotonic())
        except RuntimeError as error:
            logger.error("copy job %d failed on %s: %s", copy.finished.job_id, self.device, error)
            report = copy.finished._replace(ok=False, finished_seconds=time.monotonic())
        self._done.append(report)
        return True

    def _pin(self) -> None:
        # The slots are the CPU tier's memory, so they are registered where they lie. Unpinned, a copy would block.
        error = torch.cuda.cudart().cudaHostRegister(self._slots.data_ptr(), self._slots.numel(), 0)
        if int(error):
            raise KvtierError(
                f"{self._slots.numel()} bytes of slots cannot be pinned for {self.device} (CUDA error {int(error)}); "
                "check the limit of locked memory (ulimit -l) and that no other worker has pinned them"
            )


def _as_pages(cache: torch.Tensor) -> torch.Tensor:
    """The cache as bytes, shape (num_blocks, page bytes), sharing its memory."""
    try:
        return cache.view(cache.shape[0], -1).view(torch.uint8)
    except RuntimeError as error:
        shape, strides = tuple(cache.shape), cache.stride()
        raise ConfigError(f"a cache of shape {shape} has strides {strides}; each block must be contiguous") from error
