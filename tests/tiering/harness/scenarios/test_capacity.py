"""`run capacity`, ten minutes cut to seconds: kvtier keeps its limit, and the checker on histories made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.checkers import capacity
from harness.core.history import History, Job, Note, Start
from harness.runner import run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.capacity import CapacityOptions, prepare

CAPACITY = scenario("capacity")
LIMIT = 1000


@pytest.mark.slow
def test_kvtier_keeps_its_limit_and_everybody_goes_on(tmp_path: Path) -> None:
    results = run(CAPACITY, CapacityOptions(**{**CAPACITY.short, "seed": 3}), tmp_path / "runs")
    assert results.verdict == "true", str(results.verdicts)
    (verdict,) = [v for v in results.verdicts if v["name"] == "capacity"]
    assert verdict["data"]["evicted_bytes"] > 0
    assert verdict["data"]["samples"]


def test_a_tier_without_a_limit_is_unknown(tmp_path: Path) -> None:
    results = run(CAPACITY, CapacityOptions(tier="memory", seed=3), tmp_path / "runs")
    assert results.verdict == "unknown"
    assert "memory keeps no limit" in results.verdicts[0]["findings"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"slots": 8}, "--slots is 8; it must be at least 32"), ({"max_bytes": 1 << 20}, "--max-bytes is 1048576")],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        prepare(CapacityOptions(**options))


# --- histories made by hand: one writer (0), one reader (1), two evictors; times are seconds, sizes bytes ---


def store(process: int, at: float, block: int, size: int = 100, **changes: Any) -> Job:
    job = Job(process, block, 1, "store", [block], at, at, at + 0.1, 0.0, "ok", [block], [], 1, [], size)
    return job._replace(**changes)


def load(block: int, at: float, ok: bool = True) -> Job:
    job = Job(1, int(at * 1000), 1, "load", [block], at, at, at + 0.1, 0.0, "ok", [block], [], 1, [], 100)
    return job if ok else job._replace(outcome="fail", ok=[], failed=[block], bytes_ok=0)


def sample(at: float, size: int, seconds: float = 0.0) -> Note:
    return Note(-1, at, "sample", "", {"from_seconds": at - seconds, "to_seconds": at, "bytes": size, "files": 1})


def evicted(process: int, start: float, end: float) -> Note:
    detail = {"started_seconds": start, "finished_seconds": end, "blocks": 1, "bytes": 100}
    return Note(process, end, "evicted", "", detail)


RIGHT = [
    *(Start(process, 0, 1, "t", "d", 0.0, 0.0, {}) for process in range(4)),
    *(store(0, float(at), at) for at in range(1, 31)),
    store(1, 0.0, 99),
    *(load(99, float(at)) for at in range(1, 31)),
    evicted(2, 10.0, 11.0),
    evicted(3, 12.0, 13.0),
    sample(20.0, 950),
    Note(0, 31.0, "counts", "", {"counts": {"stored": 30, "failed ENOENT": 1, "failed full": 3}}),
]


GONE = Note(1, 32.0, "missed", "", {"blocks": [99]})


def judged(*records: Any) -> Any:
    options = {"max_bytes": LIMIT, "slack": 0.1, "processes": 1, "readers": 1}
    return capacity.check(History.of([*RIGHT, *records], options=options))


def test_a_right_history_is_true_and_an_empty_one_is_not() -> None:
    assert judged() == judged()
    assert judged().value == "true", judged()
    assert capacity.check(History.of([])).value == "unknown"


@pytest.mark.parametrize(
    ("record", "finding"),
    [
        (sample(20.5, 1101), "10.1% above the limit"),
        (evicted(3, 10.5, 10.6), "processes 2 and 3 evicted at the same time for 100 ms"),
        (Note(0, 31.0, "counts", "", {"counts": {"failed EIO": 2}}), "2 blocks failed EIO"),
        (store(0, 5.0, 77, ok=[], failed=[77], outcome="fail"), "1 blocks failed, 0 of them refused"),
        (load(99, 20.5, ok=False), "block 99 was lost, though only"),
        (Note(1, 20.5, "missed", "", {"blocks": [99]}), "block 99 was lost"),
        (store(0, 60.0, 78), "process 0 stored nothing for 30.00 s"),
    ],
)
def test_each_defect_is_found(record: Any, finding: str) -> None:
    verdict = judged(record)
    assert verdict.value == "false"
    assert any(finding in text for text in verdict.findings), verdict.findings


@pytest.mark.parametrize(
    "record",
    [
        sample(20.5, 1100),
        sample(20.5, 1250, seconds=1.6),  # 200 bytes were stored while it was taken
        evicted(2, 10.5, 10.6),  # the same process, in another folder
        store(0, 5.0, 77, ok=[], failed=[77], outcome="fail", refused=1),
        Note(1, 38.0, "missed", "", {"blocks": [12345]}),  # never stored by that reader
    ],
)
def test_what_is_allowed_is_no_finding(record: Any) -> None:
    assert judged(record).value == "true", judged(record).findings


def test_a_block_that_was_not_used_for_long_may_go() -> None:
    late = [store(0, 31.0 + at / 10, 100 + at) for at in range(6)]
    assert judged(*late, GONE).value == "true"


def test_a_block_gives_way_to_what_others_used_each_counted_once() -> None:
    """Five blocks of a hundred bytes are half of the limit; one of them over and over is a tenth."""
    again = [load(1 + at % 5, 30.5 + at / 100)._replace(process=0) for at in range(60)]
    assert judged(*again, GONE).value == "true"
    same = [job._replace(blocks=[1], ok=[1]) for job in again]
    assert any("only 20% of the limit was used" in text for text in judged(*same, GONE).findings)
