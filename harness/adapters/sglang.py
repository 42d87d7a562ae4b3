"""SGLang 0.5.23's HiCacheFile as a tier under test; the only importer of sglang, in workers of its environment.

HiCacheFile has no queue: every job runs inside its submit. Pages are stored with `set`, page by page, and loaded with
`batch_get`. An exception that escapes `batch_get` fails the whole job, as SGLang's cache controller treats it.
Keys are those of SGLang's `get_hash_str`, whose C++ source is compiled at run time: SHA-256 over the parent's digest
and the tokens as 32-bit little-endian numbers, computed here with hashlib.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import ClassVar

from harness.adapters.base import Finished, PeerMissing, TierSetup, Verdict
from harness.adapters.peer_adapter import PeerAdapter, check_version

DIGEST_BYTES = 32
GROUP = b".swa"  # ends the keys of another pool's pages: PoolName.SWA


def import_peer() -> SimpleNamespace:
    """The modules that the adapter uses. Raises `PeerMissing`."""
    check_version("sglang", "sglang")
    try:
        return SimpleNamespace(
            storage=import_module("sglang.srt.mem_cache.hicache_storage"),
            evictor=import_module("sglang.srt.mem_cache.storage.file.lru_file_evictor"),
            utils=import_module("sglang.srt.mem_cache.utils"),
            torch=import_module("torch"),
        )
    except ImportError as error:
        raise PeerMissing(f"SGLang cannot be imported: {error}") from error


class SglangAdapter(PeerAdapter):
    """SGLang's HiCacheFile, driven as its cache controller drives it."""

    name: ClassVar[str] = "sglang"
    runs_in_submit: ClassVar[bool] = True
    forgets: ClassVar[bool] = True  # without its metadata cache, the default
    separates: ClassVar[tuple[str, ...]] = ("model_name", "ranks", "rank")
    hash_algorithms: ClassVar[tuple[str, ...]] = ("sha256",)

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._sglang = import_peer()
        config = self._sglang.storage.HiCacheStorageConfig(
            tp_rank=setup.rank,
            tp_size=setup.ranks,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=False,
            enable_storage_metrics=False,
            is_page_first_layout=False,
            model_name=setup.model_name,
        )
        self._tier = self._sglang.storage.HiCacheFile(config, setup.root_dir)
        slab = self._sglang.torch.frombuffer(self.memory, dtype=self._sglang.torch.uint8)
        size = setup.block_bytes
        self._pages = [slab[slot * size : (slot + 1) * size] for slot in range(setup.slots)]

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        prior = parent[:DIGEST_BYTES] if parent else b""
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            page = struct.pack(f"<{size}I", *(int(token) for token in tokens[start : start + size]))
            prior = hashlib.sha256(prior + page).digest()
            keys.append(prior)
        return keys

    def salted_keys(self, tokens: Sequence[int], salt: str) -> list[bytes]:
        return self.keys(tokens, bytes.fromhex(self._sglang.utils.storage_namespace_seed(None, salt)))

    def other_group(self, key: bytes) -> bytes:
        return key + GROUP

    def none_hash_digest(self) -> str:
        """SGLang's chains begin without a seed."""
        return hashlib.sha256(b"").hexdigest()

    def file_name(self, key: bytes) -> str | None:
        return f"{self._tier._get_suffixed_key(_text(key))}.bin"

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" if self._tier.exists(_text(key)) else "miss" for key in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        ok: list[bytes] = []
        failed: list[bytes] = []
        for key, slot in zip(keys, slots, strict=True):
            (ok if self._tier.set(_text(key), self._pages[slot]) else failed).append(key)
        self.finished.append(Finished(job_id, ok, failed))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        try:
            pages = self._tier.batch_get([_text(key) for key in keys], [self._pages[slot] for slot in slots])
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "")
            self.finished.append(Finished(job_id, (), keys, reasons=name))
            return
        ok = [key for key, page in zip(keys, pages, strict=True) if page is not None]
        failed = [key for key, page in zip(keys, pages, strict=True) if page is None]
        self.finished.append(Finished(job_id, ok, failed))

    def has_pending_work(self) -> bool:
        return bool(self.finished)

    def drain(self) -> None:
        return

    def close(self) -> None:
        return


def _text(key: bytes) -> str:
    """The key as SGLang has it: the digest in hex, and the pool's suffix."""
    return key[:DIGEST_BYTES].hex() + key[DIGEST_BYTES:].decode()
