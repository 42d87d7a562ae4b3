"""Mutants that show under a fault, after a death, or at the end of a process. Over the reference tier and kvtier.

Workers load them.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.kvtier import KvtierAdapter
from harness.adapters.reference import ReferenceAdapter
from harness.mutants.base import detected_by
from harness.mutants.block_files import OverBlockIO, Plain
from harness.mutants.schedule import BlocksInSubmit

NO_FILE: dict[str, Any] = {"scenario": "faults", "fault": ("enospc_create",)}


@detected_by("faults/no-wrong-byte", r"no wrong byte: block", scenario="faults", fault=("damage_bit_flip",))
class AcceptsAnyBytes(ReferenceAdapter):
    """The digest at the end of a file is not compared."""

    def _read(self, key: bytes) -> bytes:
        content = self._path(key).read_bytes()
        if len(content) <= self.setup.block_bytes:
            raise OSError("too short")
        return content[: self.setup.block_bytes]


@detected_by("faults/one-result", r"one result: job .* did not get exactly one", **NO_FILE)
class DropsFailedStores(ReferenceAdapter):
    """A store of which a block failed has no result."""

    def poll(self) -> list[Finished]:
        return [result for result in super().poll() if not result.failed]


@detected_by("faults/reported", r"reported: blocks .* were reported stored and are not found", **NO_FILE)
class ReportsFailedStores(ReferenceAdapter):
    """A store that failed is reported ok."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._finished[-1] = Finished(job_id, keys, ())


@detected_by("faults/others-unharmed", r"others unharmed: \d+ blocks", scenario="faults", fault=("damage_bit_flip",))
class FailsWholeJobs(ReferenceAdapter):
    """A damaged block fails all blocks of its load."""

    def _found(self, key: bytes) -> bool:
        return self._path(key).exists()

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_load(job_id, keys, slots, req_id)
        if self._finished[-1].failed:
            self._finished[-1] = Finished(job_id, (), keys)


@detected_by(
    "faults/counted", r"counted: \d+ blocks were hurt and none is counted", scenario="faults", fault=("eio_write",)
)
class CountsNoFailures(KvtierAdapter):
    """Failed blocks are not counted."""

    def counts(self) -> Mapping[str, float]:
        return {name: count for name, count in super().counts().items() if name in ("stored", "loaded")}


@detected_by("faults/no-leftovers", r"no leftovers: .*\.part came", scenario="faults", fault=("eio_write",))
class LeavesPartsOfFailedStores(ReferenceAdapter):
    """A store that failed leaves a part file."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        for key in self._finished[-1].failed:
            self._path(key).with_suffix(".part").touch()


@detected_by("faults/not-blocked", r"not blocked: submits took", scenario="faults", fault=("slow",))
class WaitsForSlowDevices(BlocksInSubmit):
    """A submit waits for its job, however slow the device is."""


@detected_by(
    "faults/explained",
    r"refused by an internal exception (KeyError|JSONDecodeError)",
    scenario="faults",
    fault=("hostile_config",),
)
class TrustsItsOwnFile(ReferenceAdapter):
    """A file of the tier's own is read as if nobody else could have written it."""

    bookkeeping: ClassVar[tuple[str, ...]] = ("config.json", "state.json")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        state = self._folder / "state.json"
        if state.exists():
            self._opened = json.loads(state.read_text())["opened"]
        else:
            fresh = state.with_name(f"{os.urandom(8).hex()}.json")
            fresh.write_text('{"opened": 1}')
            fresh.rename(state)


@detected_by("faults/lives", r"lives: process .* ended under it", **NO_FILE)
class ExitsWhenAStoreFails(ReferenceAdapter):
    """A store that fails ends the process."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        if self._finished[-1].failed:
            os._exit(3)


@detected_by("faults/works-again", r"works again: after the lift blocks .* could not be stored", **NO_FILE)
class StoresNothingAfterAFailure(ReferenceAdapter):
    """After a store has failed no other is tried."""

    _broken = False

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        if self._broken:
            self._finished.append(Finished(job_id, (), keys, reasons="EIO"))
            return
        super().submit_store(job_id, keys, slots, req_id)
        self._broken = bool(self._finished[-1].failed)


@detected_by("contract/ends", r"ended with 3, and no fault", "contract", promise=("slots_are_memory",))
class FirstInstanceEndsItsProcess(ReferenceAdapter):
    """The close of the first instance of a process ends the process."""

    _first: ClassVar[ReferenceAdapter | None] = None

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        type(self)._first = self._first or self

    def close(self) -> None:
        if self is self._first:
            os._exit(3)


@detected_by("leftovers/ends", r"was ended by SIGSEGV")
class CrashesAtItsEnd(ReferenceAdapter):
    """A close crashes the process."""

    def close(self) -> None:
        signal.raise_signal(signal.SIGSEGV)


@detected_by("leftovers/slots", r"slots still pinned", stall_seconds=1.0)
class KeepsEachFiftiethLoad(ReferenceAdapter):
    """Each fiftieth load has no result, so its slots stay taken."""

    _loads = 0

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._loads += 1
        if self._loads % 50:
            super().submit_load(job_id, keys, slots, req_id)


@detected_by("results/no-error", r"RuntimeError: the index is busy")
class RaisesNowAndThen(ReferenceAdapter):
    """Each fortieth lookup raises."""

    _lookups = 0

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        self._lookups += 1
        if self._lookups % 40 == 0:
            raise RuntimeError("the index is busy")
        return super().lookup(keys, req_id)


class _Exclusive(Plain):
    def _put(self, path: str, view: memoryview) -> None:
        temp = path.removesuffix(".bin") + ".tmp"
        with open(temp, "xb") as file:
            file.write(view)
        os.rename(temp, path)


@detected_by("recovery/own-jobs", r"could not store|lost its first store", scenario="crash")
class TrustsTempNamesOfTheDead(OverBlockIO):
    """A temp file that a dead process left fails every later store of its block."""

    blockio = _Exclusive


@detected_by("recovery/restarts", r"after its restart", scenario="crash")
class LeavesALock(ReferenceAdapter):
    """An instance refuses to start while an earlier one's lock lies in the root; a killed process leaves its lock."""

    bookkeeping: ClassVar[tuple[str, ...]] = ("config.json", "lock-*")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._lock = self._folder / f"lock-{setup.process}"
        self._lock.touch(exist_ok=False)

    def close(self) -> None:
        self._lock.unlink(missing_ok=True)


@detected_by("soak/files", r"were stored, never removed since, and are no files", scenario="soak", processes=1)
class LosesAFileNowAndThen(ReferenceAdapter):
    """With each fortieth store the file of an earlier one vanishes."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._stored: list[bytes] = []

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._stored += keys
        if len(self._stored) % 40 == 0:
            self._path(self._stored[-20]).unlink(missing_ok=True)


@detected_by("soak/counts", r"the tier counted \d+ blocks loaded, its jobs say", scenario="soak", processes=1)
class CountsNineOfTenLoads(KvtierAdapter):
    """A tenth of the loaded blocks is not counted."""

    def counts(self) -> Mapping[str, float]:
        counts = dict(super().counts())
        return {**counts, "loaded": counts.get("loaded", 0) * 9 // 10}


@detected_by("soak/loads", r"loads of block \d+ failed, which was removed", scenario="soak", processes=1)
class FailsEachHundredthLoad(ReferenceAdapter):
    """Each hundredth load fails, though its blocks are there."""

    _loads = 0

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self._loads += 1
        super().submit_load(job_id, keys, slots, req_id)
        if self._loads % 100 == 0:
            self._finished[-1] = Finished(job_id, (), keys)
