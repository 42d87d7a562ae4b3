"""The named checker detects every mutant, and the correct tiers that mutants derive from pass.

One runs by default; `-m slow` runs all of them, as does `make mutants`, which writes docs/mutants.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.checkers import CHECKERS, RULES
from harness.core.findings import About, Finding
from harness.false_alarms.conditions import busy_neighbour
from harness.mutants.base import Mutant
from harness.mutants.registry import BASES, MUTANTS
from harness.mutants.trial import Trial, table, try_control, try_mutant
from harness.scenarios import scenario

SEED = 11
QUICK = ("BothGroupsPreferLoads",)
REQUIRED = """PublishesInPlace RenamesBeforeTheWriteEnds SharesTempNames TakesTempNamesFromRandom DeletesOthersTempFiles
IgnoresTheSeed HashesTuples DropsTheGroup MixesUpABatch LosesTheLastBlock AcceptsShortReads AcceptsOverlongFiles
ReturnsStaleSlots ReportsBeforeTheWork ReportsTwice NeverReports CallsFailureSuccess BlocksInSubmit
TakesTheLatestFirst WritersNeverYield ReadersNeverYield BothGroupsPreferLoads LosesWakeUps LeaksDescriptors
LeaksSlots LeaksTempFiles NeverShrinksItsQueue CachesMissesForEver CachesHitsForEver EvictsPinnedBlocks
SeesItsOwnStoresOnly WorksAlone FailsAfterAThousandJobs"""


def detect(name: str, tmp_path: Path) -> None:
    trial = try_mutant(MUTANTS[name], SEED, tmp_path)
    assert trial.detected, f"{trial.mutant.checker} says {trial.value}, {trial.finding!r}; again: {trial.command}"


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_detected_by_its_checker(name: str, tmp_path: Path) -> None:
    detect(name, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir() and not p.is_symlink()], (
        "the run of a detected mutant is removed"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in QUICK])
def test_every_other_mutant_is_detected(name: str, tmp_path: Path) -> None:
    detect(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("tier", BASES)
def test_a_base_without_the_defect_passes(tier: str, tmp_path: Path) -> None:
    result = try_control(tier, "load", SEED, tmp_path)
    assert result.verdict == "true", result


@pytest.mark.slow  # `make false-alarms` makes many such runs
def test_a_control_run_passes_beside_a_busy_neighbour(tmp_path: Path) -> None:
    with busy_neighbour():
        result = try_control("kvtier", "load", SEED, tmp_path, busy=True)
    assert result.verdict == "true", result


def test_a_mutant_that_survives_is_reported_and_its_run_is_kept(tmp_path: Path) -> None:
    innocent = Mutant("Innocent", "memory", "None.", "load", "results", r"nothing of the kind", {})
    trial = try_mutant(innocent, SEED, tmp_path, attempts_max=2)
    assert not trial.detected
    assert trial.value == "true"
    assert len([p for p in tmp_path.iterdir() if p.is_dir() and not p.is_symlink()]) == trial.attempts == 2
    assert "**survived** (pass)" in table([trial])


def test_a_finding_for_another_reason_is_no_detection(tmp_path: Path) -> None:
    lucky = MUTANTS["LosesTheLastBlock"]._replace(finding=r"block \d+ has \d+ names")
    trial = try_mutant(lucky, SEED, tmp_path, attempts_max=1)
    assert (trial.value, trial.detected) == ("false", False)


def test_a_finding_against_another_rule_is_no_detection() -> None:
    mutant = MUTANTS["ReturnsStaleSlots"]
    assert mutant.rule == "integrity/bytes"
    sentence = "block 0, loaded by process 0 in job 4: stale: the block that the slot held before, whole"
    assert mutant.explains(Finding(sentence, About("integrity/bytes")))
    assert not mutant.explains(Finding(sentence, About("sharing/hits")))
    assert not mutant.explains(sentence), "a sentence alone names no rule"
    assert mutant._replace(rule="").explains(sentence)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_names_its_defect_and_its_checker(mutant: Mutant) -> None:
    assert mutant.checker in CHECKERS
    assert not mutant.rule or mutant.rule in RULES
    assert scenario(mutant.scenario).options(tier=mutant.tier, **mutant.options)
    assert re.fullmatch(r"[A-Z].*\.", mutant.defect)


def test_no_mutant_is_missing() -> None:
    assert set(REQUIRED.split()) <= set(MUTANTS)


def test_the_table_has_a_row_for_each(tmp_path: Path) -> None:
    trials = [Trial(m, "false", f"finding | of {m.name}\nmore", 1, 1.25, "again") for m in MUTANTS.values()]
    rows = [line for line in table(trials).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(MUTANTS)
    assert all(rf"finding \| of {name} | 1.2 |" in row for name, row in zip(MUTANTS, rows, strict=True))


def test_rows_of_mutants_without_a_trial_stay_on_the_page() -> None:
    names = ["LookupBlocks", "PollBlocks", "LeaksSlots"]
    earlier = table([Trial(MUTANTS[name], "false", f"early {name}", 1, 1.0, "") for name in names]) + "\nA remark.\n"
    fresh = [Trial(MUTANTS[name], "false", f"late {name}", 1, 2.0, "") for name in ("StepBlocks", "PollBlocks")]
    page = table(fresh, earlier)
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    order = [name for name in MUTANTS if name in {*names, "StepBlocks"}]
    assert [row.split()[1] for row in rows] == order
    assert [row.split(" | ")[4] for row in rows] == [
        f"{'late' if name in ('StepBlocks', 'PollBlocks') else 'early'} {name}" for name in order
    ]
    assert page.startswith("# Mutants")
    assert "**4 of 4 mutants are detected.**" in page
    assert page.endswith(" |\n\nA remark.\n")
