"""Every checker says true to a good history, unknown to an empty one, and false, readably, to each kind of bad one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.checkers import CHECKERS, Verdict
from harness.checkers.base import FINDINGS_MAX
from harness.core.history import History, Name, decode, encode
from harness.core.request_traces import oracle_hit_ratio, synthetic_trace
from harness.scenarios import scenario
from tests.tiering.harness.checkers.records import canary, good_history, job, name_of, note, request, start, stop


def judge(checker: str, history: History) -> Verdict:
    verdict = CHECKERS[checker](history)
    assert verdict.name == checker
    assert verdict.figure
    assert len(verdict.findings) <= FINDINGS_MAX + 1
    assert all(len(finding) > 10 for finding in verdict.findings)
    json.dumps(verdict.data, allow_nan=False)
    return verdict


def change_job(history: History, number: int, **values: Any) -> History:
    history.jobs[number] = history.jobs[number]._replace(**values)
    return history


def change_stop(history: History, number: int, **values: Any) -> History:
    history.stops[number] = history.stops[number]._replace(**values)
    return history


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_good_history_is_true(checker: str) -> None:
    verdict = judge(checker, good_history())
    # Checkers of other scenarios may not find there what they look for, and must not find fault either.
    expected = {"true"} if checker in scenario("load").checkers else {"true", "unknown"}
    assert verdict.value in expected, verdict
    assert verdict.value == "unknown" or verdict.findings == [], verdict


@pytest.mark.parametrize("checker", CHECKERS)
def test_an_empty_history_is_unknown(checker: str) -> None:
    assert judge(checker, History()).value == "unknown"
    assert judge(checker, History(options={"read_threads": 4, "write_threads": 4, "processes": 2})).value == "unknown"


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_history_of_processes_that_did_nothing_is_never_true_about_what_they_did(checker: str) -> None:
    verdict = judge(checker, History.of([start(0), start(1), stop(0), stop(1)]))
    assert verdict.value == ("true" if checker == "leftovers" else "unknown")


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_verdict_is_the_same_after_the_history_was_on_disk(checker: str) -> None:
    history = good_history()
    again = History(files=history.files, options=history.options)
    for part in dataclasses.fields(History):
        if part.name not in ("files", "options"):
            for record in getattr(history, part.name):
                again.add(decode(encode(record)))
    assert judge(checker, again) == judge(checker, history)


def test_findings_are_capped_and_counted() -> None:
    history = good_history()
    history.jobs[:] = [job(0, i, "load", [i], 1.0, 2.0, wrong=[(i, "short")]) for i in range(50)]
    verdict = judge("integrity", history)
    assert len(verdict.findings) == FINDINGS_MAX + 1
    assert verdict.findings[-1] == "and 30 more"
    assert "50 wrong" in verdict.figure


# --- integrity ---


def test_integrity_names_block_process_job_and_how() -> None:
    history = change_job(good_history(), 1, wrong=[(2, "other key: the content of block 7, whole")])
    verdict = judge("integrity", history)
    assert verdict.value == "false"
    assert verdict.findings == ["block 2, loaded by process 1 in job 0: other key: the content of block 7, whole"]
    assert verdict.data["wrong_by_kind"] == {"other key": 1}


def test_integrity_of_stores_alone_is_unknown() -> None:
    history = good_history()
    history.jobs[:] = [j for j in history.jobs if j.direction == "store"]
    assert judge("integrity", history).value == "unknown"
    assert judge("integrity", change_job(history, 0, direction="load", ok=[], failed=[0, 1, 2])).value == "unknown"


# --- results ---


def lost(history: History) -> History:
    history.notes.append(note("submitted", 30.0, 0, job_id=9, request=2, direction="store", blocks=[4]))
    return history


@pytest.mark.parametrize(
    ("bad", "finding"),
    [
        (lambda h: change_job(h, 0, results=0, outcome="info"), "job 0 of process 0 (store) got 0 results"),
        (lambda h: change_job(h, 0, results=2), "got 2 results"),
        (lambda h: h.jobs.append(h.jobs[0]) or h, "job 0 of process 0 is recorded 2 times"),
        (lambda h: change_job(h, 0, ok=[0, 1]), "no outcome for 2"),
        (lambda h: change_job(h, 0, ok=[0, 1, 2, 9]), "too many for 9"),
        (lambda h: change_job(h, 0, ok=[0, 1, 2, 2]), "too many for 2"),
        (lambda h: change_job(h, 0, ok=[0, 1, 2], failed=[2], outcome="fail"), "too many for 2"),
        (lambda h: change_job(h, 0, outcome="fail"), 'has outcome "fail" with 0 failed blocks'),
        (lambda h: change_job(h, 1, ok=[0, 1], failed=[2]), 'has outcome "ok" with 1 failed blocks'),
        (lambda h: change_job(h, 0, finished_seconds=0.75), "before it was submitted"),
        (lambda h: change_job(h, 1, ok=[0, 1], failed=[2], outcome="fail"), "failed for block 2 although no fault"),
        (lambda h: change_job(h, 0, ok=[], failed=[0, 1, 2], outcome="fail"), "failed for block 0, 1, 2 although"),
        (
            lambda h: h.notes.append(note("error", 3.0, 1, "job 4 reported 2 results")) or h,
            "process 1: job 4 reported 2",
        ),
        (lost, "job 9 of process 0 was submitted and is lost"),
    ],
)
def test_results_rejects(bad: Callable[[History], History], finding: str) -> None:
    verdict = judge("results", bad(good_history()))
    assert verdict.value == "false"
    assert finding in verdict.findings[0]


@pytest.mark.parametrize("rule", ["results/one-result", "results/accounts", None])
def test_an_error_that_a_worker_noted_breaks_the_rule_that_it_names(rule: str | None) -> None:
    history = good_history()
    history.notes.append(note("error", 3.0, 1, "job 4 reported 2 results", **({"rule": rule} if rule else {})))
    (finding,) = judge("results", history).findings
    assert finding.rule == (rule or "results/no-error")


def test_results_excuses_what_a_dead_process_could_not_report() -> None:
    history = change_job(good_history(), 0, results=0, outcome="info", ok=[])
    verdict = judge("results", lost(change_stop(history, 0, exit_code=-9)))
    assert verdict.value == "true"
    assert "2 lost to process exit" in verdict.figure


def test_results_of_a_restarted_process_may_use_job_ids_again() -> None:
    history = good_history()
    history.starts.append(start(0, incarnation=1, at=50.0))
    history.jobs.append(job(0, 0, "store", [7], 60.0, 61.0))
    assert judge("results", history).value == "true"


def test_results_counts_failures_after_a_fault_and_refused_stores_without_judging_them() -> None:
    failed: dict[str, Any] = {"ok": [], "failed": [0, 1, 2], "outcome": "fail"}
    faulty = change_job(good_history(), 1, **failed)
    faulty.notes.append(note("fault", 5.0, text="disk full"))
    assert judge("results", faulty).value == "true"
    faulty.notes[-1] = note("fault", 11.0, text="disk full")  # after the failure: no excuse
    assert judge("results", faulty).value == "false"

    verdict = judge("results", change_job(good_history(), 0, **failed, refused=3))
    assert verdict.value == "true"
    assert "1 stores (3 blocks refused)" in verdict.figure
    for refused, direction, finding in (
        (2, "store", "failed for block 0, 1, 2 (2 of them refused) although no fault was injected"),
        (4, "store", "refused 4 blocks, but only 3 failed"),
        (3, "load", "although no fault was injected"),  # a load's slots are its caller's: no queue is full
    ):
        unexcused = change_job(good_history(), 0, **failed, refused=refused, direction=direction)
        verdict = judge("results", unexcused)
        assert verdict.value == "false"
        assert finding in "\n".join(verdict.findings)


# --- leftovers ---


@pytest.mark.parametrize(
    ("bad", "finding"),
    [
        (lambda h: h.files.append("model_r0/000/00000001.bin.77.tmp") or h, "00000001.bin.77.tmp was left"),
        (lambda h: h.files.append("model_r0/000/core") or h, "model_r0/000/core was left"),
        (lambda h: change_stop(h, 0, pinned_slots=3), "process 0 ended with 3 slots still pinned"),
        (lambda h: change_stop(h, 1, leaked_fds=2), "process 1 ended with 2 more descriptors"),
        (lambda h: change_stop(h, 1, findings=["slot 4 has no owner"]), "process 1: slot 4 has no owner"),
        (lambda h: change_stop(h, 1, exit_code=-11), "process 1 was ended by SIGSEGV (signal 11), and no fault"),
        (lambda h: change_stop(h, 1, exit_code=70), "process 1 ended with 70"),
    ],
)
def test_leftovers_rejects(bad: Callable[[History], History], finding: str) -> None:
    verdict = judge("leftovers", bad(good_history()))
    assert verdict.value == "false"
    assert finding in verdict.findings[0]


@pytest.mark.parametrize(
    ("ended", "doubt"),
    [
        (lambda h: h.stops.pop() and h, "process 1: has no record of its end"),
        (lambda h: change_stop(h, 1, exit_code=-9, outside="it was ended by SIGKILL"), "process 1: it was ended by"),
    ],
)
def test_leftovers_blames_no_tier_for_an_end_that_came_from_outside(
    ended: Callable[[History], History], doubt: str
) -> None:
    history = ended(good_history())
    history.files.append("model_r0/000/x.tmp")  # which the process could not remove
    verdict = judge("leftovers", history)
    assert verdict.value == "unknown"
    assert doubt in verdict.findings[0]


def test_what_happened_to_many_processes_is_said_once() -> None:
    history = good_history()
    history.notes += [note("error", 2.0, process, "RuntimeError: no") for process in (0, 1, 1)]
    assert judge("results", history).findings == ["processes 0, 1: RuntimeError: no"]


def test_leftovers_excuses_the_victim_of_a_fault_but_not_its_temp_files() -> None:
    history = change_stop(good_history(), 1, exit_code=-9, findings=["killed by signal 9"])
    history.notes.append(note("fault", 50.0, 1, "killed"))
    assert judge("leftovers", history).value == "true"
    history.files.append("model_r0/000/x.tmp")
    assert judge("leftovers", history).value == "false"


def test_leftovers_leaves_quarantine_and_unexpected_blocks_to_others() -> None:
    history = good_history()
    history.files += ["model/quarantine/00000001.bin.size.12ab", "model_r0/fff/00000fff.bin"]
    verdict = judge("leftovers", history)
    assert verdict.value == "true"
    assert verdict.data["quarantined"] == 1


def test_leftovers_passes_the_bookkeeping_that_the_adapter_declares_and_no_other() -> None:
    history = good_history()
    history.files += ["model/own-3.index", "model/.other"]
    declared = ["config.json", "kvtier.json", "own-*.index"]
    history.starts = [s._replace(detail={**s.detail, "bookkeeping": declared}) for s in history.starts]
    verdict = judge("leftovers", history)
    assert verdict.value == "false"
    assert verdict.findings == ["model/.other was left under the root"]
    assert judge("leftovers", good_history()).value == "true", "a history without the declaration"


def test_leftovers_without_block_names_finds_only_what_calls_itself_temporary() -> None:
    history = good_history()
    history.names.clear()
    history.files += ["blob/0001", "blob/0002"]
    assert judge("leftovers", history).value == "true"
    history.files.append("blob/.0003.tmp")
    assert judge("leftovers", history).value == "false"


# --- determinism ---


def without_file(history: History, block: int) -> History:
    history.files.remove(name_of(block))
    return history


@pytest.mark.parametrize(
    ("bad", "finding"),
    [
        (lambda h: h.names.append(Name(1, 4, "else.bin")) or h, "block 4 has 2 names: model_r0/004/00000004.bin (proc"),
        (lambda h: h.names.append(Name(0, 2, "else.bin")) or h, "block 2 has 2 names"),
        (lambda h: h.names.append(Name(1, 9, name_of(3))) or h, f"block 3, block 9 share the name {name_of(3)}"),
        (lambda h: h.starts.append(start(2, digest="other")) or h, "2 different seeds of the chain"),
        (lambda h: without_file(h, 3), f"{name_of(3)} is missing on disk"),
        (lambda h: h.files.append(name_of(77)) or h, f"{name_of(77)} is on disk, but is no name"),
        (
            lambda h: h.names.append(Name(0, 8, name_of(8))) or h.files.append(name_of(8)) or h,
            "is block 8, which nobody stored",
        ),
    ],
)
def test_determinism_rejects(bad: Callable[[History], History], finding: str) -> None:
    verdict = judge("determinism", bad(good_history()))
    assert verdict.value == "false"
    assert any(finding in text for text in verdict.findings), verdict.findings


def test_determinism_wants_no_file_of_a_store_that_wrote_none() -> None:
    history = without_file(good_history(), 3)
    number = next(n for n, j in enumerate(history.jobs) if j.direction == "store" and 3 in j.ok)
    assert judge("determinism", history).value == "false"
    assert judge("determinism", change_job(history, number, in_memory=[3])).value == "true"


def test_determinism_counts_what_it_compared() -> None:
    verdict = judge("determinism", good_history())
    assert verdict.figure.startswith("5 blocks named; 4 names derived again by another process, 0 findings")
    assert verdict.figure.endswith("5 of 5 stored blocks have their file, 0 other block files")


def test_determinism_of_one_process_is_unknown() -> None:
    history = good_history()
    history.names[:] = [n for n in history.names if n.process == 0]
    assert judge("determinism", history).value == "unknown"


def test_determinism_takes_a_block_in_quarantine_and_one_of_a_failed_store_as_explained() -> None:
    history = without_file(good_history(), 3)
    history.files.append(f"model/quarantine/{3:08x}.bin.size.12ab")
    assert judge("determinism", history).value == "true"
    history = change_job(good_history(), 4, ok=[], failed=[4], outcome="fail")  # it may have been published
    assert judge("determinism", history).value == "true"
    assert judge("determinism", without_file(history, 4)).value == "true"


# --- nonblocking ---


def submits(history: History, share: float, count: int = 100, seconds: float = 1.0) -> History:
    history.jobs[:] = [
        job(0, i, "store", [i], 10.0 * i, 10.0 * i + seconds, submit_returned_seconds=10.0 * i + share * seconds)
        for i in range(count)
    ]
    return history


def test_nonblocking_rejects_a_submit_that_waits_for_the_io() -> None:
    verdict = judge("nonblocking", submits(good_history(), 0.95))
    assert verdict.value == "false"
    assert "process 0: in 100 of 100 jobs the submit took over half of the job's life" in verdict.findings[0]
    assert judge("nonblocking", submits(good_history(), 0.05)).value == "true"


def test_nonblocking_rejects_a_submit_that_blocks_now_and_then() -> None:
    history = submits(good_history(), 0.01)
    for i in (3, 4):
        change_job(history, i, submit_returned_seconds=10.0 * i + 5.0, finished_seconds=10.0 * i + 20.0)
    verdict = judge("nonblocking", history)
    assert verdict.value == "false"
    assert "the submit of job 3 (store, 1 blocks) took 5.00 s of the job's 20.00 s" in verdict.findings[0]


def test_nonblocking_forgives_one_submit_and_what_lies_within_noise() -> None:
    history = submits(good_history(), 0.01)
    change_job(history, 3, submit_returned_seconds=35.0, finished_seconds=36.0)
    assert judge("nonblocking", history).value == "true"
    change_job(history, 4, submit_returned_seconds=45.0, finished_seconds=46.0)
    history.notes.append(canary(0, 0.7))
    assert judge("nonblocking", history).value == "unknown", (
        "the worst moment of the machine explains it, not a usual one"
    )
    history.notes += [canary(0, 0.7)] * 2
    verdict = judge("nonblocking", history)
    assert verdict.value == "true"
    assert verdict.figure.endswith("threads woke up to 700 ms late"), (
        "the figure says what a long submit is compared with"
    )


def test_nonblocking_charges_no_submit_with_time_without_a_cpu() -> None:
    history = submits(good_history(), 0.01)
    for i in (3, 4, 5):
        change_job(history, i, submit_returned_seconds=10.0 * i + 5.0, finished_seconds=10.0 * i + 20.0)
    assert judge("nonblocking", history).value == "false"
    preempted = [note("delayed", at + 5.0, 0, from_seconds=at, seconds=4.995) for at in (30.0, 40.0)]
    history.notes.append(preempted[0])
    assert judge("nonblocking", history).value == "false", "two are left, and one is forgiven"
    history.notes.append(preempted[1])
    assert judge("nonblocking", history).value == "unknown", "the canary, which sleeps most of the time, was on time"
    for one in preempted:
        one.detail["threads"] = {"1000": [4.995, 0.005]}
    assert judge("nonblocking", history).value == "true", "it was the scheduler's thread"
    for one in preempted:
        one.detail["threads"] = {"1000": [0.001, 0.005], "1001": [4.995, 0.005]}
    assert judge("nonblocking", history).value == "unknown", "it was another thread, which may have held a lock"


def test_nonblocking_finds_submits_that_block_on_a_machine_on_which_the_kernel_explains_every_delay() -> None:
    history = submits(good_history(), 0.01)
    for i in (3, 4):
        change_job(history, i, submit_returned_seconds=10.0 * i + 5.0, finished_seconds=10.0 * i + 20.0)
    history.notes += [canary(0, 0.002), canary(0, 2.0, at=20.0)]
    assert judge("nonblocking", history).value == "unknown", "the canary was late by 2 s"
    history.notes[-1].detail["latest"] = [[20.0, 2.0, 1.999]]
    history.notes.append(note("delayed", 20.0, 0, from_seconds=18.0, seconds=1.999, threads={"1000": [1.999, 0.0]}))
    assert judge("nonblocking", history).value == "false", "it had no CPU then, and the submits were at other times"
    history.notes[-2].detail["latest"] = [[20.0, 2.0, 0.5]]
    history.notes[-1].detail["threads"] = {"1000": [0.001, 0.0]}
    history.notes[-1].detail["seconds"] = 0.001
    assert judge("nonblocking", history).value == "unknown", "1.5 s are left unexplained"


def test_nonblocking_does_not_pass_submits_during_which_no_thread_got_the_interpreters_lock() -> None:
    """The scheduler's thread may have held it itself, in native code: then the canary waits as long as the submit."""
    history = submits(good_history(), 0.01)
    own = note("delayed", 900.0, 0, from_seconds=899.0, seconds=0.001, threads={"1000": [0.001, 0.0]})
    history.notes += [*[canary(0, 0.0015)] * 9, own]
    assert judge("nonblocking", history).value == "true"
    latest = []
    for i in (3, 4, 5, 6, 7):
        change_job(history, i, submit_returned_seconds=10.0 * i + 5.0, finished_seconds=10.0 * i + 20.0)
        latest.append([10.0 * i + 5.0, 5.0, 0.0])
    history.notes.append(note("canary", 100.0, 0, late_seconds=5.0, latest=latest))
    verdict = judge("nonblocking", history)
    assert verdict.value == "unknown", verdict
    assert "5 submits took up to 5.00 s" in verdict.findings[0]


