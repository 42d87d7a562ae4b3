"""What a tier must offer to be judged: one small class per tier. Workers drive it from one thread, as an engine would.

The worker owns the meaning of slots: it fills them before a store and judges them after a load. An adapter translates,
and adds nothing: no retries, no checks of its own, no locks.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from harness.core.history import Direction, Task
from harness.core.run_files import process_label

Verdict = Literal["hit", "miss", "retry"]


class PeerMissing(Exception):
    """The tier's package is not installed here: the run is skipped, and says so."""


@dataclass(frozen=True)
class TierSetup:
    """All that an adapter is told. JSON-able, since it crosses a process border. Sizes in bytes."""

    root_dir: str
    block_bytes: int
    slots: int
    n_read_threads: int = 16
    n_write_threads: int = 16
    hash_algorithm: str = "sha256"
    seed_policy: str = "fixed"
    tokens_per_block: int = 16
    model_name: str = "harness/model"
    process: int = 0
    incarnation: int = 0
    run_dir: str = ""
    max_bytes: int = 0  # what the blocks under root_dir may take, where the tier `keeps_limit`; 0: no limit
    serve_metrics: bool = False  # on 127.0.0.1, where the tier can
    trace_every: int = 0  # every n-th request leaves spans, where the tier can; 0: none
    watch_windows: float = 0.0  # metrics and spans in every other window of so many seconds; 0: all the time
    options: dict[str, Any] = field(default_factory=dict)  # adapter's own keywords, passed through

    @property
    def label(self) -> str:
        """Names this process in the run's files."""
        return process_label(self.process, self.incarnation)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Finished(NamedTuple):
    """A job's result: keys that made it, keys that did not (as `submit_*` got them), and how many of these a full queue
    refused: a tier may refuse what exceeds its stated bounds, if it says so. `reasons` names the errors of the
    others ("ENOSPC EIO"), if the tier can tell: they tell what the machine lacked from a defect. `in_memory` lists the
    keys of a store for which nothing was written, because the tier already held their blocks in memory."""

    job_id: int
    ok: Sequence[bytes]
    failed: Sequence[bytes]
    refused: int = 0
    reasons: str = ""
    in_memory: Sequence[bytes] = ()


class Eviction(NamedTuple):
    """This process removed blocks from the root, to keep its limit. Clock: `time.monotonic()`, seconds; in between no
    other process may do so."""

    started_seconds: float
    finished_seconds: float
    blocks: int
    bytes: int


class Naming(Protocol):
    """The part of an adapter that derives names of blocks; a tier may have it apart, in `adapters.NAMES`."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]: ...
    def none_hash_digest(self) -> str: ...
    def file_name(self, key: bytes) -> str | None: ...


class Adapter(ABC):
    """One tier under test, in one process. Constructed in the process that uses it; closed by it."""

    name: ClassVar[str]
    exposes_schedule: ClassVar[bool] = False  # `tasks()` returns every task of every job
    runs_in_submit: ClassVar[bool] = False  # `submit_*` does the job: no queue, and a hung device hangs its caller
    exposes_files: ClassVar[bool] = False  # blocks are files under root_dir, `file_name` says which
    keeps_in_memory: ClassVar[bool] = False  # blocks stay in memory above the files: storing one again writes no file
    leaves_spans: ClassVar[bool] = (
        False  # requests of `setup.trace_every` leave spans, where opentelemetry is installed
    )
    bookkeeping: ClassVar[tuple[str, ...]] = ("config.json",)  # globs: names of the tier's own files that are no blocks
    keeps_limit: ClassVar[bool] = False  # `setup.max_bytes` is kept, `evictions()` tells how
    hash_algorithms: ClassVar[tuple[str, ...]] = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")
    seed_policies: ClassVar[tuple[str, ...]] = ("fixed", "env", "random")

    @classmethod
    def python(cls) -> str:
        """The interpreter whose packages this tier needs. Raises `PeerMissing` where there is none."""
        return sys.executable

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        """Raises `ValueError`, one sentence, for options of the tier that it refuses (`setup.options` above all).

        Called before any process starts, in an interpreter that may lack the tier's packages: it touches no file. A
        tier that cannot tell leaves it as it is, and its constructor refuses instead.
        """

    def __init__(self, setup: TierSetup) -> None:
        self.setup = setup

    @property
    @abstractmethod
    def view(self) -> memoryview:
        """The slots: writable, C-contiguous, format "B", shape (slots, block_bytes)."""

    @abstractmethod
    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]:
        """The tier's keys of the full blocks of `tokens`, chained after the block whose key is `parent`."""

    @abstractmethod
    def none_hash_digest(self) -> str:
        """A digest of the seed of the chain; equal in two processes exactly when they would share."""

    def file_name(self, key: bytes) -> str | None:
        """The block's file, relative to root_dir; None if this tier keeps no file per block."""
        return None

    def other_group(self, key: bytes) -> bytes | None:
        """The key of the same block in another group of layers, whose KV is kept apart; None if the tier has none."""
        return None

    @abstractmethod
    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        """One verdict per key, without blocking; "retry" means ask again after `step`."""

    @abstractmethod
    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        """Enqueue: slot i holds block i and stays untouched until the job is in `poll`."""

    @abstractmethod
    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        """Enqueue: block i goes to slot i."""

    @abstractmethod
    def poll(self) -> list[Finished]:
        """Jobs that ended since the last call."""

    def step(self) -> None:
        """The end of a scheduler step: batched lookups go out."""

    def request_started(self, req_id: str) -> None:
        """A request was first seen."""

    def request_finished(self, req_id: str) -> None:
        """The request needs nothing more."""

    def short_of_room(self, req_id: str) -> bool:
        """Whether blocks of the request, which is not finished, were there and no slot to bring them to was free."""
        return False

    @abstractmethod
    def drain(self) -> None:
        """Block until nothing is in flight; results come out of the next `poll`."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Queued jobs may be cancelled; `poll` still works once after it."""

    def gauges(self) -> Mapping[str, float]:
        """The present state: "load_queue", "store_queue" (tasks), "load_oldest_seconds", "store_oldest_seconds", ...

        A tier with compiled code adds "none_references_lost" (`references.NoneReferences`), which `soak` judges too.
        """
        return {}

    def tasks(self) -> list[Task]:
        """Scheduled tasks since the last call, where `exposes_schedule`."""
        return []

    def evictions(self) -> list[Eviction]:
        """Evictions since the last call, where `keeps_limit`."""
        return []

    def counts(self) -> Mapping[str, float]:
        """What the tier itself has counted since it began: "stored", "loaded", "failed EIO" (any reason), "quarantined"
        (blocks); empty if it counts nothing."""
        return {}

    def instance_id(self) -> str | None:
        """What this instance calls itself in what it writes, which no other may; None if it has no such name."""
        return None

    def findings(self) -> list[str]:
        """What the tier's own accounts find wrong with themselves (`check_integrity`); empty is well."""
        return []

    def metrics_address(self) -> str | None:
        """host:port of this process's /metrics, if it serves one."""
        return None


def other(direction: Direction) -> Direction:
    """The class that is not this one."""
    return "store" if direction == "load" else "load"
