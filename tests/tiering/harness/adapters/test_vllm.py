"""The vllm adapter, and kvtier's names and files against those of the real vLLM, which runs in a venv of its own.

Without that venv (`make install-vllm`, or HARNESS_VLLM_PYTHON) all but the first tests are skipped, and say so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.adapters.base import PeerMissing, TierSetup
from harness.adapters.vllm import PYTHON_VARIABLE, VllmAdapter
from kvtier.base import LookupResult, ReqContext, ScheduleEndContext, TransferJob
from kvtier.config import HASH_ALGORITHMS, FsTierConfig, KVCacheGroup, RunConfig
from kvtier.factory import open_fs_tier
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.manager import FileSystemTierManager
from kvtier.hashing import (
    BlockHash,
    MultimodalItem,
    OffloadKey,
    RequestExtras,
    hash_function,
    hash_tokens,
    make_offload_key,
    none_hash,
    none_hash_digest,
)

REPOSITORY = Path(__file__).parents[4]
SEED = int(os.environ.get("KVTIER_SEED", "1"))
BLOCK_BYTES = 8192
TOKENS = 8  # per block in the hashing cases

SERVER = """
import json, os, sys, traceback
from harness.adapters.vllm import import_vllm
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
vllm = import_vllm(json.loads(sys.argv[1]))
for line in sys.stdin:
    script, question = json.loads(line)
    names = {"vllm": vllm, "question": question}
    try:
        exec(script, names)
        answers.write(json.dumps([names["answer"], None]) + "\\n")
    except Exception:
        answers.write(json.dumps([None, traceback.format_exc()]) + "\\n")
    answers.flush()
"""


class Peer:
    """A process of vLLM's venv, alive for the whole module, since importing vLLM takes seconds. It runs scripts that
    find `vllm` and `question` and leave an `answer`."""

    def __init__(self, c_extension: bool) -> None:
        self.c_extension = c_extension
        self._process = subprocess.Popen(
            [VllmAdapter.python(), "-c", SERVER, json.dumps(c_extension)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    def ask(self, script: str, question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([script, question]) + "\n")
        self._process.stdin.flush()
        answer, trouble = json.loads(self._process.stdout.readline() or '[null, "the peer is dead"]')
        assert trouble is None, trouble
        return answer

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module", params=[True, False], ids=["c", "python"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    try:
        peer = Peer(request.param)
    except PeerMissing as error:
        pytest.skip(str(error))
    yield peer
    peer.close()


def test_a_missing_venv_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(PeerMissing, match="install-peer vllm DIR"):
        VllmAdapter.python()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed_policy": "env"}, "seed_policy is 'env'; vLLM 0.33.0 has only 'fixed'"),
        ({"options": {"sed_random": 0}}, "unknown option sed_random; the vllm tier takes c_extension"),
    ],
)
def test_bad_setup_is_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VllmAdapter(TierSetup(str(tmp_path), BLOCK_BYTES, 4, **changes))


# --- names: the same bytes from the same tokens ---

HASHES = """
import os
from types import SimpleNamespace
import torch
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

hashing, utils = vllm.hashing, vllm.kv_cache_utils
own_environment = dict(os.environ)
answer = []
for seed, algorithm, case in question:
    os.environ.pop("PYTHONHASHSEED", None)
    if seed is not None:
        os.environ["PYTHONHASHSEED"] = seed
    hash_fn = hashing.get_hash_fn_by_name(algorithm)
    utils.init_none_hash(hash_fn)
    rows = case["embeds"]
    request = SimpleNamespace(
        all_token_ids=case["tokens"],
        num_tokens=len(case["tokens"]),
        block_hashes=[],
        lora_request=LoRARequest(case["lora"][0], 1, case["lora"][1]) if case["lora"] else None,
        cache_salt=case["salt"],
        mm_features=[
            MultiModalFeatureSpec(None, "image", name, PlaceholderRange(offset=offset, length=length))
            for name, offset, length in case["items"]
        ],
        prompt_embeds=torch.tensor(rows, dtype=torch.float32).reshape(-1, 2) if rows is not None else None,
        _prompt_embeds_per_block_hashes={},
    )
    hashes = utils.get_request_block_hasher(case["tokens_per_hash"], hash_fn)(request)
    keys = [vllm.base.make_offload_key(h, case["group"]).hex() for h in hashes]
    answer.append([utils.NONE_HASH.hex(), keys])
