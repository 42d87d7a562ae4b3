"""Ways to copy the pages of one job between a device and pinned slots. Candidates, never run on a CUDA device.

Each is called as `CPUOffloadingWorker._copy` of candidate.patch is: (worker, direction, table of runs, stream handle),
with the worker's stream current. They expect scattered pages of one size, a multiple of 8 bytes; no run is joined.
"""

from collections.abc import Callable
from typing import Any

import torch

from kvtier.cpu.cuda_driver import find_batched_copy

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

Copy = Callable[[Any, str, Any, int], None]

if triton is not None:

    @triton.jit
    def copy_pages(targets, sources, words, BLOCK: tl.constexpr):
        """One program a page; `targets` and `sources` hold addresses, on the device or of pinned memory."""
        page = tl.program_id(0)
        target = tl.load(targets + page).to(tl.pointer_type(tl.int64))
        source = tl.load(sources + page).to(tl.pointer_type(tl.int64))
        for start in range(0, words, BLOCK):
            at = start + tl.arange(0, BLOCK)
            tl.store(target + at, tl.load(source + at, mask=at < words), mask=at < words)


def addresses(worker: Any, direction: str, runs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets, sources and sizes of all runs, as int64 tensors on the host."""
    on_device = worker._bases[runs.cache] + runs.page * worker._strides[runs.cache]
    in_slots = worker._slots.data_ptr() + runs.offset
    sizes = runs.length * worker._page_bytes[runs.cache]
    return (in_slots, on_device, sizes) if direction == "store" else (on_device, in_slots, sizes)


def _launch(worker: Any, targets: torch.Tensor, sources: torch.Tensor) -> None:
    table = torch.stack([targets, sources]).pin_memory().to(worker.device, non_blocking=True)
    copy_pages[(len(targets),)](table[0], table[1], int(worker._page_bytes[0]) // 8, BLOCK=2048, num_warps=8)


def cuda_bindings() -> Copy:
    """cudaMemcpyBatchAsync of NVIDIA's cuda-bindings, which takes Python lists."""
    from cuda.bindings import runtime

    attributes = runtime.cudaMemcpyAttributes()
    attributes.srcAccessOrder = runtime.cudaMemcpySrcAccessOrder.cudaMemcpySrcAccessOrderStream

    def copy(worker: Any, direction: str, runs: Any, stream: int) -> None:
        targets, sources, sizes = (column.tolist() for column in addresses(worker, direction, runs))
        outcome = runtime.cudaMemcpyBatchAsync(targets, sources, sizes, len(sizes), [attributes], [0], 1, stream)
        if int(outcome[0]):
            raise RuntimeError(f"cudaMemcpyBatchAsync: {outcome[0]}")

    return copy


def staged_gather(worker: Any, direction: str, runs: Any, stream: int) -> None:
    """A kernel gathers a store's pages into a staging buffer on the device, then one copy a chunk; a load the other way
    round."""
    slots, chunk = torch.unique(runs.offset // worker._block_bytes, return_inverse=True)
    staging = torch.empty((len(slots), worker.chunk_bytes), dtype=torch.uint8, device=worker.device)
    staged = staging.data_ptr() + chunk * worker.chunk_bytes + runs.offset % worker._block_bytes
    on_device = worker._bases[runs.cache] + runs.page * worker._strides[runs.cache]
    in_slots = worker._slots.view(-1, worker._block_bytes)[:, : worker.chunk_bytes]
    if direction == "store":
        _launch(worker, staged, on_device)
        for row, slot in enumerate(slots.tolist()):
            in_slots[slot].copy_(staging[row], non_blocking=True)
    else:
        for row, slot in enumerate(slots.tolist()):
            staging[row].copy_(in_slots[slot], non_blocking=True)
        _launch(worker, on_device, staged)


def zero_copy(worker: Any, direction: str, runs: Any, stream: int) -> None:
    """A kernel reads and writes the pinned slots itself; no copy engine is used."""
    targets, sources, _ = addresses(worker, direction, runs)
    _launch(worker, targets, sources)


def found() -> tuple[dict[str, Copy | None], dict[str, str]]:
    """The candidates that can run here (None: the worker's own `_copy`), and of the others why they cannot."""
    here: dict[str, Copy | None] = {}
    absent: dict[str, str] = {}
    if find_batched_copy() is not None:
        here["batched driver call"] = None
    else:
        absent["batched driver call"] = "the CUDA driver has no cuMemcpyBatchAsync (CUDA 12.8 and later have it)"
    try:
        here["cuda-bindings"] = cuda_bindings()
    except (ImportError, AttributeError) as error:
        absent["cuda-bindings"] = f"no cudaMemcpyBatchAsync: {error}"
    for name, copy in (("staged gather", staged_gather), ("zero-copy", zero_copy)):
        if triton is not None:
            here[name] = copy
        else:
            absent[name] = "triton is not installed"
    return here, absent
