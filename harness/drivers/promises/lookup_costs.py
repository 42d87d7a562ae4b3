"""The promise that a lookup's cost is in proportion to its keys: CPU time of the caller's thread, with an interval.

CPU time of one thread does not count what other processes and threads take.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.adapters.base import Adapter
from harness.core.statistics import paired_ratio
from harness.drivers.promises.subject import Block, Subject, keys_of, require

FEW, MANY = 16, 1024
REPETITIONS = 7
RATIO = 3.0
SECONDS_MORE = 5e-6


def lookups_cost_the_same_per_key(subject: Subject) -> None:
    """A lookup, and the step that sends it, cost the caller's thread no more for each key when there are many keys."""
    adapter = subject.open()
    _costs(subject, adapter, FEW)  # what is made once
    rounds = [(_costs(subject, adapter, FEW), _costs(subject, adapter, MANY)) for _ in range(REPETITIONS)]
    for call in ("lookup", "step", "lookup again"):
        few, many = ([costs[call] for costs in column] for column in zip(*rounds, strict=True))
        ratio = paired_ratio(many, few)
        more = sorted(many)[REPETITIONS // 2] - sorted(few)[REPETITIONS // 2]
        require(
            ratio.low <= RATIO or more <= SECONDS_MORE,
            f"a {call} of {MANY:,} keys costs {ratio.value:.1f} times as much for each key as one of {FEW} (95 % "
            f"interval {ratio.low:.1f} to {ratio.high:.1f}), {more * 1e6:.0f} us more",
        )


def _costs(subject: Subject, adapter: Adapter, keys: int) -> dict[str, float]:
    """CPU seconds of the caller's thread for each key."""
    blocks: list[Block] = []
    while len(blocks) < keys:
        blocks += subject.blocks(adapter, min(keys - len(blocks), subject.setup.slots))
    wanted = keys_of(blocks)
    with subject.request(adapter) as name:
        first = _cpu_seconds(lambda: adapter.lookup(wanted, name))
        step = _cpu_seconds(adapter.step)
        subject.ask(adapter, blocks, name)
        again = _cpu_seconds(lambda: adapter.lookup(wanted, name))
    return {"lookup": first / keys, "step": step / keys, "lookup again": again / keys}


def _cpu_seconds(call: Callable[[], object]) -> float:
    before = time.thread_time()
    call()
    return time.thread_time() - before
