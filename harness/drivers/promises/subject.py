"""Instances of one tier on one root, driven as by an engine; what every promise of `harness.drivers.promises` uses.

A promise uses the interface of adapters alone, so it applies to any tier, also one in C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.adapters.base import Adapter, Finished, TierSetup, Verdict
from harness.core import content
from harness.core.history import Direction
from harness.core.patience import Patience

ANSWER_SECONDS_MAX = 10.0
"""A lookup that says "retry" for so long, or a job without a result for so long, breaks its promise."""
PAUSE_SECONDS = 0.001
SLOTS_MIN = 32
"""The smallest number of slots that the promises can be checked with."""


class Broken(Exception):
    """A promise was not kept. Its text is one sentence with the observation."""


def require(kept: object, sentence: str) -> None:
    """Raise `Broken` with this sentence unless `kept` is true."""
    if not kept:
        raise Broken(sentence)


class Block(NamedTuple):
    """A block: the tier's key, and the identity that its content follows from."""

    key: bytes
    identity: bytes


def keys_of(blocks: Iterable[Block]) -> list[bytes]:
    return [block.key for block in blocks]


class Subject:
    """Instances of one tier on one root, driven as by an engine: calls belong to a request, jobs share no slot.

    Subjects of one root have numbers of their own, from `first` on: requests and blocks are named by them.
    """

    def __init__(
        self,
        adapter: type[Adapter],
        setup: TierSetup,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
        first: int = 0,
    ) -> None:
        assert setup.slots >= SLOTS_MIN, f"{setup.slots} slots; the promises need {SLOTS_MIN}"
        self.setup = setup
        self.kind = adapter
        self.answer_seconds_max = answer_seconds_max
        self._open: list[Adapter] = []
        self._numbers = itertools.count(first)
        self._tokens_per_number = setup.slots * setup.tokens_per_block
        self._jobs = itertools.count(1)

    def open(self, **changes: object) -> Adapter:
        """Another instance on the same root, as in another process; `changes` are fields of its setup."""
        adapter = self.kind(dataclasses.replace(self.setup, **changes))  # type: ignore[arg-type]
        self._open.append(adapter)
        return adapter

    def close(self, adapter: Adapter | None = None) -> None:
        """Close this instance, or every open one."""
        for one in [adapter] if adapter else list(self._open):
            self._open.remove(one)
            one.close()

    def tokens(self, blocks: int) -> list[int]:
        """Tokens of so many blocks; no earlier call returned any of them."""
        first = next(self._numbers) * self._tokens_per_number
        return list(range(first, first + blocks * self.setup.tokens_per_block))

    def blocks(self, adapter: Adapter, blocks: int) -> list[Block]:
        """Fresh blocks of one request."""
        return self.blocks_of(adapter, self.tokens(blocks))

    def blocks_of(self, adapter: Adapter, tokens: Sequence[int]) -> list[Block]:
        """The full blocks of a request with these tokens."""
        size, keys = self.setup.tokens_per_block, adapter.keys(tokens)
        return [Block(key, adapter.setup.identity(tokens[: (i + 1) * size])) for i, key in enumerate(keys)]

    def slot(self, adapter: Adapter, index: int) -> memoryview:
        size = self.setup.block_bytes
        return adapter.view.cast("B")[index * size : (index + 1) * size]

    @contextlib.contextmanager
    def request(self, adapter: Adapter) -> Iterator[str]:
        """Start a request, yield its name, finish it."""
        name = f"contract-{next(self._numbers)}"
        adapter.request_started(name)
        yield name
        adapter.request_finished(name)

    def ask(self, adapter: Adapter, blocks: Sequence[Block], name: str) -> list[Verdict]:
        """Look up until no verdict is "retry"."""
        return self.ask_keys(adapter, keys_of(blocks), name)

    def ask_keys(self, adapter: Adapter, keys: Sequence[bytes], name: str) -> list[Verdict]:
        """`ask` for keys of any kind."""
        patience = Patience(self.answer_seconds_max)
        verdicts: list[Verdict] = ["retry"] * len(keys)
        while True:
            waiting = [i for i, verdict in enumerate(verdicts) if verdict == "retry"]
            got = adapter.lookup([keys[i] for i in waiting], name)
            require(len(got) == len(waiting), f"{len(waiting)} keys were looked up, {len(got)} verdicts came back")
            for i, verdict in zip(waiting, got, strict=True):
                require(verdict in ("hit", "miss", "retry"), f"a lookup answered {verdict!r}")
                verdicts[i] = verdict
            if "retry" not in verdicts:
                return verdicts
            require(not patience.is_over(), f"a lookup said retry for {self.answer_seconds_max:g} s")
            adapter.step()
            time.sleep(PAUSE_SECONDS)

    def look_up(self, adapter: Adapter, blocks: Sequence[Block]) -> list[Verdict]:
        """`ask` in a request of its own."""
        with self.request(adapter) as name:
            return self.ask(adapter, blocks, name)

    def submit(
        self,
        adapter: Adapter,
        direction: Direction,
        blocks: Sequence[Block],
        slots: Sequence[int],
        name: str,
        job: int | None = None,
    ) -> int:
        """Fill the slots of a store, poison those of a load, and submit; the job's number, a new one unless given."""
        job = next(self._jobs) if job is None else job
        for block, index in zip(blocks, slots, strict=True):
            if direction == "store":
                content.fill(self.slot(adapter, index), block.identity)
            else:
                content.poison(self.slot(adapter, index))
        (adapter.submit_store if direction == "store" else adapter.submit_load)(job, keys_of(blocks), slots, name)
        return job

    def results(self, adapter: Adapter, jobs: Iterable[int]) -> dict[int, Finished]:
        """Step until each of these jobs has its one result. A result of another job breaks the promise."""
        waiting = set(jobs)
        found: dict[int, Finished] = {}
        patience = Patience(self.answer_seconds_max)
        while waiting - found.keys():
            require(
                not patience.is_over(),
                f"no result of {len(waiting - found.keys())} jobs in {self.answer_seconds_max:g} s",
            )
            adapter.step()
            self.take(adapter, waiting, found)
            time.sleep(PAUSE_SECONDS)
        adapter.step()
        self.take(adapter, waiting, found)
        return found

    def take(self, adapter: Adapter, waiting: Iterable[int], found: dict[int, Finished]) -> None:
        """Poll once; each result is of a job in `waiting`, and its first."""
        for result in adapter.poll():
            require(result.job_id in waiting, f"a result for job {result.job_id}, which is not in flight")
            require(result.job_id not in found, f"a second result for job {result.job_id}")
            found[result.job_id] = result

    def account(self, result: Finished, blocks: Sequence[Block]) -> None:
        """Require that a result names each block of its job once, as ok or as failed."""
        named, keys = [*result.ok, *result.failed], keys_of(blocks)
        require(
            sorted(named) == sorted(keys),
            f"a job of {len(keys)} blocks ended with {len(result.ok)} ok and {len(result.failed)} failed, "
            f"{len(set(named) - set(keys))} of them not its own",
        )

    def right(self, adapter: Adapter, result: Finished, blocks: Sequence[Block], slots: Sequence[int]) -> None:
        """Require that each block that a load reports ok has its bytes."""
        ok = set(result.ok)
        for block, index in zip(blocks, slots, strict=True):
            if block.key in ok and (wrong := content.judge(self.slot(adapter, index), block.identity)):
                raise Broken(f"a block reported loaded has wrong bytes: {wrong}")

    def store(self, adapter: Adapter, blocks: Sequence[Block], first_slot: int = 0) -> Finished:
        """Run one store and require that all its blocks are ok."""
        slots = range(first_slot, first_slot + len(blocks))
        with self.request(adapter) as name:
            job = self.submit(adapter, "store", blocks, slots, name)
            result = self.results(adapter, [job])[job]
        self.account(result, blocks)
        require(not result.failed, f"{len(result.failed)} of {len(blocks)} blocks were not stored, on a healthy device")
        return result

    def load(self, adapter: Adapter, blocks: Sequence[Block], slots: Sequence[int] | None = None) -> Finished:
        """Look up the blocks, require that all are hits, and load them."""
        with self.request(adapter) as name:
            verdicts = self.ask(adapter, blocks, name)
            missed = verdicts.count("miss")
            require(not missed, f"{missed} of {len(blocks)} blocks that were reported stored are not found")
            return self.load_hits(adapter, blocks, slots or range(len(blocks)), name)

    def load_hits(self, adapter: Adapter, blocks: Sequence[Block], slots: Sequence[int], name: str) -> Finished:
        """Run one load of blocks that this request has found; a block reported ok must have its bytes."""
        job = self.submit(adapter, "load", blocks, slots, name)
        result = self.results(adapter, [job])[job]
        self.account(result, blocks)
        self.right(adapter, result, blocks, slots)
        return result

    def load_all(self, adapter: Adapter, blocks: Sequence[Block], what: str) -> None:
        """`load`, and require that nothing failed; `what` they are, for the sentence."""
        failed = self.load(adapter, blocks).failed
        require(not failed, f"{len(failed)} of {len(blocks)} {what} could not be loaded")

    def file(self, adapter: Adapter, block: Block) -> Path:
        name = adapter.file_name(block.key)
        require(name is not None, "the adapter sets exposes_files, and file_name returns None")
        return Path(self.setup.root_dir) / str(name)