def test_nonblocking_cannot_tell_without_a_canary_or_within_noise() -> None:
    history = submits(good_history(), 0.95, seconds=0.001)
    assert judge("nonblocking", history).value == "unknown"
    history = submits(good_history(), 0.95)
    history.notes.clear()
    assert judge("nonblocking", history).value == "unknown"
    history = submits(good_history(), 0.05)
    history.notes.clear()
    assert judge("nonblocking", history).value == "true"


# --- sharing ---


def replay(processes: int, see_others: bool, delay: float = 0.0, seed: int = 1) -> History:
    """A tier that shares (or does not), on synthetic traffic, one request a second; a store is seen after `delay`."""
    history = History.of([start(p) for p in range(processes)])
    stored: dict[tuple[int, int], float] = {}  # (whose view, block) -> seen from
    for i, traced in enumerate(synthetic_trace(seed, 200)):
        process, now, blocks = i % processes, float(i), list(traced.hash_ids)
        view = 0 if see_others else process
        hits = next((k for k, b in enumerate(blocks) if stored.get((view, b), now + 1) > now), len(blocks))
        history.add(request(process, i, blocks, hits, now))
        if hits:
            history.add(job(process, 2 * i, "load", blocks[:hits], now, now + 0.1, request=i))
        if hits < len(blocks):
            history.add(job(process, 2 * i + 1, "store", blocks[hits:], now, now + delay + 0.25, request=i))
        for block in blocks[hits:]:
            stored.setdefault((view, block), now + delay + 0.25)
    return history


