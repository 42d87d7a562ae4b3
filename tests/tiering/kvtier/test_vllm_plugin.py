"""The plug-in inside the real vLLM package: same names, same hashes, same bytes as vLLM's own tier, and its manners.

vLLM lives in a venv of its own (`make install-vllm`, or HARNESS_VLLM_PYTHON); without it those tests are skipped, and
say so. Whole engines are `make e2e-vllm`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.adapters.base import PeerMissing
from harness.adapters.vllm import VllmAdapter
from kvtier import __version__
from kvtier.config import HASH_ALGORITHMS
from kvtier.telemetry.prometheus import DEPRECATED_NAMES

REPOSITORY = Path(__file__).parents[3]
BLOCK_BYTES = 8192

SERVER = """
import dataclasses, hashlib, json, mmap, os, sys, traceback
import numpy as np
from harness.adapters.vllm import import_vllm, offloading_spec

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
vllm = import_vllm(c_extension=False)
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager
import kvtier.vllm_plugin as plugin

BLOCK_BYTES, SLOTS = 8192, 6

class Spec(vllm.base.OffloadingSpec):
    get_manager = get_worker = None

def spec(model="some/model", events=False, hash_tokens=16, replicated=False, canonical=False, **rest):
    config = offloading_spec(vllm, model, hash_tokens, **rest).config
    return Spec(dataclasses.replace(
        config, enable_kv_cache_events=events, replicated_layout=replicated, canonical_layout=canonical,
        kv_cache_layout=vllm.layouts[0] if canonical else None,
    ))

def engine_starts(algorithm="sha256", seed=None):
    os.environ.pop("PYTHONHASHSEED", None)
    if seed is not None:
        os.environ["PYTHONHASHSEED"] = seed
    vllm.kv_cache_utils.init_none_hash(vllm.hashing.get_hash_fn_by_name(algorithm))

def memory():
    # As an engine's: page-aligned, int8.
    return np.frombuffer(mmap.mmap(-1, SLOTS * BLOCK_BYTES), dtype=np.int8).reshape(SLOTS, BLOCK_BYTES)

def kvtiers(root, slots, spec, **options):
    entry = {"type": "KvtierFileSystemTier", "module_path": "kvtier.vllm_plugin", "root_dir": root, **options}
    return SecondaryTierFactory.create_secondary_tier(entry, memoryview(slots), spec)

def built_in(root, slots, spec):
    entry = {"type": "fs", "root_dir": root}
    return SecondaryTierFactory.create_secondary_tier(entry, memoryview(slots), spec)

def keys(count=SLOTS, group=0):
    parent, made = None, []
    for i in range(count):
        tokens = list(range(16 * i, 16 * i + 16))
        parent = vllm.kv_cache_utils.hash_block_tokens(vllm.hashing.sha256, parent, tokens)
        made.append(vllm.base.make_offload_key(parent, group))
    return made

def context(req_id="r", **rest):
    return vllm.base.ReqContext(req_id, **rest)

def run_job(tier, direction, keys, slots, request=None, job_id=1):
    request = request or context()
    tier.on_new_request(request)
    job = vllm.tiering.TransferJob(job_id, keys, np.array(list(slots), dtype=np.int32), direction == "load", request)
    getattr(tier, "submit_" + direction)(job)
    tier.drain_jobs()
    (result,) = tier.get_finished_jobs()
    return result

def look(tier, keys, req_id="look"):
    request = context(req_id)
    tier.on_new_request(request)
    while vllm.base.LookupResult.RETRY in (results := [tier.lookup(key, request) for key in keys]):
        tier.on_schedule_end(vllm.base.ScheduleEndContext((), ()))
    tier.on_request_finished(request)
    return [result.name for result in results]

def refusal(make, *args, **kwargs):
    try:
        make(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

for line in sys.stdin:
    script, question = json.loads(line)
    names = {**globals(), "question": question, "answer": None}
    try:
        exec(script, names)
        reply = [names["answer"], None]
    except Exception:
        reply = [None, traceback.format_exc()]
    answers.write(json.dumps(reply) + "\\n")
    answers.flush()
"""


class Peer:
    """A process of vLLM's venv. Scripts find the helpers of SERVER and `question`, and leave an `answer`."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    def ask(self, script: str, question: Any = None) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([script, question]) + "\n")
        self._process.stdin.flush()
        answer, trouble = json.loads(self._process.stdout.readline() or '[null, "the peer is dead"]')
        assert trouble is None, trouble
        return answer

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    try:
        peer = Peer(VllmAdapter.python())
    except PeerMissing as error:
        pytest.skip(str(error))
    yield peer
    peer.close()


# --- where there is no vLLM, or another ---


def python_with(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(REPOSITORY)))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def fake_vllm(folder: Path, init: str) -> None:
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(init)


