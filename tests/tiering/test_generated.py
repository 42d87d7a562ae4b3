"""Every generated page equals what its generator writes, as far as that needs no run: `make docs-check`.

dashboards/ and docs/metrics.md are compared in dashboards/test_dashboards.py. docs/filesystems.md is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median

import pytest

from harness.bench import show
from harness.commands.docs import results_page
from harness.commands.findings import CASES
from harness.commands.findings import PAGE_HEAD as FINDINGS_HEAD
from harness.core.statistics import paired_ratio
from harness.false_alarms.page import page as error_rates
from harness.false_alarms.repeated_runs import read_log
from harness.findings import pages as conformance_pages
from harness.findings.record import file_name, records
from harness.findings.suite import CONTROLS
from harness.mutants.registry import MUTANTS
from harness.mutants.trial import PAGE_HEAD as MUTANTS_HEAD
from harness.mutants.trial import facts
from harness.report import guarantees_page
from harness.scenarios import faults

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DOCS = ROOT / "docs"
VERDICTS = ("pass", "fail", "inconclusive")


def cells(page: str) -> list[list[str]]:
    """The rows of a page's one table, without its head."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.replace("\\|", "|") for cell in re.split(r"(?<!\\) \| ", line[2:-2])] for line in lines[1:]]


def test_the_page_of_faults_follows_from_the_registry() -> None:
    assert (DOCS / "faults.md").read_text() == faults.page(), "run: kvtier-harness docs faults"


def test_the_page_of_guarantees_follows_from_the_declarations_and_has_no_empty_cell() -> None:
    page = (DOCS / "guarantees.md").read_text()
    assert page == guarantees_page.page(), "run: kvtier-harness docs guarantees"
    empty = [line for line in page.splitlines() if line.startswith("|") and re.search(r"\|\s*\|", line)]
    assert not [line for line in empty if not any(f"`{checker}/" in line for checker in PENDING)]


PENDING = ("floods",)
"""Checkers of which a rule has no mutant yet."""


def test_the_page_of_benchmarks_follows_from_the_kept_results() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in (ROOT / "tests/tiering/baselines").glob("*.json")}
    page = show.page(results)
    assert (DOCS / "benchmarks.md").read_text() == page, "run: make bench-docs"
    plots = set(re.findall(r"\((benchmarks/[^)]+\.svg)\)", page))
    assert plots == {path.relative_to(DOCS).as_posix() for path in DOCS.glob("benchmarks/*.svg")}


def test_the_page_of_mutants_has_the_facts_of_each() -> None:
    page = (DOCS / "mutants.md").read_text()
    rows = cells(page)
    assert [tuple(row[:4]) for row in rows] == [facts(mutant) for mutant in MUTANTS.values()], "run: make mutants"
    detected = sum(not row[4].startswith("**survived**") for row in rows)
    assert page.startswith(MUTANTS_HEAD.format(detected=detected, tried=len(rows))), "run: make mutants"


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=str)
def test_the_finding_on_the_page_is_about_the_defect(mutant: object) -> None:
    name, *_ = row_of = facts(mutant)  # type: ignore[arg-type]
    row = next(row for row in cells((DOCS / "mutants.md").read_text()) if row[0] == name)
    assert re.search(MUTANTS[name].finding, row[4]), f"{row_of}: {row[4]}"


def test_the_page_of_findings_has_every_case_and_both_verdicts() -> None:
    page = (DOCS / "findings-vllm-0.33.md").read_text()
    head, _, tail = FINDINGS_HEAD.partition("{facts}")
    assert page.startswith(head), "run: make findings"
    assert tail in page
    assert [row[0] for row in cells(page)] == [case.title for case in CASES], "run: make findings"
    assert all(set(row[1:]) <= set(VERDICTS) for row in cells(page))
    for case in CASES:
        assert f"\n## {case.title}\n\n{case.what}\n\n**vllm**: " in page, case.title


def test_the_pages_of_conformance_follow_from_the_kept_records() -> None:
    found = records(DOCS / "findings")
    made = {"conformance.md": conformance_pages.conformance(found)}
    for one in found:
        if one["tier"] not in CONTROLS:
            made[f"findings/{file_name(one['tier'])}.md"] = conformance_pages.findings(one)
    kept = [DOCS / "conformance.md", *(DOCS / "findings").glob("*.md")]
    assert {path.relative_to(DOCS).as_posix(): path.read_text() for path in kept} == made, (
        "kvtier-harness docs conformance"
    )


FIGURES_OF_README = (
    ("floods", "one-block load under 512-block stores, 256 KiB", "p50"),
    ("floods", "one-block load under 512-block stores, 256 KiB", "p99"),
    ("floods", "one-block load under 512-block stores, 256 KiB", "flood"),
    ("floods", "one-block load under 16-block stores, 256 KiB", "p99"),
    ("floods", "one-block store under 512-block loads, 64 KiB", "p99"),
    ("floods", "one-block store under 16-block loads, 256 KiB", "p99"),
    ("throughput", "256 KiB", "store"),
    ("throughput", "256 KiB", "cold"),
    ("throughput", "256 KiB", "second"),
    ("throughput", "256 KiB", "warm"),
    ("throughput", "256 KiB", "store CPU"),
    ("throughput", "256 KiB", "cold CPU"),
    ("throughput", "256 KiB", "second CPU"),
    ("lookups", "miss, batches of 1", "lookups"),
    ("scale", "16 processes", "store"),
    ("scale", "16 processes", "load"),
)
"""The lines of README's table of performance, in order."""


def test_the_figures_of_readme_are_those_of_the_kept_results() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.split("\n## Performance\n")[1].split("\n## ")[0]
    (kept,) = (ROOT / "tests/tiering/baselines").glob("*.json")
    result = json.loads(kept.read_text())["table"]
    assert result["environment"]["git"]["commit"][:7] in section
    values, _ = show.values_of(result)
    shown = cells(section)
    assert len(shown) == len(FIGURES_OF_README)
    for (what, *texts), line in zip(shown, FIGURES_OF_README, strict=True):
        by = values[line]
        against = paired_ratio(by["kvtier"], by["vllm"])
        wanted = (median(by["vllm"]), median(by["kvtier"]), against.value, against.low, against.high)
        found = [float(text.replace(",", "")) for text in re.findall(r"\d[\d,]*(?:\.\d+)?", " ".join(texts))]
        assert found == pytest.approx(wanted, rel=0.04), what


def test_the_page_of_results_follows_from_the_schema() -> None:
    assert (DOCS / "results.md").read_text() == results_page(), "run: kvtier-harness docs results"


def test_the_page_of_error_rates_follows_from_the_kept_log() -> None:
    series = read_log(ROOT / "tests/tiering/baselines/false-alarms.jsonl")
    seeds, rows = list(dict.fromkeys(seed for seed, _ in series)), [row for _, rows in series for row in rows]
    written = "run: kvtier-harness false-alarms --duration 0 --log LOG --write docs/error-rates.md"
    assert (DOCS / "error-rates.md").read_text() == error_rates(seeds, rows), written
