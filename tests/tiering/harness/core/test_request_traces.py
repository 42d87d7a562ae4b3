"""Traffic: bad traces are refused with a reason, synthetic ones have the recorded shape, oracles the known answer."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.request_traces import (
    BLOCK_IDS_MAX,
    TraceError,
    TraceRequest,
    deal,
    oracle_hit_ratio,
    plan,
    read_trace,
    synthetic_trace,
    tokens_of,
)
from harness.core.seeds import fresh_seed, stream

GOOD = {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}
TRACE = os.environ.get("KVTIER_TRACE")


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_trace_is_read_in_order(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", GOOD, {**GOOD, "timestamp": 3000, "hash_ids": [0, 1, 2], "more": None})
    assert read_trace(path) == [TraceRequest(0, 1000, 5, (0, 1)), TraceRequest(3000, 1000, 5, (0, 1, 2))]
    path.write_text(path.read_text().rstrip("\n"))  # the last newline may be missing
    assert len(read_trace(str(path))) == 2


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "blank"),
        ("  ", "blank"),
        ("{", "not JSON"),
        ("\x00", "not JSON"),
        ("[1]", "JSON object"),
        ("3", "JSON object"),
        ('"' + "x" * 5000 + '"', "JSON object"),
        ("[" * 100_000, "line 2"),
        ({k: v for k, v in GOOD.items() if k != "hash_ids"}, "'hash_ids' is missing"),
        ({}, "'timestamp', 'input_length'"),
        ({**GOOD, "timestamp": -1}, "timestamp is -1"),
        ({**GOOD, "timestamp": 1.5}, "timestamp is 1.5"),
        ({**GOOD, "timestamp": True}, "timestamp is True"),
        ({**GOOD, "timestamp": 4}, "earlier than the line above"),
        ({**GOOD, "input_length": "12"}, "input_length is '12'"),
        ({**GOOD, "output_length": None}, "output_length is None"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1, "hash_ids": [0]}', "timestamp is nan"),
        ({**GOOD, "timestamp": 9, "hash_ids": []}, "at least one"),
        ({**GOOD, "timestamp": 9, "hash_ids": "0"}, "hash_ids is '0'"),
        ({**GOOD, "timestamp": 9, "hash_ids": [0, -2]}, "holds -2"),
        ({**GOOD, "timestamp": 9, "hash_ids": [0, BLOCK_IDS_MAX]}, str(BLOCK_IDS_MAX)),
        ({**GOOD, "timestamp": 9, "hash_ids": [0, 1, 0]}, "twice"),
        ({**GOOD, "timestamp": 9, "hash_ids": [1, 0]}, "prefix tree, in which an id always follows the same id: 1 is "),
        ({**GOOD, "timestamp": 9, "hash_ids": [1, 0]}, "1 is the first id here, but follows 0 in line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, what: str) -> None:
    path = written(tmp_path / "t.jsonl", {**GOOD, "timestamp": 5}, line, {**GOOD, "timestamp": 9})
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    text = str(caught.value)
    assert f"{path}, line 2: " in text
    assert what in text
    assert "\n" not in text
    assert len(text) < 300 + len(str(path))


def test_an_empty_or_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="line 1: the file is empty"):
        read_trace(written(tmp_path / "empty.jsonl"))
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "nowhere.jsonl")
    with pytest.raises(TraceError, match="directory"):
        read_trace(tmp_path)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(TraceError, match="line 1: not JSON"):
        read_trace(tmp_path / "bytes.jsonl")


def blocks(trace: Sequence[TraceRequest]) -> list[Sequence[int]]:
    return [request.hash_ids for request in trace]


@pytest.mark.parametrize("count", [200, 1000, 5000])
@pytest.mark.parametrize("seed", [1, 2, 20260101])
def test_a_synthetic_trace_has_the_recorded_shape(seed: int, count: int) -> None:
    trace = synthetic_trace(seed, count)
    assert len(trace) == count
    shared = oracle_hit_ratio(blocks(trace))
    private = oracle_hit_ratio(blocks(trace), [i % 4 for i in range(count)])
    assert 0.30 < shared.ratio < 0.45
    assert 0.3 < private.ratio / shared.ratio < 0.7
    lengths = [len(request.hash_ids) for request in trace]
    assert 18 < statistics.mean(lengths) < 32
    assert statistics.median(lengths) < statistics.mean(lengths) < max(lengths) / 3  # a long tail
    assert all(request.hash_ids[0] == 0 for request in trace)  # the system's prefix
    per_timestamp = count / len({request.timestamp_ms for request in trace})
    assert 5 < per_timestamp < 20


def test_a_synthetic_trace_is_fixed_by_its_seed() -> None:
    assert synthetic_trace(1, 300) == synthetic_trace(1, 300)
    assert synthetic_trace(1, 300) != synthetic_trace(2, 300)


def test_a_synthetic_trace_can_be_read_back_as_a_file(tmp_path: Path) -> None:
    trace = synthetic_trace(5, 100)
    lines = [
        {
            "timestamp": t.timestamp_ms,
            "input_length": t.input_length,
            "output_length": t.output_length,
            "hash_ids": t.hash_ids,
        }
        for t in trace
    ]
    assert read_trace(written(tmp_path / "t.jsonl", *lines)) == trace


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(0, 0.8))
def test_any_synthetic_trace_is_prefix_chained(seed: int, count: int, hit_target: float) -> None:
    parents: dict[int, int] = {}
    clock = 0
    for request in synthetic_trace(seed, count, hit_target=hit_target):
        assert request.timestamp_ms >= clock
        clock = request.timestamp_ms
        for parent, block in zip((-1, *request.hash_ids), request.hash_ids, strict=False):
            assert parents.setdefault(block, parent) == parent


@given(st.lists(st.integers(0, 10**6), max_size=40), st.integers(1, 9))
def test_dealing_is_round_robin(stamps: list[int], processes: int) -> None:
    trace = [TraceRequest(t, 1, 1, (i,)) for i, t in enumerate(sorted(stamps))]
    dealt = deal(trace, processes)
    assert len(dealt) == processes
    assert [dealt[i % processes][i // processes] for i in range(len(trace))] == trace
    assert sum(map(len, dealt)) == len(trace)


def test_a_plan_is_a_deal_with_times() -> None:
    trace = synthetic_trace(3, 120)
    plans = [plan(trace, p, 4, 10.0) for p in range(4)]
    assert [[r.trace for r in p] for p in plans] == deal(trace, 4)
    planned = sorted((r for p in plans for r in p), key=lambda r: r.request)
    assert [r.request for r in planned] == list(range(120))
    starts = [r.start_seconds for r in planned]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] < 10.0
    faster = plan(trace, 1, 4, 1e9, speed=20.0)
    assert [r.start_seconds for r in faster] == [r.timestamp_ms / 20_000 for r in deal(trace, 4)[1]]
    assert all(r.start_seconds < 0.5 for r in plan(trace, 0, 1, 0.5, speed=20.0))
    assert plan([], 0, 1, 10.0) == []


@given(st.integers(0, BLOCK_IDS_MAX - 1), st.integers(0, BLOCK_IDS_MAX - 1), st.integers(1, 64))
def test_tokens_of_two_blocks_differ(one: int, two: int, count: int) -> None:
    tokens = tokens_of(one, count)
    assert len(tokens) == count
    assert all(0 <= token < 2**31 for token in tokens)
    assert tokens == tokens_of(one, count)
    assert all((a == b) == (one == two) for a, b in zip(tokens, tokens_of(two, count), strict=True))


def test_oracles_by_hand() -> None:
    requests = [(0, 1, 2), (0, 1, 3), (0, 4), (0, 1, 2)]
    assert oracle_hit_ratio(requests) == (0 + 2 + 1 + 3, 11)
    assert oracle_hit_ratio(requests, [0, 1, 0, 1]) == (0 + 0 + 1 + 2, 11)
    assert oracle_hit_ratio(requests, capacity_blocks=1).hit_blocks == 0
    # Room for three: 0, 1, 2 -> 0, 1, 3 -> 1, 3, ... the last finds 0 and 1.
    assert oracle_hit_ratio([(0, 1, 2), (0, 1, 3), (0, 1, 2)], capacity_blocks=3).hit_blocks == 4
    assert oracle_hit_ratio([]).ratio == 0.0


def test_only_the_leading_run_counts() -> None:
    """A block behind a missing one must be computed anyway."""
    assert oracle_hit_ratio([(1,), (2, 1)]).hit_blocks == 0


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 5))
def test_oracles_are_ordered(seed: int, count: int, processes: int) -> None:
    requests = blocks(synthetic_trace(seed, count))
    shared = oracle_hit_ratio(requests)
    private = oracle_hit_ratio(requests, [i % processes for i in range(count)])
    assert private.hit_blocks <= shared.hit_blocks == shared.blocks - len({b for r in requests for b in r})
    bounded = [oracle_hit_ratio(requests, capacity_blocks=c).hit_blocks for c in (50, 200, 10**9)]
    assert bounded[-1] == shared.hit_blocks >= max(bounded)


@pytest.mark.skipif(TRACE is None, reason="KVTIER_TRACE does not name the recorded conversation trace")
def test_the_recorded_trace_gives_the_known_answer() -> None:
    trace = read_trace(str(TRACE))
    requests = blocks(trace)
    shared = oracle_hit_ratio(requests)
    assert (len(trace), shared.blocks, shared.blocks - shared.hit_blocks) == (12_031, 288_500, 182_790)
    assert round(100 * shared.ratio, 2) == 36.64
    for processes, percent in ((2, 27.1), (4, 19.2), (8, 13.6), (16, 9.9)):
        owners = [i % processes for i in range(len(trace))]
        assert round(100 * oracle_hit_ratio(requests, owners).ratio, 1) == percent
    for capacity, percent in (
        (2_000, 5.4),
        (5_000, 11.0),
        (10_000, 21.1),
        (20_000, 28.8),
        (50_000, 35.5),
        (100_000, 36.4),
    ):
        ratio = oracle_hit_ratio(requests, capacity_blocks=capacity).ratio
        assert abs(100 * ratio - percent) < 0.1, capacity


def test_streams_are_fixed_by_seed_and_name() -> None:
    def draw(seed: int, *names: str | int) -> list[float]:
        rng = stream(seed, *names)
        return [rng.random() for _ in range(4)]

    assert draw(7, "traffic", 3) == draw(7, "traffic", 3)
    others = [
        draw(7, "traffic"),
        draw(7, "traffic", 3),
        draw(7, "traffic", "3"),
        draw(8, "traffic", 3),
        draw(7, "faults", 3),
    ]
    assert len({tuple(o) for o in others}) == len(others)
    assert draw(7, "traffic", 3)[0] == 0.1211203335136023  # an old seed means the same run for ever
    assert 0 <= fresh_seed() < 2**32