os.environ.pop("PYTHONHASHSEED", None)
os.environ.update(own_environment)
"""


def any_case(rng: random.Random) -> dict[str, Any]:
    """A request: tokens over the whole range of an int64, and every mix of what else decides its KV."""
    n = rng.choice((0, TOKENS - 1, TOKENS, 3 * TOKENS, 5 * TOKENS + 3))
    items, offset = [], 0
    while rng.random() < 0.7 and offset < n:
        offset += rng.randrange(0, TOKENS)
        length = rng.randrange(1, 2 * TOKENS)
        items.append((rng.choice(("a", "image-1", "image-1", "ünïcode-" * 3)), offset, length))
        offset += length
    name = rng.choice(("adapter", "a", "x" * 300))
    return {
        "tokens_per_hash": TOKENS,
        "tokens": [rng.choice((0, 1, 255, 256, 65536, 151643, 2**31 - 1, rng.randrange(2**63))) for _ in range(n)],
        "lora": rng.choice((None, (name, name), (name, "/adapters/" + name))),
        "salt": rng.choice((None, None, "", "tenant", name)),
        "items": items if rng.random() < 0.6 else [],
        "embeds": [[rng.random(), 1.0] for _ in range(n)] if rng.random() < 0.3 else None,
        "group": rng.choice((0, 0, 1, 255, 256)),
    }


def kvtiers_answer(seed: str | None, algorithm: str, case: dict[str, Any]) -> list[Any]:
    size = case["tokens_per_hash"]
    rows = None if case["embeds"] is None else np.array(case["embeds"], dtype=np.float32).reshape(-1, 2)
    extras = RequestExtras(
        lora=case["lora"],
        mm_items=tuple(MultimodalItem(*item) for item in case["items"]),
        cache_salt=case["salt"],
        prompt_embeds=None
        if rows is None
        else tuple(hashlib.sha256(rows[i : i + size].tobytes()).digest() for i in range(0, len(rows), size)),
    )
    none = none_hash(algorithm, "fixed", {} if seed is None else {"PYTHONHASHSEED": seed})
    hashes = hash_tokens(case["tokens"], size, hash_function(algorithm), none, extras)
    return [none.hex(), [make_offload_key(h, case["group"]).hex() for h in hashes]]


def test_keys_are_vllms(peer: Peer) -> None:
    rng = random.Random(SEED)
    question = [
        (seed, algorithm, any_case(rng))
        for seed in (None, "", "0", "123")
        for algorithm in HASH_ALGORITHMS
        if seed is not None or algorithm.startswith("sha256")  # the xxhash pair's seed is random when unset
        for _ in range(40)
    ]
    answers = peer.ask(HASHES, question)
    wrong = [q for q, answer in zip(question, answers, strict=True) if kvtiers_answer(*q) != answer]
    assert not wrong, f"{len(wrong)} of {len(question)} differ, the first: {wrong[0]}"
    assert sum(len(keys) for _, keys in answers) > 500, "too few blocks to show anything"


def test_an_unset_seed_is_random_for_the_xxhash_pair_alone(peer: Peer) -> None:
    case = {"tokens": [1], "tokens_per_hash": 1, "lora": None, "salt": None, "items": [], "embeds": None, "group": 0}
    answers = peer.ask(HASHES, [(None, algorithm, case) for algorithm in HASH_ALGORITHMS for _ in range(2)])
    ours = [kvtiers_answer(None, algorithm, case) for algorithm in HASH_ALGORITHMS for _ in range(2)]
    for i, algorithm in enumerate(HASH_ALGORITHMS):
        is_fixed = algorithm.startswith("sha256")
        assert (answers[2 * i] == answers[2 * i + 1]) is is_fixed
        assert (answers[2 * i] == ours[2 * i]) is is_fixed


MAPPERS = """
from harness.adapters.vllm import offloading_spec
answer = []
for root, run, keys in question:
    groups = [(group["tokens_per_block"], group["layer_names"]) for group in run["kv_cache_groups"]]
    sizes = {name: run[name] for name in ("tp_size", "pp_size", "pcp_size", "dcp_size", "rank")}
    spec = offloading_spec(
        vllm, run["model_name"], run["tokens_per_hash"], dtype=run["dtype"], groups=groups,
        parallel_agnostic=run["parallel_agnostic"], **sizes,
    )
    mapper = vllm.file_mapper.FileMapper.from_offloading_spec(
        root_dir=root, offloading_spec=spec, blocks_per_file=run["blocks_per_file"], parallel_agnostic=True
    )
    names = [mapper.get_file_name(bytes.fromhex(key)) for key in keys]
    answer.append([mapper.get_run_config(), mapper.get_config_file_path(), names])