def test_kvtier_never_imports_vllm(tmp_path: Path) -> None:
    fake_vllm(tmp_path, "raise SystemExit('vllm was imported')")
    code = "import kvtier; [getattr(kvtier, name) for name in kvtier.__all__]"
    code += "; import kvtier.telemetry.prometheus, kvtier.telemetry.otel"
    assert python_with(tmp_path, code).returncode == 0
    assert "vllm was imported" in python_with(tmp_path, "import kvtier.vllm_plugin").stderr


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ("raise ImportError('no kernels')", "is for vLLM engines, and vLLM cannot be imported here (no kernels)"),
        ("__version__ = '0.99.0'", "was proven with vLLM 0.32.0 and 0.33.0, and vLLM 0.99.0 has no tier interface"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, init: str, sentence: str) -> None:
    fake_vllm(tmp_path, init)
    last = python_with(tmp_path, "import kvtier.vllm_plugin").stderr.splitlines()[-1]
    assert last.startswith("ImportError: kvtier.vllm_plugin ")
    assert sentence in last


# --- names: what vLLM's own tier would write for the same engine ---

NAMES = """
from vllm.v1.kv_cache_interface import KVCacheLayout
vllm.layouts = [layout.name for layout in KVCacheLayout]
some = [vllm.base.make_offload_key(bytes([n]) * 32, group) for n in (0, 171) for group in (0, 3)]
answer = []
for number, engine in enumerate(question["engines"]):
    engine["groups"] = [(tokens, layers) for tokens, layers in engine.pop("groups", [])]
    one = spec(**engine)
    theirs = vllm.file_mapper.FileMapper.from_offloading_spec(
        question["root"], one, blocks_per_file=one.blocks_per_chunk, parallel_agnostic=True
    )
    ours = plugin.FileMapper(question["root"], plugin.run_config(one))
    answer.append([
        [theirs.get_config_file_path(), theirs.get_run_config(), [theirs.get_file_name(key) for key in some]],
        [ours.config_path, ours.fields, [ours.get_file_name(key) for key in some]],
    ])
"""
FULL, SLIDING = [16, ["model.layers.0.attn", "model.layers.1.attn"]], [64, ["model.layers.2.attn"]]
ENGINES: list[dict[str, Any]] = [
    {"groups": [FULL]},
    {"groups": [FULL], "parallel_agnostic": True, "tp_size": 4, "rank": 3},
    {"model": "Qwen/Qwen3-8B", "groups": [FULL], "tp_size": 4, "rank": 3, "blocks_per_chunk": 4},
    {"model": "/models/a b-ü", "groups": [FULL, SLIDING], "dtype": "fp8_e4m3", "hash_tokens": 1},
    {"groups": [SLIDING, FULL, FULL], "dtype": "float16", "pp_size": 2, "pcp_size": 3, "dcp_size": 5, "rank": 29},
    {"groups": [FULL], "replicated": True, "tp_size": 8, "rank": 5},
    {"groups": [FULL], "canonical": True, "parallel_agnostic": True, "tp_size": 2, "rank": 1},
    {"groups": [FULL], "canonical": True, "replicated": True, "tp_size": 2, "rank": 1, "blocks_per_chunk": 2},
]


def test_folders_and_files_are_called_as_vllms_own_tier_calls_them(peer: Peer, tmp_path: Path) -> None:
    answers = peer.ask(NAMES, {"root": str(tmp_path), "engines": ENGINES})
    for engine, (theirs, ours) in zip(ENGINES, answers, strict=True):
        assert ours == theirs, engine
    assert len({ours[0] for _, ours in answers}) == len(ENGINES), "each engine has a folder of its own"


HASHES = """
answer = []
for algorithm, seed in question["cases"]:
    root = f"{question['root']}/{algorithm}-{seed}"
    os.mkdir(root)
    engine_starts(algorithm, seed)
    tier = kvtiers(root, memory(), spec())
    tier.on_new_request(context())
    (record,) = (f"{folder}/kvtier.json" for folder, _, files in os.walk(root) if "kvtier.json" in files)
    none = vllm.kv_cache_utils.NONE_HASH
    found = plugin.engine_hash() == (algorithm, none)
    answer.append([found, json.load(open(record)), hashlib.sha256(none).hexdigest()])
    tier.shutdown()
"""


