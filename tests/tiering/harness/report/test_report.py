"""The report of hand-written histories: its statements are true, it opens alone, and a browser draws every plot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.history import Gauge, History, Note
from harness.report import figures, tables
from harness.report.index_page import write_index
from harness.report.run_page import write_report
from harness.report.sections import faults, machine, transfers, waiting
from harness.runner import judge
from tests.tiering.harness.checkers.records import canary, good_history, job, note, run_folder, start, stop, task

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def busy_history() -> History:
    """`good_history` with everything that a report draws: a fault, phases, queues, resources."""
    history = good_history()
    held = {"store_queue": 1.0, "store_oldest_seconds": 0.0, "rss_bytes": 5e7, "fds": 9.0, "threads": 12.0}
    for record in (
        note("phase", 1.0, text="first round"),
        note("phase", 9.0, text="second round"),
        note("fault", 10.0, text="a slow device"),
        note("lifted", 12.0, text="a slow device"),
        canary(0, 0.004, at=5.0),
        *(
            Gauge(p, at, {**held, "load_queue": at, "load_oldest_seconds": at / 100})
            for p in range(2)
            for at in (1.0, 9.0)
        ),
    ):
        history.add(record)
    return history


class Page(HTMLParser):
    """What a page consists of: tags with their attributes, texts in order, and the contents of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._in_script = self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            (self.scripts if self._in_script else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def plots(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0])["figures"])


def test_the_page_stands_alone_and_says_verdicts_first(tmp_path: Path) -> None:
    path = write_report(run_folder(tmp_path / "run", busy_history()))
    page = Page(path)
    assert path.stat().st_size < 2_200_000, "plotly is in it once, compressed"
    loaded = [attrs.get("src") or attrs.get("href") for tag, attrs in page.tags if tag in ("script", "link", "img")]
    assert [where for where in loaded if where and not where.startswith("data:")] == []
    assert [p.name for p in path.parent.glob("*.html*")] == ["report.html"]
    divs = [attrs["id"] for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "plot"]
    assert sorted(divs) == sorted(page.plots)
    assert sum(name.startswith("plot-") for name in divs) == 9, "one for each kind of section"
    words = page.text
    for name in ("sharing", "starvation", "integrity"):
        assert words.index(name) < words.index("Do the processes share?")
    assert "--seed 7" in words
    assert "xfs" in words
    assert "second round" in words
    assert all("template" not in plot["layout"] for plot in page.plots.values())


