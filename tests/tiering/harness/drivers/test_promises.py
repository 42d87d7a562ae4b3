"""The contract of any tier: right tiers keep every promise, and for each promise there is a tier that breaks it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.adapters import adapter_class
from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.reference import MemoryAdapter
from harness.drivers import promises as contract
from harness.drivers.promises import PROMISES, Broken, Subject
from harness.runner import run
from harness.scenarios import contract as scenario
from harness.scenarios.contract import ContractOptions


def subject(tmp_path: Path, tier: type[Any]) -> Subject:
    setup = TierSetup(str(tmp_path), 4096, 64, n_read_threads=2, n_write_threads=2, tokens_per_block=4)
    return Subject(tier, setup)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("tier", ["memory", "kvtier", "kvtier-stack"])
def test_right_tiers_keep_each_promise(tmp_path: Path, tier: str, promise: Callable[[Subject], None]) -> None:
    one = subject(tmp_path, adapter_class(tier))
    try:
        promise(one)
    finally:
        one.close()


class ReadOnlySlots(MemoryAdapter):
    @property
    def view(self) -> memoryview:
        return super().view.toreadonly()


class KeysOfTheBlockAlone(MemoryAdapter):
    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        size = self.setup.tokens_per_block
        starts = range(0, len(tokens) - size + 1, size)
        return [MemoryAdapter.keys(self, tokens[start : start + size])[0] for start in starts]


class HitsAlways(MemoryAdapter):
    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        return ["hit" for _ in keys]


class LoadsReversed(MemoryAdapter):
    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots[::-1], req_id)


class MissesForEver(MemoryAdapter):
    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._missed: set[bytes] = set()

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        self._missed.update(key for key, verdict in zip(keys, verdicts, strict=True) if verdict == "miss")
        return ["miss" if key in self._missed else "hit" for key in keys]


class ScribblesBehind(MemoryAdapter):
    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._slot((slots[-1] + 2) % self.setup.slots)[:4] = b"oops"


class LosesTheLast(MemoryAdapter):
    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys[:40], slots[:40], req_id)
        self._finished[-1] = Finished(job_id, keys, ())


class ForgetsJobs(MemoryAdapter):
    """Of many at once one result is lost."""

    def poll(self) -> list[Finished]:
        return super().poll()[:20]


class SecondStoreFails(MemoryAdapter):
    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        there = [key for key in keys if self._path(key).exists()]
        super().submit_store(job_id, keys, slots, req_id)
        self._finished[-1] = Finished(job_id, [key for key in keys if key not in there], there)


class ReportsAgain(MemoryAdapter):
    def drain(self) -> None:
        self._finished.append(Finished(1, (), ()))


class Late(MemoryAdapter):
    """Results come two steps after their job; a drain waits for nothing."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._steps = 0

    def step(self) -> None:
        self._steps += 1

    def poll(self) -> list[Finished]:
        return super().poll() if self._steps and self._steps % 2 == 0 else []


class SilentAtTheEnd(MemoryAdapter):
    def close(self) -> None:
        self._finished.clear()


class EndsWithItsRequest(MemoryAdapter):
    def request_finished(self, req_id: str) -> None:
        self._finished.clear()


class CountsOnTheFirstLookup(MemoryAdapter):
    """Whatever it has seen once is there for ever."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        self._finished[-1] = Finished(job_id, keys, ())


class FindsFault(MemoryAdapter):
    def findings(self) -> list[str]:
        return ["a slot is pinned"]


class KeepsAThread(MemoryAdapter):
    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._fd = os.open("/dev/null", os.O_RDONLY)
        LEFT.append((threading.Event(), self._fd))
        threading.Thread(target=LEFT[-1][0].wait, daemon=True).start()


LEFT: list[tuple[threading.Event, int]] = []

SINS: dict[str, tuple[type[MemoryAdapter], str]] = {
    "slots_are_memory": (ReadOnlySlots, "read-only"),
    "keys_name_prefixes": (KeysOfTheBlockAlone, "not those of the whole|depend on the tokens before it"),
    "absent_blocks_are_misses": (HitsAlways, "8 are hits"),
    "stored_blocks_load": (LoadsReversed, "wrong bytes: other key"),
    "another_instance_finds_them": (MissesForEver, "5 of 5 blocks that were reported stored are not found"),
    "jobs_touch_only_their_slots": (ScribblesBehind, "belongs to no job|has wrong bytes"),
    "large_jobs_lose_nothing": (LosesTheLast, "24 of 64 blocks"),
    "many_jobs_at_once": (ForgetsJobs, "no result of 12 jobs"),
    "storing_twice_is_harmless": (SecondStoreFails, "3 of 6 blocks were not stored"),
    "nothing_comes_without_a_job": (ReportsAgain, "no job was submitted"),
    "drain_waits_for_all": (Late, "0 of 8 jobs"),
    "close_answers_for_all": (SilentAtTheEnd, "of 8 jobs 0 had a result"),
    "requests_may_end_before_their_jobs": (EndsWithItsRequest, "no result of 1 jobs"),
    "a_vanished_block_is_no_data": (CountsOnTheFirstLookup, "wrong bytes"),
    "accounts_are_in_order": (FindsFault, "a slot is pinned"),
    "close_gives_everything_back": (KeepsAThread, "2 descriptors open"),
}


def test_each_promise_has_its_broken_tier() -> None:
    assert list(SINS) == [promise.__name__ for promise in PROMISES]


@pytest.mark.parametrize("name", SINS)
def test_a_broken_promise_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(contract, "ANSWER_SECONDS_MAX", 0.2)
    tier, words = SINS[name]
    broken = subject(tmp_path, tier)
    with pytest.raises((Broken, TypeError), match=words):
        getattr(contract, name)(broken)
    for event, fd in LEFT:
        event.set()
        os.close(fd)
    LEFT.clear()


class Mortal(MemoryAdapter):
    """Ends its process when asked to drain; `close` of a used instance never returns."""

    def drain(self) -> None:
        os._exit(9)

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        if len(keys) == 64:
            time.sleep(3600)  # hangs, until it is ended


def test_a_tier_that_dies_or_hangs_breaks_that_promise_and_is_asked_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario, "PROMISE_SECONDS_MAX", 3.0)
    options = ContractOptions(tier=f"{__name__}:Mortal", seed=1, block_bytes=4096)
    results = run(scenario.SCENARIO, options, tmp_path / "runs")
    (verdict,) = results.verdicts
    assert results.verdict == "false"
    broken = {p["promise"]: p["why"] for p in verdict["data"]["promises"] if p["kept"] != "true"}
    died = "its process died or hung in it"
    assert broken == {
        contract.title(contract.large_jobs_lose_nothing): died,
        contract.title(contract.nothing_comes_without_a_job): died,
        contract.title(contract.drain_waits_for_all): died,
    }
    assert len(verdict["data"]["promises"]) == len(PROMISES)