"""

FULL, SLIDING = (
    KVCacheGroup(16, ("model.layers.0.attn", "model.layers.1.attn")),
    KVCacheGroup(64, ("model.layers.2.attn",)),
)
RUNS = [
    RunConfig("Qwen/Qwen3-8B", blocks_per_file=4, kv_cache_groups=(FULL,)),
    RunConfig("Qwen/Qwen3-8B", blocks_per_file=4, kv_cache_groups=(FULL,), parallel_agnostic=True),
    RunConfig("Qwen/Qwen3-8B", tp_size=4, rank=3, kv_cache_groups=(FULL,)),
    RunConfig("Qwen/Qwen3-8B", tp_size=4, rank=3, kv_cache_groups=(FULL,), parallel_agnostic=True),
    RunConfig("m", tp_size=2, pp_size=3, pcp_size=4, dcp_size=5, rank=119, dtype="fp8_e4m3"),
    RunConfig("a/b/c d-ü", tokens_per_hash=1, dtype="float16", kv_cache_groups=(FULL, SLIDING)),
    RunConfig("hybrid", tokens_per_hash=64, kv_cache_groups=(SLIDING, FULL, FULL), parallel_agnostic=True),
]


def test_file_names_and_config_are_vllms(peer: Peer, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    keys = [make_offload_key(BlockHash(rng.randbytes(n)), group) for n in (16, 32) for group in (0, 1, 2, 4096)]
    answers = peer.ask(MAPPERS, [(str(tmp_path), dataclasses.asdict(run), [key.hex() for key in keys]) for run in RUNS])
    for run, (fields, config_path, names) in zip(RUNS, answers, strict=True):
        mapper = FileMapper(str(tmp_path), run)
        assert mapper.fields == fields
        assert mapper.config_path == config_path
        assert [mapper.get_file_name(key) for key in keys] == names
        assert [mapper.parse_file_name(name) for name in names] == keys


# --- the adapter, and files that cross ---

DRIVE = """
import time
from harness.adapters.base import TierSetup
from harness.adapters.vllm import VllmAdapter
a = VllmAdapter(TierSetup(**question["setup"]))
size, flat = a.setup.block_bytes, a.view.cast("B")
keys = a.keys(question["tokens"])
answer = {"digest": a.none_hash_digest(), "names": [a.file_name(key) for key in keys], "keys": [k.hex() for k in keys]}

def look(req_id):
    a.request_started(req_id)
    first = a.lookup(keys, req_id)
    a.step()
    deadline = time.monotonic() + 30
    while "retry" in (verdicts := a.lookup(keys, req_id)) and time.monotonic() < deadline:
        a.step()
    a.request_finished(req_id)
    return first, verdicts

def finish():
    a.drain()
    (job,) = a.poll()
    return job.job_id, [keys.index(key) for key in job.ok], [keys.index(key) for key in job.failed]

for action, chosen in question["actions"]:
    n = range(len(keys)) if chosen is None else chosen
    if action == "look":
        answer.setdefault("looks", []).append(look(f"request {len(answer.get('looks', []))}"))
    elif action == "store":
        for i in n:
            flat[i * size : (i + 1) * size] = bytes([i + 1]) * size
        a.submit_store(1, [keys[i] for i in n], list(n), "r")
        answer["stored"] = finish()
    elif action == "load":
        flat[:] = bytes(len(flat))
        a.submit_load(2, [keys[i] for i in n], list(n), "r")
        answer["loaded"] = finish()
        answer["bytes"] = [sorted(set(flat[i * size : (i + 1) * size])) for i in range(len(a.view))]
