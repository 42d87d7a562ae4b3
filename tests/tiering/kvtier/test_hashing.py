"""The hashes are vLLM's, bit for bit, whatever objects carry the input and whichever process computes them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import HASH_ALGORITHMS, SEED_POLICIES, ConfigError
from kvtier.hashing import (
    BlockHash,
    ExtraKeys,
    MultimodalItem,
    RequestExtras,
    chunk_hashes,
    get_offload_block_hash,
    get_offload_group_idx,
    hash_function,
    hash_tokens,
    make_offload_key,
    none_hash,
    none_hash_digest,
)

REPOSITORY = Path(__file__).resolve().parents[3]
BIG = [0, 1, 255, 256, 65535, 65536, 151643, 2147483647]
SALT = RequestExtras(cache_salt="tenantA")
LORA = RequestExtras(lora=("a", "/l/a"))


def chain(
    algorithm: str, tokens: Any, h: int = 16, extra: ExtraKeys | None = None, seed: str | None = None
) -> list[str]:
    environ = {} if seed is None else {"PYTHONHASHSEED": seed}
    hashes = hash_tokens(tokens, h, hash_function(algorithm), none_hash(algorithm, environ=environ), extra)
    return [block_hash.hex() for block_hash in hashes]


# ---- known answers, computed by vLLM 0.33.0 under Python 3.11

NONE_VECTORS = [
    ("sha256", {}, "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198"),
    ("sha256_cbor", {}, "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"),
    ("sha256", {"PYTHONHASHSEED": "0"}, "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c"),
    ("sha256_cbor", {"PYTHONHASHSEED": "0"}, "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e"),
    ("xxhash", {"PYTHONHASHSEED": "0"}, "6fb31cc38bba6066183f7f2104b9c051"),
    ("xxhash_cbor", {"PYTHONHASHSEED": "0"}, "1ebe36576dcb573f26b99533a20aaeca"),
]
B0_VECTORS = [
    ("sha256", {}, "fe8fa5dda3210d0ca2031e37cbe3b001186773cd1c710beb2d45fcb51d434798"),
    ("sha256_cbor", {}, "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749"),
    ("sha256", {"PYTHONHASHSEED": "0"}, "6358e31578a64b75ebe28cdb99d3beae65de82a2087321dc6ec84ae048faaaa6"),
    ("sha256_cbor", {"PYTHONHASHSEED": "0"}, "d830de3d42c00f25a2949b5d12d98642664a44872c1614c5b0147556276afc9c"),
    ("xxhash", {"PYTHONHASHSEED": "0"}, "8ef953407c0da43eacbb3639ed2bff4d"),
    ("xxhash_cbor", {"PYTHONHASHSEED": "0"}, "209f5d549fc07c8e39d823615ede61ce"),
]


@pytest.mark.parametrize(("algorithm", "environ", "expected"), NONE_VECTORS)
def test_none_hash_is_that_of_vllm(algorithm: str, environ: dict[str, str], expected: str) -> None:
    assert none_hash(algorithm, "fixed", environ).hex() == expected


@pytest.mark.parametrize(("algorithm", "environ", "expected"), B0_VECTORS)
def test_first_block_is_that_of_vllm(algorithm: str, environ: dict[str, str], expected: str) -> None:
    assert chain(algorithm, range(16), seed=environ.get("PYTHONHASHSEED")) == [expected]


def test_second_block_is_that_of_vllm() -> None:
    expected = "8be7aaa33831156d316f1f463ae57e643deb63f42e633e2d631df88815cc4629"
    assert chain("sha256", range(32)) == [B0_VECTORS[0][2], expected]


def test_extra_keys_and_large_tokens_are_those_of_vllm() -> None:
    assert chain("sha256", range(16), extra=SALT) == [
        "9924998b5da19feba2dd35af56aeaaef56f2774a30633703f529493ca2ab80fa"
    ]
    assert chain("sha256_cbor", range(16), extra=LORA) == [
        "48f575f50a45f9f9ccd22e424770345be9ddebfd1d56666cc828a59a52c00993"
    ]
    assert chain("sha256", BIG, h=8) == ["79b727c22c34402a3364b7656ad4b5af779aced02a031e7462af5f1d2f6af2ef"]


def test_a_chain_and_its_chunks_are_those_of_vllm() -> None:
    hashes = chain("sha256", range(1000, 1130))
    assert len(hashes) == 8  # 130 tokens; the last two fill no block
    assert hashes[0] == "9d9c413731095d0ee811a14814414907cafccd751ce2052f659e8e1f547aeb68"
    assert hashes[3] == "dcecb26759fe58a7e6db684cb3a4ae1c25b7b8dbff751c6aaa6d61563c41d31d"
    blocks = [BlockHash(bytes.fromhex(text)) for text in hashes]
    assert chunk_hashes(blocks, 4) == [blocks[3], blocks[7]]
    assert chunk_hashes(blocks, 3) == [blocks[2], blocks[5]]  # the partial third chunk has no hash
    assert chunk_hashes(blocks, 1) == blocks
    assert chunk_hashes(blocks, 9) == []


# ---- properties

TOKENS = st.lists(st.integers(0, 2), max_size=24)


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@given(TOKENS, TOKENS, st.integers(1, 5))
def test_equal_prefixes_and_only_they_have_equal_chains(algorithm: str, a: list[int], b: list[int], h: int) -> None:
    ours, theirs = (chain(algorithm, tokens, h, seed="0") for tokens in (a, b))
    assert (len(ours), len(theirs)) == (len(a) // h, len(b) // h)
    for i, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        assert (our == their) == (a[: (i + 1) * h] == b[: (i + 1) * h])


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_a_chain_can_be_continued(head: list[int], tail: list[int], h: int) -> None:
    head = head[: len(head) // h * h]
    hash_fn, none = hash_function("sha256"), none_hash("sha256", environ={})
    first = hash_tokens(head, h, hash_fn, none)
    assert first + hash_tokens(tail, h, hash_fn, first[-1] if first else none) == hash_tokens(
        head + tail, h, hash_fn, none
    )


@given(st.binary(min_size=1, max_size=64), st.integers(0, 2**32 - 1), st.binary(min_size=1), st.integers(0, 2**32 - 1))
def test_keys_unpack_to_what_was_packed_and_differ_otherwise(a: bytes, group_a: int, b: bytes, group_b: int) -> None:
    key_a, key_b = make_offload_key(BlockHash(a), group_a), make_offload_key(BlockHash(b), group_b)
    assert (get_offload_block_hash(key_a), get_offload_group_idx(key_a)) == (a, group_a)
    assert key_a == a + group_a.to_bytes(4, "big")
    assert (key_a == key_b) == ((a, group_a) == (b, group_b))


@pytest.mark.parametrize("group", [-1, 2**32])
def test_a_group_that_does_not_fit_is_refused(group: int) -> None:
    with pytest.raises(OverflowError):
        make_offload_key(BlockHash(b"x" * 32), group)


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@given(st.lists(st.integers(), min_size=1, max_size=8))
def test_tokens_of_any_size_and_sign_count(algorithm: str, tokens: list[int]) -> None:
    one = chain(algorithm, tokens, len(tokens), seed="0")
    assert one != chain(algorithm, [*tokens[:-1], tokens[-1] + 1], len(tokens), seed="0")
    assert one != chain(algorithm, [*tokens[:-1], tokens[-1] - 2**64], len(tokens), seed="0")


# ---- the identity trap

WORDS = st.one_of(st.sampled_from(["", "a", "é", "mm", "lora", "cache_salt", "prompt_embeds"]), st.text(max_size=6))
DIGESTS = st.one_of(st.sampled_from([b"", b"a"]), st.binary(max_size=32))
EXTRAS = st.builds(
    RequestExtras,
    lora=st.none() | st.tuples(WORDS, WORDS),
    mm_items=st.lists(st.tuples(WORDS, st.integers(0, 40), st.integers(0, 20)), max_size=3).map(tuple),
    cache_salt=st.none() | WORDS,
    prompt_embeds=st.none() | st.lists(DIGESTS, max_size=3).map(tuple),
)


def off_the_wire(value: str | bytes | int) -> Any:
    """An equal value as a process has it that read it from a socket: an object of its own, save what CPython shares."""
    if isinstance(value, bytes):
        return bytes.fromhex(value.hex())
    return json.loads(json.dumps(value))


def as_vllm_would(tokens: list[int], h: int, none: bytes, extras: RequestExtras) -> list[bytes]:
    """The formula of the facts, over objects as vLLM has them: literal tags, all other values fresh. The oracle."""
    hashes: list[bytes] = []
    for i in range(len(tokens) // h):
        keys: list[tuple[Any, ...]] = []
        for tag, *values in extras(i * h, (i + 1) * h) or ():
            literal = {"lora": "lora", "mm": "mm", "cache_salt": "cache_salt", "prompt_embeds": "prompt_embeds"}[tag]
            keys.append((literal, *map(off_the_wire, values)))
        parent = hashes[-1] if hashes else none
        triple = (parent, tuple(tokens[i * h : (i + 1) * h]), tuple(keys) or None)
        hashes.append(hashlib.sha256(pickle.dumps(triple, protocol=5)).digest())
    return hashes


@given(st.lists(st.integers(0, 300), max_size=24), st.integers(1, 8), EXTRAS)
def test_extras_hash_as_in_a_process_that_got_them_over_the_wire(
    tokens: list[int], h: int, extras: RequestExtras
) -> None:
    none = none_hash("sha256", environ={})
    assert hash_tokens(tokens, h, hash_function("sha256"), none, extras) == as_vllm_would(tokens, h, none, extras)


class Text(str):
    __slots__ = ()


class Octets(bytes):
    pass


def carriers(word: str, digest: bytes) -> list[tuple[str, str, str, bytes]]:
    """One input, carried by different objects: (lora name, path, salt, digest), all words equal."""
    shared, octets = word, digest
    return [
        (shared, shared, shared, octets),
        (off_the_wire(word), off_the_wire(word), off_the_wire(word), off_the_wire(digest)),
        (sys.intern(off_the_wire(word)), sys.intern(off_the_wire(word)), shared, octets),
        (Text(word), Text(word), Text(word), Octets(digest)),
        (np.str_(word), np.str_(word), word, np.bytes_(digest)),
        (word, word, word, bytearray(digest)),
        (word, word, word, memoryview(digest)),
    ]


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@pytest.mark.parametrize("word", ["mm", "lora", "cache_salt", "a", "é", "模型", "an adapter"])
def test_equal_extras_hash_equal_whatever_carries_them(algorithm: str, word: str) -> None:
    digest = hashlib.sha256(b"rows").digest()
    results = {
        tuple(
            chain(
                algorithm,
                range(16),
                extra=RequestExtras(
                    (name, path), (MultimodalItem(path, 1, 2), MultimodalItem(name, 4, 2)), salt, (octets,)
                ),
                seed="0",
            )
        )
        for name, path, salt, octets in carriers(word, digest)
    }
    assert len(results) == 1


def test_the_trap_is_there() -> None:
    # If pickle ever goes by equality, the copies above can go, and the tests of them prove nothing.
    one, other = "an adapter", off_the_wire("an adapter")
    assert one == other
    assert pickle.dumps((one, one), 5) != pickle.dumps((one, other), 5)
    assert pickle.dumps(np.int64(1), 5) != pickle.dumps(1, 5)


def test_one_tuple_used_twice_hashes_as_two_equal_ones() -> None:
    once = ("mm", "picture", 0)
    again = ("mm", off_the_wire("picture"), 0)
    assert chain("sha256", range(4), 4, lambda *_: (once, once)) == chain(
        "sha256", range(4), 4, lambda *_: (once, again)
    )
    assert chain("sha256", range(4), 4, lambda *_: ()) == chain("sha256", range(4), 4)


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_tokens_hash_equal_whatever_ints_carry_them(algorithm: str, dtype: type[Any]) -> None:
    plain = [1, 0, 1, 1, 0, 0, 1, 0]
    expected = chain(algorithm, plain, 4, seed="0")
    array = np.array(plain, dtype=dtype)
    assert chain(algorithm, array, 4, seed="0") == expected
    assert chain(algorithm, list(array), 4, seed="0") == expected
    assert chain(algorithm, tuple(map(bool, plain)), 4, seed="0") == expected


@pytest.mark.parametrize("tokens", [[1.0], ["1"], [None], np.array([1.5])])
def test_tokens_that_are_no_ints_are_refused_not_rounded(tokens: Any) -> None:
    with pytest.raises(TypeError):
        chain("sha256", tokens, 1)


def test_offsets_and_parents_hash_equal_whatever_carries_them() -> None:
    plain = chain("sha256", range(8), 4, RequestExtras(mm_items=(MultimodalItem("p", 1, 9),)))
    assert plain == chain("sha256", range(8), 4, RequestExtras(mm_items=(MultimodalItem("p", np.int32(1), 9),)))  # type: ignore[arg-type]
    none = none_hash("sha256", environ={})
    hash_fn = hash_function("sha256")
    for parent in (Octets(none), np.bytes_(none), bytearray(none)):
        assert hash_tokens(range(4), 4, hash_fn, parent) == hash_tokens(range(4), 4, hash_fn, none)  # type: ignore[arg-type]
    # a digest that is the very object of the parent
    alias, copy = (RequestExtras(prompt_embeds=(value,)) for value in (none, off_the_wire(none)))
    assert hash_tokens(range(4), 4, hash_fn, none, alias) == hash_tokens(range(4), 4, hash_fn, none, copy)


# ---- extra keys of a request


def test_extra_keys_stand_in_vllms_order() -> None:
    extras = RequestExtras(("l", "/l"), (MultimodalItem("p", 2, 3),), "s", (b"d0", b"d1"))
    assert extras(0, 16) == (("lora", "l", "/l"), ("mm", "p", 2), ("cache_salt", "s"), ("prompt_embeds", b"d0"))
    assert extras(16, 32) == (("lora", "l", "/l"), ("prompt_embeds", b"d1"))


def test_an_item_counts_in_each_block_it_overlaps_relative_to_the_block() -> None:
    extras = RequestExtras(mm_items=(MultimodalItem("late", 30, 2), MultimodalItem("early", 10, 14)))
    assert extras(0, 8) is None
    assert extras(0, 10) is None  # [0, 10) ends where the item begins
    assert extras(8, 16) == (("mm", "early", 2),)
    assert extras(16, 24) == (("mm", "early", -6),)
    assert extras(24, 30) is None
    assert extras(16, 32) == (("mm", "early", -6), ("mm", "late", 14))  # in the order of the tokens
    assert extras(32, 48) is None


def test_the_salt_is_in_the_first_block_only_and_reaches_all() -> None:
    assert SALT(0, 16) == (("cache_salt", "tenantA"),)
    assert SALT(16, 32) is None
    assert RequestExtras(cache_salt="")(0, 16) is None
    salted, plain = chain("sha256", range(48), extra=SALT), chain("sha256", range(48))
    assert not set(salted) & set(plain)


def test_blocks_behind_the_embeddings_have_the_digest_of_no_rows() -> None:
    extras = RequestExtras(prompt_embeds=(b"d0",))
    assert extras(16, 32) == (("prompt_embeds", hashlib.sha256(b"").digest()),)
    assert RequestExtras()(0, 16) is None


# ---- seeds


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@pytest.mark.parametrize("policy", SEED_POLICIES)
@pytest.mark.parametrize("seed", ["0", "", "random", "é"])
def test_a_set_seed_decides_under_every_policy_verbatim(algorithm: str, policy: str, seed: str) -> None:
    environ = {"PYTHONHASHSEED": seed}
    assert none_hash(algorithm, policy, environ) == hash_function(algorithm)(off_the_wire(seed))


def test_env_policy_without_the_variable_explains_itself() -> None:
    with pytest.raises(ConfigError, match="PYTHONHASHSEED is not set; set it to the same value"):
        none_hash("sha256", "env", {})


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
def test_random_policy_never_repeats_itself(algorithm: str) -> None:
    one, other = (none_hash(algorithm, "random", {}) for _ in range(2))
    assert one != other
    assert len(one) == len(other) == 32


@pytest.mark.parametrize("algorithm", ["xxhash", "xxhash_cbor"])
def test_fixed_policy_keeps_the_seed_of_weak_hashes_secret(algorithm: str) -> None:
    one, other = (none_hash(algorithm, "fixed", {}) for _ in range(2))
    assert one != other
    assert len(one) == len(other) == 16


def test_the_digest_differs_by_seed_and_is_not_the_seed() -> None:
    one = none_hash("sha256", environ={})
    assert none_hash_digest(one) == hashlib.sha256(one).hexdigest()
    assert none_hash_digest(one) != one.hex()


def test_unknown_names_are_answered_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="'md5'; valid choices: sha256, sha256_cbor, xxhash, xxhash_cbor"):
        hash_function("md5")
    with pytest.raises(ConfigError, match="'md5'; valid choices: sha256, "):
        none_hash("md5")
    with pytest.raises(ConfigError, match="'never'; valid choices: fixed, env, random"):
        none_hash("sha256", "never")


# ---- other processes, other interpreters

SCRIPT = """
import sys
from kvtier.hashing import *
extras = RequestExtras(("an adapter", "an adapter"), (MultimodalItem("picture", 3, 20),) * 2, "salt", (b"d" * 32,))
none, hash_fn = none_hash("sha256", "fixed", {}), hash_function("sha256")
for keys in (None, extras):
    print(*(value.hex() for value in hash_tokens([*range(40), -1, 2**31, 2**63, 2**70], 4, hash_fn, none, keys)))