@pytest.mark.parametrize("processes", [2, 4])
def test_sharing_accepts_a_tier_that_shares_and_rejects_one_that_does_not(processes: int) -> None:
    shared, private = replay(processes, True), replay(processes, False)
    blocks = [r.blocks for r in shared.requests]
    verdict = judge("sharing", shared)
    assert verdict.value == "true", verdict
    assert verdict.data["hit_blocks"] == verdict.data["shared_hit_blocks"] == oracle_hit_ratio(blocks).hit_blocks
    assert sum(verdict.data["lost"].values()) == 0
    assert verdict.data["duplicate_write_factor"] == 1.0

    verdict = judge("sharing", private)
    assert verdict.value == "false"
    assert verdict.data["hit_blocks"] == verdict.data["private_hit_blocks"]
    assert verdict.data["lost"]["unexplained"] == verdict.data["shared_hit_blocks"] - verdict.data["hit_blocks"]
    assert "missed block" in verdict.findings[0]
    assert verdict.data["duplicate_write_factor"] > 1.1


@pytest.mark.parametrize("looked_up", [True, False])
def test_a_request_that_looked_for_nothing_missed_nothing(looked_up: bool) -> None:
    history = good_history()
    # Process 1 stores the blocks at once, as it was ordered to, and the machine let it begin when they were stored.
    history.add(request(1, 9, [0, 1, 2], 0, 5.0)._replace(looked_up=looked_up))
    history.add(job(1, 9, "store", [0, 1, 2], 5.0, 5.5, request=9))
    verdict = judge("sharing", history)
    assert verdict.value == ("false" if looked_up else "true")
    assert verdict.data["lost"]["not looked up"] == (0 if looked_up else 3)


