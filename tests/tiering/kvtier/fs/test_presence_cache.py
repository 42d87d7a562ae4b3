"""`PresenceCache` against a model: any order of ask, send, answer, store, failed load, eviction, end of a request."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvtier.fs.async_lookup import PresenceCache, Probe
from kvtier.hashing import OffloadKey

KEYS = [OffloadKey(letter * 36) for letter in (b"a", b"b", b"c")]
REQUESTS = ["r1", "r2", "r3"]


class Model(RuleBasedStateMachine):
    """The device says at random whether a block is there. What may be answered follows from the news in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PresenceCache(known_keys_max=len(KEYS))
        self.now = 0
        self.absent_since: dict[OffloadKey, int] = {}  # the last eviction or failed load
        self.present_since: dict[OffloadKey, int] = {}  # the last store here, or answer of a probe sent since then
        self.sent: list[tuple[Probe, int]] = []
        self.failed: set[tuple[str, OffloadKey]] = set()
        self.answered: dict[tuple[str, OffloadKey], bool | None] = {}

    def tick(self) -> int:
        self.now += 1
        return self.now

    @rule(key=st.sampled_from(KEYS), req_id=st.sampled_from(REQUESTS))
    def ask(self, key: OffloadKey, req_id: str) -> None:
        answer, before = self.cache.lookup(key, req_id), self.answered.get((req_id, key))
        here = self.present_since.get(key, -1) > self.absent_since.get(key, -1)
        if (req_id, key) in self.failed:
            assert answer is False, "its load failed: absent until the request ends"
        elif here:
            assert answer is True, "stored or found here since anything said otherwise"
        else:
            assert answer is not True, "nothing has said that it is there since it went"
            assert answer is False or before is not False, "absent stays absent until the block is stored or found"
        self.answered[req_id, key] = answer

    @rule()
    def send(self) -> None:
        self.sent += [(probe, self.tick()) for probe in self.cache.take_unsent()]

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0), present=st.booleans())
    def answer(self, which: int, present: bool) -> None:
        probe, sent = self.sent.pop(which % len(self.sent))
        waits = probe.present is None and probe.requests > 0
        self.cache.answer(probe, present)
        if waits and present:
            assert sent > self.absent_since.get(probe.key, -1), "an overtaken answer was taken"
            self.present_since[probe.key] = self.tick()

    @rule(key=st.sampled_from(KEYS))
    def store(self, key: OffloadKey) -> None:
        self.cache.mark_present([key])
        self.present_since[key] = self.tick()

    @rule(key=st.sampled_from(KEYS), req_id=st.sampled_from(REQUESTS))
    def load_fails(self, key: OffloadKey, req_id: str) -> None:
        alive = any(request == req_id for request, _ in self.answered)
        self.cache.mark_absent([key], req_id)
        self.absent_since[key] = self.tick()
        if alive:  # a load that outlives its request leaves nothing behind
            self.failed.add((req_id, key))

    @rule(key=st.sampled_from(KEYS))
    def evict(self, key: OffloadKey) -> None:
        self.cache.mark_absent([key])
        self.absent_since[key] = self.tick()

    @rule()
    def give_up(self) -> None:
        self.cache.give_up()

    @rule(req_id=st.sampled_from(REQUESTS))
    def finish(self, req_id: str) -> None:
        self.cache.forget(req_id)
        self.failed = {(request, key) for request, key in self.failed if request != req_id}
        self.answered = {asked: answer for asked, answer in self.answered.items() if asked[0] != req_id}

    @invariant()
    def accounts_fit(self) -> None:
        self.cache.check_integrity()

    def teardown(self) -> None:
        """Once every probe is answered, no request waits; once every request has ended, nothing but blocks is known."""
        for req_id, key in self.answered:
            self.cache.lookup(key, req_id)
        self.send()
        while self.sent:
            self.answer(0, False)
        for req_id, key in self.answered:
            assert self.cache.lookup(key, req_id) is not None, "a request waits, and no probe is under way"
        for req_id in REQUESTS:
            self.cache.forget(req_id)
        self.cache.take_unsent()
        assert repr(self.cache).endswith("0 requests, 0 probes, 0 unsent>")


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestPresenceCache = Model.TestCase


def test_a_failed_load_is_an_absent_block_for_its_request_in_every_order_of_later_news() -> None:
    key, news = KEYS[0], ("newcomer", "store", "evict", "send", "answer")
    for order in product(news, repeat=5):
        cache, sent, newcomers = PresenceCache(10), list[Probe](), iter("abcde")
        happen: dict[str, Callable[[], object]] = {
            "newcomer": lambda cache=cache, newcomers=newcomers: cache.lookup(key, next(newcomers)),
            "store": lambda cache=cache: cache.mark_present([key]),
            "evict": lambda cache=cache: cache.mark_absent([key]),
            "send": lambda cache=cache, sent=sent: sent.extend(cache.take_unsent()),
            "answer": lambda cache=cache, sent=sent: [cache.answer(probe, True) for probe in sent],
        }
        cache.mark_present([key])
        assert cache.lookup(key, "r") is True
        cache.mark_absent([key], "r")
        for name in order:
            happen[name]()
            assert cache.lookup(key, "r") is False, order
        cache.forget("r")
        cache.mark_present([key])
        assert cache.lookup(key, "r") is True, "a new request of the same name starts anew"


def test_the_account_of_requests_can_be_found_wrong() -> None:
    cache = PresenceCache(10)
    cache.lookup(KEYS[0], "r")
    cache.take_unsent()[0].requests += 1
    with pytest.raises(AssertionError, match="2 requests counted, 1 hold the probe"):
        cache.check_integrity()
