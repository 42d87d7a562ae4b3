"""`AsyncLookupManager`: existence of blocks, asked in batches on threads of its own, answered without blocking. Called
by the scheduler's thread; its own threads only run `probe`.

A positive answer is remembered after its request is gone (a vanished file costs one failed load, which corrects it). A
negative answer holds for the requests that saw it; the next request asks again. Each question carries a generation, so
that an answer overtaken by news (a store, a failed load) is dropped. While a batch is without an answer for longer
than `hung_seconds`, the device has nothing: whoever waits or asks is told no, and nothing more is asked.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from kvtier.hashing import OffloadKey

THREADS = 2
BATCH_KEYS_MAX = 256
"""So many questions go out at once, also before the step is over: they are answered while the others are asked."""
SPLIT_KEYS_MIN = 32
"""A batch of fewer is not worth another thread's waking."""

Question = tuple[OffloadKey, int]  # key, generation


class ProbeFact(NamedTuple):
    """One batch as it ran: keys asked, found, when it was sent, taken up and answered (`time.monotonic()`, seconds),
    and what its sender called it."""

    keys: int
    hits: int
    sent_seconds: float
    started_seconds: float
    finished_seconds: float
    traceparent: str | None


class _Verdict:
    __slots__ = ("generation", "present", "req_ids")

    def __init__(self) -> None:
        self.generation = 0
        self.present: bool | None = None  # None: asked, not yet answered
        self.req_ids: set[str] = set()


class AsyncLookupManager:
    """`probe(keys)` answers, on a lookup thread, whether each block exists; it must not raise.

    At most `known_keys_max` positive answers are remembered, the oldest forgotten first.
    """

    def __init__(
        self,
        probe: Callable[[Sequence[OffloadKey]], Sequence[bool]],
        known_keys_max: int,
        thread_name: str,
        hung_seconds: float = math.inf,
    ) -> None:
        self._probe = probe
        self._hung_seconds = hung_seconds
        self._sent_seconds: deque[float] = deque()  # of batches without an answer, the oldest first
        self._known_keys_max = known_keys_max
        self._known: dict[OffloadKey, None] = {}
        self._verdicts: dict[OffloadKey, _Verdict] = {}
        self._keys_of: defaultdict[str, list[OffloadKey]] = defaultdict(list)  # request -> keys it asked for
        self._generation = 0
        self._batch: list[Question] = []
        self._traceparent: str | None = None
        self._questions: queue.SimpleQueue[tuple[list[Question], float, str | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[list[Question], Sequence[bool], ProbeFact]] = queue.SimpleQueue()
        self._facts: list[ProbeFact] = []
        self._threads = [
            threading.Thread(target=self._work, name=f"{thread_name}_{n}", daemon=True) for n in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def lookup(self, key: OffloadKey, req_id: str, traceparent: str | None = None) -> bool | None:
        """True, False, or None: the answer is on its way (it is asked for at the next `flush` at the latest). The fact
        of a batch bears the `traceparent` of its last question."""
        if not self._answers.empty():
            self._drain()
        verdict = self._verdicts.get(key)
        if verdict is None or (verdict.present is False and req_id not in verdict.req_ids):
            if key in self._known:
                return True
            if verdict is None:
                verdict = self._verdicts[key] = _Verdict()
            self._renew(verdict, None)
            self._batch.append((key, verdict.generation))
            self._traceparent = traceparent
            if len(self._batch) == BATCH_KEYS_MAX:
                self.flush()
        if req_id not in verdict.req_ids:
            verdict.req_ids.add(req_id)
            self._keys_of[req_id].append(key)
        return verdict.present

    def flush(self) -> None:
        """The step is over: send its questions, split over the threads."""
        self._drain()
        batch = [(key, g) for key, g in self._batch if (v := self._verdicts.get(key)) and v.generation == g]
        self._batch = []
        if self.oldest_seconds() > self._hung_seconds:
            for verdict in self._verdicts.values():
                if verdict.present is None:
                    self._renew(verdict, False)
            return
        size = max(SPLIT_KEYS_MIN, -(-len(batch) // THREADS))
        for start in range(0, len(batch), size):
            now = time.monotonic()
            self._sent_seconds.append(now)
            self._questions.put((batch[start : start + size], now, self._traceparent))

    def oldest_seconds(self) -> float:
        """How long the oldest batch has been without an answer; 0 when there is none."""
        try:
            return time.monotonic() - self._sent_seconds[0]
        except IndexError:  # asked by a scrape just as the last one was answered
            return 0.0

    def mark_present(self, keys: Iterable[OffloadKey]) -> None:
        """This process has just stored or loaded these blocks."""
        for key in keys:
            self._remember(key)
            if verdict := self._verdicts.get(key):
                self._renew(verdict, True)

    def mark_missing(self, keys: Iterable[OffloadKey]) -> None:
        """A load of these blocks failed: whoever asked must not be told HIT again (it would livelock)."""
        for key in keys:
            self._known.pop(key, None)
            if verdict := self._verdicts.get(key):
                self._renew(verdict, False)

    def cleanup(self, req_id: str) -> None:
        """The request is gone; answers that only it was waiting for are dropped."""
        for key in self._keys_of.pop(req_id, ()):
            verdict = self._verdicts[key]
            verdict.req_ids.discard(req_id)
            if not verdict.req_ids:
                del self._verdicts[key]

    def take_facts(self) -> list[ProbeFact]:
        """Batches that ended since the last call."""
        self._drain()
        facts, self._facts = self._facts, []
        return facts

    def shutdown(self) -> None:
        """Ends the threads after the batches at hand."""
        for _ in self._threads:
            self._questions.put(None)
        for thread in self._threads:
            thread.join()

    def _renew(self, verdict: _Verdict, present: bool | None) -> None:
        self._generation += 1
        verdict.generation = self._generation
        verdict.present = present

    def _remember(self, key: OffloadKey) -> None:
        self._known[key] = None
        if len(self._known) > self._known_keys_max:
            del self._known[next(iter(self._known))]

    def _drain(self) -> None:
        while not self._answers.empty():  # this thread is the only taker
            batch, found, fact = self._answers.get_nowait()
            self._sent_seconds.remove(fact.sent_seconds)
            self._facts.append(fact)
            for (key, generation), present in zip(batch, found, strict=True):
                verdict = self._verdicts.get(key)
                if verdict is None or verdict.generation != generation:
                    continue  # nobody waits for it any more, or newer news came first
                verdict.present = present
                if present:
                    self._remember(key)

    def _work(self) -> None:
        while (item := self._questions.get()) is not None:
            batch, sent, traceparent = item
            started = time.monotonic()
            found = self._probe([key for key, _ in batch])
            fact = ProbeFact(len(batch), sum(found), sent, started, time.monotonic(), traceparent)
            self._answers.put((batch, found, fact))