def test_sharing_puts_duplicates_in_flight_down_to_themselves() -> None:
    verdict = judge("sharing", replay(4, True, delay=6.0))
    lost = verdict.data["lost"]
    assert verdict.value == "true"
    assert lost["in flight"] > 0 == lost["unexplained"]
    late = lost["in flight"]
    assert f"possible hits missed: {late} (store still running: {late}, unexplained: 0)" in verdict.figure
    assert verdict.data["hit_blocks"] + sum(lost.values()) == verdict.data["shared_hit_blocks"]


def test_sharing_cannot_be_shown_where_the_tier_has_no_room() -> None:
    history = replay(2, False)
    history.requests[:] = [request._replace(short_of_room=True) for request in history.requests]
    verdict = judge("sharing", history)
    assert verdict.value == "unknown"
    assert verdict.data["lost"]["no room"] > 0 == verdict.data["lost"]["unexplained"]
    assert "no room" in verdict.figure
    few = replay(2, True)
    few.requests[150] = few.requests[150]._replace(short_of_room=True, hit_blocks=0)
    assert judge("sharing", few).value == "true", "a few do not matter"


def test_sharing_says_when_seeds_differ() -> None:
    history = replay(2, False)
    history.starts[1] = start(1, digest="another")
    assert "2 different seeds" in judge("sharing", history).findings[0]


