"""Mutants of block files: kvtier with one defect in naming, writing, publishing or reading a file.

Workers load them. They inject another `BlockIO` into kvtier.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from harness.adapters.kvtier import KvtierAdapter
from harness.mutants.base import detected_by
from kvtier.fs.block_io import BlockIO, BlockOutcome
from kvtier.fs.posix import temp_name
from kvtier.hashing import OffloadKey

PAUSE_SECONDS = 0.002
"""Between two writes of one file, as on a slow device."""


class OverBlockIO(KvtierAdapter):
    """kvtier with another `BlockIO`."""

    blockio: ClassVar[type[BlockIO]]

    def _parts(self) -> Mapping[str, Any]:
        return {"block_io": self.blockio}


class Plain(BlockIO):
    """Correct, and common among tiers: temp file, then rename, no trailer; on a slow device."""

    def probe(self, directory: str, aligned: bool = True) -> None:
        super().probe(directory, aligned=False)
        self._tmpfile = self.native_reads = self.native_writes = False

    def write_block(self, path: str, key: OffloadKey, view: memoryview, traceparent: str = "") -> BlockOutcome:
        if self.exists(path):
            return BlockOutcome(skipped=True)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._put(path, view)
        except OSError as error:
            return BlockOutcome(reason=type(error).__name__)
        return BlockOutcome()

    def _put(self, path: str, view: memoryview) -> None:
        temp = self._temp_for(path)
        with open(temp, "wb") as file:
            _in_pieces(file, view)
        os.rename(temp, path)

    def _temp_for(self, path: str) -> str:
        return os.path.join(os.path.dirname(path), temp_name())


def _in_pieces(file: BinaryIO, view: memoryview) -> None:
    """Write as a slow device does: the file has its full size first, then its bytes."""
    os.ftruncate(file.fileno(), len(view))
    half = len(view) // 2
    for part in (view[:half], view[half:]):
        time.sleep(PAUSE_SECONDS)
        file.write(part)
        file.flush()


class PlainFiles(OverBlockIO):
    """The correct base of the mutants below."""

    blockio = Plain


class _InPlace(Plain):
    def _put(self, path: str, view: memoryview) -> None:
        with open(path, "wb") as file:
            _in_pieces(file, view)


@detected_by("integrity/bytes", r"process \d+ in job \d+: (hole|short)", scenario="sharing")
class PublishesInPlace(OverBlockIO):
    """Blocks are written under their final name, so readers find incomplete blocks."""

    blockio = _InPlace


class _RenamesEarly(Plain):
    def _put(self, path: str, view: memoryview) -> None:
        temp = self._temp_for(path)
        with open(temp, "wb") as file:
            os.ftruncate(file.fileno(), len(view))
            os.rename(temp, path)
            _in_pieces(file, view)


@detected_by("integrity/bytes", r"process \d+ in job \d+: (hole|short)", scenario="sharing")
class RenamesBeforeTheWriteEnds(OverBlockIO):
    """The temp file gets its final name before all of its bytes are written."""

    blockio = _RenamesEarly


class _OneTempName(Plain):
    def _temp_for(self, path: str) -> str:
        return path.removesuffix(".bin") + ".tmp"


@detected_by("results/no-failure", r"failed for block .* although no fault was", scenario="sharing")
class SharesTempNames(OverBlockIO):
    """The temp file of a block has the same name in every process."""

    blockio = _OneTempName


class _RandomTempName(Plain):
    def _temp_for(self, path: str) -> str:
        return f"{path.removesuffix('.bin')}.{random.getrandbits(64):016x}.tmp"


@detected_by(
    "seed_settings/unique-temp-names",
    r"all made the temp file .* generators that the application seeds",
    scenario="determinism",
)
class TakesTempNamesFromRandom(OverBlockIO):
    """Temp names come from `random`, which an application may seed equally in every process."""

    blockio = _RandomTempName


class _Sweeps(Plain):
    def _put(self, path: str, view: memoryview) -> None:
        for stale in Path(path).parent.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                stale.unlink()
        super()._put(path, view)


@detected_by("results/no-failure", r"failed for block .* although no fault was", scenario="sharing")
class DeletesOthersTempFiles(OverBlockIO):
    """Before each write, all temp files in the folder are removed, including those of other writers."""

    blockio = _Sweeps


class _ReadsWhatIsThere(Plain):
    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read_block(self, path: str, key: OffloadKey, view: memoryview) -> BlockOutcome:
        try:
            with open(path, "rb") as file:
                file.readinto(view)
        except OSError as error:
            return BlockOutcome(reason=type(error).__name__)
        return BlockOutcome()


@detected_by("integrity/bytes", r"process \d+ in job \d+: short", scenario="faults", fault=("damage_truncate",))
class AcceptsShortReads(OverBlockIO):
    """A file that is too short counts as its block; the rest of the slot keeps its old bytes."""

    blockio = _ReadsWhatIsThere


class _TakesOverlong(Plain):
    def exists(self, path: str) -> bool:
        return os.path.exists(path) and os.path.getsize(path) >= self.block_bytes

    def read_block(self, path: str, key: OffloadKey, view: memoryview) -> BlockOutcome:
        if not self.exists(path):
            return BlockOutcome(reason="size")
        with open(path, "rb") as file:
            file.readinto(view)
        return BlockOutcome()


@detected_by(
    "faults/repaired",
    r"damage_extend .*: repaired: the block was a regular file of \d+ bytes, and is",
    scenario="faults",
    fault=("damage_extend",),
)
class AcceptsOverlongFiles(OverBlockIO):
    """A file that is longer than a block counts as its block."""

    blockio = _TakesOverlong