a.close()
answer["after"] = len(a.poll())
answer["gauges"] = dict(a.gauges())
"""
BLOCKS = 6
PROMPT = list(range(16 * BLOCKS + 5))


def drive(peer: Peer, root: Path, *actions: tuple[str, list[int] | None]) -> Any:
    setup = TierSetup(str(root), BLOCK_BYTES, BLOCKS, 2, 2, options={"c_extension": peer.c_extension})
    answer = peer.ask(DRIVE, {"setup": setup.to_json(), "tokens": PROMPT, "actions": actions})
    assert answer["after"] == 0
    assert isinstance(answer["gauges"].pop("none_references_lost"), float), "compiled code may lose references"
    assert answer["gauges"] == {
        "load_queue": 0,
        "store_queue": 0,
        "load_oldest_seconds": 0,
        "store_oldest_seconds": 0,
    }
    return answer


ALL = list(range(BLOCKS))


def test_what_the_peer_stores_it_finds_and_loads(peer: Peer, tmp_path: Path) -> None:
    answer = drive(peer, tmp_path, ("look", None), ("store", None), ("look", None), ("load", None))
    assert answer["looks"] == [[["retry"] * BLOCKS, ["miss"] * BLOCKS], [["retry"] * BLOCKS, ["hit"] * BLOCKS]]
    assert answer["stored"] == [1, ALL, []]
    assert answer["loaded"] == [2, ALL, []]
    assert answer["bytes"] == [[i + 1] for i in ALL]
    assert all((tmp_path / name).stat().st_size == BLOCK_BYTES for name in answer["names"])


def test_a_failed_load_names_what_was_read_before_it(peer: Peer, tmp_path: Path) -> None:
    drive(peer, tmp_path, ("store", [0, 1, 3, 4, 5]))
    answer = drive(peer, tmp_path, ("load", None))
    assert answer["loaded"] == [2, [0, 1], [2, 3, 4, 5]]


def test_a_failed_store_names_nothing(peer: Peer, tmp_path: Path) -> None:
    names = drive(peer, tmp_path)["names"]
    in_the_way = (tmp_path / names[3]).parents[1]
    in_the_way.parent.mkdir()
    in_the_way.write_bytes(b"")
    answer = drive(peer, tmp_path, ("store", None))
    assert answer["stored"] == [1, [], ALL]


def kvtier_tier(root: Path) -> tuple[FileSystemTierManager, np.ndarray[Any, np.dtype[np.uint8]]]:
    memory = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    config = FsTierConfig(str(root), BLOCK_BYTES, n_read_threads=1, n_write_threads=1)
    return open_fs_tier(config, RunConfig("harness/model"), memoryview(memory)), memory


def kvtier_keys(tier: FileSystemTierManager) -> tuple[OffloadKey, ...]:
    hashes = hash_tokens(PROMPT, 16, hash_function("sha256"), tier.none_hash)
    return tuple(make_offload_key(h) for h in hashes)


def test_kvtier_finds_and_reads_the_peers_files(peer: Peer, tmp_path: Path) -> None:
    answer = drive(peer, tmp_path, ("store", None))
    tier, memory = kvtier_tier(tmp_path)
    keys = kvtier_keys(tier)
    assert [key.hex() for key in keys] == answer["keys"]
    assert none_hash_digest(tier.none_hash) == answer["digest"]
    request = ReqContext("r")
    while LookupResult.RETRY in (verdicts := [tier.lookup(key, request) for key in keys]):
        tier.on_schedule_end(ScheduleEndContext())
    assert verdicts == [LookupResult.HIT] * BLOCKS
    tier.submit_load(TransferJob(1, keys, tuple(ALL), True, request))
    tier.drain_jobs()
    (result,) = tier.get_finished_jobs()
    tier.shutdown()
    assert result.successful_keys == keys
    assert (memory == np.array(ALL, dtype=np.uint8)[:, None] + 1).all()


def test_the_peer_finds_and_reads_kvtiers_files(peer: Peer, tmp_path: Path) -> None:
    tier, memory = kvtier_tier(tmp_path)
    memory[:] = np.array(ALL, dtype=np.uint8)[:, None] + 101
    tier.submit_store(TransferJob(1, kvtier_keys(tier), tuple(ALL), False, ReqContext("r")))
    tier.drain_jobs()
    (result,) = tier.get_finished_jobs()
    tier.shutdown()
    assert result.success
    answer = drive(peer, tmp_path, ("look", None), ("load", None))
    assert answer["looks"][0][1] == ["hit"] * BLOCKS
    assert answer["loaded"] == [2, ALL, []]
    assert answer["bytes"] == [[i + 101] for i in ALL]
