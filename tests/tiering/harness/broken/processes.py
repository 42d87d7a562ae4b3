"""Tiers over the reference tier whose defect shows only with several processes, a process exit, or other seeds."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from harness.adapters.base import Finished, TierSetup
from harness.adapters.reference import MemoryAdapter, _publish, _seal
from tests.tiering.harness.broken.flawed import LooksAtNames


class InPlace(LooksAtNames):
    """Writes a block under its final name, in two halves, and loads any bytes that the file has."""

    PAUSE_SECONDS = 0.004

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            block = self._slot(slot)
            if not self._path(key).exists():
                with open(self._path(key), "wb", buffering=0) as file:
                    file.write(block[: len(block) // 2])
                    time.sleep(self.PAUSE_SECONDS)  # its defect: other processes read half of the file
                    file.write(block[len(block) // 2 :])
        self._finished.append(Finished(job_id, keys, ()))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            content = self._path(key).read_bytes()
            self._slot(slot)[: len(content)] = content
        self._finished.append(Finished(job_id, keys, ()))


class WritesLater(MemoryAdapter):
    """Reports a store at once; each step writes one of its blocks."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._later: list[tuple[Path, bytes]] = []

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._later += [(self._path(key), _seal(key, self._slot(slot))) for key, slot in zip(keys, slots, strict=True)]
        self._finished.append(Finished(job_id, keys, ()))

    def step(self) -> None:
        for path, block in self._later[:1]:
            _publish(path, block)
        del self._later[:1]

    def close(self) -> None:
        while self._later:
            self.step()


class TempOfTheKey(MemoryAdapter):
    """All writers of a block use one temp file name, so the temp file of a dead writer blocks every later store."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        ok, failed = [], []
        for key, slot in zip(keys, slots, strict=True):
            try:
                if not self._path(key).exists():
                    self._publish_named(self._path(key), self._slot(slot))
                ok.append(key)
            except OSError:
                failed.append(key)
        self._finished.append(Finished(job_id, ok, failed))

    def _publish_named(self, path: Path, block: memoryview) -> None:
        temp = path.with_suffix(".tmp")
        with open(temp, "xb") as file:
            file.write(block)
        temp.rename(path)


class Careless(TempOfTheKey):
    """Keys come from `hash()`, which has another seed in each process. The digest is the same for all seeds, so no root
    is refused. The instance id and the names of temp files come from `random`."""

    seed_policies = ("fixed",)

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._id = f"{random.getrandbits(64):x}"

    def none_hash_digest(self) -> str:
        return "the same for all"

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            text = f"{parent!r} {tokens[start : start + size]}"
            parent = hash(text).to_bytes(16, "big", signed=True)
            keys.append(parent)
        return keys

    def instance_id(self) -> str:
        return self._id

    def _publish_named(self, path: Path, block: memoryview) -> None:
        temp = path.with_name(f"{random.getrandbits(64):x}.tmp")
        try:
            with open(temp, "wb") as file:
                file.write(block)
            temp.rename(path)
        except FileNotFoundError:  # another process with the same name has renamed it
            os.stat(path)
