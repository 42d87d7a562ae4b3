"""Promises that no kind of operation leaves anything behind, however often it is done: rates with intervals.

One kind of operation is repeated in batches. The first half of the batches fills what is made once and caches up to
their bound; the second half is judged. What seems to grow is tried again with twice as many operations, so a cache has
time to fill, and a rise by chance goes away.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import psutil

from harness.adapters.base import Adapter
from harness.core.statistics import Interval, bootstrap
from harness.drivers.promises.subject import Block, Subject, require

BATCHES = 6
KEYS = 8
TIMES = 4
SHARE_OF_SECONDS = 0.4
"""The part of the longest wait for an answer after which growth is no longer tried again."""
OPERATIONS_MIN, OPERATIONS_MAX = 1 << 8, 1 << 14
"""Operations of a batch after which growth is a finding: at least, and at most."""
SECONDS_MAX, NEXT_PHASE = 20.0, 2.5
"""A phase that would end later is not begun; it takes so many times as long as the one before."""
QUEUES = ("load_queue", "store_queue", "none_references_lost")


class Quantity(NamedTuple):
    """What may not grow: words, the rate of each operation that counts, and the least rise that does."""

    words: str
    rate: float
    rise: float


QUANTITIES = (
    Quantity("objects of Python", 0.1, 100),
    Quantity("bytes of memory", 128, 1 << 20),
    Quantity("descriptors", 0.002, 3),
    Quantity("threads", 0.002, 3),
    Quantity("entries of the tier's gauges", 0.01, 8),
)


def hits_leave_nothing(subject: Subject) -> None:
    """A lookup that hits leaves nothing behind: memory, objects, descriptors, threads and queues do not grow with the
    number of such lookups."""
    adapter, blocks = _stored(subject)
    _repeat(subject, adapter, "lookup that hits", lambda: subject.look_up(adapter, blocks), KEYS)


def misses_leave_nothing(subject: Subject) -> None:
    """A lookup that misses leaves nothing behind, however many different blocks were missed."""
    adapter = subject.open()
    _repeat(
        subject, adapter, "lookup that misses", lambda: subject.look_up(adapter, subject.blocks(adapter, KEYS)), KEYS
    )


def stores_leave_nothing(subject: Subject) -> None:
    """A store leaves nothing in the process: storing the same blocks again, also when their files are gone, lets
    nothing grow."""
    adapter, blocks = _stored(subject)

    def operate() -> None:
        if adapter.exposes_files:
            for block in blocks:
                with suppress(OSError):
                    subject.file(adapter, block).unlink()
        with subject.request(adapter) as name:
            job = subject.submit(adapter, "store", blocks, range(KEYS), name)
            subject.results(adapter, [job])

    _repeat(subject, adapter, "store", operate, KEYS)


def loads_leave_nothing(subject: Subject) -> None:
    """A load leaves nothing behind, however often the same blocks are loaded."""
    adapter, blocks = _stored(subject)
    _repeat(subject, adapter, "load", lambda: subject.load(adapter, blocks), KEYS)


def failures_leave_nothing(subject: Subject) -> None:
    """A load that fails leaves nothing behind, however many different blocks were absent."""
    adapter = subject.open()

    def operate() -> None:
        with subject.request(adapter) as name:
            absent = subject.blocks(adapter, KEYS)
            subject.ask(adapter, absent, name)
            job = subject.submit(adapter, "load", absent, range(KEYS), name)
            subject.results(adapter, [job])

    _repeat(subject, adapter, "load that fails", operate, KEYS)


def requests_leave_nothing(subject: Subject) -> None:
    """A request leaves nothing behind: nothing grows with the number of requests that have ended."""
    adapter, blocks = _stored(subject)

    def operate() -> None:
        for _ in range(KEYS):
            with subject.request(adapter) as name:
                adapter.lookup([blocks[0].key], name)
            adapter.step()
            adapter.poll()

    _repeat(subject, adapter, "request", operate, KEYS)


def _stored(subject: Subject) -> tuple[Adapter, list[Block]]:
    adapter = subject.open()
    blocks = subject.blocks(adapter, KEYS)
    subject.store(adapter, blocks)
    return adapter, blocks


def _repeat(subject: Subject, adapter: Adapter, kind: str, operate: Callable[[], object], operations: int) -> None:
    """Batches of `operate`, each call of which makes `operations`, until nothing grows; else the promise is broken,
    unless this machine is too slow for `OPERATIONS_MIN`."""
    times, began = TIMES, time.monotonic()
    phase_began = began
    while grown := _grown(_batches(adapter, operate, times), times * operations):
        now = time.monotonic()
        is_over = now - began > SHARE_OF_SECONDS * subject.answer_seconds_max
        if times * operations >= (OPERATIONS_MIN if is_over else OPERATIONS_MAX):
            for quantity, rate, rise in grown:
                require(
                    rise < quantity.rise,
                    f"each {kind} leaves {rate.value:,.3g} {quantity.words} behind (95 % interval {rate.low:,.3g} to "
                    f"{rate.high:,.3g}; {rise:,.0f} in {times * operations * BATCHES:,})",
                )
            return
        if now - began + NEXT_PHASE * (now - phase_began) > SECONDS_MAX:
            return
        times, phase_began = 2 * times, now


def _batches(adapter: Adapter, operate: Callable[[], object], times: int) -> np.ndarray:
    """The quantities before and after each judged batch: shape (BATCHES + 1, quantities)."""
    samples = np.zeros((BATCHES + 1, len(QUANTITIES)))
    me = psutil.Process()
    for number in range(2 * BATCHES):
        for _ in range(times):
            operate()
        adapter.tasks(), adapter.evictions(), adapter.events()  # as an engine takes them
        if number >= BATCHES - 1:
            samples[number - BATCHES + 1] = _sample(adapter, me)
    return samples


def _sample(adapter: Adapter, me: psutil.Process) -> Sequence[float]:
    gauges = adapter.gauges()
    queued = sum(float(gauges.get(name, 0.0)) for name in QUEUES)
    gc.collect()
    return sys.getallocatedblocks(), me.memory_info().rss, me.num_fds(), me.num_threads(), queued


def _grown(samples: np.ndarray, operations: int) -> list[tuple[Quantity, Interval, float]]:
    """Those quantities whose mean rise with each operation is above what is tolerated by its interval's lower end."""
    found = []
    for quantity, column in zip(QUANTITIES, samples.T, strict=True):
        rates = [float(rise) / operations for rise in np.diff(column)]
        rate = bootstrap(rates, lambda values: sum(values) / len(values))
        if rate.low > quantity.rate:
            found.append((quantity, rate, float(column[-1] - column[0])))
    return found
