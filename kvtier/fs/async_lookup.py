"""`AsyncLookupManager`: existence of blocks, probed in batches on threads of its own, answered without blocking. Called
by the scheduler's thread; its own threads only run `probe`.

`PresenceCache` below it holds the answers and does no I/O. Present blocks stay in it after their request has ended: a
file that vanished costs one failed load, which corrects it. "Absent" is an answer to one request: that request keeps it
until the block is stored here, and the next request probes again. A request whose load of a block failed gets "absent"
for that block until it ends, also when another request stores the block, so that no request retries a bad file for
ever. When a batch has had no answer for longer than `hung_seconds`, every open or new probe is answered "absent".
"""

from __future__ import annotations

import functools
import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from kvtier.background import BackgroundThreads
from kvtier.hashing import OffloadKey

logger = logging.getLogger(__name__)

THREADS = 2
BATCH_KEYS_MAX = 256
"""Probes are sent once there are so many, also before the step is over: their answers come while others are added."""
SPLIT_KEYS_MIN = 32
"""A batch of fewer is not worth another thread's waking."""


class Probe:
    """One existence check of a block, shared by the requests that came while it was the latest for its key."""

    __slots__ = ("key", "present", "requests")

    def __init__(self, key: OffloadKey, present: bool | None = None) -> None:
        self.key = key
        self.present = present  # None: no answer yet
        self.requests = 0


_FAILED_LOAD = Probe(OffloadKey(b""), present=False)
"""Stands for the answer of a request whose load of a block failed; nothing replaces it."""


class PresenceCache:
    """Which blocks exist, by this process's stores, loads and probes, and the answers to each request. No I/O, no lock.

    At most `known_keys_max` present blocks are kept; the oldest go first.
    """

    def __init__(self, known_keys_max: int) -> None:
        self._known_keys_max = known_keys_max
        self.known: dict[OffloadKey, None] = {}
        self._latest: dict[OffloadKey, Probe] = {}
        self.answered: dict[str, dict[OffloadKey, Probe]] = {}  # request -> its answers, but for known blocks
        self.unsent: list[Probe] = []

    def lookup(self, key: OffloadKey, req_id: str) -> bool | None:
        """True, False, or None while the answer is under way. May append a probe to `unsent`."""
        answered = self.answered.get(req_id)
        if answered is None:
            answered = self.answered[req_id] = {}
        probe = answered.get(key)
        if key in self.known:
            return probe is not _FAILED_LOAD
        if probe is None:
            probe = self._latest.get(key)
            if probe is None or probe.present is False:  # no request waits for an answer: this one starts anew
                probe = self._latest[key] = Probe(key)
                self.unsent.append(probe)
            probe.requests += 1
            answered[key] = probe
        return probe.present

    def take_unsent(self) -> list[Probe]:
        """The probes to send: each that a request still waits for."""
        probes, self.unsent = self.unsent, []
        return [probe for probe in probes if probe.present is None and self._latest.get(probe.key) is probe]

    def answer(self, probe: Probe, present: bool) -> None:
        """The answer of a probe that was sent; dropped if a store, a load or an eviction has overtaken it."""
        if probe.present is None and self._latest.get(probe.key) is probe:
            probe.present = present
            if present:
                self._remember(probe.key)

    def give_up(self) -> None:
        """No answer can be had: "absent" for all that wait."""
        for probe in self._latest.values():
            if probe.present is None:
                probe.present = False

    def mark_present(self, keys: Iterable[OffloadKey]) -> None:
        """This process has just stored or loaded these blocks."""
        for key in keys:
            self._remember(key)
            if probe := self._latest.get(key):
                probe.present = True

    def mark_absent(self, keys: Iterable[OffloadKey], failed_req_id: str | None = None) -> None:
        """These blocks were evicted, or a load of them failed, for the request `failed_req_id`."""
        answered = self.answered.get(failed_req_id) if failed_req_id is not None else None  # None: it has ended
        for key in keys:
            self.known.pop(key, None)
            if probe := self._latest.get(key):
                probe.present = False
            if answered is not None:
                self._release(answered.pop(key, None))
                answered[key] = _FAILED_LOAD

    def forget(self, req_id: str) -> None:
        """The request has ended; probes that only it was waiting for are dropped."""
        for probe in self.answered.pop(req_id, {}).values():
            self._release(probe)

    def check_integrity(self) -> None:
        """Raises AssertionError when the accounts do not fit together."""
        held = [
            probe for answered in self.answered.values() for probe in answered.values() if probe is not _FAILED_LOAD
        ]
        for probe in {id(probe): probe for probe in (*held, *self._latest.values())}.values():
            count = sum(other is probe for other in held)
            assert probe.requests == count, f"{probe.requests} requests counted, {count} hold the probe"
        for key, probe in self._latest.items():
            assert probe.key == key, "a probe under another key"
            assert probe.requests, "a probe that no request holds"
        assert len(self.known) <= self._known_keys_max, f"{len(self.known)} of {self._known_keys_max} present"

    def __repr__(self) -> str:
        known, answered, probes = len(self.known), len(self.answered), len(self._latest)
        return f"<PresenceCache: {known} present, {answered} requests, {probes} probes, {len(self.unsent)} unsent>"

    def _release(self, probe: Probe | None) -> None:
        if probe is not None and probe is not _FAILED_LOAD:
            probe.requests -= 1
            if not probe.requests and self._latest.get(probe.key) is probe:
                del self._latest[probe.key]

    def _remember(self, key: OffloadKey) -> None:
        self.known[key] = None
        if len(self.known) > self._known_keys_max:
            del self.known[next(iter(self.known))]


