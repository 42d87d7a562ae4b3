"""The interface of a tier under test: one small class for each tier. A worker drives it from one thread, as an engine.

The worker fills slots before a store and verifies them after a load. An adapter only translates calls: no retries, no
checks of its own, no locks.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from harness.adapters.metric_meanings import Meaning
from harness.core.history import Direction, Task
from harness.core.run_files import process_label

Verdict = Literal["hit", "miss", "retry"]


class PeerMissing(Exception):
    """The tier's package is not installed here. The run is skipped with this text."""


@dataclass(frozen=True)
class TierSetup:
    """An adapter's parameters. Fields are JSON values, because a setup is sent to another process. Sizes in bytes."""

    root_dir: str
    block_bytes: int
    slots: int
    n_read_threads: int = 16
    n_write_threads: int = 16
    hash_algorithm: str = "sha256"
    seed_policy: str = "fixed"
    tokens_per_block: int = 16
    model_name: str = "harness/model"
    dtype: str = "bfloat16"
    ranks: int = 1  # processes that each hold a part of every block (tensor parallel), and which of them this is
    rank: int = 0
    process: int = 0
    incarnation: int = 0
    run_dir: str = ""
    max_bytes: int = 0  # what the blocks under root_dir may take, where the tier `keeps_limit`; 0: no limit
    serve_metrics: bool = False  # on 127.0.0.1, where the tier can
    report_events: bool = False  # `events()` reports, where the tier can
    trace_every: int = 0  # every n-th request leaves spans, where the tier can; 0: none
    watch_windows: float = 0.0  # metrics and spans in every other window of so many seconds; 0: all the time
    options: dict[str, Any] = field(default_factory=dict)  # adapter's own keywords, passed through

    @property
    def label(self) -> str:
        """Names this process in the run's files."""
        return process_label(self.process, self.incarnation)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self, block: int | Sequence[int], group: int = 0, salt: str = "") -> bytes:
        """What a block's content follows from (`core.content`): whose it is, and which one. `block` is a trace id, or
        all tokens of the request up to the block's end; `salt` is the request's."""
        whose = (self.model_name, self.dtype, self.ranks, self.rank, self.tokens_per_block, group, salt)
        return repr((*whose, block if isinstance(block, int) else tuple(block))).encode()


class Finished(NamedTuple):
    """A job's result: the keys that succeeded and those that failed, as `submit_*` received them.

    `refused` counts the failed keys that admission refused: a tier may refuse what exceeds its stated bounds, if it
    reports so. `reasons` names the errors of the others ("ENOSPC EIO"), where the tier knows them; they separate a
    shortage of the machine from a defect. `in_memory` lists the keys of a store for which nothing was written, because
    the tier already held their blocks in memory.
    """

    job_id: int
    ok: Sequence[bytes]
    failed: Sequence[bytes]
    refused: int = 0
    reasons: str = ""
    in_memory: Sequence[bytes] = ()


class Eviction(NamedTuple):
    """This process removed blocks from the root, to keep its limit. Clock: `time.monotonic()`, seconds.

    No other process may evict between start and finish.
    """

    started_seconds: float
    finished_seconds: float
    blocks: int
    bytes: int


class Naming(Protocol):
    """The part of an adapter that derives names of blocks; `adapters.NAMES` lists tiers that offer it alone."""

    def keys(self, tokens: Sequence[int], parent: bytes | None = None) -> list[bytes]: ...
    def none_hash_digest(self) -> str: ...
    def file_name(self, key: bytes) -> str | None: ...


