"""Tiers over the reference tier, each with a defect that a worker must handle. A defect that a checker must detect is a
mutant in `harness.mutants`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from harness.adapters.base import Finished, TierSetup
from harness.adapters.reference import MemoryAdapter


class Refuses(MemoryAdapter):
    """Its constructor raises `ValueError`, as for an option that cannot work."""

    def __init__(self, setup: TierSetup) -> None:
        raise ValueError("block_bytes is 4096; this tier wants more")


class Exits(MemoryAdapter):
    """Its constructor prints a line to standard error and ends the process."""

    def __init__(self, setup: TierSetup) -> None:
        print("goodbye cruel world", file=sys.stderr, flush=True)
        os._exit(3)


class NeverReports(MemoryAdapter):
    """No job has a result."""

    def poll(self) -> list[Finished]:
        return []


class LoadsFail(MemoryAdapter):
    """Every block is a hit, and its load fails."""

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._finished.append(Finished(job_id, (), keys))


class Raises(MemoryAdapter):
    """`submit_store` raises for job 2."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        if job_id == 2:
            raise RuntimeError("the tier fell over")
        super().submit_store(job_id, keys, slots, req_id)


class Leaks(MemoryAdapter):
    """Leaves a descriptor open, and its own checks report it."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._leak = os.open("/dev/null", os.O_RDONLY)

    def findings(self) -> list[str]:
        return ["1 descriptor is open"]


class EndsAsTheCanaryLooks(MemoryAdapter):
    """Correct; its close happens while the worker's canary has a descriptor open to read the threads."""

    def close(self) -> None:
        super().close()
        worker: Any = sys.modules["__main__"]
        looking, ended, end = threading.Event(), threading.Event(), worker.Canary.close

        def look() -> None:
            folder = os.open("/", os.O_RDONLY)
            looking.set()
            ended.wait(30)
            os.close(folder)

        def close(canary: Any) -> None:
            ended.set()
            end(canary)

        worker._take_highest_nice_value, worker.Canary.close = look, close
        assert looking.wait(30)


class Chatty(MemoryAdapter):
    """Prints to standard output, which carries the worker's protocol."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[str]:  # type: ignore[override]
        print("looking up", flush=True)
        return super().lookup(keys, req_id)  # type: ignore[return-value]


class CannotCheck(MemoryAdapter):
    """The check of its options raises `KeyError` instead of `ValueError`."""

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        _ = setup.options["needed"]
