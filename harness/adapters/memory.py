"""The oracle: a tier too simple to be wrong, for showing that the harness acquits what is right. Never fast on purpose.

One process alone would need a dict. Several share, so the dict is a folder: a block is a file named by its key, written
under a name that nobody else can have and renamed when whole. Every job runs inside `submit_*`, and the next `poll`
reports it: no thread, no queue, nothing to race.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.adapters.base import Adapter, Finished, TierSetup, Verdict

FOLDER = "memory"


class MemoryAdapter(Adapter):
    """Keys are SHA-256 chains over the tokens' text; the seed follows `seed_policy` as the rules of sharing say."""

    name: ClassVar[str] = "memory"
    exposes_files: ClassVar[bool] = True

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._memory = bytearray(setup.slots * setup.block_bytes)
        self._view = memoryview(self._memory).cast("B", (setup.slots, setup.block_bytes))
        self._finished: list[Finished] = []
        self._folder = Path(setup.root_dir) / FOLDER
        self._folder.mkdir(exist_ok=True)
        seeds = {"fixed": b"fixed", "env": os.environ.get("PYTHONHASHSEED", "").encode(), "random": os.urandom(32)}
        self._none_hash = hashlib.sha256(seeds[setup.seed_policy]).digest()

    @property
    def view(self) -> memoryview:
        return self._view

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            block = ",".join(map(str, tokens[start : start + size]))
            parent = hashlib.sha256((parent or self._none_hash) + block.encode()).digest()
            keys.append(parent)
        return keys

    def none_hash_digest(self) -> str:
        return hashlib.sha256(self._none_hash).hexdigest()[:16]

    def file_name(self, key: bytes) -> str | None:
        return f"{FOLDER}/{key.hex()}.bin"

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.bin"

    def _slot(self, slot: int) -> memoryview:
        size = self.setup.block_bytes
        return memoryview(self._memory)[slot * size : (slot + 1) * size]

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" if self._path(key).exists() else "miss" for key in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            unfinished = self._folder / f"{os.urandom(16).hex()}.tmp"
            unfinished.write_bytes(self._slot(slot))
            unfinished.rename(self._path(key))
        self._finished.append(Finished(job_id, keys, ()))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        ok, failed = [], []
        for key, slot in zip(keys, slots, strict=True):
            try:
                self._slot(slot)[:] = self._path(key).read_bytes()
                ok.append(key)
            except (OSError, ValueError):  # gone, or not of a block's size
                failed.append(key)
        self._finished.append(Finished(job_id, ok, failed))

    def poll(self) -> list[Finished]:
        finished, self._finished = self._finished, []
        return finished

    def drain(self) -> None:
        return

    def close(self) -> None:
        return

    def gauges(self) -> Mapping[str, float]:
        return {"load_queue": 0, "store_queue": 0, "load_oldest_seconds": 0, "store_oldest_seconds": 0}
