"""Asks one tier for each promise of the contract, each on a root of its own, and writes down what came of it.

A tier that hangs or dies in one of them is judged by what was begun and never ended; `skip` says where to go on.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from harness.core import notes
from harness.drivers import promises as contract
from harness.runtime.worker import Worker


def check(worker: Worker, promise: contract.Promise, subject: contract.Subject) -> None:
    """Notes "promise": text is its name; detail: outcome "begun", then "kept" or "broken", its words, why, seconds."""
    name = promise.__name__
    worker.note(notes.Promise(outcome="begun", words=contract.title(promise)), name)
    worker.counts["promise"] = worker.counts.get("promise", 0) + 1
    worker.parent.send("progress", counts=worker.counts, gauges={})
    began, why = time.monotonic(), ""
    try:
        try:
            promise(subject)
        finally:
            subject.close()
    except contract.Broken as broken:
        why = str(broken)
    except Exception as error:  # the tier raised: that, too, is an answer
        traceback.print_exc()
        why = f"raised {type(error).__name__}: {error}"
    outcome = "broken" if why else "kept"
    worker.note(notes.Promise(outcome=outcome, why=why, seconds=round(time.monotonic() - began, 3)), name)


def drive(worker: Worker, skip: Sequence[str] = (), only: Sequence[str] = ()) -> None:
    """Each promise that applies to the tier, once; those of `skip` not, or only those of `only`."""
    if worker.parent.receive("go") is None:
        return
    worker.end_canary()
    kind = type(worker.adapter)
    for promise in contract.PROMISES:
        name = promise.__name__
        if (why := contract.left_out(promise, kind)) and (not only or name in only):
            worker.note(notes.Skipped(), f"{name}: {why}")
        if why:
            continue
        if name in skip or (only and name not in only) or worker.parent.stop.is_set():
            continue
        root = Path(worker.setup.root_dir) / f"{worker.instruction.label}-{name}"
        root.mkdir()
        check(worker, promise, contract.Subject(kind, dataclasses.replace(worker.setup, root_dir=str(root))))