def test_the_root_remembers_the_engines_own_algorithm_and_none_hash(peer: Peer, tmp_path: Path) -> None:
    cases = [(algorithm, seed) for algorithm in HASH_ALGORITHMS for seed in (None, "", "0", "123")]
    answers = peer.ask(HASHES, {"root": str(tmp_path), "cases": cases})
    for (algorithm, _), (found, record, digest) in zip(cases, answers, strict=True):
        assert found
        assert (record["hash_algorithm"], record["none_hash_digest"]) == (algorithm, digest)
    assert len({digest for *_, digest in answers}) == len(cases)


# --- bytes ---

CROSS = """
engine_starts()
slots, one = memory(), spec()
makers = {"kvtier": kvtiers, "vllm": built_in}
writer, reader = (makers[name](question["root"], slots, one) for name in question["who"])
slots[:] = np.arange(SLOTS, dtype=np.int8)[:, None] + 1
stored = run_job(writer, "store", keys(), range(SLOTS))
slots[:] = 0
found = look(reader, keys())
loaded = run_job(reader, "load", keys(), reversed(range(SLOTS)))
answer = {
    "stored": stored.success, "found": found, "loaded": loaded.success,
    "slots": [sorted(set(row)) for row in slots.tolist()],
    "files": sorted(os.path.getsize(f"{folder}/{n}") for folder, _, names in os.walk(question["root"]) for n in names
                    if n.endswith(".bin")),
}
for tier in (writer, reader):
    tier.shutdown()
"""


@pytest.mark.parametrize("who", [("kvtier", "vllm"), ("vllm", "kvtier"), ("kvtier", "kvtier")], ids=" to ".join)
def test_what_one_tier_stores_the_other_finds_and_loads(peer: Peer, tmp_path: Path, who: tuple[str, str]) -> None:
    answer = peer.ask(CROSS, {"root": str(tmp_path), "who": who})
    assert answer["stored"]
    assert answer["loaded"]
    assert answer["found"] == ["HIT"] * 6
    assert answer["slots"] == [[n] for n in (6, 5, 4, 3, 2, 1)]
    assert answer["files"] == [BLOCK_BYTES + (4096 if who[0] == "kvtier" else 0)] * 6


PARTIAL = """
engine_starts()
slots = memory()
tier = kvtiers(question, slots, spec())
run_job(tier, "store", keys()[:2] + keys()[3:], [0, 1, 3, 4, 5])
result = run_job(tier, "load", keys(), range(SLOTS), job_id=2)
answer = [result.job_id, result.success, [keys().index(key) for key in result.successful_keys], look(tier, keys())]
tier.shutdown()
"""


def test_a_missing_block_fails_alone(peer: Peer, tmp_path: Path) -> None:
    job_id, success, ok, looked_up = peer.ask(PARTIAL, str(tmp_path))
    assert (job_id, success, ok) == (2, False, [0, 1, 3, 4, 5])
    assert looked_up == ["HIT", "HIT", "MISS", "HIT", "HIT", "HIT"]


# --- options and refusals ---

REFUSALS = """
engine_starts()
answer = [refusal(kvtiers, question["root"], memory(), spec(), **options) for options in question["cases"]]
"""


