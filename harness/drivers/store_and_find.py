"""Stores and finds blocks step by step, as the scenario orders it, while the scenario does things to the device.

A step submits all its jobs at once and ends when they have, or when its time is up: jobs that hang stay in flight and
report in a later step. To find is to look up and to load what is there. It judges no outcome.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from harness.core import notes
from harness.drivers.jobs import Jobs
from harness.runtime.worker import Worker

PAUSE_SECONDS = 0.05
_LETTERS = {"hit": "h", "miss": "m", "retry": "r"}


def step(
    jobs: Jobs,
    number: int,
    store: Sequence[list[int]] = (),
    find: Sequence[list[int]] = (),
    name: Sequence[int] = (),
    seconds_max: float = 15.0,
    insist_seconds: float = 0.0,
    quiet: bool = False,
    leave: Sequence[str] = (),
    hold_seconds: float = 0.0,
) -> None:
    """One store job or one find per list of blocks, all with the tag `number`. `name`: blocks whose names are only
    written down. Stores that fail are tried again for `insist_seconds`. `quiet`: open no file in this step. The step
    waits for no job of the directions in `leave`, but at least `hold_seconds`."""
    jobs.quiet = quiet
    jobs.keys(name)
    begun = time.monotonic()
    deadline = begun + seconds_max
    asked = [jobs.ask(number, blocks) for blocks in find]
    waiting = list(asked)
    mine = {jobs.store(number, blocks) for blocks in store}

    def load_what_is_there() -> None:
        for question in [q for q in waiting if jobs.answered(q)]:
            waiting.remove(question)
            if (job_id := jobs.load(question)) is not None:
                mine.add(job_id)

    def over() -> bool:
        left = [flight for job_id, flight in jobs.flying.items() if job_id in mine and flight.direction not in leave]
        return not waiting and not left and time.monotonic() >= begun + hold_seconds

    jobs.until(over, seconds_max, load_what_is_there)
    for question in waiting:
        jobs.adapter.request_finished(question.req_id)
    for question in asked:
        verdicts = "".join(_LETTERS[v] for v in question.verdicts)
        jobs.worker.note(notes.Asked(step=number, blocks=question.blocks, verdicts=verdicts))
    insist_until = time.monotonic() + insist_seconds
    left = jobs.failed_stores(number)
    while left and time.monotonic() < insist_until and not jobs.worker.parent.stop.is_set():
        time.sleep(PAUSE_SECONDS)
        again = jobs.store(number, left)
        jobs.until(lambda again=again: again not in jobs.flying, max(1.0, deadline - time.monotonic()))  # type: ignore[misc]
        left = jobs.failed_stores(number)
    jobs.worker.note(notes.Stepped(step=number, open=len(jobs.flying), counts=dict(jobs.adapter.counts())))


def drive(worker: Worker) -> None:
    """Carry out one step per order ({"do": {...}}) until told to stop."""
    jobs = Jobs(worker)
    try:
        while (order := worker.parent.receive("do", worker.alive)) is not None:
            step(jobs, **order)
            worker.counts["carried_out"] = order["number"]
            worker.parent.send("progress", counts=worker.counts, gauges={})
    finally:
        jobs.end()
