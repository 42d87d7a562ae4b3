"""The promises of any tier: correct tiers keep each, and for each there is a tier that breaks it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.adapters import adapter_class
from harness.adapters.base import TierSetup
from harness.adapters.reference import MemoryAdapter
from harness.drivers import contract_promises as contract
from harness.drivers.contract_promises import PROMISES, Broken, Subject
from harness.runner import run
from harness.scenarios import contract as scenario
from harness.scenarios.contract import ContractOptions
from tests.tiering.harness.broken import contract_promises as broken


def subject(tmp_path: Path, tier: type[Any]) -> Subject:
    setup = TierSetup(str(tmp_path), 4096, 64, n_read_threads=2, n_write_threads=2, tokens_per_block=4)
    return Subject(tier, setup)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("tier", ["memory", "kvtier", "kvtier-stack"])
def test_a_correct_tier_keeps_each_promise(tmp_path: Path, tier: str, promise: Callable[[Subject], None]) -> None:
    one = subject(tmp_path, adapter_class(tier))
    try:
        promise(one)
    finally:
        one.close()


BREAKS: dict[str, tuple[type[MemoryAdapter], str]] = {
    "slots_are_memory": (broken.ReadOnlySlots, "read-only"),
    "keys_name_prefixes": (broken.KeysOfTheBlockAlone, "not those of the whole|depend on the tokens before it"),
    "absent_blocks_are_misses": (broken.HitsAlways, "8 are hits"),
    "stored_blocks_load": (broken.LoadsReversed, "wrong bytes: other key"),
    "another_instance_finds_them": (broken.MissesForEver, "5 of 5 blocks that were reported stored are not found"),
    "jobs_touch_only_their_slots": (broken.ScribblesBehind, "belongs to no job|has wrong bytes"),
    "large_jobs_lose_nothing": (broken.LosesTheLast, "24 of 64 blocks"),
    "many_jobs_at_once": (broken.ForgetsJobs, "no result of 12 jobs"),
    "storing_twice_is_harmless": (broken.SecondStoreFails, "3 of 6 blocks were not stored"),
    "nothing_comes_without_a_job": (broken.ReportsAgain, "no job was submitted"),
    "drain_waits_for_all": (broken.Late, "0 of 8 jobs"),
    "close_answers_for_all": (broken.SilentAtTheEnd, "of 8 jobs 0 had a result"),
    "requests_may_end_before_their_jobs": (broken.EndsWithItsRequest, "no result of 1 jobs"),
    "a_vanished_block_is_no_data": (broken.LoadsAreAlwaysOk, "wrong bytes"),
    "accounts_are_in_order": (broken.OwnChecksFail, "a slot is pinned"),
    "close_gives_everything_back": (broken.KeepsAThread, "2 descriptors open"),
}


def test_each_promise_has_a_tier_that_breaks_it() -> None:
    assert list(BREAKS) == [promise.__name__ for promise in PROMISES]


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_promise_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(contract, "ANSWER_SECONDS_MAX", 0.2)
    tier, words = BREAKS[name]
    one = subject(tmp_path, tier)
    with pytest.raises((Broken, TypeError), match=words):
        getattr(contract, name)(one)
    for event, fd in broken.LEFT:
        event.set()
        os.close(fd)
    broken.LEFT.clear()


def test_after_an_exit_or_a_hang_in_one_promise_the_others_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario, "PROMISE_SECONDS_MAX", 3.0)
    options = ContractOptions(tier=f"{broken.__name__}:Mortal", seed=1, block_bytes=4096)
    results = run(scenario.SCENARIO, options, tmp_path / "runs")
    (verdict,) = results.verdicts
    assert results.verdict == "false"
    failed = {p["promise"]: p["why"] for p in verdict["data"]["promises"] if p["kept"] != "true"}
    died = "its process died or hung in it"
    assert failed == {
        contract.title(contract.large_jobs_lose_nothing): died,
        contract.title(contract.nothing_comes_without_a_job): died,
        contract.title(contract.drain_waits_for_all): died,
    }
    assert len(verdict["data"]["promises"]) == len(PROMISES)