def test_options_are_validated_when_the_engine_starts(peer: Peer, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({}, None),
        ({"n_read_threads": 0}, "ConfigError: n_read_threads is 0; it must be at least 1"),
        ({"integrity": "maybe"}, "ConfigError: integrity is 'maybe'; valid choices: verify, require, off"),
        ({"n_threads": 3}, "ConfigError: unknown option 'n_threads'; valid options: root_dir, "),
        ({"block_bytes": 4096}, "ConfigError: block_bytes is 4096; the engine has 8192, leave it out"),
        ({"block_bytes": "8KiB", "capacity": "2TiB", "task_bytes_max": "64KiB"}, None),
        ({"block_bytes": True}, "ConfigError: block_bytes is True; it takes a whole number of bytes, or a number with"),
        ({"capacity": True}, 'ConfigError: capacity is True; it takes the size of max_bytes, such as "2TiB", or a'),
        ({"capacity": {"max_bytes": 1}}, "ConfigError: capacity: max_bytes is 1; it must be at least 12935: a file of"),
        ({"thread_nice": 99}, "ConfigError: thread_nice is 99; it must be at most 19"),
        ({"root_dir": "~/kv"}, "ConfigError: root_dir is '~/kv'; it takes an absolute path"),
        ({"locality": "FAR"}, "ConfigError: locality is 'FAR'; valid choices: LOCAL, REMOTE, or none"),
        ({"seed_policy": "random"}, "ConfigError: seed_policy is 'random', but NONE_HASH is the engine's"),
        ({"seed_policy": "env"}, "ConfigError: seed_policy is 'env' but PYTHONHASHSEED is not set"),
        ({"root_dir": str(tmp_path / "none")}, "RootError: root_dir '"),
        ({"n_read_threads": 1, "n_write_threads": 1, "io": "buffered", "locality": "REMOTE"}, None),
    ]
    answers = peer.ask(REFUSALS, {"root": str(tmp_path), "cases": [options for options, _ in cases]})
    for (options, expected), answer in zip(cases, answers, strict=True):
        assert answer == expected or (expected and answer and answer.startswith(expected)), f"{options}: {answer}"


STRANGERS = """
engine_starts("sha256", "1")
first = kvtiers(question, memory(), spec())
first.on_new_request(context())
first.shutdown()
engine_starts("sha256", "2")
answer = []
for options in ({}, {"on_mismatch": "warn"}):
    tier = kvtiers(question, memory(), spec(), **options)
    answer.append(refusal(tier.on_new_request, context()))
    tier.shutdown()
os.mkdir(f"{question}/fresh")
tier = kvtiers(f"{question}/fresh", memory(), spec(), hash_algorithm="sha256_cbor")
answer.append(refusal(tier.on_new_request, context()))
tier.shutdown()
"""


def test_another_none_hash_is_refused_at_the_first_request(peer: Peer, tmp_path: Path) -> None:
    other_seed, warned, other_algorithm = peer.ask(STRANGERS, str(tmp_path))
    assert "RootError" in other_seed
    assert "nothing would be shared" in other_seed
    assert warned is None
    assert other_algorithm.startswith(
        "ConfigError: hash_algorithm is 'sha256_cbor' and the engine's prefix_caching_hash_algo is 'sha256'"
    )


AT_START = """
engine_starts()
def used(name):
    root = f"{question}/{name}"
    os.mkdir(root)
    tier = kvtiers(root, memory(), spec())
    tier.on_new_request(context())
    tier.shutdown()
    (record,) = (f"{folder}/kvtier.json" for folder, _, files in os.walk(root) if "kvtier.json" in files)
    return root, record

answer = {}
root, _ = used("right")
answer["right"] = refusal(kvtiers, root, memory(), spec())
answer["algorithm"] = refusal(kvtiers, root, memory(), spec(), hash_algorithm="sha256_cbor")
root, record = used("block")
text = open(record).read()
with open(record, "w") as file:
    file.write(text.replace("8192", "4096"))
answer["block"] = refusal(kvtiers, root, memory(), spec())
root, record = used("config")
config = record.replace("kvtier.json", "config.json")
text = open(config).read()
with open(config, "w") as file:
    file.write(text.replace("bfloat16", "float16"))
answer["config"] = refusal(kvtiers, root, memory(), spec())
answer["warned"] = refusal(kvtiers, root, memory(), spec(), on_mismatch="warn")
root, _ = used("open")
os.chmod(root, 0o777)
answer["open"] = refusal(kvtiers, root, memory(), spec(), on_untrusted_root="refuse")
root = f"{question}/file"
open(root, "w").close()
answer["file"] = refusal(kvtiers, root, memory(), spec())
answer["read-only"] = refusal(kvtiers, "/proc/self", memory(), spec())
"""


def test_all_that_needs_no_none_hash_is_refused_when_the_engine_starts(peer: Peer, tmp_path: Path) -> None:
    answer = peer.ask(AT_START, str(tmp_path))
    assert answer.pop("right") is None
    assert answer.pop("warned") is None
    words = {
        "algorithm": "says hash_algorithm 'sha256' (here 'sha256_cbor')",
        "block": "says block_bytes 4096, here it is 8192",
        "config": "was edited, or moved there",
        "open": "everybody may write there",
        "file": "is not a directory",
        "read-only": "cannot be used",
    }
    assert set(answer) == set(words)
    for name, phrase in words.items():
        assert answer[name].startswith("RootError: ")
        assert phrase in answer[name]


