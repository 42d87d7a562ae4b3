"""`run retention` and `run lifecycle` with real processes: correct tiers pass, and the runs do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core import notes
from harness.core.history import History
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError


def short_run(name: str, tmp_path: Path, tier: str, **changes: Any) -> Results:
    chosen = scenario(name)
    return run(chosen, chosen.options(**{**chosen.short, "tier": tier, "seed": 5, **changes}), tmp_path / "runs")


def data(results: Results, checker: str) -> dict[str, Any]:
    return next(v["data"] for v in results.verdicts if v["name"] == checker)


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["reference", "kvtier", "kvtier-stack"])
@pytest.mark.parametrize("name", ["retention", "lifecycle"])
def test_correct_tiers_pass(tmp_path: Path, name: str, tier: str) -> None:
    results = short_run(name, tmp_path, tier)
    assert results.verdict == "true", [v["findings"] or v["figure"] for v in results.verdicts]


def test_instances_come_go_and_die_beside_the_steady_processes(tmp_path: Path) -> None:
    results = short_run("lifecycle", tmp_path, "reference", seconds=0.0, processes=3, block_bytes=4096)
    assert results.verdict == "true", [v["findings"] or v["figure"] for v in results.verdicts]
    history = History.read(Path(results.run_dir))
    killed = [n for n in history.notes if n.is_a(notes.Fault)]
    assert killed
    assert {n.process for n in history.notes if n.is_a(notes.Promise)} == {2}
    assert sum(s.incarnation > 0 for s in history.starts) > len(killed), "a steady process started again, too"
    assert data(results, "visibility")["hits_of_others"] > 0


@pytest.mark.slow
def test_every_block_is_asked_for_by_every_process_and_half_of_the_files_are_old(tmp_path: Path) -> None:
    results = short_run("retention", tmp_path, "reference", blocks=160, seconds=0.0)
    history = History.read(Path(results.run_dir))
    stored = {block for job in history.jobs if job.direction == "store" for block in job.ok}
    for process in range(3):
        mine = [n for n in history.notes if n.is_a(notes.Asked) and n.process == process]
        assert {block for n in mine for block in n.detail["blocks"]} == stored
    assert any("the times of 80 files" in n.text for n in history.notes)


@pytest.mark.parametrize("name", ["retention", "lifecycle"])
def test_too_few_slots_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--slots is 32; it must be at least"):
        short_run(name, tmp_path, "reference", slots=32, **{"chain" if name == "retention" else "blocks": 17})
