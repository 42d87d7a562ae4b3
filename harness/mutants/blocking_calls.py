"""Mutants of single calls: kvtier with a call of the scheduler's thread that waits. Workers load them."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from harness.adapters.base import Finished, TierSetup, Verdict
from harness.adapters.kvtier import KvtierAdapter
from harness.mutants.base import detected_by

LOCK_MICROSECONDS = 50_000


def _waits(call: str) -> str:
    return rf"calls of {call} took .* it waits for the device"


class _Touches(KvtierAdapter):
    """kvtier that can ask the device for a file, which is not there, in the thread that calls it."""

    def _touch(self) -> None:
        with contextlib.suppress(OSError):
            os.stat(Path(self.setup.root_dir, os.urandom(8).hex()))


@detected_by("nonblocking/waits-for-device", _waits("lookup"), scenario="calls")
class LookupBlocks(_Touches):
    """Lookups ask the file system in the caller's thread."""

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        for key in keys:
            with contextlib.suppress(OSError):
                os.stat(Path(self.setup.root_dir, self.file_name(key)))
        return super().lookup(keys, req_id)


@detected_by("nonblocking/waits-for-device", _waits("poll"), scenario="calls")
class PollBlocks(_Touches):
    """Each poll asks the file system for something."""

    def poll(self) -> list[Finished]:
        self._touch()
        return super().poll()


@detected_by("nonblocking/waits-for-device", _waits("step"), scenario="calls")
class StepBlocks(_Touches):
    """Every third step asks the file system for something."""

    steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps % 3 == 0:
            self._touch()
        super().step()


@detected_by("nonblocking/waits-for-device", _waits("request_started"), scenario="calls")
class RequestStartBlocks(_Touches):
    """The start of a request asks the file system for something."""

    def request_started(self, req_id: str) -> None:
        self._touch()
        super().request_started(req_id)


@detected_by("nonblocking/waits-for-device", _waits("request_finished"), scenario="calls")
class RequestEndBlocks(_Touches):
    """The end of a request asks the file system for something."""

    def request_finished(self, req_id: str) -> None:
        self._touch()
        super().request_finished(req_id)


@detected_by("nonblocking/grows-with-root", r"a lookup takes .* it grows with the root", scenario="calls")
class LookupListsFolders(KvtierAdapter):
    """A lookup lists folders of blocks instead of asking for files."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._folders: list[Path] = []

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        self._folders += [Path(self.setup.root_dir, self.file_name(key)).parent for key in keys]

    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        for folder in self._folders[:16]:
            with contextlib.suppress(OSError):
                os.listdir(folder)
        return super().lookup(keys, req_id)


@detected_by("nonblocking/holds-lock", r"waited .* for the interpreter's lock", scenario="calls")
class HoldsTheLockInPoll(KvtierAdapter):
    """Each poll waits in compiled code that keeps the interpreter's lock."""

    def poll(self) -> list[Finished]:
        ctypes.PyDLL(None).usleep(LOCK_MICROSECONDS)
        return super().poll()


@detected_by("nonblocking/long-call", r"half of the calls of step take .* or longer", scenario="calls")
class StepComputesForLong(KvtierAdapter):
    """Each step computes for 30 ms in the caller's thread."""

    def step(self) -> None:
        until = self._cpu() + 0.03
        while self._cpu() < until:
            pass
        super().step()

    @staticmethod
    def _cpu() -> float:
        times = os.times()
        return times.user + times.system
