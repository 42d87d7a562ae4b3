"""The promises of any tier: correct tiers keep each, and for each there is a tier that breaks it."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.adapters import adapter_class
from harness.adapters.base import TierSetup, Verdict
from harness.adapters.reference import ReferenceAdapter
from harness.drivers import promises
from harness.drivers.promises import (
    PROMISES,
    Broken,
    Subject,
    accounts,
    blocks,
    calls,
    growth,
    lifecycle,
    strange_files,
)
from harness.mutants import contract_jobs
from harness.mutants.endpoint import WithEndpoint
from harness.mutants.registry import MUTANTS
from harness.runner import run
from harness.scenarios import contract as scenario
from harness.scenarios.contract import ContractOptions


def subject(tmp_path: Path, tier: type[Any], **more: float) -> Subject:
    setup = TierSetup(str(tmp_path), 4096, 64, n_read_threads=2, n_write_threads=2, tokens_per_block=4)
    return Subject(tier, setup, **more)


def _pairs() -> list[Any]:
    """Each correct tier with each promise. Of those about growth, which take longer, one runs by default."""
    quick = ("reference", growth.misses_leave_nothing)
    return [
        pytest.param(
            tier,
            promise,
            marks=[pytest.mark.slow] if promise.__module__ == growth.__name__ and (tier, promise) != quick else [],
            id=f"{tier}-{promise.__name__}",
        )
        for tier in ("reference", "kvtier", "kvtier-stack")
        for promise in PROMISES
    ]


@pytest.mark.parametrize(("tier", "promise"), _pairs())
def test_a_correct_tier_keeps_each_promise(tmp_path: Path, tier: str, promise: Callable[[Subject], None]) -> None:
    one = subject(tmp_path, adapter_class(tier))
    try:
        promise(one)
    finally:
        one.close()


def test_files_that_the_harness_itself_opens_for_a_moment_are_no_leak(tmp_path: Path) -> None:
    """As the canary does, more often the busier the machine is."""
    over, one = threading.Event(), subject(tmp_path, adapter_class("memory"))

    def open_and_close() -> None:
        while not over.wait(0.001):
            file = os.open("/proc/self/stat", os.O_RDONLY)
            over.wait(0.001)
            os.close(file)

    thread = threading.Thread(target=open_and_close)
    thread.start()
    try:
        for _ in range(20):
            lifecycle.close_gives_everything_back(one)
    finally:
        over.set()
        thread.join()


BREAKS = {
    name: mutant for name, mutant in MUTANTS.items() if mutant.scenario == "contract" and mutant.rule != "contract/ends"
}


def test_each_promise_has_a_tier_that_breaks_it() -> None:
    broken = {promise for mutant in BREAKS.values() for promise in mutant.options["promise"]}
    assert broken == {promise.__name__ for promise in PROMISES}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow]
            if name == "SortsForEachKey" or (".growth:" in mutant.tier and name != "RemembersEachMiss")
            else [],
        )
        for name, mutant in BREAKS.items()
    ],
)
def test_a_broken_promise_is_detected(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SECONDS_MAX", math.inf)  # a slow machine would leave growth undecided
    mutant = BREAKS[name]
    (promise,) = (one for one in PROMISES if one.__name__ == mutant.options["promise"][0])
    one = subject(tmp_path, adapter_class(mutant.tier), answer_seconds_max=0.5)
    try:
        with pytest.raises(Exception, match=r".") as broken:
            promise(one)
    finally:
        for event, fd in contract_jobs.LEFT:
            event.set()
            os.close(fd)
        contract_jobs.LEFT.clear()
        one.close()
    why = str(broken.value) if isinstance(broken.value, Broken) else f"raised {broken.typename}: {broken.value}"
    assert re.search(mutant.finding, f"{promise.__name__}: {why}")


def test_an_endpoint_that_counts_right_keeps_its_promise(tmp_path: Path) -> None:
    one = subject(tmp_path, WithEndpoint)
    accounts.metrics_are_true(one)
    one.close()


class RemembersSomeMisses(ReferenceAdapter):
    """The latest 1,000 misses are remembered."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._missed: OrderedDict[bytes, list[object]] = OrderedDict()

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        verdicts = super().lookup(keys, req_id)
        for key, verdict in zip(keys, verdicts, strict=True):
            if verdict == "miss":
                self._missed[key] = [verdict, req_id]
                if len(self._missed) > 1000:
                    self._missed.popitem(last=False)
        return verdicts


