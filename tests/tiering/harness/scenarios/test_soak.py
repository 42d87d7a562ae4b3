"""`run soak`, an hour cut to seconds: nothing grows in kvtier, a leak is found; the trend test on made-up series."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.checkers import soak
from harness.core.history import Gauge, History, Job, Name, Note, Start, Stop
from harness.runner import Results
from harness.scenarios.base import UsageError
from harness.scenarios.soak import SoakOptions, prepare
from tests.tiering.harness.together import run_together

pytestmark = pytest.mark.timeout(600)  # of all the runs that the fixture makes
SHORT: dict[str, Any] = {"seconds": 7.0, "seed": 6, "processes": 1, "block_bytes": 4096, "blocks": 64, "pace": 50.0}


LEAKS = "tests.tiering.harness.broken.flawed:OpensForEver"


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Results, dict[str, Any]]]:
    """Tier -> its run, and the verdict of the checker."""
    tiers = ("kvtier", "kvtier-stack", LEAKS)
    runs = run_together(
        "soak", {tier: SoakOptions(**SHORT, tier=tier) for tier in tiers}, tmp_path_factory.mktemp("runs")
    )
    return {tier: (results, next(v for v in results.verdicts if v["name"] == "soak")) for tier, results in runs.items()}


@pytest.mark.slow
def test_kvtier_is_flat_and_its_accounts_agree(soaked: dict[str, tuple[Results, dict[str, Any]]]) -> None:
    results, verdict = soaked["kvtier"]
    assert results.verdict == "true", str(results.verdicts)
    assert verdict["data"]["agreement"]["removed"] > 0
    assert verdict["data"]["agreement"]["counters"] == "of 1 processes compared"
    assert set(verdict["data"]["growth"]["0"]) == set(soak.LEAST)


@pytest.mark.slow
def test_a_stack_whose_counters_are_those_of_cascades_and_promotions_agrees(
    soaked: dict[str, tuple[Results, dict[str, Any]]],
) -> None:
    """Most stores are of blocks that its CPU tier holds, also after their files were removed: they write nothing."""
    results, verdict = soaked["kvtier-stack"]
    assert results.verdict == "true", str(results.verdicts)
    assert verdict["data"]["agreement"]["removed"] > 0
    assert "below a memory tier" in verdict["data"]["agreement"]["counters"]


@pytest.mark.slow
def test_a_descriptor_left_open_by_each_load_is_found(soaked: dict[str, tuple[Results, dict[str, Any]]]) -> None:
    results, verdict = soaked[LEAKS]
    assert results.verdict == "false"
    assert any("fds rises" in finding for finding in verdict["findings"])


def test_too_few_slots_for_the_window_are_refused() -> None:
    with pytest.raises(UsageError, match="--slots is 8"):
        prepare(SoakOptions(slots=8))


# --- histories made by hand ---


def lived(*records: Any, files: list[str] | None = None) -> History:
    start = Start(0, 0, 1, "t", "d", 0.0, 0.0, {})
    flat = [Gauge(0, float(t), dict.fromkeys(soak.LEAST, 10.0)) for t in range(60)]
    stop = Stop(0, 0, 60.0, 0, 0, 0, [])
    return History.of([start, *flat, *records, stop], files=files or [], options={"window": 1})


@pytest.mark.parametrize("quantity", soak.LEAST)
def test_whatever_grows_steadily_is_named(quantity: str) -> None:
    rises = {"rss_bytes": 1 << 20}.get(quantity, 10)
    history = lived()
    grown = [g._replace(values=g.values | {quantity: rises * g.monotonic_seconds}) for g in history.gauges]
    start = Start(0, 0, 1, "t", "d", 0.0, 0.0, {})
    verdict = soak.check(History.of([start, *grown, *history.stops], files=[], options={"window": 1}))
    assert verdict.value == "false"
    assert f"{quantity} rises by" in verdict.findings[0]
    assert soak.check(history).value == "true"


def test_a_tier_without_compiled_code_brings_no_count_of_references_to_none() -> None:
    history = lived()
    fewer = [
        g._replace(values={n: v for n, v in g.values.items() if n != "none_references_lost"}) for g in history.gauges
    ]
    assert soak.check(History.of([*history.starts, *fewer, *history.stops])).value == "true"
    fewer = [g._replace(values={n: v for n, v in g.values.items() if n != "fds"}) for g in history.gauges]
    assert soak.check(History.of([*history.starts, *fewer, *history.stops])).value == "unknown"


def series(values: list[float]) -> list[tuple[float, float]]:
    return [(float(t), value) for t, value in enumerate(values)]


@given(st.integers(0, 10_000))
def test_noise_alone_is_no_trend_and_a_steady_rise_is_one_within_the_noise(seed: int) -> None:
    noise = random.Random(seed)
    values = [100 + noise.gauss(0, 5) for _ in range(300)]
    trend = soak._trend(series(values))
    assert trend is not None
    assert trend[2] <= soak.SIGMAS + 1.0, "chance alone reaches this about once in a million times"
    rising = soak._trend(series([value + 30 * t / 300 for t, value in enumerate(values)]))
    assert rising is not None
    assert rising[2] > soak.SIGMAS
    assert 10 < rising[1] < 30, "over the last two thirds of the time"


def test_what_grows_only_while_warming_up_is_flat() -> None:
    trend = soak._trend(series([min(t, 100) for t in range(300)]))
    assert trend is not None
    assert trend[1] == 0


def test_a_flat_life_is_true_and_few_samples_are_unknown() -> None:
    assert soak.check(lived()).value == "true"
    assert (
        soak.check(History.of([Start(0, 0, 1, "t", "d", 0.0, 0.0, {}), Stop(0, 0, 1.0, 0, 0, 0, [])])).value
        == "unknown"
    )
    assert soak.check(History.of([])).value == "unknown"


def stored(block: int, at: float) -> Job:
    return Job(0, block, 1, "store", [block], at, at, at + 1, 0.0, "ok", [block], [], 1, [], 4096)


def failed_load(job_id: int, block: int, at: float) -> Job:
    return Job(0, job_id, 1, "load", [block], at, at, at + 1, 0.0, "fail", [], [block], 1, [], 0)


def removed(block: int, at: float) -> Note:
    return Note(0, at, "removed", "", {"block": block, "from_seconds": at})


def test_a_stored_block_must_be_a_file_unless_it_was_removed_since() -> None:
    name = Name(0, 7, "a/7.bin")
    assert soak.check(lived(name, stored(7, 1.0), files=["a/7.bin"])).value == "true"
    assert soak.check(lived(name, stored(7, 1.0))).value == "false"
    assert soak.check(lived(name, stored(7, 1.0), removed(7, 5.0))).value == "true"
    assert soak.check(lived(name, removed(7, 0.5), stored(7, 1.0))).value == "false"
    assert soak.check(lived(name, files=["a/7.bin"])).value == "false", "nobody stored it"


def test_a_store_of_a_block_in_memory_needs_no_file() -> None:
    """The tier held block 7 in memory when its file was removed: the second store wrote nothing."""
    name, first, again = Name(0, 7, "a/7.bin"), stored(7, 1.0), stored(7, 6.0)
    assert soak.check(lived(name, first, removed(7, 5.0), again._replace(in_memory=[7]))).value == "true"
    assert soak.check(lived(name, first, removed(7, 5.0), again)).value == "false"
    assert soak.check(lived(name, first, again._replace(in_memory=[7]))).value == "false", "nothing removed it"


def test_a_load_may_fail_once_for_each_removal() -> None:
    name, jobs = Name(0, 7, "a/7.bin"), [stored(7, 1.0), failed_load(100, 7, 6.0)]
    assert soak.check(lived(name, *jobs, removed(7, 5.0))).value == "true"
    assert soak.check(lived(name, *jobs, failed_load(101, 7, 8.0), removed(7, 5.0))).value == "false"
    assert soak.check(lived(name, *jobs, files=["a/7.bin"])).value == "false"


def test_counters_must_equal_the_jobs() -> None:
    name = Name(0, 7, "a/7.bin")
    for counted, value in ((1, "true"), (2, "false")):
        counts = Note(0, 9.0, "counts", "", {"counts": {"stored": counted, "loaded": 0}})
        assert soak.check(lived(name, stored(7, 1.0), counts, files=["a/7.bin"])).value == value


def test_counters_of_files_below_a_memory_tier_are_not_those_of_the_jobs() -> None:
    history = lived(
        Name(0, 7, "a/7.bin"), stored(7, 1.0), Note(0, 9.0, "counts", "", {"counts": {}}), files=["a/7.bin"]
    )
    assert soak.check(history).value == "false"
    history.starts = [history.starts[0]._replace(detail={"keeps_in_memory": True})]
    assert soak.check(history).value == "true"
