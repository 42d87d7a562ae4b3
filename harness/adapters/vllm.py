"""vLLM 0.33.0's own FileSystemTierManager as a tier under test; the only importer of vllm, in workers of its venv.

It does not change the tier. Its options choose among states in which real engines run it.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from harness.adapters.base import Adapter, Finished, PeerMissing, TierSetup, Verdict
from harness.adapters.none_refcount import NoneReferences
from harness.adapters.peers import PEERS, peer_python

VERSION = "0.33.0"
PYTHON_VARIABLE = "HARNESS_VLLM_PYTHON"
DEFAULT_OPTIONS: dict[str, Any] = {"c_extension": True, "raise_none_refcount": False, "seed_random": 0}
_INSTALL = PEERS["vllm"].how_to_install


def import_vllm(c_extension: bool) -> SimpleNamespace:
    """The modules of vLLM that the adapter uses, with the C file functions or without: once per process, seconds.

    Raises `PeerMissing` if vLLM, that version of it, or the wanted extension is not there.
    """
    try:
        if (found := metadata.version("vllm")) != VERSION:
            raise PeerMissing(f"vLLM here is {found}, the adapter knows {VERSION}; {_INSTALL}")
        import_module("torch")  # loads the libraries that fs_io_C links to, save those of CUDA
        if c_extension:
            for stub in sorted(Path(sys.prefix, "lib", "vllm-stubs").glob("*.so*")):
                ctypes.CDLL(str(stub), ctypes.RTLD_GLOBAL)
            import_module("vllm.fs_io_C")  # without it the tier silently uses Python
        else:
            sys.modules["vllm.fs_io_C"] = None  # type: ignore[assignment]  # its import then fails, as without CUDA
        modules = SimpleNamespace(
            base=import_module("vllm.v1.kv_offload.base"),
            config=import_module("vllm.v1.kv_offload.config"),
            file_mapper=import_module("vllm.v1.kv_offload.file_mapper"),
            hashing=import_module("vllm.utils.hashing"),
            io=import_module("vllm.v1.kv_offload.tiering.fs.io"),
            kv_cache_utils=import_module("vllm.v1.core.kv_cache_utils"),
            manager=import_module("vllm.v1.kv_offload.tiering.fs.manager"),
            tiering=import_module("vllm.v1.kv_offload.tiering.base"),
        )
    except ImportError as error:
        raise PeerMissing(f"vLLM {VERSION} cannot be imported by {sys.executable} ({error}); {_INSTALL}") from error
    assert modules.io._HAS_FSIO_C is c_extension, f"this process began with c_extension={not c_extension}"
    return modules


def keep_none_alive() -> None:
    """Raise the reference count of None. Before Python 3.12, fs_io_C releases one reference too many per job."""
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


def offloading_spec(
    vllm: SimpleNamespace,
    model_name: str,
    tokens_per_hash: int,
    *,
    dtype: str = "bfloat16",
    groups: Sequence[tuple[int, Sequence[str]]] = (),
    blocks_per_chunk: int = 1,
    parallel_agnostic: bool = False,
    **sizes: int,
) -> SimpleNamespace:
    """What the tier's constructor reads of an engine's spec. `groups`: (tokens per block, layer names) of each;
    `sizes`: tp_size, pp_size, pcp_size, dcp_size (default 1) and rank (0)."""
    ones = {"tp_size": 1, "pp_size": 1, "pcp_size": 1, "dcp_size": 1}
    config = vllm.config.OffloadingConfig(
        groups=tuple(
            vllm.config.OffloadingGroupConfig(tokens_per_block=tokens, layer_names=tuple(layers), group_id=index)
            for index, (tokens, layers) in enumerate(groups)
        ),
        worker_kv_bytes_per_block=0,  # the tier takes its block size from the view
        enable_kv_cache_events=False,
        extra_config={},
        engine_id="harness",
        model=vllm.config.OffloadingModelConfig(name=model_name, dtype=dtype),
        cache=vllm.config.OffloadingCacheConfig(tokens_per_hash=tokens_per_hash, blocks_per_chunk=blocks_per_chunk),
        parallel=vllm.config.OffloadingParallelConfig(
            **({"rank": 0} | ones | sizes),
            world_size=1,
            data_parallel_index=0,
            data_parallel_size=1,
            data_parallel_rank_local=None,
            is_parallelism_agnostic=parallel_agnostic,
        ),
    )
    return SimpleNamespace(config=config, blocks_per_chunk=blocks_per_chunk)


class VllmAdapter(Adapter):
    """vLLM's own file-system tier, driven as its scheduler drives it.

    Options:
    `c_extension` (true): its C file functions, else its Python ones. `seed_random` (0): an engine's `seed`, with which
    it seeds `random` before it makes the tier; null leaves `random` unseeded, as no engine does by default.
    `raise_none_refcount` (false): on Python 3.11 the process survives more than some thousand jobs of the C functions.
    """

    name: ClassVar[str] = "vllm"
    exposes_files: ClassVar[bool] = True
    separates: ClassVar[tuple[str, ...]] = ("model_name", "dtype", "ranks", "rank")
    seed_policies: ClassVar[tuple[str, ...]] = ("fixed",)
    answers_at_close: ClassVar[bool] = False  # `shutdown` drops queued jobs; vLLM's interface allows it

    @classmethod
    def python(cls) -> str:
        """The Python that has vLLM, for starting workers: `HARNESS_VLLM_PYTHON`, else that of the peer's environment.
        Raises `PeerMissing`."""
        path = os.environ.get(PYTHON_VARIABLE)
        if not path:
            return peer_python("vllm")
        if not os.access(path, os.X_OK):
            raise PeerMissing(f"{PYTHON_VARIABLE} is {path!r}, which is no program; {_INSTALL}")
        return path

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        if unknown := sorted(set(setup.options) - set(DEFAULT_OPTIONS)):
            raise ValueError(f"unknown option {', '.join(unknown)}; the vllm tier takes {', '.join(DEFAULT_OPTIONS)}")
        for name in ("c_extension", "raise_none_refcount"):
            if not isinstance(setup.options.get(name, False), bool):
                raise ValueError(f"{name} is {setup.options[name]!r}; valid choices: true, false")
        seed = setup.options.get("seed_random")
        if isinstance(seed, bool) or not isinstance(seed, int | None):
            raise ValueError(f"seed_random is {seed!r}; it takes a whole number, or null")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self.check_options(setup)
        if setup.seed_policy != "fixed":
            raise ValueError(f"seed_policy is {setup.seed_policy!r}; vLLM {VERSION} has only 'fixed'")
        options = DEFAULT_OPTIONS | setup.options
        self._vllm = import_vllm(options["c_extension"])
        if options["raise_none_refcount"]:
            keep_none_alive()
        self._hash = self._vllm.hashing.get_hash_fn_by_name(setup.hash_algorithm)
        self._vllm.kv_cache_utils.init_none_hash(self._hash)
        self._references = NoneReferences()
        slots = mmap.mmap(-1, setup.slots * setup.block_bytes)  # anonymous: page-aligned, as O_DIRECT wants it
        self._view = memoryview(slots).cast("B", (setup.slots, setup.block_bytes))
        if options["seed_random"] is not None:
            random.seed(options["seed_random"])
        self._tier = self._vllm.manager.FileSystemTierManager(
            offloading_spec(
                self._vllm,
                setup.model_name,
                setup.tokens_per_block,
                dtype=setup.dtype,
                tp_size=setup.ranks,
                rank=setup.rank,
            ),
            self._view,
            "fs",
            root_dir=setup.root_dir,
            n_read_threads=setup.n_read_threads,
            n_write_threads=setup.n_write_threads,
        )
        self._keys: dict[int, Sequence[bytes]] = {}  # of jobs in flight: their results do not name them
        self._submitted: dict[int, float] = {}
        results = self._vllm.base.LookupResult
        self._verdicts: dict[Any, Verdict] = {results.HIT: "hit", results.MISS: "miss", results.RETRY: "retry"}

    @property
    def view(self) -> memoryview:
        return self._view

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return self._chain(tokens, parent, ())

    def salted_keys(self, tokens: Sequence[int], salt: str) -> list[bytes]:
        return self._chain(tokens, None, (("cache_salt", salt),))

    def other_group(self, key: bytes) -> bytes:
        return self._vllm.base.make_offload_key(key[:-4], 1)  # type: ignore[no-any-return]

    def _chain(self, tokens: Sequence[int], parent: bytes | None, extra: tuple[Any, ...]) -> list[bytes]:
        """`extra` goes into the first block alone, as vLLM's cache salt does."""
        hash_block, make_key = self._vllm.kv_cache_utils.hash_block_tokens, self._vllm.base.make_offload_key
        block_hash = parent[:-4] if parent else None
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            # Engines hash plain ints, and the pickle of a numpy int differs.
            block = [int(token) for token in tokens[start : start + size]]
            block_hash = hash_block(self._hash, block_hash, block, None if start or not extra else extra)
            keys.append(make_key(block_hash, 0))
        return keys

    def none_hash_digest(self) -> str:
        return hashlib.sha256(self._vllm.kv_cache_utils.NONE_HASH).hexdigest()

    def file_name(self, key: bytes) -> str | None:
        return os.path.relpath(self._tier.file_mapper.get_file_name(key), self.setup.root_dir)

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        context = self._vllm.base.ReqContext(req_id)
        return [self._verdicts[self._tier.lookup(key, context)] for key in keys]

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._tier.submit_store(self._job(job_id, keys, slots, req_id, is_promotion=False))

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._tier.submit_load(self._job(job_id, keys, slots, req_id, is_promotion=True))

    def _job(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str, is_promotion: bool) -> Any:
        job = self._vllm.tiering.TransferJob(
            job_id=job_id,
            keys=list(keys),
            chunk_ids=np.array(slots, dtype=np.int64),
            is_promotion=is_promotion,
            req_context=self._vllm.base.ReqContext(req_id),
        )
        self._keys[job_id] = keys
        self._submitted[job_id] = job.submit_time
        return job

    def poll(self) -> list[Finished]:
        finished = []
        for result in self._tier.get_finished_jobs():
            keys = self._keys.pop(result.job_id, ())
            self._submitted.pop(result.job_id, None)
            ok = keys if result.success else (result.successful_keys or ())
            kept = set(ok)
            finished.append(Finished(result.job_id, ok, [key for key in keys if key not in kept]))
        return finished

    def step(self) -> None:
        self._tier.on_schedule_end(self._vllm.base.ScheduleEndContext((), ()))

    def request_started(self, req_id: str) -> None:
        self._tier.on_new_request(self._vllm.base.ReqContext(req_id))

    def request_finished(self, req_id: str) -> None:
        self._tier.on_request_finished(self._vllm.base.ReqContext(req_id))

    def drain(self) -> None:
        self._tier.drain_jobs()

    def close(self) -> None:
        self._tier.shutdown()

    def gauges(self) -> Mapping[str, float]:
        pool, now = self._tier._pool, time.monotonic()
        values = {"none_references_lost": self._references.lost()}
        for direction, queue in (("load", pool._load_q), ("store", pool._store_q)):
            values[f"{direction}_queue"] = len(queue)
            try:
                _, state = queue[0]
                values[f"{direction}_oldest_seconds"] = now - self._submitted[state.job_id]
            except IndexError:  # a thread took it
                values[f"{direction}_oldest_seconds"] = 0.0
        return values
