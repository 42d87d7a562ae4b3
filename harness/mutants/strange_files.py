"""Mutants that trust what lies at a block's name, or let others write there. Over the reference tier."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from harness.adapters.base import Finished
from harness.adapters.reference import ReferenceAdapter, _seal
from harness.mutants.base import breaks, detected_by

HARD_LINK = ("damage_hard_link",)


@breaks("objects_are_no_blocks", r"a FIFO at a block's name held a call")
class OpensWhateverIsThere(ReferenceAdapter):
    """A block's file is opened whatever it is, so a FIFO holds the call until somebody writes to it."""

    def _read(self, key: bytes) -> bytes:
        content = self._path(key).read_bytes()
        block = content[: self.setup.block_bytes]
        if content != _seal(key, block):
            raise OSError("damaged")
        return block


@breaks("objects_are_no_blocks", r"a device node is reported loaded|wrong bytes")
class ReadsADeviceNode(ReferenceAdapter):
    """As many bytes as a block has are read from whatever opens, and only a regular file's digest is compared."""

    def _read(self, key: bytes) -> bytes:
        path = self._path(key)
        if path.is_file():
            return super()._read(key)
        if not path.is_char_device():
            raise OSError("no file")
        with path.open("rb") as file:
            return file.read(self.setup.block_bytes)


@detected_by("faults/no-wrong-byte", r"no wrong byte: block \d+: other key", scenario="faults", fault=HARD_LINK)
class TrustsTheName(ReferenceAdapter):
    """The digest at the end of a file is of the block alone, so another block's file is taken for the one it is named
    after."""

    def _read(self, key: bytes) -> bytes:
        content = self._path(key).read_bytes()
        block, digest = content[: self.setup.block_bytes], content[self.setup.block_bytes :]
        if digest != hashlib.sha256(block).digest():
            raise OSError("damaged")
        return block

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            block = bytes(self._slot(slot))
            fresh = self._path(key).with_suffix(f".{job_id}.tmp")
            fresh.write_bytes(block + hashlib.sha256(block).digest())
            fresh.rename(self._path(key))
        self._finished.append(Finished(job_id, keys, ()))


@breaks("a_store_changes_no_other_block", r"blocks (to whose file another name was a link|that were reported stored)")
class RepairsInPlace(ReferenceAdapter):
    """A store over a damaged file writes into it, and so into every name that the file has."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            path = self._path(key)
            if path.is_file() and not path.is_symlink():
                path.write_bytes(_seal(key, self._slot(slot)))
        super().submit_store(job_id, keys, slots, req_id)


@breaks("links_are_not_followed_by_stores", r"a store through a link (changed|made)")
class WritesThroughLinks(ReferenceAdapter):
    """A store opens its name for writing and follows a link that lies there."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        for key, slot in zip(keys, slots, strict=True):
            self._path(key).write_bytes(_seal(key, self._slot(slot)))
        self._finished.append(Finished(job_id, keys, ()))


@breaks("others_cannot_write", r"files or folders can be written by others")
class LetsEverybodyWrite(ReferenceAdapter):
    """Each block's file may be written by everybody, whatever the umask is."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        for key in keys:
            self._path(key).chmod(0o666)