def test_sharing_rejects_more_hits_than_there_can_be() -> None:
    history = replay(2, True)
    history.requests[0] = history.requests[0]._replace(hit_blocks=1)
    verdict = judge("sharing", history)
    assert verdict.value == "false"
    assert "more hits than one shared endless cache" in verdict.figure
    history.options["warm_root"] = True
    assert judge("sharing", history).value == "true"
    history.requests[0] = history.requests[0]._replace(hit_blocks=1000)
    assert judge("sharing", history).value == "false"


def no_hits(history: History) -> History:
    history.requests[:] = [r._replace(hit_blocks=0) for r in history.requests]
    return history


def test_sharing_without_hits_is_false_where_they_were_possible_and_unknown_where_not() -> None:
    assert judge("sharing", no_hits(replay(2, True))).value == "false"
    assert judge("sharing", no_hits(replay(2, True, delay=1e9))).value == "unknown"  # all in flight
    history = no_hits(replay(2, True))
    history.jobs.clear()
    assert judge("sharing", history).value == "unknown"  # nothing was stored
    assert judge("sharing", replay(1, True)).value == "unknown"  # nobody to share with
    different = History.of([request(p, p, [p], 0, 1.0) for p in range(2)])
    different.jobs[:] = [job(p, p, "store", [p], 1.0, 2.0) for p in range(2)]
    assert judge("sharing", different).value == "unknown"  # nothing in common


def test_sharing_knows_failed_loads_and_refused_stores() -> None:
    history = good_history()
    history.requests[2] = history.requests[2]._replace(hit_blocks=3)
    change_job(history, 3, ok=[0, 1, 2], failed=[3], outcome="fail")
    lost = judge("sharing", history).data["lost"]
    assert lost["load failed"] == sum(lost.values()) == 1
    change_job(history, 3, blocks=[0, 1, 2], failed=[], outcome="ok")
    assert judge("sharing", history).data["lost"]["unexplained"] == 1
    change_job(history, 2, ok=[], failed=[3], outcome="fail")
    assert judge("sharing", history).data["lost"]["not stored"] == 1


@given(st.integers(0, 10**6), st.integers(2, 5), st.sampled_from([0.0, 2.0, 20.0]))
def test_sharing_accounts_for_every_reference(seed: int, processes: int, delay: float) -> None:
    data = judge("sharing", replay(processes, True, delay, seed)).data
    assert data["hit_blocks"] + sum(data["lost"].values()) == data["shared_hit_blocks"]
    assert data["lost"]["unexplained"] == 0
