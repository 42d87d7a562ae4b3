"""An engine that the plug-in does not fit is refused as it is imported, in one sentence that says what is missing.

The vLLM here is a stub with the names and signatures that 0.33.0 has; each case takes something away from it. The real
one is `test_vllm_plugin`'s.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
STUB = {
    "__init__.py": "__version__ = '0.34.0'\n",
    "distributed/kv_transfer/kv_connector/v1/offloading/canonical_mapping.py": "canonical_format_id = None\n",
    "distributed/kv_transfer/kv_connector/v1/offloading/metrics.py": """
class OffloadingConnectorStats:
    def increase_counter(self, name, amount=1, labels=()): ...
    def set_gauge(self, name, value, labels=()): ...
    def observe_histogram(self, name, value, labels=()): ...
""",
    "utils/hashing.py": "get_hash_fn_by_name = None\n",
    "v1/core/kv_cache_utils.py": "def get_none_hash_seed(): ...\n",
    "v1/kv_offload/base.py": """
from dataclasses import dataclass
from enum import Enum
LookupResult = Enum("LookupResult", "MISS HIT HIT_PENDING RETRY")
OffloadPolicy = Enum("OffloadPolicy", "CHUNK_LEVEL REQUEST_LEVEL")
Medium = Enum("Medium", "CPU STORAGE")
Locality = Enum("Locality", "LOCAL REMOTE")
@dataclass
class ReqContext:
    req_id: str
    kv_transfer_params: object = None
@dataclass
class RequestOffloadingContext:
    policy: object = None
@dataclass
class ScheduleEndContext:
    new_req_ids: object
    preempted_req_ids: object
@dataclass
class OffloadingEvent:
    keys: object
    medium: object
    removed: bool
    locality: object = None
@dataclass
class OffloadingCounterMetadata:
    documentation: str
    labelnames: tuple = ()
class OffloadingGaugeMetadata(OffloadingCounterMetadata): ...
@dataclass
class OffloadingHistogramMetadata(OffloadingCounterMetadata):
    buckets: object = None
""",
    "v1/kv_offload/config.py": """
from dataclasses import dataclass
@dataclass
class OffloadingGroupConfig:
    tokens_per_block: int
    layer_names: tuple
@dataclass
class OffloadingModelConfig:
    name: str
    dtype: str
@dataclass
class OffloadingCacheConfig:
    tokens_per_hash: int
@dataclass
class OffloadingParallelConfig:
    rank: int
    tp_size: int
    pp_size: int
    pcp_size: int
    dcp_size: int
    is_parallelism_agnostic: bool
@dataclass
class OffloadingConfig:
    groups: tuple
    model: object
    cache: object
    parallel: object
    replicated_layout: bool = False
    canonical_layout: bool = False
    kv_cache_layout: object = None
""",
    "v1/kv_offload/tiering/base.py": """
from abc import ABC, abstractmethod
from dataclasses import dataclass
@dataclass
class TransferJob:
    job_id: int
    keys: object
    chunk_ids: object
    is_promotion: bool
    req_context: object
@dataclass
class JobResult:
    job_id: int
    success: bool
    successful_keys: object = None
    transfer_time: float | None = None
    transfer_bytes: int | None = None
class SecondaryTierManager(ABC):
    def __init__(self, offloading_spec, primary_kv_view, tier_type, backpressure_detector=None): ...
    @abstractmethod
    def lookup(self, key, req_context): ...
    @abstractmethod
    def submit_store(self, job_metadata): ...
    @abstractmethod
    def submit_load(self, job_metadata): ...
    @abstractmethod
    def get_finished_jobs(self): ...
    @abstractmethod
    def on_new_request(self, req_context): ...
    @abstractmethod
    def drain_jobs(self): ...
    def touch(self, keys, req_context): ...
    def get_stats(self): ...
    @classmethod
    def build_metric_definitions(cls, extra_config): ...
""",
}
CASES = [
    ("", "", ""),
    (", backpressure_detector=None", "", "SecondaryTierManager.__init__ does not take 5 arguments by position"),
    ("    transfer_bytes: int | None = None\n", "", "JobResult does not take job_id, success, successful_keys, "),
    (" RETRY", "", "LookupResult has no RETRY"),
    ("    replicated_layout: bool = False\n", "", "OffloadingConfig has no replicated_layout"),
    ("    locality: object = None\n", "", "OffloadingEvent does not take keys, medium, removed, locality"),
    (
        "def touch(self, keys, req_context)",
        "def touch(self, keys, req_context, *, weight)",
        "touch is given keys, req_",
    ),
    ("def lookup(self, key, req_context)", "def lookup(self, key, req_context, step)", "lookup is given key, req_co"),
    ("    def touch", "    @abstractmethod\n    def reset(self): ...\n    def touch", "a tier must also have reset"),
    ("def get_none_hash_seed()", "def get_none_hash_seed(algorithm)", "get_none_hash_seed does not take "),
]


@pytest.mark.parametrize(("taken", "instead", "phrase"), CASES, ids=[phrase[:24] for *_, phrase in CASES])
def test_what_an_engine_lacks_is_named_at_its_start(tmp_path: Path, taken: str, instead: str, phrase: str) -> None:
    assert sum(text.count(taken) for text in STUB.values()) == 1 or not taken, "each case changes one place"
    for name, text in STUB.items():
        path = tmp_path / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(taken, instead) if taken else text)
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY)))
    child = subprocess.run(
        [sys.executable, "-c", "import kvtier.vllm_plugin"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    last = child.stderr.splitlines()[-1]
    if not phrase:
        assert child.returncode == 0, child.stderr
        assert last.endswith("vLLM 0.34.0 has the same tier interface, but was not tried")
        return
    assert child.returncode == 1
    assert last.startswith("ImportError: kvtier.vllm_plugin was proven with vLLM 0.32.0 and 0.33.0, and the tier ")
    assert f"interface of vLLM 0.34.0 differs ({phrase}" in last
    assert last.endswith("); install one of these, or a newer kvtier")
