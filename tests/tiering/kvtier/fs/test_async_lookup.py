"""Lookups that never block, and answers that are never stale."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from kvtier.fs.async_lookup import BATCH_KEYS_MAX, THREADS, AsyncLookupManager
from kvtier.hashing import OffloadKey

A, B, C = (OffloadKey(letter * 36) for letter in (b"a", b"b", b"c"))


class Disk:
    """What exists; probes can be held so that news may overtake their answers."""

    def __init__(self) -> None:
        self.present: set[OffloadKey] = set()
        self.batches: list[list[OffloadKey]] = []
        self.threads: set[str] = set()  # that probed
        self.go = threading.Event()
        self.go.set()
        self.answered = threading.Semaphore(0)

    def probe(self, keys: Sequence[OffloadKey]) -> list[bool]:
        self.batches.append(list(keys))
        self.threads.add(threading.current_thread().name)
        answers = [key in self.present for key in keys]
        self.answered.release()
        assert self.go.wait(30)
        return answers


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def lookups(disk: Disk) -> Iterator[AsyncLookupManager]:
    lookups = AsyncLookupManager(disk.probe, known_keys_max=100, thread_name="lookup")
    yield lookups
    disk.go.set()
    lookups.shutdown()


def settle(lookups: AsyncLookupManager, key: OffloadKey, req_id: str) -> bool:
    """Ask until answered, as a scheduler does, one step each."""
    gives_up = time.monotonic() + 30
    while time.monotonic() < gives_up:
        answer = lookups.lookup(key, req_id)
        if answer is not None:
            return answer
        lookups.flush()
    raise AssertionError("no answer")


def test_one_batch_per_step_and_one_question_per_key(disk: Disk, lookups: AsyncLookupManager) -> None:
    disk.present = {A}
    assert [lookups.lookup(key, "r1") for key in (A, B, A)] == [None] * 3
    assert lookups.lookup(A, "r2") is None
    assert disk.batches == [], "nothing is asked before the end of the step"
    lookups.flush()
    assert settle(lookups, A, "r1") is True
    assert settle(lookups, B, "r1") is False
    assert settle(lookups, A, "r2") is True
    assert disk.batches == [[A, B]]
    (fact,) = lookups.take_facts()
    assert (fact.keys, fact.hits) == (2, 1)


def test_many_questions_go_out_before_the_step_is_over_and_may_be_answered_in_any_order(
    disk: Disk, lookups: AsyncLookupManager
) -> None:
    keys = [OffloadKey(number.to_bytes(36, "big")) for number in range(BATCH_KEYS_MAX + 10)]
    disk.present = set(keys[::2])
    disk.go.clear()
    assert [lookups.lookup(key, "r1") for key in keys] == [None] * len(keys)
    for _ in range(THREADS):
        assert disk.answered.acquire(timeout=30), "each thread has its part, though the step is not over"
    assert sorted(key for batch in disk.batches for key in batch) == keys[:BATCH_KEYS_MAX]
    disk.go.set()
    assert [settle(lookups, key, "r1") for key in keys] == [key in disk.present for key in keys]
    assert sum(fact.hits for fact in lookups.take_facts()) == len(disk.present)
    assert lookups.oldest_seconds() == 0, "no batch is without its answer"


def test_a_hit_is_known_and_costs_no_second_probe(disk: Disk, lookups: AsyncLookupManager) -> None:
    disk.present = {A}
    assert settle(lookups, A, "r1")
    lookups.cleanup("r1")
    assert lookups.lookup(A, "r2") is True
    assert len(disk.batches) == 1


def test_a_miss_is_probed_again_by_the_next_request_only(disk: Disk, lookups: AsyncLookupManager) -> None:
    assert not settle(lookups, A, "r1")
    disk.present = {A}
    assert lookups.lookup(A, "r1") is False, "the request that got MISS is computing the block by now"
    assert settle(lookups, A, "r2"), "a miss is not cached for ever, also while the first request lives"
    assert lookups.lookup(A, "r1") is True


def test_a_failed_load_corrects_the_verdict(disk: Disk, lookups: AsyncLookupManager) -> None:
    disk.present = {A}
    assert settle(lookups, A, "r1")
    disk.present = set()
    lookups.mark_absent([A, B], "r1")
    assert lookups.lookup(A, "r1") is False, "no livelock"
    assert not settle(lookups, A, "r2"), "nor is a vanished block remembered"


def test_own_stores_are_known_at_once(disk: Disk, lookups: AsyncLookupManager) -> None:
    lookups.mark_present([A])
    assert lookups.lookup(A, "r1") is True
    assert disk.batches == []


@pytest.mark.parametrize("news", ["present", "missing"])
def test_an_answer_overtaken_by_news_is_dropped(disk: Disk, lookups: AsyncLookupManager, news: str) -> None:
    disk.present = set() if news == "present" else {A}
    disk.go.clear()
    assert lookups.lookup(A, "r1") is None
    lookups.flush()
    assert disk.answered.acquire(timeout=30)
    (lookups.mark_present if news == "present" else lookups.mark_absent)([A])
    assert lookups.lookup(A, "r1") is (news == "present")
    disk.go.set()
    while lookups.oldest_seconds():
        lookups.flush()  # until the answers for A have come
    assert lookups.lookup(A, "r1") is (news == "present")


def test_while_the_device_hangs_each_probe_is_answered_absent_and_afterwards_it_is_repeated(disk: Disk) -> None:
    lookups = AsyncLookupManager(disk.probe, 100, "lookup", hung_seconds=0.25)
    disk.present, _ = {A, B}, disk.go.clear()
    assert lookups.lookup(A, "r1") is None
    lookups.flush()
    assert disk.answered.acquire(timeout=30), "from here on its thread hangs"
    assert settle(lookups, A, "r1") is False
    assert settle(lookups, B, "r2") is False
    assert disk.batches == [[A]], "the thread that hangs is asked nothing more"
    assert lookups.oldest_seconds() > 0.25
    disk.go.set()
    while lookups.oldest_seconds():
        lookups.flush()
    assert lookups.lookup(A, "r1") is False, "the answer that it got before"
    assert settle(lookups, A, "r3")
    assert settle(lookups, B, "r4")
    lookups.shutdown()


def test_a_finished_request_leaves_nothing_behind(disk: Disk, lookups: AsyncLookupManager) -> None:
    for number in range(50):
        settle(lookups, OffloadKey(number.to_bytes(36, "big")), "r1")
    lookups.lookup(A, "r1")
    lookups.cleanup("r1")
    lookups.cleanup("never seen")
    lookups.flush()
    lookups._cache.check_integrity()
    assert repr(lookups._cache) == "<PresenceCache: 0 present, 0 requests, 0 probes, 0 unsent>"
    assert not any(A in batch for batch in disk.batches), "a question that nobody waits for is not asked"


def test_what_is_remembered_is_bounded(disk: Disk) -> None:
    lookups = AsyncLookupManager(disk.probe, known_keys_max=3, thread_name="lookup")
    keys = [OffloadKey(bytes([n]) * 36) for n in range(10)]
    lookups.mark_present(keys)
    assert [lookups.lookup(key, "r1") for key in keys] == [None] * 7 + [True] * 3
    lookups.shutdown()


def test_steps_of_one_batch_wake_one_thread_alone(disk: Disk, lookups: AsyncLookupManager) -> None:
    for n in range(20):
        assert not settle(lookups, OffloadKey(bytes([n]) * 36), f"r{n}")
    assert len(disk.threads) == 1, disk.threads


def test_after_a_burst_steps_of_one_batch_wake_one_thread_alone_again(disk: Disk, lookups: AsyncLookupManager) -> None:
    keys = [OffloadKey(n.to_bytes(36, "big")) for n in range(100 * 64)]
    for start in range(0, len(keys), 64):
        for key in keys[start : start + 64]:
            lookups.lookup(key, "burst")
        lookups.flush()
    for n in range(40):
        if n == 20:  # calls of the burst that were left over are used up
            disk.threads.clear()
        assert not settle(lookups, OffloadKey(bytes([n]) * 36), f"r{n}")
    assert len(disk.threads) == 1, disk.threads


def test_while_the_first_thread_hangs_the_second_answers() -> None:
    hangs, first = threading.Event(), threading.Semaphore(0)

    def probe(keys: Sequence[OffloadKey]) -> list[bool]:
        if A in keys:
            first.release()
            assert hangs.wait(30)
        return [True] * len(keys)

    lookups = AsyncLookupManager(probe, known_keys_max=100, thread_name="lookup")
    assert lookups.lookup(A, "r0") is None
    lookups.flush()
    assert first.acquire(timeout=30)
    for n in range(20):
        assert settle(lookups, OffloadKey(bytes([n]) * 36), f"r{n}")
    hangs.set()
    lookups.shutdown()
