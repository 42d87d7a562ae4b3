"""LMCache 0.5.6's FSL2Adapter as a tier under test; the only importer of lmcache, in workers of its environment.

A lookup is a task: its first call says "retry", and a later one has the answer, which is used once. LMCache reports a
store as one success or failure of the whole task ("we only provide a coarse-grained error handling"), and so does this
adapter. `close` cancels tasks, whose jobs are failed. Usage statistics are switched off.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar

from harness.adapters.base import Finished, PeerMissing, TierSetup, Verdict
from harness.adapters.peer_adapter import PeerAdapter, check_version

HASH_BYTES = 32  # of a key; 4 bytes of the object group and the cache salt follow
DRAIN_SECONDS = 0.001


def import_peer() -> SimpleNamespace:
    """The modules that the adapter uses. Raises `PeerMissing`."""
    os.environ["LMCACHE_TRACK_USAGE"] = "false"
    os.environ.setdefault("LMCACHE_LOG_LEVEL", "CRITICAL")
    check_version("lmcache", "lmcache")
    try:
        return SimpleNamespace(
            api=import_module("lmcache.v1.distributed.api"),
            adapter=import_module("lmcache.v1.distributed.l2_adapters.fs_l2_adapter"),
            hasher=import_module("lmcache.v1.multiprocess.token_hasher"),
            memory=import_module("lmcache.v1.memory_management"),
            torch=import_module("torch"),
        )
    except ImportError as error:
        raise PeerMissing(f"LMCache cannot be imported: {error}") from error


class LmcacheAdapter(PeerAdapter):
    """LMCache's FSL2Adapter, driven as its store and prefetch controllers drive it.

    Options: `use_odirect` (false), the adapter's own. `one_thread` (false) gives its event loop an executor of one
    thread instead of asyncio's default, so that a schedule of system calls can be replayed.
    """

    name: ClassVar[str] = "lmcache"
    separates: ClassVar[tuple[str, ...]] = ("model_name", "ranks", "rank")
    hash_algorithms: ClassVar[tuple[str, ...]] = ("blake3",)
    choices: ClassVar[Mapping[str, bool]] = {"one_thread": False, "use_odirect": False}

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._lmcache = import_peer()
        self._hasher = self._lmcache.hasher.TokenHasher(setup.tokens_per_block, "blake3")
        config = self._lmcache.adapter.FSL2AdapterConfig(setup.root_dir, use_odirect=self.options["use_odirect"])
        self._tier = self._lmcache.adapter.FSL2Adapter(config)
        if self.options["one_thread"]:
            self._tier._loop.set_default_executor(ThreadPoolExecutor(1))
        self._kv_rank = self._lmcache.api.ObjectKey.ComputeKVRank(setup.ranks, setup.rank, setup.ranks, setup.rank)
        slab = self._lmcache.torch.frombuffer(self.memory, dtype=self._lmcache.torch.uint8)
        self._objects = [self._object(slab, slot) for slot in range(setup.slots)]
        self._stores: dict[int, tuple[int, Sequence[bytes]]] = {}  # task -> job
        self._loads: dict[int, tuple[int, Sequence[bytes]]] = {}
        self._lookups: dict[int, list[tuple[str, bytes]]] = {}
        self._asked: set[tuple[str, bytes]] = set()
        self._answers: dict[tuple[str, bytes], bool] = {}
        self._closed = False

    def _object(self, slab: Any, slot: int) -> Any:
        torch, size = self._lmcache.torch, self.setup.block_bytes
        part = slab[slot * size : (slot + 1) * size]
        metadata = self._lmcache.memory.MemoryObjMetadata(
            shape=torch.Size([size]), dtype=torch.uint8, address=slot * size, phy_size=size, ref_count=1
        )
        return self._lmcache.memory.TensorMemoryObj(part, metadata, parent_allocator=None)

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return self._named(tokens, parent[:HASH_BYTES] if parent else None, parent[HASH_BYTES:] if parent else bytes(4))

    def salted_keys(self, tokens: Sequence[int], salt: str) -> list[bytes]:
        return self._named(tokens, None, bytes(4) + salt.encode())

    def other_group(self, key: bytes) -> bytes:
        return key[:HASH_BYTES] + (1).to_bytes(4, "big") + key[HASH_BYTES + 4 :]

    def _named(self, tokens: Sequence[int], parent: bytes | None, rest: bytes) -> list[bytes]:
        hashes = self._hasher.compute_chunk_hashes([int(token) for token in tokens], parent)
        return [digest + rest for digest in hashes]

    def none_hash_digest(self) -> str:
        return hashlib.sha256(self._hasher.none_hash).hexdigest()

    def file_name(self, key: bytes) -> str | None:
        return str(self._lmcache.adapter._object_key_to_filename(self._key(key)))

    def _key(self, key: bytes) -> Any:
        group, salt = key[HASH_BYTES : HASH_BYTES + 4], key[HASH_BYTES + 4 :]
        return self._lmcache.api.ObjectKey(
            key[:HASH_BYTES], self.setup.model_name, self._kv_rank, int.from_bytes(group, "big"), salt.decode()
        )

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        self._take_lookups()
        new = [pair for key in dict.fromkeys(keys) if (pair := (req_id, key)) not in self._asked | self._answers.keys()]
        if new:
            task = self._tier.submit_lookup_and_lock_task([self._key(key) for _, key in new], {})
            self._lookups[task] = new
            self._asked.update(new)
        found: dict[bytes, bool | None] = {key: self._answers.pop((req_id, key), None) for key in dict.fromkeys(keys)}
        words: dict[bool | None, Verdict] = {True: "hit", False: "miss", None: "retry"}
        return [words[found[key]] for key in keys]

    def _take_lookups(self) -> None:
        for task, pairs in list(self._lookups.items()):
            if (bitmap := self._tier.query_lookup_and_lock_result(task)) is not None:
                self._answers.update({pair: bitmap.test(i) for i, pair in enumerate(pairs)})
                self._asked.difference_update(pairs)
                del self._lookups[task]

    def request_finished(self, req_id: str) -> None:
        self._answers = {pair: found for pair, found in self._answers.items() if pair[0] != req_id}

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        task = self._tier.submit_store_task([self._key(key) for key in keys], [self._objects[slot] for slot in slots])
        self._stores[task] = job_id, keys

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        task = self._tier.submit_load_task([self._key(key) for key in keys], [self._objects[slot] for slot in slots])
        self._loads[task] = job_id, keys

    def poll(self) -> list[Finished]:
        if not self._closed:
            self._take()
        return super().poll()

    def _take(self) -> None:
        for task, result in self._tier.pop_completed_store_tasks().items():
            job_id, keys = self._stores.pop(task)
            self.finished.append(Finished(job_id, keys, ()) if result.is_successful() else Finished(job_id, (), keys))
        for task, (job_id, keys) in list(self._loads.items()):
            if (bitmap := self._tier.query_load_result(task)) is not None:
                del self._loads[task]
                ok = [key for i, key in enumerate(keys) if bitmap.test(i)]
                failed = [key for i, key in enumerate(keys) if not bitmap.test(i)]
                self._tier.submit_unlock([self._key(key) for key in keys])
                self.finished.append(Finished(job_id, ok, failed))

    def has_pending_work(self) -> bool:
        return bool(self._stores or self._loads or self.finished)

    def drain(self) -> None:
        """FSL2Adapter has no call for it: wait until every task has a result."""
        while not self._closed and (self._stores or self._loads):
            self._take()
            time.sleep(DRAIN_SECONDS)

    def close(self) -> None:
        if not self._closed:
            self._take()
            self._tier.close()
            self._take()
            self._closed = True
            cancelled = [*self._stores.values(), *self._loads.values()]  # without a result of their own
            self.finished += [Finished(job_id, (), keys) for job_id, keys in cancelled]
