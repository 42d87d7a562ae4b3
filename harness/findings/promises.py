"""Whose words promise a guarantee: sentences of the tiers' own documentation, and scripts that show a defect alone.

A guarantee without such a sentence counts because any user expects it; `Row.why` says so.
"""

from __future__ import annotations

from pathlib import Path

from harness.findings.suite import Row

REPRO = Path(__file__).with_name("repro")

_LMCACHE_SHARED = "critical for multi-node shared-FS setups", "FSL2Adapter._key_exists_on_disk"
_LMCACHE_MISS = "Incomplete read for %s: expected %d, got %d", "the warning of FSL2Adapter._execute_load"
_SGLANG_EACH = "Returns a list of tensors or None for each key.", "HiCacheStorage.batch_get"
_SGLANG_TRUE = "Returns True if the operation was successful, False otherwise.", "HiCacheStorage.set"
_AIBRIX_SHARED = (
    "All prefiller and decoder vllm engines can access the same shared directory to store and retrieve KVCache blocks.",
    "SHFSConnector",
)
_AIBRIX_ATOMIC = "Write atomically: write to temp file first, then rename", "SHFSConnector._put"

PROMISES: dict[tuple[str, str], tuple[str, str]] = {
    ("lmcache", "found"): _LMCACHE_SHARED,
    ("lmcache", "stores"): _LMCACHE_SHARED,
    ("lmcache", "killed"): _LMCACHE_SHARED,
    ("lmcache", "size"): _LMCACHE_MISS,
    ("sglang", "others"): _SGLANG_EACH,
    ("sglang", "repair"): _SGLANG_TRUE,
    ("sglang", "reported"): _SGLANG_TRUE,
    ("aibrix", "found"): _AIBRIX_SHARED,
    ("aibrix", "stores"): _AIBRIX_SHARED,
    ("aibrix", "killed"): _AIBRIX_ATOMIC,
}
"""(tier, row) -> a sentence of the tier's source or documentation, and where it stands."""


KNOWN = (
    ("lmcache", "one shared temp file for each key, opened for writing by every process", "shown", "stores, killed"),
    ("lmcache", "a short file stays and is a hit for ever", "shown", "repair"),
    ("lmcache", "with `use_odirect`, the result of a write is not checked", "shown", "`repro/lmcache_reported.py`"),
    (
        "lmcache",
        "with `use_odirect`, files are opened without O_TRUNC",
        "not shown",
        "blocks have one size",
    ),
    ("lmcache", "longer files are accepted", "no finding", "the bytes of the block are right"),
    ("lmcache", "the lock of a lookup locks nothing", "no finding", "`submit_unlock` says so; the load is then a miss"),
    ("lmcache", "no eviction", "no finding", "`FSL2Adapter` says that it declares no capacity"),
    ("sglang", "the error of a short read escapes `get`", "shown", "others"),
    ("sglang", "temp files of killed processes stay", "shown", "temp"),
    ("sglang", "folders are checked, then created", "not shown", "the harness makes the root before the tier opens it"),
    ("sglang", "`clear` removes the files of all", "not shown", "no scenario calls it"),
    ("sglang", "the limit counts for each process", "not shown", "eviction is off, as it is by default"),
    ("aibrix", "one shared temp file for each key", "shown", "stores"),
    (
        "aibrix",
        "a failing writer unlinks the temp file of another",
        "shown",
        "stores, the last call shown",
    ),
    ("aibrix", "a file may vanish between `exists`, `stat` and `open`", "no finding", "the load fails with a status"),
)
"""(tier, defect known from its source or tracker, whether the suite shows it, the rows or the reason)."""


def promised(tier: str, row: Row) -> str:
    """Which words promise the row, or why any user expects it."""
    if found := PROMISES.get((tier, row.name)):
        sentence, place = found
        return f'The tier\'s own words: "{sentence}" ({place}).'
    return f"Any user expects it: {row.why[0].lower()}{row.why[1:]}"


def script(tier: str, row: str) -> str:
    """The file below `REPRO` that shows the defect with the peer alone; "": there is none."""
    name = f"{tier}_{row}.py"
    return name if (REPRO / name).exists() else ""
