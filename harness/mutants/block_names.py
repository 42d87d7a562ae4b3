"""Mutants of names: processes derive different names for one block, or one name for different blocks. Workers load
them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.adapters.base import TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.adapters.reference import MemoryAdapter
from harness.mutants.base import detected_by
from kvtier.fs.file_mapper import FileMapper
from kvtier.hashing import OffloadKey, get_offload_block_hash, make_offload_key


@detected_by("determinism/one-name", r"block \d+ has \d+ names")
class HashesTuples(MemoryAdapter):
    """Keys come from `hash()` of a tuple with a string, which differs between processes."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        keys, size = [], self.setup.tokens_per_block
        for start in range(0, len(tokens) - size + 1, size):
            block = ("block", parent, *tokens[start : start + size])
            parent = hash(block).to_bytes(32, "little", signed=True)
            keys.append(parent)
        return keys


@detected_by(
    "seed_settings/separate", r"is common to .* PYTHONHASHSEED .*, which must not share", scenario="determinism"
)
class IgnoresTheSeed(MemoryAdapter):
    """The seed of the hash chain is a constant; PYTHONHASHSEED and the seed policy are ignored."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._none_hash = hashlib.sha256(b"constant").digest()


class _NoGroups(FileMapper):
    def get_file_name(self, key: OffloadKey) -> str:
        return super().get_file_name(make_offload_key(get_offload_block_hash(key), 0))


@detected_by("determinism/own-name", r"block \d+ of another group.* share the name")
class DropsTheGroup(KvtierAdapter):
    """The name of a block omits its group of layers, although each group has its own KV."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._tier.file_mapper.__class__ = self._naming._mapper.__class__ = _NoGroups


@detected_by("determinism/one-seed", r"\d+ different seeds of the chain")
class SeedsEachProcess(MemoryAdapter):
    """Each process chains its keys from a seed of its own."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._none_hash = os.urandom(32)


@detected_by("determinism/no-other-files", r"is on disk, but is no name that any process derived")
class StoresUnderTwoNames(MemoryAdapter):
    """Each store writes its first block under a second name, which nobody looks for."""

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        super().submit_store(job_id, keys, slots, req_id)
        super().submit_store(job_id, [hashlib.sha256(keys[0]).digest()], slots[:1], req_id)
        self._finished.pop()


@detected_by(
    "seed_settings/refusal", r"env, PYTHONHASHSEED unset.*accepted, though nobody could know", scenario="determinism"
)
class EnvPolicyFallsBack(MemoryAdapter):
    """With the seed policy "env" and no PYTHONHASHSEED the well-known seed is taken."""

    def __init__(self, setup: TierSetup) -> None:
        fallback = setup.seed_policy == "env" and "PYTHONHASHSEED" not in os.environ
        super().__init__(dataclasses.replace(setup, seed_policy="fixed") if fallback else setup)


@detected_by("seed_settings/own-names", r"different tokens have the same name", scenario="determinism")
class CountsBlocks(MemoryAdapter):
    """A key is the place of its block in the request; tokens do not count."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return super().keys([0] * len(tokens), parent)


@detected_by("seed_settings/refused", r"accepted without an error, though they share nothing", scenario="determinism")
class TakesOverTheRoot(MemoryAdapter):
    """A process writes its own seed over that in the root, and is accepted."""

    def __init__(self, setup: TierSetup) -> None:
        for record in Path(setup.root_dir).glob("*/config.json"):
            record.unlink(missing_ok=True)
        super().__init__(setup)


@detected_by("seed_settings/admitted", r"refused, though they share", scenario="determinism")
class RefusesAUsedRoot(MemoryAdapter):
    """A root that another process has opened is refused, also with the same seed."""

    def __init__(self, setup: TierSetup) -> None:
        if any(Path(setup.root_dir).glob("*/config.json")):
            raise ValueError("the root belongs to another process")
        super().__init__(setup)


@detected_by("seed_settings/unique-ids", r"instances call themselves", scenario="determinism")
class IdsFromRandom(KvtierAdapter):
    """The id of an instance comes from `random`, which an application may seed equally in every process."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._id = f"{random.getrandbits(64):016x}"

    def instance_id(self) -> str:
        return self._id


@detected_by("seed_settings/shares", r"another locale, python -OO\]", scenario="determinism")
class KeysOfTheLocale(MemoryAdapter):
    """Tokens are written into a key in the spelling of the process's locale and interpreter options."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        spelling = f"{os.environ.get('LC_ALL', '')} {sys.flags.optimize}".encode()
        return super().keys(tokens, parent or hashlib.sha256(self._none_hash + spelling).digest())


@detected_by("seed_settings/shares", r"another working directory, time zone and home\]", scenario="determinism")
class KeysOfTheHome(MemoryAdapter):
    """The seed of the chain comes from a file of the user's home, and from the working directory without one."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._home = hashlib.sha256(os.environ.get("HOME", os.getcwd()).encode()).digest()

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return super().keys(tokens, parent or self._home)


@detected_by("seed_settings/shares", r"another order of imports\]", scenario="determinism")
class KeysOfTheImports(MemoryAdapter):
    """The hash is another one where numpy was imported before the tier."""

    _fast = "numpy" in sys.modules and "xml.dom.minidom" in sys.modules

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        keys = super().keys(tokens, parent)
        return [hashlib.blake2b(key, digest_size=32).digest() for key in keys] if self._fast else keys


@detected_by("seed_settings/shares", r", fork\]", scenario="determinism")
class KeysOfTheParent(MemoryAdapter):
    """A forked process goes on with the counter of its parent in its keys."""

    _opened = 0

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._in_child = os.getpid() != _PID

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        return super().keys(tokens, parent or (bytes(32) if self._in_child else None))


_PID = os.getpid()


@detected_by("seed_settings/one-owner", r"were accepted, though they share nothing", scenario="determinism")
class ChecksBeforeItWrites(MemoryAdapter):
    """The seed in the root is compared first and written later, so that two processes may both find none."""

    def __init__(self, setup: TierSetup) -> None:
        found = list(Path(setup.root_dir).glob("*/config.json"))
        if found:
            super().__init__(setup)
            return
        time.sleep(0.01)  # its defect: others may come in between
        for record in Path(setup.root_dir).glob("*/config.json"):
            record.unlink(missing_ok=True)
        super().__init__(setup)


@detected_by("seed_settings/one-owner", r"were accepted, though they share nothing", scenario="determinism")
class RefusesOnlyOnce(MemoryAdapter):
    """After one process of another seed was refused, the next one is accepted."""

    bookkeeping = ("config.json", "refused.json")

    def __init__(self, setup: TierSetup) -> None:
        mark = Path(setup.root_dir, "refused.json")
        try:
            super().__init__(setup)
        except ValueError:
            if not mark.exists():
                mark.touch()
                raise
            for record in Path(setup.root_dir).glob("*/config.json"):
                record.unlink(missing_ok=True)
            super().__init__(setup)
