"""The reference tier: every instance finds what another stored, and none reports a hit for a missing block."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.adapters import UnknownTier, adapter_class, tier_python
from harness.adapters.base import TierSetup
from harness.adapters.reference import MemoryAdapter
from harness.core import content
from harness.faults import FaultFs, FaultUnavailable, Rule

BLOCK_BYTES = 4096


def tier(root: Path, **changes: object) -> MemoryAdapter:
    values: dict[str, object] = {"root_dir": str(root), "block_bytes": BLOCK_BYTES, "slots": 4, "tokens_per_block": 2}
    return MemoryAdapter(TierSetup(**{**values, **changes}))  # type: ignore[arg-type]


def slot(adapter: MemoryAdapter, index: int) -> memoryview:
    return adapter.view.cast("B")[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


def test_what_one_instance_stores_another_loads(tmp_path: Path) -> None:
    one, two = tier(tmp_path), tier(tmp_path)
    keys = one.keys([1, 2, 3, 4])
    for index, key in enumerate(keys):
        content.fill(slot(one, index), key)
    assert two.lookup(keys, "r") == ["miss", "miss"]
    one.submit_store(0, keys, [0, 1], "r")
    assert [(f.job_id, list(f.ok), list(f.failed)) for f in one.poll()] == [(0, keys, [])]
    assert one.poll() == []
    assert two.lookup(keys, "r") == ["hit", "hit"]
    two.submit_load(7, keys, [3, 0], "r")
    assert [list(f.ok) for f in two.poll()] == [keys]
    assert content.judge(slot(two, 3), keys[0]) is None
    assert content.judge(slot(two, 0), keys[1]) is None


def test_a_block_that_is_gone_or_cut_short_fails_alone(tmp_path: Path) -> None:
    one = tier(tmp_path)
    keys = one.keys([1, 2, 3, 4, 5, 6])
    one.submit_store(0, keys, [0, 1, 2], "r")
    (tmp_path / str(one.file_name(keys[0]))).unlink()
    (tmp_path / str(one.file_name(keys[1]))).write_bytes(b"short")
    one.submit_load(1, keys, [0, 1, 2], "r")
    _, load = one.poll()
    assert (list(load.ok), list(load.failed)) == ([keys[2]], keys[:2])


def test_what_another_has_published_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    """On a volume without unnamed files; a file that is replaced cannot be opened there for a moment (ESTALE)."""
    (tmp_path / "other").mkdir()
    (tmp_path / "shared").mkdir()
    other = tier(tmp_path / "other")
    (key,) = other.keys([1, 2])
    other.submit_store(0, [key], [0], "r")
    name = str(other.file_name(key))
    try:
        FaultFs.check_available()
    except FaultUnavailable as reason:
        pytest.skip(str(reason))
    with FaultFs(tmp_path / "shared") as fs, ThreadPoolExecutor(1) as pool:
        one = tier(fs.mount)
        fs.inject(Rule("create", "hang", path="*.tmp"))
        late = pool.submit(one.submit_store, 0, [key], [0], "r")
        published = tmp_path / "shared" / name
        try:
            fs.await_counts(lambda counts: counts["held"] == 1)
            published.write_bytes((tmp_path / "other" / name).read_bytes())
            inode = published.stat().st_ino
        finally:
            fs.lift()
        late.result()
        assert [list(f.ok) for f in one.poll()] == [[key]]
        assert published.stat().st_ino == inode
        assert not list(published.parent.glob("*.tmp"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1), max_size=9), st.lists(st.integers(0, 2**31 - 1), max_size=9))
def test_keys_are_equal_exactly_for_equal_prefixes(
    tmp_path_factory: pytest.TempPathFactory, a: list[int], b: list[int]
) -> None:
    adapter = tier(tmp_path_factory.getbasetemp())
    for i, (x, y) in enumerate(zip(adapter.keys(a), adapter.keys(b), strict=False)):
        assert (x == y) == (a[: 2 * i + 2] == b[: 2 * i + 2])
    if len(a) >= 4:
        assert adapter.keys(a[2:], adapter.keys(a[:2])[0]) == adapter.keys(a)[1:]


def test_seed_policies_share_by_the_rules(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(policy: str) -> str:
        return tier(tmp_path_factory.mktemp("root"), seed_policy=policy).none_hash_digest()

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    assert digest("fixed") == digest("fixed")
    assert digest("random") != digest("random")
    with pytest.raises(ValueError, match="PYTHONHASHSEED is not set"):
        digest("env")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    zero = digest("env")
    assert zero == digest("env") == digest("random") == digest("fixed")
    monkeypatch.setenv("PYTHONHASHSEED", "")
    assert digest("env") != zero
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert digest("env") != zero


def test_a_root_of_another_seed_is_refused(tmp_path: Path) -> None:
    tier(tmp_path, seed_policy="fixed")
    tier(tmp_path, seed_policy="fixed")
    with pytest.raises(ValueError, match="the root's seed"):
        tier(tmp_path, seed_policy="random")


def test_a_store_replaces_what_is_no_block(tmp_path: Path) -> None:
    one = tier(tmp_path)
    keys = one.keys([1, 2, 3, 4])
    path, link = (tmp_path / str(one.file_name(key)) for key in keys)
    path.write_bytes(b"short")
    link.symlink_to("nowhere")
    assert one.lookup(keys, "r") == ["miss", "miss"]
    one.submit_store(0, keys, [0, 1], "r")
    assert one.lookup(keys, "r") == ["hit", "hit"]
    assert {p.name for p in path.parent.iterdir()} == {path.name, link.name, "config.json"}
    assert not link.is_symlink()
    path.write_bytes(link.read_bytes())
    assert one.lookup(keys, "r") == ["miss", "hit"], "a block planted under another's name"


def test_tiers_are_found_by_name_or_refused_in_a_sentence() -> None:
    assert adapter_class("reference") is adapter_class("harness.adapters.reference:ReferenceAdapter") is MemoryAdapter
    assert adapter_class("memory") is adapter_class("reference"), "the former name, for one release"
    assert Path(tier_python("reference")).exists()
    for tier_name, words in {
        "nonsense": "valid choices: kvtier, .*reference",
        "no_such_module:Tier": "no module 'no_such_module'",
        "harness.core.history:History": "no Adapter class named 'History'",
    }.items():
        with pytest.raises(UnknownTier, match=words):
            adapter_class(tier_name)


def test_the_record_of_a_root_is_durable_before_it_has_its_name_also_without_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    opened, synced, linked = os.open, os.fsync, os.link

    def refuse_unnamed(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no unnamed files")
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse_unnamed)
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), synced(file)))
    monkeypatch.setattr(os, "link", lambda *names, **more: (calls.append("link"), linked(*names, **more)))
    tier(tmp_path).close()
    assert calls[:2] == ["fsync", "link"]
