"""Opens, uses, drains and closes instances of the tier on a root that other processes use, again and again.

Each round checks the promises about the life of an instance (`promises.OF_LIFE`), in random order, and notes each as
the driver "contract" does.
"""

from __future__ import annotations

import dataclasses
import random

from harness.drivers import promises
from harness.drivers.contract import check
from harness.runtime.worker import Worker

NUMBERS = 1 << 14
"""Requests and blocks of one incarnation; they are named by numbers."""
INCARNATIONS = 16


def drive(worker: Worker, seed: int) -> None:
    """Until told to stop."""
    if worker.parent.receive("go") is None:
        return
    kind, incarnation = type(worker.adapter), worker.instruction.incarnation
    first = (worker.process * INCARNATIONS + incarnation % INCARNATIONS) * NUMBERS
    subject = promises.Subject(kind, dataclasses.replace(worker.setup), first=first)
    chosen = random.Random(f"{seed} {worker.process} {incarnation}")
    rounds = 0
    while not worker.parent.stop.is_set():
        for promise in chosen.sample(promises.OF_LIFE, len(promises.OF_LIFE)):
            if not worker.parent.stop.is_set():
                check(worker, promise, subject)
        rounds += 1
        worker.counts["rounds"] = rounds
        worker.tick()