def test_people_read_pass_fail_and_inconclusive(tmp_path: Path) -> None:
    values = {"pass": "true", "fail": "false", "inconclusive": "unknown"}
    for number, (word, value) in enumerate(values.items()):
        folder = run_folder(tmp_path / f"2026010{number}T030405Z-load-memory", History.of([start(0)]))
        verdicts = [
            {"name": name, "value": value, "figure": "a figure", "findings": [], "data": {"rows": [{"verdict": value}]}}
            for name in ("integrity", "results", "sharing", "starvation")
        ]
        rewrite(folder, verdict=value, verdicts=verdicts, reason="")
        page = Page(write_report(folder))
        spans = [attrs for tag, attrs in page.tags if tag == "span" and attrs.get("class") == f"badge {value}"]
        assert len(spans) == len(verdicts), page.tags
        assert f"load of memory: {word}" in page.text
        assert not re.search(r"\b(true|false|unknown)\b", page.text), page.text
        if word != "pass":
            assert f"{word}: integrity, results, sharing and starvation" in page.text
    text = Page(write_index(tmp_path)).text
    assert "fail: integrity, results +2" in text
    assert "inconclusive: integrity, results +2" in text
    assert re.search(r"\bpass\b", text)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change what results.json says."""
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("ceiling", "shown"), [(400.0, True), (90.0, False)])
def test_a_throughput_above_the_device_is_no_share_of_it(ceiling: float, shown: bool, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", busy_history())
    device = {"read_mib_per_second": 1e4, "write_mib_per_second": ceiling, "how": "O_DIRECT, 4 threads, 0.4 s"}
    totals = {"store_mib_per_second": 200.0}
    rewrite(folder, device=device, totals={**json.loads((folder / "results.json").read_text())["totals"], **totals})
    text = Page(write_report(folder)).text
    assert ("stored, 50% of the device" in text) == shown
    doubt = (
        "The store throughput is not compared with the device: the probe (O_DIRECT, 4 threads, 0.4 s) measured 90 MiB/s"
    )
    assert (doubt in text) == (not shown)
    assert "222%" not in text


def test_findings_beyond_the_shown_ones_are_linked(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", busy_history())
    many = [f"finding {number}" for number in range(147)]
    verdict = {"name": "results", "value": "false", "figure": "", "findings": many, "data": {}}
    rewrite(folder, verdict="false", verdicts=[verdict])
    page = Page(write_report(folder))
    assert "97 more in results.json" in page.text
    assert "147 findings" in page.text
    assert ("a", {"href": "results.json"}) in page.tags
    rewrite(folder, verdict="false", verdicts=[{**verdict, "findings": [*many[:20], "and 1509 more"]}])
    page = Page(write_report(folder))
    assert "1,529 findings" in page.text
    assert "1,509 more were counted and not listed; their records are in history-*.jsonl" in page.text
    assert ("a", {"href": "./"}) in page.tags


def test_a_history_of_stores_alone_has_no_empty_panel(tmp_path: Path) -> None:
    jobs = [job(0, i, "store", [i], i / 7, i / 7 + 2.5, bytes_ok=1 << 20) for i in range(50)]
    tasks = [task("store", "store", 0, i / 7, i / 7 + 0.1, i / 7 + 0.2) for i in range(50)]
    page = Page(write_report(run_folder(tmp_path / "run", History.of([start(0), *jobs, *tasks]))))
    assert page.plots
    for plot in page.plots.values():
        panels = {name for name in plot["layout"] if name.startswith("yaxis")}
        assert {"yaxis" + trace.get("yaxis", "y")[1:] for trace in plot["data"]} == panels


def test_a_line_of_one_point_is_a_table_and_no_plot(tmp_path: Path) -> None:
    gauge = Gauge(0, 0.5, {"rss_bytes": 5e7, "fds": 9.0})
    page = Page(write_report(run_folder(tmp_path / "run", History.of([start(0), gauge, canary(0, 0.004, at=0.6)]))))
    assert page.scripts == []
    assert "The run was too short to show growth." in page.text
    assert "descriptors" in page.text


def test_a_history_of_nothing_has_a_page_too(tmp_path: Path) -> None:
    page = Page(write_report(run_folder(tmp_path / "run", History(), reason="process 0 did not come up: no disk")))
    assert "process 0 did not come up: no disk" in page.text
    assert page.scripts == []


def test_what_others_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    history = busy_history()
    evil = "</script><script>alert(1)</script><b>"
    history.add(note("fault", 15.0, text=evil))
    history.add(stop(2, at=16.0, exit_code=70, findings=[evil]))
    folder = run_folder(tmp_path / "run", history, options={"tier": evil}, reason=evil)
    (folder / "stderr-2.txt").write_text(evil + "\na last line\n")
    judge(folder)
    page = Page(write_report(folder))
    assert len(page.scripts) == 3
    assert not any("alert(1)" in script for script in page.scripts[1:])
    assert page.text.count("alert(1)") >= 4
    assert "Last output of process 2" in page.text
    json.loads(page.scripts[0])


def test_the_matrix_counts_the_first_store_of_a_block(tmp_path: Path) -> None:
    history = good_history()
    history.add(job(1, 9, "store", [0], 30.0, 31.0))  # a second store of a block changes nothing
    history.add(job(1, 10, "load", [77], 32.0, 33.0))  # no store of it is recorded
    section = transfers.writers_by_reader(history)
    assert section is not None
    assert section.table == [
        ["stored by", "loaded by 0", "loaded by 1"],
        ["process 0", "3", "3"],
        ["process 1", "1", "0"],
        ["unknown", "0", "1"],
    ]
    assert section.answer.startswith("4 of 8 loaded blocks (50%) are cross-process hits")


def test_throughput_accounts_for_every_byte() -> None:
    history = History.of([start(0), *(job(0, i, "load", [i], i / 7, i / 7 + 2.5, bytes_ok=1 << 20) for i in range(50))])
    section = transfers.throughput(history, {})
    assert section is not None
    (row,) = [row for row in section.table if row[:2] == ["load", "0"]]
    assert row[2] == "50.0"
    assert "was not measured" in section.answer


@pytest.mark.parametrize(("ceiling", "drawn"), [(30.0, True), (3000.0, False)])
def test_the_devices_ceiling_is_drawn_or_stated(ceiling: float, drawn: bool) -> None:
    history = History.of([start(0), job(0, 0, "load", [0], 0.0, 1.0, bytes_ok=20 << 20)])
    device = {"read_mib_per_second": ceiling, "write_mib_per_second": ceiling, "how": "O_DIRECT"}
    section = transfers.throughput(history, device)
    assert section is not None
    assert f"{ceiling:,.0f} MiB/s read" in section.answer
    assert any(shape.y0 == ceiling for shape in section.figure.layout.shapes) == drawn


def test_faults_last_until_lifted_or_until_their_process_is_back() -> None:
    history = History.of(
        [
            start(0, at=10.0),
            note("phase", 10.0, text="round 0"),
            note("phase", 15.0, text="round 1"),
            note("fault", 11.0, text="full disk"),
            note("lifted", 12.0, text="full disk"),
            Note(-1, 13.0, "fault", "killed", {"process": 0}),
            start(0, 1, at=14.0),
            note("fault", 16.0, text="for ever"),
            job(0, 0, "store", [0], 19.0, 20.0),
        ]
    )
    found = {(b.kind, b.text): (b.start_seconds, b.end_seconds) for b in figures.bands(history)}
    assert found == {
        ("phase", "round 0"): (0.0, 5.0),
        ("phase", "round 1"): (5.0, 10.0),
        ("fault", "full disk"): (1.0, 2.0),
        ("fault", "killed"): (3.0, 4.0),
        ("fault", "for ever"): (6.0, 10.0),
    }
    told = machine.happenings(history)
    assert [row[3] for row in told[1:]] == [
        "round 0 (5.00 s)",
        "full disk (1.00 s)",
        "full disk",
        "killed (1.00 s)",
        "round 1 (5.00 s)",
        "for ever (4.00 s)",
    ]


def test_the_bound_is_a_staircase_over_the_tasks_ahead() -> None:
    def behind(ahead: int) -> Any:
        return task("load", "load", 0, 1.0, 1.5, 1.6)._replace(depth=ahead)

    history = History.of([start(0), *(behind(ahead) for ahead in range(6))], options={"read_threads": 2})
    section = waiting.waits(history, {"longest_handover_seconds": 0.1, "load": {"wait_bound_seconds": 0.6}})
    assert section is not None
    (bound,) = [trace for trace in section.figure.data if trace.name == "bound"]
    # Turns of 100 ms service and 100 ms hand-over; two threads take two tasks each turn.
    assert list(bound.x) == [0, 2, 4, 5]
    assert list(bound.y) == pytest.approx([200, 400, 600, 600], rel=1e-3)
    assert "the longest wait of a load was 500 ms of 600 ms allowed" in section.answer.lower()


def test_the_schedule_shows_the_longest_waiter_and_its_threads() -> None:
    others = [task("store", "store", t, 0.1 * i, 0.1 * i, 0.1 * i + 0.09, job_id=i) for i in range(10) for t in (2, 3)]
    worst = task("load", "load", 0, 0.2, 0.75, 0.8, job_id=77)
    elsewhere = task("load", "load", 0, 0.0, 0.4, 0.5, job_id=88, process=1)
    section = waiting.worst_wait(History.of([start(0), *others, worst, elsewhere]))
    assert section is not None
    assert "load task of job 77 in process 0 waited 550 ms" in section.answer
    assert "10 tasks of the other direction" in section.answer  # those that came at 0.3 to 0.7
    lanes = {lane for trace in section.figure.data for lane in trace.y}
    assert lanes == {"this task", "load 0", "store 2", "store 3"}
    (queued,) = [trace for trace in section.figure.data if trace.name == "it waits"]
    assert (queued.base[0], queued.x[0]) == pytest.approx((0.0, 550.0))


def test_a_tier_that_shows_no_schedule_gets_its_longest_job() -> None:
    jobs = [job(0, i, "store", [i], 0.1 * i, 0.1 * i + 0.35) for i in range(8)]
    section = waiting.worst_wait(History.of([start(0), *jobs, job(0, 99, "load", [0], 0.2, 0.9)]))
    assert section is not None
    assert "took 700 ms" in section.answer
    assert "6 other jobs in flight" in section.answer or "8 other jobs in flight" in section.answer
    lanes: dict[str, list[tuple[float, float]]] = {}
    (stores,) = [trace for trace in section.figure.data if trace.name == "stores"]
    for lane, base, width in zip(stores.y, stores.base, stores.x, strict=True):
        lanes.setdefault(lane, []).append((base, base + width))
    for bars in lanes.values():
        assert all(before[1] <= after[0] + 1e-3 for before, after in pairwise(sorted(bars))), "bars hide each other"


def test_the_table_of_faults_has_each_expected_behaviour_once(tmp_path: Path) -> None:
    rows: dict[str, dict[str, Any]] = {
        "eio_read": {"verdict": "false", "expected": {"no wrong byte": "yes", "counted": "by no reason"}, "hurt": 5},
        "eio_write": {"verdict": "true", "expected": {"no block": "yes", "counted": "not shown"}, "hurt": 2},
        "hostile_config": {"verdict": "true", "expected": {"explained": "3 refused in words"}, "hurt": 0},
        "disk_full": {"verdict": "skipped", "expected": {}, "hurt": 0, "why": "disk_full: no loop devices"},
        "erofs": {"verdict": "unknown", "expected": {"before": "blocks 1 were not stored"}, "hurt": 0},
    }
    met = note("met", 2.0, text="eio_read", fault="eio_read", began_seconds=1.0, lifted_seconds=1.5)
    section = faults.outcomes(History.of([met]), rows)
    assert section is not None
    (heat,) = section.figure.data
    marks = dict(zip(heat.y, (dict(zip(heat.x, row, strict=True)) for row in heat.text), strict=True))
    assert {mark for row in marks.values() for mark in row.values()} == {"✓", "✗", "?", ""}
    assert marks["eio_read"] == {"no wrong byte": "✓", "counted": "✗", "no block": "", "explained": ""}
    assert (marks["eio_write"]["counted"], marks["hostile_config"]["explained"]) == ("?", "✓")
    assert set(marks["disk_full"].values()) | set(marks["erofs"].values()) == {""}
    assert (
        "4 faults injected, 5 expected behaviours: 3 met; 1 not met: eio_read (counted); 1 not shown: eio_write"
        in section.answer
    )
    assert "Most blocks were affected by eio_read: 5" in section.answer
    assert "Skipped: disk_full: no loop devices." in section.answer
    by_fault = {row[0]: row[1:] for row in section.table[1:]}
    assert by_fault["eio_read"] == [
        "each third read fails", "false", "5", "500 ms", "no wrong byte", "counted: by no reason"
    ]  # fmt: skip
    assert faults.outcomes(History(), {}) is None


def test_a_run_of_faults_shows_them_once(tmp_path: Path) -> None:
    said = note("skipped", 2.0, text="disk_full: no loop devices", fault="disk_full")
    history = History.of([start(0), said])
    page = Page(write_report(run_folder(tmp_path / "run", history, options={"scenario": "faults"})))
    assert page.text.count("a real disk is full, then has room again") == 1
    assert page.scripts == [], "no behaviour to show: a table, and no empty plot"


def test_cells_of_any_checker_become_tables() -> None:
    data = {
        "met": 3,
        "load": {"longest_wait_seconds": 0.25, "bound": None},
        "phases": [{"split": "1+1", "ended": 4}, {"split": "4+4", "starved": True}],
        "by_fault": {"EIO": {"cells": 2}, "ENOSPC": {"cells": 3}},
        "empty": [],
    }
    assert tables.from_data(data) == [
        (
            "",
            [
                ["figure", "value"],
                ["met", "3"],
                ["load: longest wait seconds", "0.25"],
                ["load: bound", ""],
                ["empty", ""],
            ],
        ),
        ("phases", [["split", "ended", "starved"], ["1+1", "4", ""], ["4+4", "", "yes"]]),
        ("by fault", [["", "cells"], ["EIO", "2"], ["ENOSPC", "3"]]),
    ]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), max_size=400).map(sorted), st.integers(4, 60))
def test_thinning_keeps_the_extremes(points: list[tuple[float, float]], most: int) -> None:
    thin = figures.thin(points, most)
    assert len(thin) <= most
    assert set(thin) <= set(points)
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    if points:
        heights = [y for _, y in points]
        assert {min(heights), max(heights)} <= {y for _, y in thin}


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300), st.integers(2, 50))
def test_a_cdf_rises_to_one(values: list[float], most: int) -> None:
    points = figures.cdf(values, most=most)
    assert len(points["x"]) <= most + 1
    for axis in ("x", "y"):
        assert points[axis] == sorted(points[axis])
    assert points["y"][-1] == 1.0
    assert points["x"][-1] == pytest.approx(max(values), rel=1e-4)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = figures.percentile(sorted(values), share)
    assert sum(v <= found for v in values) >= share * len(values) * (1 - 1e-12)
    assert sum(v < found for v in values) < share * len(values)


def test_the_list_of_runs_is_newest_first_and_skips_what_is_not_finished(tmp_path: Path) -> None:
    for name, tier in (("20260102T030405Z-load-memory", "memory"), ("20260203T030405Z-load-kvtier", "kvtier")):
        run_folder(tmp_path / name, good_history(), options={"tier": tier})
    (tmp_path / "20260304T030405Z-load-under-way").mkdir()
    (tmp_path / "latest").symlink_to("20260203T030405Z-load-kvtier")
    page = Page(write_index(tmp_path))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["20260203T030405Z-load-kvtier/report.html", "20260102T030405Z-load-memory/report.html"]
    assert "2026-02-03 03:04:05" in page.text


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's HTML once a browser has run its scripts, and what the browser logged."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--window-size=500,900", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.rsplit("</main>", 1)[0], [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_chromium
@pytest.mark.slow
def test_a_browser_draws_every_plot_without_an_error(tmp_path: Path) -> None:
    path = write_report(run_folder(tmp_path / "run", busy_history()))
    body, logged = browse(path, tmp_path / "profile")
    assert logged == []
    every = list(Page(path).plots)
    assert drawn(body) == [name for name in every if name.startswith("plot-")], "moments are drawn when opened"
    path.write_text(path.read_text().replace('<details class="moment"', '<details open class="moment"'))
    body, logged = browse(path, tmp_path / "profile")
    assert logged == []
    assert sorted(drawn(body)) == sorted(every)


def drawn(body: str) -> list[str]:
    """The plots that a browser has drawn."""
    tags = re.findall(r'<div[^>]*class="plot[^"]*js-plotly-plot"[^>]*>', body)
    return [found[1] for tag in tags if (found := re.search(r'id="([\w-]+)"', tag))]


@needs_chromium
def test_a_browser_that_cannot_decompress_says_so_in_each_plot(tmp_path: Path) -> None:
    path = write_report(run_folder(tmp_path / "run", busy_history()))
    path.write_text(path.read_text().replace("new DecompressionStream", "new NoSuchStream"))
    body, _ = browse(path, tmp_path / "profile")
    assert body.count("This browser cannot draw the plot") == len(Page(path).plots)
