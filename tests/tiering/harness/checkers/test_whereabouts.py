"""A finding gets what its history decides, and nothing that is guessed."""

from __future__ import annotations

from typing import Any

from harness.checkers.whereabouts import Whereabouts
from harness.core.findings import About, Finding
from harness.core.history import History, Name
from harness.core.run_files import trace_ids
from tests.tiering.harness.checkers.records import good_history, job, name_of, request, start, stop


def completed(history: History, run_name: str = "", **known: Any) -> About:
    (finding,) = Whereabouts(history, run_name).completed([Finding("wrong", About(**known))])
    assert finding == "wrong"
    return finding.about


def test_a_job_names_its_request_its_end_and_the_files_of_its_block() -> None:
    about = completed(good_history(), process=1, job=0, block=2)
    assert (about.request, about.seconds, about.incarnation) == (1, 10.5, 0)
    assert (about.file, about.writer) == (name_of(2), "0")


def test_what_a_checker_said_is_kept() -> None:
    about = completed(good_history(), process=1, job=0, block=2, seconds=1.25, file="other.bin", request=9)
    assert (about.request, about.seconds, about.file) == (9, 1.25, "other.bin")
    assert about.writer is None, "the store of the block ended later"


def test_a_file_names_its_block_and_the_last_writer_of_it() -> None:
    history = good_history()
    for record in (start(1, 1, at=30.0), stop(1, 1, at=40.0), job(1, 7, "store", [2], 31.0, 32.0)):
        history.add(record)
    about = completed(history, file=name_of(2))
    assert (about.block, about.writer, about.process, about.seconds) == (2, "1.1", None, None)


def test_several_jobs_of_one_number_decide_nothing() -> None:
    history = good_history()
    history.add(job(1, 0, "load", [3], 60.0, 61.0, request=5))
    about = completed(history, process=1, job=0)
    assert (about.request, about.seconds) == (None, None)


def test_the_name_of_a_block_in_another_group_is_no_block() -> None:
    history = good_history()
    history.add(Name(0, -1 - 4, "model_r0/4_g1.bin"))
    assert completed(history, file="model_r0/4_g1.bin").block is None


def test_a_replayed_request_has_its_trace_id_where_spans_are_recorded() -> None:
    history = History.of([start(0), request(0, 3, [1], 0, 1.0)])
    assert completed(history, "run-7", process=0, request=3).trace_id == trace_ids("run-7", "0-3")[0]
    assert completed(history, "run-7", process=0, request=4).trace_id is None, "no request of the traffic"
    assert completed(history, process=0, request=3).trace_id is None, "no spans are recorded"


def test_a_plain_sentence_is_a_doubt() -> None:
    (doubt,) = Whereabouts(History()).completed(["nothing to see"])
    assert (doubt, doubt.kind) == ("nothing to see", "doubt")
