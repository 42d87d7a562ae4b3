"""The scenario `interleavings`: a wrong protocol fails with a schedule that can be replayed, a correct one passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.checkers import CHECKERS
from harness.core import notes
from harness.core.history import History, note_of
from harness.core.inputs import UsageError
from harness.explore import search
from harness.report.sections.interleavings import counterexamples
from harness.runner import Results, run
from harness.scenarios.interleavings import LONG, SCENARIO, SHORT, InterleavingsOptions, prepare
from tests.tiering.harness.checkers.records import start, stop

pytestmark = pytest.mark.skipif(search.unavailable() is not None, reason=f"{search.unavailable()}")
PROTOCOLS = "harness.mutants.protocols"


def explored(tmp_path: Path, tier: str, *programs: str, **options: object) -> Results:
    return run(SCENARIO, InterleavingsOptions(tier=tier, program=programs, **options), tmp_path)  # type: ignore[arg-type]


def test_a_wrong_protocol_fails_and_its_schedule_is_replayed(tmp_path: Path) -> None:
    results = explored(tmp_path, f"{PROTOCOLS}:LinksBeforeTheTrailer", "store A | load A", kills=0)
    (verdict,) = results.verdicts
    assert (results.exit_code, verdict["value"]) == (1, "false")
    (finding,) = verdict["findings"]
    assert finding.rule == "interleavings/lost-store"
    assert finding.startswith("lost store: A was reported stored, and the next process does not find it (program")
    file = Path(results.run_dir) / finding.about.file
    history = History.read(Path(results.run_dir))
    (example,) = (note.detail for note in history.notes if note.is_a(notes.Counterexample))
    assert json.loads(file.read_text())["trace"] == example["trace"]
    assert example["trace"][example["step"]][0] == 1, "it goes wrong where the load begins"

    (section,) = counterexamples(history)
    assert section.table[0] == ["step", "process 0: store A", "process 1: load A"]
    (marked,) = (row for row in section.table if "goes wrong here" in row[0])
    assert marked[1] == ""
    assert "A.bin" in marked[2]

    again = explored(tmp_path, f"{PROTOCOLS}:LinksBeforeTheTrailer", replay=str(file))
    assert (again.exit_code, again.verdicts[0]["findings"][0].rule) == (1, "interleavings/lost-store")


def test_a_correct_protocol_passes_and_a_program_that_it_cannot_run_is_named(tmp_path: Path) -> None:
    whole = explored(tmp_path, "reference", "A short: store A", "evict | evict")
    (verdict,) = whole.verdicts
    assert whole.exit_code == 0, verdict
    assert "all schedules of 1 programs; 0 violate" in verdict["figure"]
    assert list(verdict["data"]["not run"]) == ["evict | evict: the tier has no evict"]


def explored_note(**changes: object) -> notes.Explored:
    values = {"program": "store A", "processes": 1, "kills": 1, "preemptions_max": None, "schedules": 9, "redundant": 0}
    values |= {"calls": 9, "states": 1, "complete": True, "incomplete": "", "violating": 0, "first_violating": 0}
    return notes.Explored(**{**values, "seconds": 0.1, "excused": {}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("about", "value", "words"),
    [
        (explored_note(), "true", "9 schedules with one kill at any call: all schedules of 1 programs"),
        (explored_note(preemptions_max=2), "true", "all with at most 2 preemptions of 1; 0 violate a rule"),
        (explored_note(complete=False, incomplete="cut at 9 schedules"), "unknown", "a part of those of 1; 0 violate"),
        (notes.Unfit(), "unknown", "no program was run"),
    ],
)
def test_the_verdict_says_what_was_exhausted(about: notes.About, value: str, words: str) -> None:
    verdict = CHECKERS["interleavings"](History.of([start(0), note_of(0, 1.0, about, "no seccomp here"), stop(0)]))
    assert verdict.value == value
    assert words in verdict.figure
    assert bool(verdict.findings) is (value != "true"), "a doubt says why"


@pytest.mark.parametrize("content", ["{}", '{"program": "store A", "schedule": 1}', '{"program": "x", "schedule": []}'])
def test_a_file_that_is_no_counterexample_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"is no counterexample|operation 'x'"):
        prepare(InterleavingsOptions(replay=str(path)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("compiled", ["true", "false"])
@pytest.mark.parametrize("text", [*SHORT, *LONG])
def test_kvtier_passes_every_program_with_a_kill_at_any_call(tmp_path: Path, text: str, compiled: str) -> None:
    results = explored(tmp_path, "kvtier", text, seconds=1200.0, tier_option=(f"compiled={compiled}",))
    assert results.exit_code == 0, results.verdicts
