"""vLLM's tiering on a machine without a GPU: an out-of-tree spec that engines of `run.py` name in `spec_module_path`.

vLLM's own worker copies on CUDA streams and refuses other platforms. Here the "GPU" blocks are host memory too, so that
a copy is a copy. All else (scheduler, manager, primary tier, secondary tiers) is vLLM's, untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CpuTieringSpec(TieringOffloadingSpec):  # type: ignore[misc, unused-ignore]
    """As its parent, for the platform "cpu"."""

    _worker: Any

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CpuWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker


class CpuWorker(OffloadingWorker):  # type: ignore[misc, unused-ignore]
    """Copies at once, in `submit_*`: the model ran on this thread, so its writes are done. Reports at the next poll."""

    def __init__(self, kv_caches: Any, blocks_per_chunk: int, region: SharedOffloadRegion) -> None:
        self._blocks_per_chunk = blocks_per_chunk
        self._region = region
        self._groups = kv_caches.group_data_refs
        self._device: list[torch.Tensor] = []  # (blocks, bytes of a block)
        self._host: list[torch.Tensor] = []  # (chunks, blocks of a chunk, bytes of a block)
        for cache in kv_caches.tensors:
            self._device.append(cache.tensor.view(torch.int8).view(-1, cache.page_size_bytes))
            view = region.create_next_worker_view(cache.page_size_bytes * blocks_per_chunk)
            self._host.append(view.unflatten(1, (blocks_per_chunk, cache.page_size_bytes)))
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        copied = 0
        for tensor, size, blocks, chunks, parts in self._pieces(src_spec, dst_spec):
            self._host[tensor][chunks, parts, :size] = self._device[tensor][blocks, :size]
            copied += size * len(blocks)
        self._finished.append(TransferResult(job_id, True, copied, 0.0))
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any, expedited: bool = False) -> bool:
        copied = 0
        for tensor, size, blocks, chunks, parts in self._pieces(dst_spec, src_spec):
            self._device[tensor][blocks, :size] = self._host[tensor][chunks, parts, :size]
            copied += size * len(blocks)
        self._finished.append(TransferResult(job_id, True, copied, 0.0))
        return True

    def _pieces(self, device: Any, host: Any) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(tensor, bytes, device blocks, chunks, block within its chunk). A group may begin within a chunk."""
        block_at = chunk_at = 0
        for refs, count, first in zip(self._groups, device.group_sizes, device.block_indices, strict=True):
            place = first % self._blocks_per_chunk + np.arange(count)
            blocks = torch.from_numpy(device.block_ids[block_at : block_at + count].astype(np.int64))
            chunks = torch.from_numpy(host.block_ids[chunk_at + place // self._blocks_per_chunk].astype(np.int64))
            parts = torch.from_numpy(place % self._blocks_per_chunk)
            for ref in refs if count else ():
                yield ref.tensor_idx, ref.page_size_bytes, blocks, chunks, parts
            block_at += count
            chunk_at += int(place[-1]) // self._blocks_per_chunk + 1 if count else 0

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        return

    def shutdown(self) -> None:
        self._device.clear()
        self._host.clear()
        self._region.cleanup()