LABELS = """
engine_starts()
entries = [{"type": "fs", "root_dir": question}]
entries += [
    {"type": "KvtierFileSystemTier", "module_path": "kvtier.vllm_plugin", "root_dir": f"{question}/{name}"}
    for name in ("a", "b")
]
one = spec()
one.secondary_tier_configs = entries
tiers = []
for entry in entries[1:]:
    os.mkdir(entry["root_dir"])
    tiers.append(SecondaryTierFactory.create_secondary_tier(entry, memoryview(memory()), one))
run_job(tiers[0], "store", keys(2), range(2))
run_job(tiers[1], "store", keys(5), range(5))
answer = []
for tier in tiers:
    values = tier.get_stats().metric_sections()[1]
    answer.append([{" ".join(labels): value for labels, value in values[name].items()}
                   for name in ("kvtier_blocks", "kvtier_jobs_in_flight")])
    tier.shutdown()
"""


def test_two_tiers_of_one_engine_have_labels_of_their_own_and_vllms(peer: Peer, tmp_path: Path) -> None:
    first, second = peer.ask(LABELS, str(tmp_path))
    assert first[0]["2:KvtierFileSystemTier store ok"] == 2
    assert second[0]["3:KvtierFileSystemTier store ok"] == 5
    assert list(first[1]) == ["2:KvtierFileSystemTier  "]
    assert list(second[1]) == ["3:KvtierFileSystemTier  "]


IDLE = """
backpressure = {"backpressure_cls": "EMABackpressureDetector"}
tier = kvtiers(question, memory(), spec(), locality="LOCAL", backpressure=backpressure)
tier.drain_jobs()
tier.on_schedule_end(vllm.base.ScheduleEndContext((), ()))
answer = [
    type(tier.bp_detector).__name__, tier.locality.value, tier.medium.value, tier.cache_hit_source.value,
    tier.tier_type, tier.has_pending_work(), list(tier.get_finished_jobs()), list(tier.take_events()),
]
tier.shutdown()
"""


def test_a_tier_without_requests_is_idle_and_reports_its_configuration(peer: Peer, tmp_path: Path) -> None:
    assert peer.ask(IDLE, str(tmp_path)) == [
        *("EMABackpressureDetector", "LOCAL", "STORAGE", "disk", "KvtierFileSystemTier"),
        *(False, [], []),
    ]


# --- what others see ---

EVENTS = """
engine_starts()
answer = []
for engines, tiers in ((True, True), (True, False), (False, True)):
    root = f"{question}/{engines}-{tiers}"
    os.mkdir(root)
    tier = kvtiers(root, memory(), spec(events=engines), enable_kv_events=tiers, locality="REMOTE")
    run_job(tier, "store", keys(), range(SLOTS))
    answer.append([
        [event.keys == keys(), event.medium.value, event.removed, event.locality.value] for event in tier.take_events()
    ])
    assert not list(tier.take_events())
    tier.shutdown()
"""


def test_kv_events_where_engine_and_tier_enable_them(peer: Peer, tmp_path: Path) -> None:
    assert peer.ask(EVENTS, str(tmp_path)) == [[[True, "STORAGE", False, "REMOTE"]], [], []]


DEATH = """
import kvtier.ops.evictor
def dies(*_):
    raise AttributeError("a bug")
folders, kvtier.ops.evictor.folders = kvtier.ops.evictor.folders, dies
engine_starts()
tier = kvtiers(question, memory(), spec(), capacity="1GiB")
tier.on_new_request(context())
tier._fs._quota._thread.join()
kvtier.ops.evictor.folders = folders
tier.on_schedule_end(vllm.base.ScheduleEndContext((), ()))
counted = {" ".join(labels): value for labels, value in
           tier.get_stats().metric_sections()[1]["kvtier_thread_deaths"].items()}
answer = [counted, refusal(run_job, tier, "store", keys(), range(SLOTS))]
tier.shutdown()
"""


def test_a_dead_capacity_thread_is_counted_and_ends_stores_with_an_error(peer: Peer, tmp_path: Path) -> None:
    counted, refused = peer.ask(DEATH, str(tmp_path))
    deaths = {"capacity": 1, "lookup": 0, "load": 0, "store": 0, "watchdog": 0}
    assert counted == {f"KvtierFileSystemTier {thread}": count for thread, count in deaths.items()}
    assert refused.startswith("KvtierError: a capacity thread died (AttributeError: a bug), which is a bug in kvtier")


