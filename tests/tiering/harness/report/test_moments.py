"""Each finding opens its moment: what concerned it, 200 ms to either side, in all processes, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.core.findings import About, Finding
from harness.core.guarantees import GUARANTEES
from harness.core.history import History, encode
from harness.report.run_page import write_report
from harness.report.sections.moments import MOMENTS_MAX, RECORDS_MAX, mark, moments
from harness.report.sections.transfers import throughput
from tests.tiering.harness.checkers.records import canary, job, note, request, run_folder, start, stop, task


def results(*findings: Finding, value: str = "false") -> dict[str, Any]:
    verdict = {"name": "integrity", "value": value, "figure": "", "findings": list(findings), "omitted": 0, "data": {}}
    return {"verdicts": [verdict]}


def wrong(seconds: float, **known: Any) -> Finding:
    return Finding("block 7 is short", About("integrity/bytes", seconds=seconds, **known))


def scene() -> History:
    """Process 0 loads block 7 in job 1 at 10 s; process 1 stores it 50 ms before, and others work beside."""
    return History.of(
        [
            start(0),
            start(1),
            request(0, 3, [7, 8], 2, 9.95),
            job(0, 1, "load", [7, 8], 9.96, 10.0, request=3, slots=[4, 5]),
            job(0, 2, "store", [9], 9.9, 9.95, slots=[4]),  # the slot's block before
            job(1, 1, "store", [7], 9.8, 9.95, slots=[0]),
            job(1, 2, "store", [55], 9.9, 9.99, slots=[1]),  # another block of another process
            job(0, 9, "load", [7], 20.0, 20.1, slots=[4]),  # later
            task("load", "load", 0, 9.96, 9.97, 9.99, job_id=1),
            task("store", "store", 1, 9.9, 9.97, 9.98, job_id=3),
            note("asked", 9.958, 0, blocks=[7, 8], verdicts="hh", asked_seconds=9.957),
            note("delayed", 9.99, 0, from_seconds=9.98, seconds=0.008),
            note("device", 10.1, -1, from_seconds=9.0, longest_seconds=0.1, median_seconds=0.001, call="write"),
            note("fault", 10.05, -1, "a slow device"),
            canary(0, 0.002, 10.5)._replace(detail={"late_seconds": 0.002, "latest": [[9.97, 0.002, 0.001]]}),
            stop(0),
        ]
    )


def lanes(figure: Any) -> dict[str, list[str]]:
    """What stands in each lane, by its text."""
    found: dict[str, list[str]] = {}
    for trace in figure.data:
        for lane, text in zip(trace.y, trace.customdata, strict=True):
            found.setdefault(lane, []).append(text)
    return found


def test_a_moment_has_the_block_the_slot_and_the_threads_in_all_processes() -> None:
    (moment,) = moments(scene(), results(wrong(10.0, process=0, job=1, block=7, slot=4, request=3)))
    assert moment.section is not None
    assert set(lanes(moment.section.figure)) == {
        "this job",
        "this request",
        "process 0 of this slot 1",
        "process 0 load thread 0",
        "process 0 store thread 1",
        "process 0 queued loads 1",
        "process 0 queued stores 1",
        "process 0 lookups",
        "process 0 wake-ups",
        "process 0 without a CPU",
        "process 1 of this block 1",
        "the harness device probe",
        "the harness notes",
    }
    by_lane = lanes(moment.section.figure)
    assert by_lane["process 1 of this block 1"] == ["store job 1 of 1 blocks: ok, 150 ms"]
    assert by_lane["process 0 lookups"] == ["lookup, block 7: hit"]
    assert dict(map(tuple, moment.facts))["demands"].startswith("Each block of a load")  # type: ignore[arg-type]
    shown = [text for name, text, *_ in moment.facts if name == "guarantee"]
    assert shown
    assert set(shown) <= {f"{one.promise} ({one.source})" for one in GUARANTEES if "integrity/bytes" in one.rules}
    assert [encode(scene().jobs[0])] == [line for line in moment.records if '"job",0,1,' in line]
    assert not any('"job",1,2,' in line or '"job",0,9,' in line for line in moment.records)


def test_bars_end_at_the_edges_and_say_how_long_they_really_are() -> None:
    history = History.of([start(0), job(0, 1, "store", [1], 5.0, 15.0)])
    (moment,) = moments(history, results(wrong(10.0, process=0, job=1)))
    assert moment.section is not None
    (bar,) = moment.section.figure.data
    assert (bar.base[0], bar.x[0]) == (-200.0, 400.0)
    assert bar.customdata == ("store job 1 of 1 blocks: ok, 10.00 s",)


def test_checkers_share_the_moments_and_raw_records_are_limited() -> None:
    history = History.of([start(0), *(job(0, n, "load", [n], 9.9, 10.0) for n in range(500))])
    many = results(*(wrong(10.0, process=0, job=n) for n in range(30)))
    other = {**many["verdicts"][0], "name": "sharing", "findings": [Finding("lost", About(seconds=10.0, process=0))]}
    found = moments(history, {"verdicts": [*many["verdicts"], other]})
    assert [moment.number for moment in found] == list(range(1, MOMENTS_MAX + 1))
    assert found[-1].finding == "lost"
    assert all(len(moment.records) == RECORDS_MAX and moment.more == 460 for moment in found)
    assert '"job",0,3,' in "".join(found[3].records), "its own record is among them"


def test_a_finding_without_a_time_and_a_checker_that_passed_have_no_moment() -> None:
    assert moments(scene(), results(Finding("somewhere"))) == []
    assert moments(scene(), results(wrong(10.0), value="true")) == []


def test_a_moment_of_which_nothing_is_recorded_has_its_facts() -> None:
    (moment,) = moments(History.of([start(0)]), results(wrong(50.0, process=0)))
    assert moment.section is not None
    assert not moment.section.is_drawn
    assert ["process", "0"] in moment.facts


def test_the_other_plots_are_marked() -> None:
    history = scene()
    section = throughput(history, {})
    assert section is not None
    before = len(section.figure.layout.shapes)
    found = moments(history, results(wrong(10.0, process=0, job=1), wrong(10.001, process=0, job=1)))
    mark(section, found, 0.0, 20.0)
    assert [shape.x0 for shape in section.figure.layout.shapes[before:]] == [10.0, 10.001]
    assert [label.text for label in section.figure.layout.annotations][-1] == "1", "two that are near have one number"


def test_the_page_opens_the_moment_of_each_finding(tmp_path: Path) -> None:
    history = scene()
    history.jobs[0] = history.jobs[0]._replace(wrong=[(7, "short: <b>")])
    page = write_report(run_folder(tmp_path / "run", history)).read_text()
    assert '<details class="moment" id="moment-1">' in page
    figures = json.loads(page.split('id="plots">')[1].split("</script>")[0])["figures"]
    assert "moment-plot-1" in figures
    assert "short: &lt;b&gt;" in page
    assert "short: <b>" not in page
