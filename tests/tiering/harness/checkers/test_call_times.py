"""Calls of the scheduler's thread: what waits for the device, grows with the root, or holds the interpreter's lock."""

from __future__ import annotations

from typing import Any

import pytest

from harness.checkers import Verdict
from harness.checkers.nonblocking import check
from harness.core.history import History, Note, Start
from tests.tiering.harness.checkers.records import job, note

DELAY = 0.02
PID = 1000


def window(number: int, condition: str, **more: Any) -> Note:
    """One second of 100 calls of `lookup`."""
    files = 30_000 if condition == "large" else 0
    places = {"quiet": 0.0, "delayed": 10.0, "large": 20.0}
    began = places[condition] + number
    detail = {"number": number, "condition": condition, "call": "lookup", "files": files, "began_seconds": began}
    detail |= {"over_seconds": began + 1, "delay_seconds": DELAY, "made": 100, "slow": 0, "median_seconds": 0.0001}
    return note("calls", began + 1, 0, **{**detail, "longest_seconds": 0.001, **more})


def three(condition: str, *changes: dict[str, Any]) -> list[Note]:
    return [window(number, condition, **change) for number, change in enumerate(changes or ({}, {}, {}))]


def judge(*windows: Note, in_submit: bool = False, sampled: int | None = PID) -> Verdict:
    started = Start(0, 0, PID, "t", "d", 0.0, 0.0, {"runs_in_submit": in_submit})
    one, canary = job(0, 1, "store", [1], 1.0, 2.0), note("canary", 1.0, 0, late_seconds=0.1)
    account = [] if sampled is None else [note("sampled", 0.0, 0, pid=sampled)]
    return check(History.of([started, one, canary, *account, *windows]))


def test_calls_that_wait_for_nothing_pass() -> None:
    verdict = judge(*three("quiet"), *three("delayed"), *three("large"))
    assert verdict.value == "true", verdict
    assert "lookup 0.1 ms" in verdict.figure


@pytest.mark.parametrize(
    ("quiet", "slow", "value"),
    [
        (0, [50, 60, 70], "false"),
        (0, [5, 5, 5], "true"),
        (0, [50, 60, 0], "unknown"),
        (0, [50, 0, 0], "true"),
        (40, [50, 55, 45], "true"),
        (10, [50, 50, 50], "false"),
    ],
)
def test_a_call_waits_for_the_device_where_delays_of_the_device_make_it_slow(
    quiet: int, slow: list[int], value: str
) -> None:
    windows = three("quiet", *[{"slow": quiet}] * 3), three("delayed", *({"slow": count} for count in slow))
    verdict = judge(*windows[0], *windows[1])
    assert verdict.value == value, verdict
    if value == "false":
        assert verdict.findings[0].rule == "nonblocking/waits-for-device"
        assert "it waits for the device (in 3 of 3 repetitions)" in verdict.findings[0]
    assert judge(*windows[0], *windows[1], in_submit=True).value == "true", "an oracle is measured, not judged"


def test_a_call_grows_with_the_root_in_each_window_or_not_at_all() -> None:
    grown = [{"median_seconds": 0.001}] * 3
    verdict = judge(*three("quiet"), *three("large", *grown))
    assert verdict.value == "false"
    assert verdict.findings[0].rule == "nonblocking/grows-with-root"
    assert (
        "takes 1 ms or more (medians) with 30000 files more under the root, and 0.1 ms without" in verdict.findings[0]
    )
    assert judge(*three("quiet"), *three("large", {"median_seconds": 0.001}, {}, {})).value == "true"
    assert judge(*three("quiet"), *three("large", *[{"median_seconds": 0.0005}] * 3)).value == "true", "too little"


def test_a_call_that_takes_long_without_any_delay_is_found_unless_the_process_was_hindered() -> None:
    long = three("quiet", *[{"median_seconds": 0.03}] * 3)
    verdict = judge(*long)
    assert verdict.value == "false"
    assert verdict.findings[0].rule == "nonblocking/long-call"
    hindered = [note("delayed", at + 1.0, 0, from_seconds=float(at), seconds=0.9) for at in range(3)]
    assert judge(*long, *hindered).value == "unknown"


def test_a_call_that_computes_for_long_is_found_on_a_machine_that_hinders_it() -> None:
    hindered = [note("delayed", float(n + 1), 0, from_seconds=float(n), seconds=1.0) for n in range(3)]
    slow = [{"median_seconds": 0.3}] * 3
    assert judge(*three("quiet", *slow), *hindered).value == "unknown"
    computes = [{"median_seconds": 0.3, "cpu_seconds": 0.03}] * 3
    verdict = judge(*three("quiet", *computes), *hindered)
    assert (verdict.value, verdict.findings[0].rule) == ("false", "nonblocking/long-call")
    assert judge(*three("quiet", *computes[:1], *slow[:2]), *hindered).value == "unknown", "in one window of three"


def late(*wake_ups: tuple[float, float, float]) -> Note:
    return note("canary", 100.0, 0, late_seconds=0.05, latest=[list(w) for w in wake_ups])


def test_the_interpreters_lock_is_held_where_a_thread_with_a_cpu_waits_for_it_again_and_again() -> None:
    waits = [(at + i / 4, 0.05, 0.0) for at in range(3) for i in (1, 2, 3)]
    verdict = judge(*three("quiet"), late(*waits))
    assert verdict.value == "false"
    assert verdict.findings[0].rule == "nonblocking/holds-lock"
    assert "waited 50 ms for the interpreter's lock, and 20 ms or longer 9 times" in verdict.findings[0]
    without_cpu = [(woke, seconds, 0.04) for woke, seconds, _ in waits]
    assert judge(*three("quiet"), late(*without_cpu)).value == "true"
    elsewhere = [note("delayed", woke, 0, from_seconds=woke - 0.05, seconds=0.04) for woke, _, _ in waits]
    assert judge(*three("quiet"), late(*waits), *elsewhere).value == "true", "the thread with the lock had no CPU"
    assert judge(*three("quiet"), late(*waits[:3])).value == "true", "in one window only"


def test_a_lock_is_no_explanation_where_the_kernel_does_not_say_how_long_a_thread_had_no_cpu() -> None:
    waits = [(at + i / 4, 0.05, 0.0) for at in range(3) for i in (1, 2, 3)]
    unaccounted = late(*waits)
    unaccounted.detail["accounted"] = False
    verdict = judge(*three("quiet"), unaccounted)
    assert verdict.value == "unknown", verdict
    assert "no account says how much of it without a CPU" in verdict.findings[0]
    assert judge(*three("quiet"), late(*waits)).value == "false"


@pytest.mark.parametrize("sampled", [None, PID + 1])
def test_a_lock_is_no_explanation_where_the_process_was_not_sampled(sampled: int | None) -> None:
    """The account was lost, or /proc does not show the process: the thread with the lock may have had no CPU."""
    waits = [(at + i / 4, 0.05, 0.0) for at in range(3) for i in (1, 2, 3)]
    verdict = judge(*three("quiet"), late(*waits), sampled=sampled)
    assert verdict.value == "unknown", verdict
    assert "no account says how much of it without a CPU" in verdict.findings[0]
