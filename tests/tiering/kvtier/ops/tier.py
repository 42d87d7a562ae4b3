"""A tier below a temporary root, for the tests of operations: its blocks can be counted and aged."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvtier.base import ReqContext, TransferJob
from kvtier.config import FsTierConfig, RunConfig
from kvtier.events import Event
from kvtier.factory import open_fs_tier
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key

BLOCK = 4096
FILE = BLOCK + 4096
SLOTS = 256


def key(number: int) -> OffloadKey:
    return make_offload_key(BlockHash(number.to_bytes(4, "big")[::-1] * 8), 0)


class Tier:
    """A file tier of 256 slots, and its events."""

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


def present(tier: Tier, numbers: Sequence[int]) -> list[int]:
    return [number for number in numbers if tier.path(number).exists()]
