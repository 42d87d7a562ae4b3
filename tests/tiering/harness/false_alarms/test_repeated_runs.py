"""A series is the same for the same seed, goes on where its log ends, and its table says what its runs did."""

from __future__ import annotations

import math
import re
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.checkers import RULES
from harness.cli import cli
from harness.core.findings import About, Finding
from harness.core.inputs import DamagedFile
from harness.core.statistics import upper_bound
from harness.false_alarms.control_run import run_cells, without
from harness.false_alarms.correct_tiers import CONTROLS
from harness.false_alarms.page import page
from harness.false_alarms.repeated_runs import Cell, Log, Row, lacks, names_of_scenarios, plan, read_log
from harness.mutants.registry import MUTANTS

SEED = 5
ROW = Row("quiet", "kvtier", "load", 0, 7, "pass", command="run load", load=1.5)


def test_each_repetition_has_every_combination_once() -> None:
    conditions, tiers, names = ("quiet", "stop"), tuple(CONTROLS), names_of_scenarios()
    pairs = [(tier, name) for tier in ("kvtier", "reference") for name in names if not lacks(tier, name)]
    count = len(conditions) * len(pairs)
    cells = list(islice(plan(SEED, conditions, ("kvtier", "reference"), names), 2 * count))
    for repetition in (0, 1):
        mine = [cell for cell in cells if cell.repetition == repetition]
        assert sorted((c.condition, c.tier, c.scenario) for c in mine) == sorted(
            (condition, *pair) for condition in conditions for pair in pairs
        )
    again = list(islice(plan(SEED, conditions, ("kvtier", "reference"), names), 2 * count))
    assert again == cells
    assert [c[:3] for c in cells[:count]] != [c[:3] for c in cells[count:]], "an order of its own"
    assert len({cell.seed(SEED) for cell in cells}) == len(cells)
    assert cells[0].seed(SEED) != cells[0].seed(SEED + 1)
    assert tiers


def test_a_tier_that_keeps_a_part_of_the_guarantees_is_not_run_elsewhere() -> None:
    assert lacks("reference", "capacity") == "the tier keeps no limit"
    assert not lacks("kvtier-hidden", "starvation")
    assert {name for name in names_of_scenarios() if not lacks("vllm", name)} == {"load", "sharing", "starvation"}


def test_mutants_are_run_in_their_scenario() -> None:
    chosen = [MUTANTS["LeaksSlots"], MUTANTS["NeverEvicts"]]
    cells = list(islice(plan(SEED, ("quiet",), (), names_of_scenarios(), chosen), 2))
    assert {(c.tier, c.scenario) for c in cells} == {("LeaksSlots", "load"), ("NeverEvicts", "capacity")}


def test_a_log_is_continued_and_a_torn_line_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Log(path, SEED).add(ROW)
    with path.open("a") as file:
        file.write('{"condition":"stop","tier":"kv')
    log = Log(path, 99)
    assert (log.seed, log.rows) == (SEED, [ROW])
    assert log.rows[0].cell == Cell("quiet", "kvtier", "load", 0)
    log.add(ROW)
    assert Log(path, 99).rows == [ROW, ROW], "the torn line is gone"


def test_logs_of_several_series_may_be_put_one_behind_the_other(tmp_path: Path) -> None:
    path, other = tmp_path / "log.jsonl", tmp_path / "other.jsonl"
    Log(path, 5).add(ROW)
    Log(other, 6).add(replace(ROW, tier="reference"))
    path.write_text(path.read_text() + other.read_text())
    log = Log(path, 99)
    assert (log.seed, log.seeds, [row.tier for row in log.rows]) == (6, [5, 6], ["kvtier", "reference"])
    assert log.done() == {Cell("quiet", "reference", "load", 0)}, "the other run was one of another series"
    assert "Seeds 5, 6;" in page(log.seeds, log.rows)


@pytest.mark.parametrize("text", ["", "[]\n", '{"series":5}\n{"tier":1}\n{"a":1}\n'])
def test_what_is_no_log_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(DamagedFile, match="log"):
        read_log(tmp_path / "log.jsonl")