def test_a_cache_that_fills_up_to_a_bound_is_no_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SECONDS_MAX", math.inf)
    seen: list[bool] = []
    judge = growth._grown

    def noted(samples: Any, operations: int) -> Any:
        grown = judge(samples, operations)
        seen.append(bool(grown))
        return grown

    monkeypatch.setattr(growth, "_grown", noted)
    growth.misses_leave_nothing(subject(tmp_path, RemembersSomeMisses, answer_seconds_max=1e6))
    assert seen[0], "the cache was full before it could look like growth"
    assert not seen[-1]


class SlowToOpen(ReferenceAdapter):
    """To open an instance takes most of the time that a FIFO may hold a call."""

    open_seconds = 0.0

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        time.sleep(self.open_seconds)


@pytest.mark.parametrize(("kind", "open_seconds", "limit"), [("FIFO", 0.4, 0.7), ("folder", 0.1, 0.05)])
def test_time_to_open_is_no_call_that_an_object_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, open_seconds: float, limit: float
) -> None:
    """Each call has its own limit, and only a FIFO can hold one."""
    monkeypatch.setattr(strange_files, "_NO_FILES", {kind: strange_files._NO_FILES[kind]})
    monkeypatch.setattr(SlowToOpen, "open_seconds", open_seconds)
    one = subject(tmp_path, SlowToOpen, answer_seconds_max=limit / strange_files.HELD_FACTOR)
    try:
        strange_files.objects_are_no_blocks(one)
    finally:
        one.close()


class DropsAtClose(ReferenceAdapter):
    """Keeps vLLM's interface: a drain gives each job its result, a shutdown releases resources and no more."""

    answers_at_close = False

    def close(self) -> None:
        self._finished.clear()


def test_results_at_close_are_required_only_of_tiers_that_promise_them(tmp_path: Path) -> None:
    one = subject(tmp_path, DropsAtClose)
    try:
        lifecycle.close_answers_for_all(one)
    finally:
        one.close()
    assert not adapter_class("vllm").answers_at_close
    assert adapter_class("kvtier").answers_at_close


def test_results_at_close_are_true_also_where_they_are_not_required(tmp_path: Path) -> None:
    class Lies(DropsAtClose):
        """At close it reports what was never stored."""

        def close(self) -> None:
            self._finished = [finished._replace(ok=(), failed=()) for finished in self._finished]

    one = subject(tmp_path, Lies)
    try:
        with pytest.raises(Broken):
            lifecycle.close_answers_for_all(one)
    finally:
        one.close()


class Mortal(ReferenceAdapter):
    """A drain ends its process; a load of 64 blocks never returns."""

    def drain(self) -> None:
        os._exit(9)

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        if len(keys) == 64:
            time.sleep(3600)  # its defect: it hangs until the harness ends it


@pytest.mark.slow
def test_after_an_exit_or_a_hang_in_one_promise_the_others_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario, "PROMISE_SECONDS_MAX", 3.0)
    wanted = ("stored_blocks_load", "large_jobs_lose_nothing", "nothing_comes_without_a_job", "drain_waits_for_all")
    options = ContractOptions(tier=f"{__name__}:Mortal", seed=1, block_bytes=4096, promise=wanted)
    results = run(scenario.SCENARIO, options, tmp_path / "runs")
    (verdict,) = results.verdicts
    assert results.verdict == "false"
    failed = {p["promise"]: p["why"] for p in verdict["data"]["promises"] if p["kept"] != "true"}
    died = "its process died or hung in it"
    assert failed == {
        promises.title(blocks.large_jobs_lose_nothing): died,
        promises.title(calls.nothing_comes_without_a_job): died,
        promises.title(lifecycle.drain_waits_for_all): died,
    }
    assert len(verdict["data"]["promises"]) == len(wanted)
