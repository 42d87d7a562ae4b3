"""harness.bench.overhead: how a ratio and its spread come out of windows that were watched and not watched in turn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from harness.bench.overhead import Window, contrasts, prices, spent, spread
from harness.runner import run
from harness.scenarios.load import SCENARIO, LoadOptions


def windows(*blocks: int, watched_first: bool = False) -> list[Window]:
    """One process's windows of a second, and half a processor second, each."""
    return [Window((number % 2 == 0) == watched_first, 1.0, 0.5, 0.0, count, 0) for number, count in enumerate(blocks)]


def test_a_watched_window_is_held_against_both_its_neighbours() -> None:
    ((by_wall, by_cpu),) = contrasts(windows(7, 7, 100, 90, 100, 7), (1.0, 1.0))
    assert [math.exp(by_wall), math.exp(by_cpu)] == pytest.approx([0.9, 0.9])
    ((by_wall, _),) = contrasts(windows(7, 7, 100, 90, 81, 7), (1.0, 1.0))
    assert math.exp(by_wall) == pytest.approx(1.0), "a machine that becomes slower all the time costs nobody anything"


def test_windows_of_the_beginning_and_the_end_and_empty_ones_do_not_count() -> None:
    assert contrasts(windows(100, 90, 100, 90), (1.0, 1.0)) == []
    assert contrasts(windows(7, 7, 100, 90, 0, 90, 100, 90, 100, 7), (1.0, 1.0))[1:] == []


def test_a_window_of_cheap_blocks_has_done_no_more_than_one_of_few_dear_ones() -> None:
    mixtures = ((10, 100), (30, 20), (25, 50), (5, 200), (40, 10), (20, 60), (12, 90))
    mine = [Window(n % 2 == 1, 1.0, (3 * mix[0] + mix[1]) / 1000, 0.0, *mix) for n, mix in enumerate(mixtures)]
    price = prices(mine)
    assert price == pytest.approx((3e-3, 1e-3))
    assert [by_cpu for _, by_cpu in contrasts(mine, price)] == pytest.approx([0.0] * len(contrasts(mine, price)))
    assert len(contrasts(mine, price)) == 1
    assert prices([Window(False, 1.0, 0.5, 0.0, 10, 20)] * 3) == (1.0, 1.0), "one mixture tells no two prices"


def test_what_was_spent_is_a_share_of_the_watched_time_though_spans_are_exported_later() -> None:
    watched, not_watched = Window(True, 1.0, 0.5, 0.02, 1, 1), Window(False, 1.0, 0.9, 0.005, 1, 1)
    assert spent([watched, not_watched, watched, not_watched]) == pytest.approx(0.05)


def test_the_ratio_is_the_geometric_mean_within_its_interval() -> None:
    found = spread([math.log(ratio) for ratio in (0.5, 2.0, 0.98, 0.96)])
    assert found.value == pytest.approx((0.5 * 2.0 * 0.98 * 0.96) ** 0.25)
    assert 0.5 <= found.low < found.value < found.high <= 2.0
    assert spread([0.0] * 4) == pytest.approx((1.0, 1.0, 1.0))


def test_a_run_is_watched_in_every_other_window(tmp_path: Path) -> None:
    options = LoadOptions(
        processes=1, requests=150, block_bytes=16384, seconds=0.0, speed=0.0, trace_every=1, watch_windows=0.05
    )
    results = run(SCENARIO, options, tmp_path)
    (file,) = Path(results.run_dir).glob("windows-*.json")
    rows = [Window(*row) for row in json.loads(file.read_text())]
    assert {row.watched for row in rows} == {True, False}
    assert 0 < sum(row.spent_seconds for row in rows if row.watched) < sum(row.cpu_seconds for row in rows)
    (page,) = Path(results.run_dir).glob("metrics-*.openmetrics")
    counted = sum(
        float(line.split()[1]) for line in page.read_text().splitlines() if line.startswith("kvtier_blocks_total{")
    )
    moved = {
        watched: sum(row.stored + row.loaded for row in rows if row.watched == watched) for watched in (True, False)
    }
    assert moved[True] <= counted < sum(moved.values()), "blocks moved unwatched are in no metric"