METRICS = """
engine_starts()
tier = kvtiers(question, memory(), spec())
before = kvtiers(question, memory(), spec()).get_stats().metric_sections()[1].get("kvtier_build_info")
definitions = plugin.KvtierFileSystemTier.build_metric_definitions({"root_dir": question})
run_job(tier, "store", keys(), range(SLOTS))
run_job(tier, "load", keys(), range(SLOTS), job_id=2)
look(tier, keys()[:1] + keys(1, group=1))
tier.on_schedule_end(vllm.base.ScheduleEndContext((), ()))
while "file_system_free_bytes" not in tier._gauges():
    pass
types, values = tier.get_stats().metric_sections()
kinds = {name: type(metadata).__name__ for name, metadata in definitions.items()}
answer = {
    "strays": sorted(set(values) - set(definitions)),
    "kinds": all(kinds[name].lower().startswith("offloading" + types[name]) for name in values),
    "labels": all(len(labels) == len(definitions[n].labelnames) for n, series in values.items() for labels in series),
    "values": {name: {" ".join(labels): value for labels, value in series.items()} for name, series in values.items()},
    "gauges": sorted({family.name for one in tier._metrics._collectors for family in one.collect()}
                     - {name for name in types if types[name] == "gauge"} - {"kvtier_build"}),
    "info": [before, definitions["kvtier_build_info"].labelnames, list(values["kvtier_build_info"].items())],
    "again": sorted(name for name in tier.get_stats().metric_sections()[1] if types[name] != "gauge"),
}
tier.shutdown()
"""


def test_metrics_go_to_the_engine_under_kvtiers_names(peer: Peer, tmp_path: Path) -> None:
    answer = peer.ask(METRICS, str(tmp_path))
    assert answer["strays"] == []
    assert answer["gauges"] == [], "gauges that the plug-in does not declare, and so does not report"
    assert answer["kinds"]
    assert answer["labels"]
    assert answer["again"] == [], "each count is reported once"
    values, tier = answer["values"], "KvtierFileSystemTier"
    assert values["kvtier_blocks"][f"{tier} store ok"] == 6
    assert values["kvtier_blocks"][f"{tier} load ok"] == 6
    assert values["kvtier_transferred_bytes"][f"{tier} load"] == 6 * BLOCK_BYTES
    assert values["kvtier_corrupt_blocks"][f"{tier} checksum"] == 0, "a series is there before the first failure"
    assert values["kvtier_lookup_keys"][f"{tier} miss"] == 1
    assert len(values["kvtier_job_seconds"][f"{tier} load"]) == 1
    assert values["kvtier_queue_tasks"] == {f"{tier} load load": 0, f"{tier} store store": 0}
    assert values["kvtier_jobs_in_flight"] == {f"{tier}  ": 0}
    for old, new in DEPRECATED_NAMES.items():
        assert values[f"kvtier_{old}"] == values[f"kvtier_{new}"] != {}
    free, size = (values[f"kvtier_file_system_{what}_bytes"][f"{tier}  "] for what in ("free", "size"))
    assert 0 < free < size


def test_an_engine_reports_its_shared_folder_once_it_has_its_seed(peer: Peer, tmp_path: Path) -> None:
    before, names, told = peer.ask(METRICS, str(tmp_path))["info"]
    assert before is None
    ((values, one),) = told
    info = dict(zip(names, values, strict=True))
    (record,) = tmp_path.rglob("kvtier.json")
    assert one == 1
    assert info["folder"] == record.parent.name
    assert info["none_hash"] == json.loads(record.read_text())["none_hash_digest"][:8]
    assert (info["version"], info["block_bytes"], info["io"]) == (__version__, str(BLOCK_BYTES), "auto")


TRACES = """
engine_starts()
tier = kvtiers(question, memory(), spec())
request = context(kv_transfer_params={"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"})
run_job(tier, "store", keys(1), [0], request)
tier.shutdown()
"""


def test_a_requests_trace_is_written_into_its_blocks(peer: Peer, tmp_path: Path) -> None:
    peer.ask(TRACES, str(tmp_path))
    (block,) = tmp_path.rglob("*.bin")
    assert ("ab" * 16).encode() in block.read_bytes()
