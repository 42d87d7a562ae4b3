"""AIBrix KV cache 0.8.0's SHFSConnector as a tier under test; the only importer of aibrix_kvcache, in its environment.

Its calls are coroutines that run in the executor of the connector. The engine waits for them, and so does this adapter:
every job runs inside its submit. Token validation is off, as it is by default.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar

from harness.adapters.base import Finished, PeerMissing, TierSetup, Verdict
from harness.adapters.peer_adapter import PeerAdapter, check_version


def import_peer() -> SimpleNamespace:
    """The modules that the adapter uses. Raises `PeerMissing`."""
    check_version("aibrix", "aibrix-kvcache")
    try:
        modules = SimpleNamespace(
            builders=import_module("aibrix_kvcache.l2.key_builders"),
            connectors=import_module("aibrix_kvcache.l2.connectors"),
            memory=import_module("aibrix_kvcache.memory"),
            shfs=import_module("aibrix_kvcache.l2.connectors.shfs"),
            tokens=import_module("aibrix_kvcache.cache_hashable"),
            torch=import_module("torch"),
            utils=import_module("aibrix_kvcache.utils"),
        )
    except ImportError as error:
        raise PeerMissing(f"AIBrix KV cache cannot be imported: {error}") from error
    modules.shfs.logger.setLevel(logging.CRITICAL)
    return modules


class AibrixAdapter(PeerAdapter):
    """AIBrix's SHFSConnector, driven as its L2Cache drives it: `exists`, `mget` and `mput`, with rolling hashes."""

    name: ClassVar[str] = "aibrix"
    runs_in_submit: ClassVar[bool] = True
    forgets: ClassVar[bool] = True
    separates: ClassVar[tuple[str, ...]] = ("model_name", "dtype")
    hash_algorithms: ClassVar[tuple[str, ...]] = ("farmhash",)

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._aibrix = import_peer()
        self._executor = ThreadPoolExecutor(max(1, setup.n_read_threads))
        os.environ["AIBRIX_KV_CACHE_OL_SHFS_ROOT"] = setup.root_dir
        self._folder = f"{setup.model_name.replace('/', '-')}_h0_0_l0_0_{setup.dtype}roc"
        self._tier = self._aibrix.shfs.SHFSConnector.from_envs(self._folder, self._executor)
        if not (status := self._tier.open()).is_ok():
            raise OSError(str(status))
        self._loop = asyncio.SelectorEventLoop()  # uvloop, which AIBrix sets, keeps a pipe for the whole process
        slab = self._aibrix.torch.frombuffer(self.memory, dtype=self._aibrix.torch.uint8)
        size = setup.block_bytes
        self._regions = [
            self._aibrix.memory.ExternalMemoryRegion(slab, slot * size, size) for slot in range(setup.slots)
        ]
        self._hasher = self._aibrix.builders.FarmHasher()
        self._closed = False

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        """As AIBrix's RollingHashKeyBuilder makes them, which takes the tokens of the prefix instead of its key."""
        keys, size = [], self.setup.tokens_per_block
        view = memoryview(self._aibrix.tokens.TokenListView([int(token) for token in tokens])._data.data)
        for start in range(0, len(tokens) - size + 1, size):
            digest = self._hasher.hash(view[start : start + size])
            if parent is not None:
                digest = self._aibrix.utils.hash_combine_128(int.from_bytes(parent, "big"), digest)
            parent = digest.to_bytes(16, "big")
            keys.append(parent)
        return keys

    def none_hash_digest(self) -> str:
        """AIBrix's chains begin without a seed."""
        return hashlib.sha256(b"").hexdigest()

    def file_name(self, key: bytes) -> str | None:
        return os.path.relpath(self._tier._key_to_filepath(key), self.setup.root_dir)

    def _wait(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(call)

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        async def ask() -> list[Any]:
            return await asyncio.gather(*(self._tier.exists(key) for key in keys))

        return ["hit" if status.is_ok() else "miss" for status in self._wait(ask())]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._done(job_id, keys, self._wait(self._tier.mput(keys, [self._regions[slot] for slot in slots])))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._done(job_id, keys, self._wait(self._tier.mget(keys, [self._regions[slot] for slot in slots])))

    def _done(self, job_id: int, keys: Sequence[bytes], statuses: Any) -> None:
        each = statuses if isinstance(statuses, Sequence) else [statuses] * len(keys)  # one for all, if it raised
        ok = [key for key, status in zip(keys, each, strict=True) if status.is_ok()]
        failed = [key for key, status in zip(keys, each, strict=True) if not status.is_ok()]
        self.finished.append(Finished(job_id, ok, failed))

    def has_pending_work(self) -> bool:
        return bool(self.finished)

    def drain(self) -> None:
        return

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._tier.close()
            self._executor.shutdown()
            self._loop.close()
