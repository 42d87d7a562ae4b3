"""Mutants of what a crash leaves: kvtier with one defect in the order of writes, barriers and names.

Workers load them. They inject another `BlockIO` into kvtier, or another way to publish its manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from harness.adapters.kvtier import KvtierAdapter
from harness.mutants.base import detected_by
from harness.mutants.block_files import OverBlockIO, Plain
from kvtier.config import FsTierConfig, RunConfig
from kvtier.fs.block_io import BlockIO, BlockOutcome
from kvtier.fs.manager import FileSystemTierManager
from kvtier.fs.trailer import Trailer, writer_of
from kvtier.hashing import OffloadKey

BUFFERED: dict[str, Any] = {"scenario": "crash_states", "ways": "buffered"}
DIRECT: dict[str, Any] = {"scenario": "crash_states", "ways": "direct"}
DURABLE: dict[str, Any] = {"scenario": "crash_states", "ways": "buffered durable"}


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _NoData(BlockIO):
    def _write(self, path: str, key: OffloadKey, view: memoryview, traceparent: str) -> BlockOutcome:
        durable, self._durable = self._durable, False
        try:
            outcome = super()._write(path, key, view, traceparent)
        finally:
            self._durable = durable
        return outcome if outcome.skipped else self._settled(path, outcome)


@detected_by("crash_states/durable", r"which had been reported stored, is refused", **DURABLE)
class SyncsNoData(OverBlockIO):
    """A durable store waits for its folders, and not for its bytes."""

    blockio = _NoData


class _NoFolder(BlockIO):
    def _settled(self, path: str, outcome: BlockOutcome) -> BlockOutcome:
        if self._durable and outcome.skipped:
            _sync(path)
        return outcome


@detected_by("crash_states/durable", r"which had been reported stored, is missing", **DURABLE)
class SyncsNoFolder(OverBlockIO):
    """A durable store waits for its bytes, and not for their name."""

    blockio = _NoFolder


class _OneFolder(BlockIO):
    def _settled(self, path: str, outcome: BlockOutcome) -> BlockOutcome:
        if self._durable and outcome.ok:
            _sync(path)
            _sync(os.path.dirname(path))
        return outcome


@detected_by("crash_states/durable", r"which had been reported stored, is missing", rules="unordered", **DURABLE)
class SyncsTheLastFolderAlone(OverBlockIO):
    """A durable store waits for the name of its file, and not for those of the new folders above."""

    blockio = _OneFolder


class _SkipsAtOnce(BlockIO):
    def _settled(self, path: str, outcome: BlockOutcome) -> BlockOutcome:
        return outcome if outcome.skipped else super()._settled(path, outcome)


@detected_by("crash_states/durable", r"stored without waiting .* which had been reported stored, is", **DURABLE)
class TrustsOthersToSync(OverBlockIO):
    """A durable store that finds its block does not wait for it, although its writer may not have waited."""

    blockio = _SkipsAtOnce


class _SyncsLate(Plain):
    def _put(self, path: str, view: memoryview) -> None:
        temp = self._temp_for(path)
        Path(temp).write_bytes(view)
        os.rename(temp, path)
        _sync(path)
        _sync(os.path.dirname(path))


@detected_by("crash_states/right-bytes", r"is served wrong: short: bytes from 0 on are zero", **DURABLE)
class SyncsAfterTheRename(OverBlockIO):
    """Blocks have no checksum, and a store waits for its bytes after they have their name."""

    blockio = _SyncsLate


@detected_by("crash_states/right-bytes", r"is served wrong", **BUFFERED)
class TrustsTheSize(OverBlockIO):
    """Blocks have no checksum, and any file of their size is served."""

    blockio = Plain


class _Unverified(BlockIO):
    def probe(self, directory: str, aligned: bool = True) -> None:
        super().probe(directory, aligned)
        self.native_reads = False

    def _verified(self, page: memoryview, key: OffloadKey, view: memoryview) -> BlockOutcome:
        trailer = Trailer.unpack(page)
        if trailer is None or trailer.key != key:
            return BlockOutcome(reason="trailer")
        writer, traceparent = writer_of(page)
        return BlockOutcome(writer=writer, traceparent=traceparent)


@detected_by("crash_states/right-bytes", r"is served wrong: short: bytes from 0 on are zero", **BUFFERED)
class VerifiesNoChecksum(OverBlockIO):
    """A block with a good trailer is served without comparing its checksum."""

    blockio = _Unverified


class _GrowsByWriting(BlockIO):
    def probe(self, directory: str, aligned: bool = True) -> None:
        super().probe(directory, aligned)
        self.direct, self.native_writes = True, False  # so that the size is not set first


@detected_by("crash_states/right-bytes", r"is served wrong: .* size 4096 of 8192", **BUFFERED)
class LosesItsTrailers(OverBlockIO):
    """A file has its size by its bytes alone, so a crash may leave the block's part, which counts as vLLM's file."""

    blockio = _GrowsByWriting


class _OwnTempName(Plain):
    def _put(self, path: str, view: memoryview) -> None:
        temp = path.removesuffix(".bin") + ".tmp"
        with open(temp, "xb") as file:
            file.write(view)
            os.fsync(file.fileno())
        os.rename(temp, path)


@detected_by("crash_states/next-store", r"block \d cannot be stored again", **BUFFERED)
class FailsOnWhatItLeft(OverBlockIO):
    """The temp file of a block has one name, and a store fails where a crash left it."""

    blockio = _OwnTempName


class _PublishesOtherwise(KvtierAdapter):
    """kvtier with another way to publish the files beside its blocks."""

    publish: Callable[[str, bytes, int], None]

    def _build(self, config: FsTierConfig, run: RunConfig) -> FileSystemTierManager:
        with mock.patch("kvtier.fs.root_manifest.publish_file", type(self).publish):
            return super()._build(config, run)


@detected_by("crash_states/opens", r"the tier does not open it: RootError", rules="ordered", **DIRECT)
class PublishesTheManifestUnsynced(_PublishesOtherwise):
    """The manifest has its name before its bytes are on the device."""

    @staticmethod
    def publish(path: str, content: bytes, mode: int) -> None:
        temp = f"{path}.tmp"
        Path(temp).write_bytes(content)
        os.rename(temp, path)


@detected_by("crash_states/opens", r"the tier does not open it: RootError", **DIRECT)
class WritesTheManifestInPlace(_PublishesOtherwise):
    """The manifest is written under its own name, and then waited for."""

    @staticmethod
    def publish(path: str, content: bytes, mode: int) -> None:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
