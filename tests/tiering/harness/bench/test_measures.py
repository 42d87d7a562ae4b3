"""Every large measurement runs, on tiny sizes, and yields the figures that the table promises."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bench import raw
from harness.bench.commit_comparison import METRICS, Comparison
from harness.bench.compared_tiers import REPOSITORY, Contestant, in_turn
from harness.bench.disk import Disk, Unavailable, own_disk, plain_folder
from harness.bench.plan import FLOOR, SECTIONS, SMOKE, Bench, Sample
from harness.bench.show import rows
from harness.bench.targets import targets


@pytest.fixture(scope="module")
def kvtier() -> Iterator[Contestant]:
    tier = Contestant("kvtier")
    yield tier
    tier.close()


@pytest.fixture
def bench(tmp_path: Path, kvtier: Contestant) -> Iterator[Bench]:
    ceilings = Contestant("raw")
    with plain_folder(tmp_path) as disk:
        yield Bench(SMOKE, disk, [kvtier, ceilings], tmp_path)
    ceilings.close()


@pytest.mark.parametrize(
    ("section", "figures"),
    [
        ("throughput", {f"{phase}{cpu}" for phase in ("store", "cold", "second", "warm") for cpu in ("", " CPU")}),
        ("idle", {"p50", "p99"}),
        ("bursts", {"stored"}),
        ("single", {"store", "cold"}),
        ("lookups", {"lookups", "CPU"}),
        ("scale", {"total", *(f"{which}{d}" for which in ("", "least ", "longest ") for d in ("store", "load"))}),
    ],
)
def test_a_section_yields_its_figures(bench: Bench, section: str, figures: set[str]) -> None:
    bench.contestants["kvtier"].gaps.clear()
    samples = list(SECTIONS[section](bench))
    assert bench.contestants["kvtier"].gaps == []
    assert {sample.metric for sample in samples if sample.contestant == "kvtier"} == figures
    assert section != "bursts" or {sample.value for sample in samples} == {1.0}, "a burst that fits is stored"
    # In so short a time a process may get nothing.
    assert all(sample.value > 0 or sample.metric.startswith("least") for sample in samples)
    assert {target.outcome for target in targets(samples)} <= {"met", "missed", "unclear", "unmeasured"}


def test_requests_of_the_device_show_which_load_comes_from_the_page_cache(tmp_path: Path, kvtier: Contestant) -> None:
    """On a disk of its own: the first two loads of a block read the device, the third does not."""
    ceilings = Contestant("raw")
    try:
        with own_disk(tmp_path, 320 << 20) as disk:
            kvtier.gaps.clear()
            samples = list(SECTIONS["throughput"](Bench(SMOKE, disk, [kvtier, ceilings], tmp_path)))
    except Unavailable as error:
        pytest.skip(str(error))
    finally:
        ceilings.close()
    assert kvtier.gaps == []
    found = {s.metric: s.value for s in samples if s.metric.endswith("requests")}
    assert min(found["store requests"], found["cold requests"]) >= 1
    assert found["second requests"] > 0
    assert found["warm requests"] == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("calls", "trailer_bytes"), [("kvtier", 4096), ("vllm", 0)])
def test_the_floor_leaves_the_files_that_the_tier_would(tmp_path: Path, calls: str, trailer_bytes: int) -> None:
    figures = raw.floor(lambda: None, calls, str(tmp_path), 65536, 40, 4)
    assert set(figures) == {"store", "cold", "store CPU", "cold CPU"}
    assert min(figures.values()) > 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in files] == [65536 + trailer_bytes] * 40
    assert all(re.fullmatch(r"(...)/(..)_g0/\1\2[0-9a-f]{59}\.bin", str(f.relative_to(tmp_path))) for f in files)


def test_targets_compare_small_stores_with_the_floor_and_many_processes_with_the_peer() -> None:
    samples = [
        Sample("throughput", "64 KiB", "store", "MiB/s", who, 0, value) for who, value in (("kvtier", 98), (FLOOR, 100))
    ]
    samples += [
        Sample("scale", "16 processes", metric, "MiB/s", who, 0, value)
        for metric, ours in (("store", 80), ("load", 300))
        for who, value in (("kvtier", ours), ("vllm", 100))
    ]
    samples += [
        Sample("floods", "one-block store under 16-block loads, 256 KiB", "p99", "ms", who, 0, value)
        for who, value in (("kvtier", 9), ("vllm", 10))
    ]
    found = {target.what: (target.wanted, target.outcome) for target in targets(samples)}
    assert found[f"64 KiB: store, against {FLOOR}"] == (">= 0.97", "met")
    assert found["16 processes on one root: store, against vllm"] == (">= 0.9", "missed")
    assert found["16 processes on one root: load, against vllm"] == (">= 2", "met")
    assert found["one-block store under 16-block loads, 256 KiB: p99, against vllm"] == ("<= 1", "met")


def test_durability_is_a_share_of_the_same_tier_without_it(tmp_path: Path, kvtier: Contestant) -> None:
    durable = Contestant("kvtier-durable")
    with plain_folder(tmp_path) as disk:
        samples = list(SECTIONS["durability"](Bench(SMOKE, disk, [kvtier, durable], tmp_path)))
    durable.close()
    assert durable.gaps == []
    head, row = rows({"samples": samples})
    shown = dict(zip(head, row, strict=True))
    assert (shown["row"], shown["metric"]) == ("64 KiB", "store, MiB/s")
    by_name = {sample.contestant: sample.value for sample in samples}
    share = by_name["kvtier-durable"] / by_name["kvtier"]
    assert shown["kvtier-durable / kvtier"].startswith(f"{share:.3g} ")


def test_a_tier_that_fails_has_no_figure_but_a_reason(tmp_path: Path, kvtier: Contestant) -> None:
    kvtier.gaps.clear()
    missing = {"label": "x", "planted": 8, "batches": (4,)}  # nothing was planted, so no lookup hits
    assert kvtier.measure("lookups", tmp_path, arguments=missing, block_bytes=4096) == []
    assert "return miss instead of hit" in kvtier.gaps[0]


def test_a_measurement_that_does_not_end_is_ended(tmp_path: Path, kvtier: Contestant) -> None:
    kvtier.gaps.clear()
    endless = {"label": "x", "seconds": 600.0, "processes": 1, "jobs": 1, "job_blocks": 1}
    assert kvtier.measure("scale", tmp_path, arguments=endless, block_bytes=4096, slots=16, seconds_max=1.0) == []
    assert "did not end within 1 s" in kvtier.gaps[0]


@pytest.mark.parametrize(
    "name", ["lookup", *(pytest.param(name, marks=pytest.mark.slow) for name in METRICS if name != "lookup")]
)
def test_a_slowed_tier_takes_longer_than_the_same_tier(tmp_path: Path, name: str) -> None:
    metric = METRICS[name]._replace(blocks=4, turns=10)
    values = []
    for slower in (1.0, 20.0):
        comparison = Comparison(REPOSITORY, Disk(tmp_path, None), {name: metric}, slower)
        values += comparison.chunks([name], 1)[name]
        assert comparison.gaps == []
    assert len(values) == 2
    assert values[1] > values[0] + 0.7  # ln 2; ln 20 = 3.0 leaves room for a busy machine


def test_the_commits_tier_is_timed_and_not_this_checkouts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = tmp_path / "frozen"
    shutil.copytree(REPOSITORY / "kvtier", frozen / "kvtier")
    (frozen / "kvtier" / "hashing.py").write_text("raise SystemExit('this is the tier of then')\n")
    monkeypatch.chdir(REPOSITORY)  # whose own package must not be found first
    comparison = Comparison(frozen, Disk(tmp_path, None), METRICS)
    assert comparison.chunks(list(METRICS), 1) == {name: [] for name in METRICS}
    assert [gap.partition(":")[0] for gap in comparison.gaps] == ["the tier of the commit"]


def test_contestants_take_turns_and_a_missing_one_is_left_out(kvtier: Contestant) -> None:
    ceilings = Contestant("raw")
    assert in_turn([kvtier, ceilings], 0) == [kvtier, ceilings]
    assert in_turn([kvtier, ceilings], 1) == [ceilings, kvtier]
    ceilings.missing = "gone"
    assert in_turn([kvtier, ceilings], 1) == [kvtier]
    ceilings.missing = None
    ceilings.close()