class ProbeFact(NamedTuple):
    """One batch as it ran: keys probed and found, the times when it was sent, taken up and answered
    (`time.monotonic()`, seconds), and the trace context of its last key."""

    keys: int
    hits: int
    sent_seconds: float
    started_seconds: float
    finished_seconds: float
    traceparent: str | None


class AsyncLookupManager:
    """`probe(keys)` answers, on a lookup thread, whether each block exists; it must not raise. `known_keys_max` bounds
    the `PresenceCache`."""

    def __init__(
        self,
        probe: Callable[[Sequence[OffloadKey]], Sequence[bool]],
        known_keys_max: int,
        thread_name: str,
        hung_seconds: float = math.inf,
        background: BackgroundThreads | None = None,
    ) -> None:
        self._probe = probe
        self._hung_seconds = hung_seconds
        self._sent_seconds: deque[float] = deque()  # of batches without an answer, the oldest first
        self._cache = PresenceCache(known_keys_max)
        self._traceparent: str | None = None
        self._batches: queue.SimpleQueue[tuple[list[Probe], float, str | None] | None] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()  # of the second thread; False: the end
        self._answers: queue.SimpleQueue[tuple[list[Probe], Sequence[bool], ProbeFact]] = queue.SimpleQueue()
        self._facts: list[ProbeFact] = []
        background = background or BackgroundThreads()
        # The second thread is called when needed: two threads that wait on one queue wake each other. With a batch of
        # one key, that took 22 us of CPU time instead of 13.
        works: tuple[Callable[[], None], ...] = self._work, functools.partial(self._work, self._calls)
        self._threads = [background.start("lookup", f"{thread_name}_{n}", work) for n, work in enumerate(works)]

    def __repr__(self) -> str:
        """A status line."""
        waiting, oldest = len(self._sent_seconds), self.oldest_seconds()
        return f"<AsyncLookupManager: {waiting} batches sent, the oldest {oldest:.3f} s ago; {self._cache!r}>"

    def lookup(self, key: OffloadKey, req_id: str, traceparent: str | None = None) -> bool | None:
        """True, False, or None: the answer is on its way (its probe is sent at the next `flush` at the latest). The
        fact of a batch has the `traceparent` of its last lookup."""
        if self._sent_seconds and not self._answers.empty():
            self._drain()
        cache = self._cache
        if key in cache.known and not cache.answered.get(req_id, True):
            return True  # the usual case, without a call: no load failed for this request
        present = cache.lookup(key, req_id)
        if present is None and (unsent := cache.unsent) and unsent[-1].key is key:
            self._traceparent = traceparent
            if len(unsent) >= BATCH_KEYS_MAX:
                self.flush()
        return present

    def flush(self) -> None:
        """The step is over: send its probes, split over the threads."""
        self._drain()
        batch = self._cache.take_unsent()
        if self.oldest_seconds() > self._hung_seconds:
            logger.debug("lookups hang for %.1f s: %d probes are answered absent", self.oldest_seconds(), len(batch))
            self._cache.give_up()
            return
        size = max(SPLIT_KEYS_MIN, -(-len(batch) // THREADS))
        for start in range(0, len(batch), size):
            now = time.monotonic()
            self._sent_seconds.append(now)
            self._batches.put((batch[start : start + size], now, self._traceparent))
            if len(self._sent_seconds) > 1:  # the first thread has another, and may hang
                self._calls.put(True)

    def oldest_seconds(self) -> float:
        """How long the oldest batch has been without an answer; 0 when there is none."""
        try:
            return time.monotonic() - self._sent_seconds[0] if self._sent_seconds else 0.0
        except IndexError:  # a scrape came just as the last one was answered
            return 0.0

    def mark_present(self, keys: Iterable[OffloadKey]) -> None:
        """This process has just stored or loaded these blocks."""
        self._cache.mark_present(keys)

    def mark_absent(self, keys: Iterable[OffloadKey], failed_req_id: str | None = None) -> None:
        """These blocks were evicted, or a load of them failed, for the request `failed_req_id`."""
        self._cache.mark_absent(keys, failed_req_id)

    def cleanup(self, req_id: str) -> None:
        """The request has ended; probes that only it was waiting for are dropped."""
        self._cache.forget(req_id)

    def take_facts(self) -> list[ProbeFact]:
        """Batches that ended since the last call."""
        self._drain()
        facts, self._facts = self._facts, []
        return facts

    def shutdown(self) -> None:
        """Ends the threads after the batches at hand."""
        for _ in self._threads:
            self._batches.put(None)
        self._calls.put(False)
        for thread in self._threads:
            thread.join()

    def _drain(self) -> None:
        while not self._answers.empty():  # this thread is the only taker
            batch, found, fact = self._answers.get_nowait()
            self._sent_seconds.remove(fact.sent_seconds)
            self._facts.append(fact)
            for probe, present in zip(batch, found, strict=True):
                self._cache.answer(probe, present)

    def _work(self, calls: queue.SimpleQueue[bool] | None = None) -> None:
        while calls is None or calls.get():
            try:
                if (item := self._batches.get(block=calls is None)) is None:
                    return
            except queue.Empty:  # the first thread has taken the batch of this call
                continue
            batch, sent, traceparent = item
            started = time.monotonic()
            found = self._probe([probe.key for probe in batch])
            fact = ProbeFact(len(batch), sum(found), sent, started, time.monotonic(), traceparent)
            self._answers.put((batch, found, fact))