class Adapter(ABC):
    """One tier under test, in one process. Constructed in the process that uses it; closed by it.

    The tier makes files under `root_dir` alone, through no symbolic link, and with no permission that the umask takes
    away. It changes nothing of its process that others rely on, and no list that it is given.
    """

    name: ClassVar[str]
    exposes_schedule: ClassVar[bool] = False  # `tasks()` returns every task of every job
    runs_in_submit: ClassVar[bool] = False  # `submit_*` does the job: no queue, and a hung device hangs its caller
    exposes_files: ClassVar[bool] = False  # blocks are files under root_dir, named by `file_name`
    keeps_in_memory: ClassVar[bool] = False  # blocks stay in memory above the files: storing one again writes no file
    leaves_spans: ClassVar[bool] = (
        False  # requests of `setup.trace_every` leave spans, where opentelemetry is installed
    )
    bookkeeping: ClassVar[tuple[str, ...]] = ("config.json",)  # globs: names of the tier's own files that are no blocks
    separates: ClassVar[tuple[str, ...]] = ("model_name",)  # fields of the setup that decide whose blocks these are
    keeps_limit: ClassVar[bool] = False  # the tier keeps `setup.max_bytes` and reports `evictions()`
    hash_algorithms: ClassVar[tuple[str, ...]] = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")
    seed_policies: ClassVar[tuple[str, ...]] = ("fixed", "env", "random")
    answers_at_close: ClassVar[bool] = (
        True  # jobs in flight at `close` have a result; vLLM's interface asks it of drain
    )
    forgets: ClassVar[bool] = False  # stores and loads depend on the files alone, not on what the instance did before
    ignores_folder_status: ClassVar[tuple[str, ...]] = ()  # of the explorer's operations: whose calls do not depend on
    # a folder's size, link count or times
    operations: ClassVar[tuple[str, ...]] = ()  # what `operate` does, if anything: "evict", "collect"

    @classmethod
    def python(cls) -> str:
        """The interpreter whose packages this tier needs. Raises `PeerMissing` where there is none."""
        return sys.executable

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        """Raises `ValueError`, one sentence, for options of the tier that it refuses (`setup.options` above all).

        Called before any process starts, in an interpreter that may lack the tier's packages: it touches no file. By
        default every option passes, and the tier's constructor refuses instead.
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
        """A digest of the chain's seed, equal in two processes exactly when they share blocks."""

    def file_name(self, key: bytes) -> str | None:
        """The block's file, relative to root_dir; None if this tier keeps no file per block."""
        return None

    def other_group(self, key: bytes) -> bytes | None:
        """The key of the same block in another group of layers, which is stored apart; None if the tier has none."""
        return None

    def salted_keys(self, tokens: Sequence[int], salt: str) -> list[bytes] | None:
        """`keys` of a request with this cache salt, which shares no block with others; None if the tier has no salt."""
        return None

    @abstractmethod
    def lookup(self, keys: Sequence[bytes], req_id: str) -> list[Verdict]:
        """One verdict for each key, without blocking; "retry": look it up again after `step`."""

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

    def has_pending_work(self) -> bool | None:
        """Whether the engine should keep stepping although no request is left; None if the tier does not say."""
        return None

    def events(self) -> list[tuple[bytes, bool]] | None:
        """Blocks that this process has added to the root (False) or removed (True) since the last call, by key, with
        `setup.report_events`; None if the tier does not say."""
        return None

    def short_of_room(self, req_id: str) -> bool:
        """Whether a block of the unfinished request was found and no slot was free to load it into."""
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

    def operate(self, operation: str, blocks: int = 0) -> None:
        """One round of maintenance of the root, done in this call, as one of `operations`: "evict" the oldest blocks
        until `blocks` are left, or "collect" what killed writers left. Another process may be in its own round."""
        raise NotImplementedError(operation)

    def counts(self) -> Mapping[str, float]:
        """Blocks that the tier itself has counted: "stored", "loaded", "failed EIO" (any reason), "quarantined".

        Empty if it counts nothing.
        """
        return {}

    def instance_id(self) -> str | None:
        """The id of this instance in the blocks that it writes, unique to it; None if blocks carry no id."""
        return None

    def findings(self) -> list[str]:
        """Contradictions in the tier's own state (`check_integrity`), a sentence each; empty if there are none."""
        return []

    def metrics_address(self) -> str | None:
        """host:port of this process's /metrics, if it serves one."""
        return None

    def metric_meanings(self) -> Sequence[Meaning]:
        """What the samples of this instance's endpoint count; each is compared with the results of its jobs."""
        return ()


def other(direction: Direction) -> Direction:
    """The opposite direction."""
    return "store" if direction == "load" else "load"
