"""`FileMapper`: key <-> path, in vLLM's names. Does no I/O."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from kvtier.config import RunConfig
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key

DIGEST_HEX_DIGITS = 12


class FileMapper:
    """One run configuration under one root: where its folders are, and which file holds which key. Does no I/O.

    base_path        <root>/<model, "/" as "_">_<digest>
    config_path      <base_path>/config.json
    record_path      <base_path>/kvtier.json; kvtier_r<rank>.json for ranks above 0, whose block size may differ
    quarantine_path  <base_path>/quarantine
    blocks_path      <base_path>_r<rank>
    """

    def __init__(self, root_dir: str, run: RunConfig) -> None:
        self.root_dir = os.path.realpath(root_dir)  # links above the root are its owner's; below it none is followed
        self.run = run
        self.rank = 0 if run.parallel_agnostic else run.rank
        self.fields = _fields(run)
        canonical = json.dumps(self.fields, sort_keys=True, separators=(",", ":"))
        self.digest = hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_HEX_DIGITS]
        # One path component that ends in a digest: whatever the model is called, it is neither "..", nor absolute.
        self.base_path = os.path.join(self.root_dir, f"{run.model_name.replace('/', '_')}_{self.digest}")
        self.config_path = os.path.join(self.base_path, "config.json")
        self.record_path = os.path.join(self.base_path, f"kvtier_r{self.rank}.json" if self.rank else "kvtier.json")
        self.quarantine_path = os.path.join(self.base_path, "quarantine")
        self.blocks_path = f"{self.base_path}_r{self.rank}"
        self._prefix = self.blocks_path + "/"

    def get_file_name(self, key: OffloadKey) -> str:
        """The absolute path of a key's block: `<blocks_path>/<hex[0:3]>/<hex[3:5]>_g<group>/<hex>.bin`."""
        digits = key.hex()
        name = digits[:-8]
        return f"{self._prefix}{name[:3]}/{name[3:5]}_g{int(digits[-8:], 16)}/{name}.bin"

    def parse_file_name(self, path: str) -> OffloadKey | None:
        """The key whose file name is exactly `path`; None if there is none (a temp file, another mapper's, a stray)."""
        folder, _, name = path.rpartition("/")
        try:
            block_hash = BlockHash(bytes.fromhex(name.removesuffix(".bin")))
            key = make_offload_key(block_hash, int(folder.rpartition("_g")[2]))
        except (ValueError, OverflowError):
            return None
        return key if self.get_file_name(key) == path else None


def _fields(run: RunConfig) -> dict[str, Any]:
    size = 1 if run.parallel_agnostic else None
    fields: dict[str, Any] = {
        "model_name": run.model_name,
        "tokens_per_hash": run.tokens_per_hash,
        "blocks_per_file": run.blocks_per_file,
        **{name: size or getattr(run, name) for name in ("tp_size", "pp_size", "pcp_size", "dcp_size")},
        "dtype": str(run.dtype),
        "kv_cache_groups": [
            {"tokens_per_block": group.tokens_per_block, "layer_names": list(group.layer_names)}
            for group in run.kv_cache_groups
        ],
        "inference_engine": run.inference_engine,
    }
    # The last three are newer than the folders in use: each appears only with another value than its default.
    if not run.parallel_agnostic:
        fields["parallel_agnostic"] = False
    if run.replicated_layout:
        fields["replicated_layout"] = True
    if run.canonical_format is not None:
        fields["canonical_format"] = run.canonical_format
    return fields