def test_the_table_counts_and_bounds() -> None:
    rows = [replace(ROW, repetition=n) for n in range(299)]
    doubt = {"text": "process 0 has no canary", "kind": "doubt", "rule": "nonblocking/habit"}
    rows.append(replace(ROW, condition="stop", outcome="inconclusive", why="no canary | at all", findings=[doubt]))
    rows.append(replace(ROW, condition="fuse", outcome="not run", why="no /dev/fuse"))
    rows.append(replace(ROW, tier="LeaksSlots", outcome="pass", is_mutant=True))
    text = page([SEED], rows)
    assert "**0 of 300 runs of correct tiers failed** (upper bound of the rate 1.0%)" in text
    assert "| quiet | 299 | 299 | 0 | 0 | 1.0% | 1.0% | 1.5 |" in text
    assert "| stop | 1 | 0 | 0 | 1 | 95.0% | 100.0% | 1.5 |" in text
    assert r"| 1 | load | nonblocking/habit | stop 1 | no canary \| at all |" in text
    assert "- fuse: no /dev/fuse (1 runs)" in text
    assert "Passed: LeaksSlots (quiet)." in text
    failed = replace(ROW, outcome="fail", why="late", rules=["a/b"], commit="abc", explained="a slow disk")
    text = page([SEED], [failed, *rows])
    assert "**1 of 301 runs of correct tiers failed**" in text
    assert "The last 300 had no failure (at most 1.0%)" in text
    assert "| quiet | kvtier | load | abc | a/b | late | a slow disk |" in text


@pytest.mark.parametrize(
    ("events", "trials", "bound"), [(0, 300, 0.00994), (0, 1, 0.95), (1, 20, 0.2161), (5, 5, 1.0), (0, 0, 1.0)]
)
def test_an_upper_bound_is_that_of_clopper_and_pearson(events: int, trials: int, bound: float) -> None:
    assert upper_bound(events, trials) == pytest.approx(bound, rel=2e-3)


@pytest.mark.slow
def test_the_command_makes_runs_and_resumes(tmp_path: Path) -> None:
    log, table = tmp_path / "log.jsonl", tmp_path / "page.md"
    words = ["false-alarms", "--conditions", "one-core", "--tiers", "reference-queued", "--scenarios", "sharing"]
    words += ["--log", str(log), "--runs-dir", str(tmp_path / "runs"), "--write", str(table)]
    first = CliRunner().invoke(cli, [*words, "--seed", f"{SEED}"])
    assert first.exit_code == 0, first.output
    assert re.search(r"1 one-core reference-queued sharing: pass", first.output)
    again = CliRunner().invoke(cli, words)
    assert "0 of 0 control runs failed" in again.output
    assert "0 of 1 runs of correct tiers failed" in table.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--conditions", "quite"], "--conditions is 'quite'; did you mean 'quiet'?"),
        (["--tiers", "disk"], "--tiers is 'disk'"),
        (["--scenarios", "outage"], "--scenarios is 'outage'"),
    ],
)
def test_a_name_that_is_none_is_refused(words: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, ["false-alarms", *words])
    assert says.split(";")[0] in str(done.exception)


def test_several_runs_at_a_time_are_each_made_once_and_end_in_time() -> None:
    cells = [Cell("quiet", "kvtier", "load", number) for number in range(20)]
    met = threading.Barrier(4, timeout=30)
    rows: list[Row] = []

    def make(cell: Cell) -> Row:
        if cell.repetition < 4:
            met.wait()  # four are under way
        return replace(ROW, repetition=cell.repetition)

    run_cells(iter(cells), 4, math.inf, make, rows.append)
    assert sorted(row.cell for row in rows) == cells
    run_cells(iter(cells), 2, time.monotonic(), make, rows.append)
    assert len(rows) == len(cells), "none begins when the time is over"


def test_a_finding_against_a_rule_that_the_tier_breaks_is_no_false_alarm() -> None:
    known, other = (Finding("missed", About(rule)) for rule in ("sharing/stored-is-found", "sharing/seeds"))

    def judged(*findings: Finding, value: str = "false") -> str:
        verdict = {"name": "sharing", "value": value, "findings": list(findings), "omitted": 0}
        results = {"verdict": value, "reason": "", "verdicts": [verdict]}
        return str(without(results, CONTROLS["vllm"].breaks)["verdict"])

    assert judged(known) == "true"
    assert judged(known, other) == "false"
    assert judged(known, Finding("no hit", kind="doubt")) == "unknown"
    assert judged(Finding("no hit", kind="doubt"), value="unknown") == "unknown"
    assert set(CONTROLS["vllm"].breaks) <= set(RULES)


def test_a_tier_is_not_run_under_a_condition_that_it_does_not_fit() -> None:
    cells = list(islice(plan(SEED, ("memory", "quiet"), ("vllm", "kvtier"), ("load",)), 3))
    assert {(c.condition, c.tier) for c in cells} == {("memory", "kvtier"), ("quiet", "kvtier"), ("quiet", "vllm")}