assert not {"xxhash", "cbor2", "numpy", "torch"} & set(sys.modules), "sha256 needs the standard library alone"
for name in ("xxhash", "cbor2"):
    sys.modules[name] = None
    try:
        hash_function({"xxhash": "xxhash", "cbor2": "sha256_cbor"}[name])
    except ValueError as error:
        assert type(error).__name__ == "ConfigError" and name in str(error) and "\\n" not in str(error), error
    else:
        raise SystemExit(f"{name} is not there, and nobody said so")
"""


def run_elsewhere(interpreter: str, **environ: str) -> str:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", **environ}
    done = subprocess.run([interpreter, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_process_gets_the_same_hashes() -> None:
    outputs = {run_elsewhere(sys.executable, PYTHONHASHSEED=seed) for seed in ("0", "1", "4242", "random")}
    assert len(outputs) == 1  # the seed of str.__hash__ has no say: the policy reads the mapping that it is given
    none, hash_fn = none_hash("sha256", "fixed", {}), hash_function("sha256")
    extras = RequestExtras(("an adapter", "an adapter"), (MultimodalItem("picture", 3, 20),) * 2, "salt", (b"d" * 32,))
    tokens = [*range(40), -1, 2**31, 2**63, 2**70]  # as in SCRIPT
    here = [" ".join(value.hex() for value in hash_tokens(tokens, 4, hash_fn, none, keys)) for keys in (None, extras)]
    assert outputs.pop().splitlines() == here


def interpreter_of(version: str) -> str | None:
    """A working interpreter of that version: on the path, or one of pyenv's."""
    found = [
        shutil.which(f"python{version}"),
        *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python")),
    ]
    for path in filter(None, found):
        if subprocess.run([path, "-V"], capture_output=True, timeout=60).returncode == 0:
            return path
    return None


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_another_python_gets_the_same_hashes(version: str) -> None:
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        pytest.skip(f"Python {version} is the one that runs these tests")
    if (interpreter := interpreter_of(version)) is None:
        pytest.skip(f"no Python {version} on this machine")
    assert run_elsewhere(interpreter) == run_elsewhere(sys.executable)
