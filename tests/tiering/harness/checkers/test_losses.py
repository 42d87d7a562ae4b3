"""Lost blocks and broken promises, however few: each is a finding, unless the history has a name for its cause."""

from __future__ import annotations

from typing import Any

import pytest

from harness.checkers import CHECKERS, Verdict
from harness.core.history import History, Note
from tests.tiering.harness.checkers.records import good_history, job, note, request, start, stop


def judge(checker: str, history: History) -> Verdict:
    return CHECKERS[checker](history)


def with_a_loss(**changes: Any) -> History:
    """The good history and a fourth request, which misses block 4 although its store ended long before."""
    history = good_history()
    lost = request(1, 3, [0, 1, 2, 3, 4], 4, 30.0)._replace(**changes)
    load = job(1, 2, "load", [0, 1, 2, 3], 30.0, 30.2, request=3)
    for record in (lost, load, job(1, 3, "store", [4], 30.3, 30.4, request=3)):
        history.add(record)
    return history


def evicted(blocks: int, at: float = 25.0) -> Any:
    return note("evicted", at, 0, started_seconds=at, finished_seconds=at + 0.1, blocks=blocks, bytes=4096 * blocks)


def test_one_lost_block_of_many_is_a_finding() -> None:
    verdict = judge("sharing", with_a_loss())
    assert verdict.value == "false"
    (finding,) = verdict.findings
    assert (finding.rule, finding.about.block, finding.about.process) == ("sharing/stored-is-found", 4, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"outcome": "info"}, "given up"), ({"short_of_room": True}, "no room"), ({"started_seconds": 20.0}, "in flight")],
)
def test_a_loss_with_a_cause_is_named_and_no_finding(changes: dict[str, Any], reason: str) -> None:
    verdict = judge("sharing", with_a_loss(**changes))
    assert (verdict.value, verdict.data["lost"][reason]) == ("true", 1), verdict


def test_an_eviction_explains_as_many_lost_blocks_as_it_removed() -> None:
    history = with_a_loss()
    history.add(evicted(1))
    assert judge("sharing", history).value == "true"
    history.add(request(0, 4, [0, 1, 2, 3], 3, 40.0))
    history.add(job(0, 3, "load", [0, 1, 2], 40.0, 40.2, request=4))
    assert judge("sharing", history).value == "false", "a second block is lost"
    history = with_a_loss()
    history.add(evicted(1, at=10.0))
    assert judge("sharing", history).value == "false", "block 4 was stored after that"


def asked(verdicts: str, at: float, process: int = 1, **more: Any) -> Any:
    return note("asked", at, process, blocks=[0, 1, 2], verdicts=verdicts, asked_seconds=at, request=9, **more)


def test_visibility_takes_a_lack_of_slots_and_evictions_as_causes() -> None:
    history = good_history()
    history.add(asked("hhh", 25.0))
    assert judge("visibility", history).value == "true"
    history.add(asked("hhm", 30.0, no_room=True))
    assert judge("visibility", history).value == "true"
    history.add(evicted(1))
    history.add(asked("hmh", 40.0))
    assert judge("visibility", history).value == "true"
    history.add(asked("mmh", 50.0))
    verdict = judge("visibility", history)
    assert (verdict.value, len(verdict.findings)) == ("false", 1), "one eviction explains one block"


def promise(outcome: str, at: float, process: int = 0, name: str = "drain_waits_for_all", why: str = "") -> Any:
    more = {"words": "After a drain"} if outcome == "begun" else {"why": why, "seconds": 0.1}
    return note("promise", at, process, name, outcome=outcome, **more)


KEPT = [start(0), start(1), promise("begun", 1.0), promise("kept", 2.0), stop(0), stop(1)]


def test_a_promise_that_was_broken_once_stays_broken() -> None:
    assert judge("contract", History.of(KEPT)).value == "true"
    again = [promise("begun", 3.0), promise("broken", 4.0, why="2 of 8"), promise("begun", 5.0), promise("kept", 6.0)]
    verdict = judge("contract", History.of([*KEPT, *again]))
    assert (verdict.value, verdict.data["promises"][0]["kept"]) == ("false", "false")
    assert "drain_waits_for_all: 2 of 8" in verdict.findings[0]
    assert verdict.findings[0].rule == "contract/drain-waits-for-all"  # type: ignore[attr-defined]


def test_two_processes_may_be_asked_for_the_same_promise_at_once() -> None:
    both = [promise("begun", 1.5, 1), promise("broken", 1.7, 1, why="of the other")]
    verdict = judge("contract", History.of([*KEPT, *both]))
    assert (verdict.value, verdict.findings[0].about.process) == ("false", 1)  # type: ignore[attr-defined]


def test_a_process_that_was_killed_on_purpose_breaks_no_promise_and_one_that_died_does() -> None:
    cut = [*KEPT, promise("begun", 5.0, 1)]
    assert "died or hung" in judge("contract", History.of(cut)).findings[0]
    killed = Note(-1, 5.5, "fault", "", {"process": 1, "how": "killed"})
    assert judge("contract", History.of([*cut, killed])).value == "true"


def race(accepted: list[str], again: bool = False, **more: Any) -> Any:
    answers = [
        {"setting": f"seed {digest}", "status": "names" if digest in accepted else "refused", "digest": digest}
        for digest in ("a", "b", "c")
    ]
    return note("race", root=0, again=again, answers=answers, warned=False, **more)


@pytest.mark.parametrize(
    ("races", "finding", "rule"),
    [
        ([race(["a"]), race(["a"], again=True)], "", ""),
        ([race(["a", "b"])], "[seed a] and [seed b] were accepted", "seed_settings/one-owner"),
        ([race(["a"]), race(["b"], again=True)], "opened again: [seed a] and [seed b]", "seed_settings/one-owner"),
        ([race([])], "all were refused", "seed_settings/admitted"),
    ],
)
def test_one_seed_owns_a_root(races: list[Any], finding: str, rule: str) -> None:
    verdict = judge("seed_settings", History.of(races))
    assert bool(verdict.findings) == bool(finding)
    if finding:
        assert finding in verdict.findings[0]
        assert verdict.findings[0].rule == rule  # type: ignore[attr-defined]


def test_evictions_that_are_reported_twice_exceed_what_was_stored() -> None:
    history = good_history()
    history.options["max_bytes"] = 1 << 30
    history.add(evicted(1))
    assert "reported evicted" in str(judge("capacity", history).findings), "5 blocks were stored, and 5 files are there"
    del history.files[-1:]
    assert "reported evicted" not in str(judge("capacity", history).findings)
