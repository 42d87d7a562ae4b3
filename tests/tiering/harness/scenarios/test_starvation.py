"""`run starvation`: kvtier and the oracle get through the floods, a tier that starves a class does not; and what the
checker of floods says of histories made by hand."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from harness.checkers import floods
from harness.checkers.base import Verdict
from harness.core.history import Gauge, History, Job, Note, Start, Stop, Task
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.starvation import SPLITS, StarvationOptions, prepare

STARVATION = scenario("starvation")
SHORT: dict[str, Any] = {"seconds": 0.5, "seed": 3, "read_threads": 2, "write_threads": 2, "job_blocks": "1,16"}


def starve(tmp_path: Path, **changes: Any) -> Results:
    return run(STARVATION, StarvationOptions(**{**SHORT, **changes}), tmp_path / "runs")


def said(results: Results, name: str) -> dict[str, Any]:
    (verdict,) = [v for v in results.verdicts if v["name"] == name]
    return verdict


@pytest.mark.slow
def test_kvtier_gets_through_floods_a_slow_device_and_a_hung_call(tmp_path: Path) -> None:
    results = starve(tmp_path, tier="kvtier")
    assert results.verdict == "true", str(results.verdicts)
    data = said(results, "floods")["data"]
    crossed = [p for p in data["phases"] if p["probe"] != p["flood"]]
    assert all(p["probes_ended"] for p in crossed)
    assert "load" in data["own_class"]
    if not data["skipped"]:
        assert [hang["ended"]["load"] > 0 < hang["ended"]["store"] for hang in data["hangs"]] == [True, True]
        for hang, probe in zip(data["hangs"], ("store", "load"), strict=True):
            assert hang["ended"][probe] >= 8, "the call hangs until so many have got through, however late it began"


@pytest.mark.slow
def test_kvtier_goes_on_while_as_many_calls_hang_as_it_has_threads(tmp_path: Path) -> None:
    results = starve(tmp_path, tier="kvtier", job_blocks="1", hung_calls=4, tier_option=("hung_seconds=1",))
    assert results.verdict == "true", str(results.verdicts)
    data = said(results, "floods")["data"]
    if not data["skipped"]:
        assert [hang["ended"]["load"] > 0 < hang["ended"]["store"] for hang in data["hangs"]] == [True, True]


@pytest.mark.slow
def test_the_oracle_is_passes_and_what_it_cannot_be_asked_is_said(tmp_path: Path) -> None:
    results = starve(tmp_path, tier="memory", job_blocks="1")
    assert results.verdict == "true", str(results.verdicts)
    assert "runs jobs inside submit" in said(results, "floods")["figure"]


@pytest.mark.slow
def test_a_tier_that_starves_stores_is_detected_from_outside(tmp_path: Path) -> None:
    results = starve(tmp_path, tier="tests.tiering.harness.broken.flawed:StoresWait", job_blocks="1")
    verdict = said(results, "floods")
    assert verdict["value"] == "false"
    assert any("stores through a flood of load jobs" in f and "starved" in f for f in verdict["findings"])
    assert not any("loads through" in f and "starved" in f for f in verdict["findings"]), "loads are not starved"


def test_by_default_every_split_meets_every_flood_and_threads_given_by_hand_replace_them() -> None:
    plan = prepare(StarvationOptions())
    assert tuple(plan.floods) == SPLITS
    for phases in plan.floods.values():
        crossed = {(p.flood, p.blocks) for p in phases if p.probe != p.flood}
        assert crossed == {(flood, blocks) for flood in ("load", "store") for blocks in (1, 16, 512)}
    assert list(prepare(StarvationOptions(write_threads=0)).floods) == [(4, 0)]
    with pytest.raises(UsageError, match="--job-blocks is '1,x'"):
        prepare(StarvationOptions(job_blocks="1,x"))
    with pytest.raises(UsageError, match="--cut-seconds is 15; it must be above --hung-seconds-max"):
        prepare(StarvationOptions(cut_seconds=15.0))


# --- histories made by hand ---

THREADS = {"read_threads": 1, "write_threads": 1}


def job(job_id: int, tag: int, direction: Any, submitted: float, finished: float) -> Job:
    return Job(0, job_id, tag, direction, [job_id], submitted, submitted, finished, 0.0, "ok", [job_id], [], 1, [], 1)


def history(jobs: list[Job], notes: list[Note]) -> History:
    start = Start(0, 0, 1, "t", "d", 0.0, 0.0, THREADS)
    detail = {"number": 1, "probe": "store", "flood": "load", "flood_blocks": 1, "jobs_ahead": 6}
    phase = Note(0, 10.0, "flood", "", {**detail, "began_seconds": 0.0, "over_seconds": 10.0, "settled": True})
    return History.of([start, *jobs, phase, *notes])


FLOOD = [job(i, 2, "load", i / 10, i / 10 + 1) for i in range(90)]


def test_a_probe_that_ends_only_with_the_flood_is_starved() -> None:
    late = floods.check(history([*FLOOD, job(1000, 3, "store", 0.5, 10.5)], []))
    assert late.value == "false"
    early = floods.check(history([*FLOOD, job(1000, 3, "store", 0.5, 9.5)], []))
    assert early.value == "true"
    assert early.data["phases"][0]["longest_gap_seconds"] == 9.5


def test_a_flood_of_half_a_second_proves_nothing_where_nobody_measured_the_device() -> None:
    short = [j._replace(submitted_seconds=j.submitted_seconds / 20, finished_seconds=j.finished_seconds / 20)
             for j in (*FLOOD, job(1000, 3, "store", 0.5, 10.5))]  # fmt: skip
    starved = history(short, [])
    starved.notes[0].detail["over_seconds"] = 0.5
    assert floods.check(starved).value == "unknown", "one slow call explains it"
    detail = {"from_seconds": 0.0, "longest_seconds": 0.01, "median_seconds": 0.001, "call": "write"}
    starved.notes.append(Note(-1, 0.5, "device", "", detail))
    assert floods.check(starved).value == "false"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no memory file system")
def test_the_time_that_the_harness_takes_to_verify_blocks_is_not_the_tiers(tmp_path: Path) -> None:
    """Without a device's own time, the judging of 512 blocks was most of a probe's life: 4 of 4 runs failed."""
    shared = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        results = starve(tmp_path, tier="reference", root_dir=str(shared), job_blocks="16,512")
    finally:
        shutil.rmtree(shared)
    assert results.verdict == "true", str(results.verdicts)


@pytest.mark.slow
def test_a_right_tier_that_hides_its_schedule_passes(tmp_path: Path) -> None:
    """Jobs that overtake within milliseconds show nothing: 3 of 6 runs failed."""
    tier = "tests.tiering.harness.broken.hidden:HidesItsSchedule"
    results = starve(tmp_path, tier=tier, read_threads=1, write_threads=1, seconds=2.0)
    assert results.verdict == "true", str(results.verdicts)


def test_no_flood_no_verdict() -> None:
    assert floods.check(History.of([])).value == "unknown"
    assert floods.check(history([job(1000, 3, "store", 0.5, 9.5)], [])).value == "unknown", "nothing of the flood ended"
    shallow = history([*FLOOD, job(1000, 3, "store", 0.5, 9.5)], [])
    shallow.notes[0].detail["jobs_ahead"] = 2
    assert floods.check(shallow).value == "unknown", "never deeper than the two threads"


def test_a_probe_whose_wait_grows_with_the_size_of_the_others_jobs_waits_for_whole_jobs() -> None:
    def said(large_blocks: int, grown: float, jobs_ahead: int = 6) -> Verdict:
        """A probe takes 1 s behind the small flood, and `grown` s behind the large one."""
        both = history([*FLOOD, job(1000, 3, "store", 0.5, 1.5)], [])
        moved = [job(j.job_id + 2000, 4, j.direction, j.submitted_seconds + 10, j.finished_seconds + 10) for j in FLOOD]
        detail = {**both.notes[0].detail, "number": 2, "flood_blocks": large_blocks, "jobs_ahead": jobs_ahead}
        phase = Note(0, 20.0, "flood", "", {**detail, "began_seconds": 10.0, "over_seconds": 20.0})
        probe = job(3000, 5, "store", 10.5, 10.5 + grown)
        return floods.check(History.of([*both.starts, *both.jobs, *both.notes, *moved, probe, phase]))

    assert said(64, 9.0).value == "false"
    assert "9 times, more than the root of 64; it waits for whole jobs" in said(64, 9.0).findings[0]
    assert said(64, 7.0).value == "true", "less than the root of the size"
    assert said(16, 9.0).value == "true", "sizes too near to each other"
    assert said(64, 9.0, jobs_ahead=2).value == "true", "no flood: never deeper than the threads"


def test_a_class_that_stands_still_while_a_call_hangs_is_named() -> None:
    hang = [Note(-1, 2.0, "hang", "one call of a load hangs", {"process": 0}), Note(-1, 8.0, "lifted", "", {})]
    probes = [job(1000 + i, 3, "store", at, at + 0.5) for i, at in enumerate((0.0, 3.0, 9.0))]
    assert floods.check(history([*FLOOD, *probes], hang)).value == "true"
    stopped = floods.check(history([*FLOOD, probes[0], probes[2]], hang))
    assert stopped.value == "false"
    assert "no store submitted during the hang ended" in stopped.findings[0]


def cut_off(
    hung: list[Task] | None = None,
    lost: tuple[float, ...] = (0, 1, 0),
    after: tuple[str, ...] = ("load", "store"),
    exit_code: int = 0,
    **detail: Any,
) -> Verdict:
    """Its host is cut off from 2 to 8 s; a load hangs, its thread is lost at 3 s, and is back in the end."""
    about = {"process": 0, "cut": True, "number": 1}
    cut = [Note(-1, 2.0, "hang", "host0 is cut off", about), Note(-1, 8.0, "lifted", "", {})]
    jobs = [job(1000, 3, "store", 0.0, 0.5), *(job(2000 + i, 2, c, 8.5, 9.0) for i, c in enumerate(after))]
    made = history([*FLOOD[:10], *jobs], cut)
    made.notes[0].detail.update({"answer_seconds": 1.0, **detail})
    made.options["hung_seconds_max"] = 2.0
    for record in [task("load", 1.0, 1.9, 8.1)] if hung is None else hung:
        made.add(record)
    for seconds, count in zip((1.0, 3.0, 9.0), lost, strict=True):
        made.add(Gauge(0, seconds, {"load_threads_hung": count, "store_threads_hung": 0.0}))
    made.add(Stop(0, 0, 10.0, exit_code, 0, 0, []))
    return floods.check(made)


def task(direction: Any, came: float, began: float, ended: float) -> Task:
    return Task(0, 1, direction, "load", 0, 1, 0, came, began, ended)


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"answer_seconds": 3.0}, "a lookup had no answer for 3.00 s"),
        ({"settled": False}, "not all of its jobs had ended"),
        ({"lost": (0, 0, 0)}, "a load hung, and its thread was not replaced in 2.00 s"),
        ({"lost": (0, 2, 0)}, "2 threads hung at a time, of 1"),
        ({"lost": (0, 1, 1)}, "1 threads of loads had not come back at the end"),
        ({"after": ("load",)}, "no store of a job begun after the heal succeeded"),
        ({"exit_code": 70}, "its process ended"),
        (
            {"hung": [task("load", 1.0, 1.9, 8.1), task("store", 2.5, 7.0, 8.1)]},
            "a store waited 4.50 s for a thread, with 0 hung stores for 1 threads of its class",
        ),
    ],
)
def test_a_host_that_is_cut_off_holds_no_class_longer_than_told(changes: dict[str, Any], finding: str) -> None:
    well = cut_off()
    assert (well.value, well.data["cuts"][0]["again_seconds"]) == ("true", 1.0), well
    behind_its_own = [task("load", 1.0, 1.9, 8.1), task("load", 2.5, 7.0, 8.1)]
    assert cut_off(behind_its_own).value == "true"
    bad = cut_off(**changes)
    assert bad.value == "false"
    assert finding in bad.findings[0]


def phases(*lives: tuple[int, float, float], unloaded: float = 0.25) -> Verdict:
    """Floods of so many blocks a job, in each of which a probe was not there after the first and there after the second
    time: single blocks, then 64 blocks, three times. The unloaded probe took `unloaded` seconds."""
    made = history([], [])
    made.notes[:] = [
        Note(0, 0.0, "unloaded", "", {"tag": -3, "direction": "store", "began_seconds": 0, "over_seconds": 1})
    ]
    made.jobs.append(job(9000, -3, "store", 0.0, unloaded))
    for number, (blocks, least, most) in enumerate(lives, 1):
        at = 10.0 * number
        made.jobs += [
            job(j.job_id + 100 * number, 2 * number, "load", at + j.submitted_seconds / 2, at + 5) for j in FLOOD
        ]
        probe = job(8000 + number, 2 * number + 1, "store", at, at + most)
        made.jobs.append(probe._replace(absent_seconds=at + least))
        detail = {"number": number, "probe": "store", "flood": "load", "flood_blocks": blocks, "jobs_ahead": 6}
        detail |= {"began_seconds": at, "over_seconds": at + 10, "settled": True, "repetition": (number - 1) // 2}
        made.notes.append(Note(0, at + 10, "flood", "", detail))
    return floods.check(made)


def test_a_wait_for_whole_jobs_comes_again_and_is_the_tiers_own() -> None:
    bad, good = (64, 8.5, 9.0), (64, 0.5, 9.0)
    small = (1, 0.75, 1.0)
    assert phases(small, bad, small, bad, small, bad).value == "false"
    assert "in 3 of 3 repetitions" in phases(small, bad, small, bad, small, bad).findings[0]
    assert phases(small, good, small, good, small, good).value == "true", "the harness was late to ask"
    assert phases(small, bad, small, bad, small, good).value == "unknown"
    assert phases(small, bad, small, good, small, good).value == "true", "once, and it did not come again"
    assert phases(small, bad, small, bad, small, bad, unloaded=8.0).value == "true", "the device takes so long"
