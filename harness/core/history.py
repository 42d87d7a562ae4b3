"""Records of a run: typed, one JSON line each, written by each worker for its process and read by checkers.

Every record carries the monotonic clock (seconds, CLOCK_MONOTONIC, comparable between processes of one host); requests
and jobs also carry the wall clock. Outcomes are Maelstrom's: "ok" it happened, "fail" it did not, "info" unknown.
A block is named by its trace id (an int, prefix-chained: equal ids mean equal prefixes), a key by its hex.
"""

from __future__ import annotations

import errno
import json
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from harness.core.inputs import DamagedFile, read_file, read_json
from harness.core.notes import FORMER, About, detail_of, misfit

BYTES_MAX = 1 << 36
"""Of a history file; none of a run comes near."""

Outcome = Literal["ok", "fail", "info"]
Direction = Literal["load", "store"]
DIRECTIONS: tuple[Direction, ...] = ("load", "store")


class Start(NamedTuple):
    """A process started: its number, incarnation (0, then 1 after a restart, ...), pid, and how it derives names."""

    process: int
    incarnation: int
    pid: int
    tier: str
    none_hash_digest: str
    monotonic_seconds: float
    wall_seconds: float
    detail: dict[str, Any]


class Request(NamedTuple):
    """One request of the traffic: its blocks in order, and how many leading ones came out of the cache, verified.

    `short_of_room`: the tier had blocks of it and no slot to load them into, where the tier reports it. `looked_up`:
    whether it looked for its blocks at all, or stored them at once.
    """

    process: int
    request: int
    blocks: list[int]
    hit_blocks: int
    intended_seconds: float
    started_seconds: float
    finished_seconds: float
    wall_seconds: float
    outcome: Outcome
    short_of_room: bool = False
    looked_up: bool = True


class Job(NamedTuple):
    """One submitted job and its result. A job whose process died before its result has outcome "info".

    `results` counts results seen for this job id (1 is right). `ok` and `failed` list block ids. `wrong` holds, for
    loads reported ok, each block whose bytes are not what its key demands, and how: "short", "hole", "other key: ...",
    "stale", "garbage". `refused` counts the failed blocks that admission refused, and `reasons` names the errors of the
    others ("ENOSPC EIO"), where the tier reports them. `in_memory` lists the `ok` blocks of
    a store that wrote no file, because the tier already held them in memory.

    The result came between `absent_seconds`, when the last poll that did not return it began, and `finished_seconds`,
    when the poll that did return it came back; 0: not recorded. `slots` are those of `blocks`, in order; empty: not
    recorded.
    """

    process: int
    job_id: int
    request: int
    direction: Direction
    blocks: list[int]
    submitted_seconds: float
    submit_returned_seconds: float
    finished_seconds: float
    wall_seconds: float
    outcome: Outcome
    ok: list[int]
    failed: list[int]
    results: int
    wrong: list[tuple[int, str]]
    bytes_ok: int
    refused: int = 0
    reasons: str = ""
    in_memory: list[int] = []  # noqa: RUF012  # never changed
    absent_seconds: float = 0.0
    slots: list[int] = []  # noqa: RUF012  # never changed


class Task(NamedTuple):
    """One piece of a job as the tier scheduled it, where the tier exposes it (`Adapter.exposes_schedule`)."""

    process: int
    job_id: int
    direction: Direction
    group: Direction
    thread: int
    bytes: int
    depth: int
    enqueued_seconds: float
    started_seconds: float
    finished_seconds: float


class Name(NamedTuple):
    """The file name (relative to the root) that this process derives for a block; for `-1 - block` the block's name in
    another group of layers, under which nothing is stored."""

    process: int
    block: int
    name: str


class Gauge(NamedTuple):
    """A sample of the tier's state in one process (queue depth, oldest waiter, open fds, ...)."""

    process: int
    monotonic_seconds: float
    values: dict[str, float]


class Note(NamedTuple):
    """Anything else a checker may need: one of the kinds of `harness.core.notes`, whose fields are in `detail`.

    Process -1 is the harness.
    """

    process: int
    monotonic_seconds: float
    kind: str
    text: str
    detail: dict[str, Any]

    def is_a(self, *kinds: type[About]) -> bool:
        """Whether it is of one of these kinds."""
        return any(self.kind == kind.__name__.lower() for kind in kinds)


def note_of(process: int, monotonic_seconds: float, about: About, text: str = "") -> Note:
    """The note that says `about` in a history."""
    return Note(process, monotonic_seconds, type(about).__name__.lower(), text, detail_of(about))


class Stop(NamedTuple):
    """A process ended: exit code (negative: signal), and what it left (slots still pinned, fds more than at start).

    `outside` is empty unless something other than the tier ended the process; then it is a sentence that names it.
    """

    process: int
    incarnation: int
    monotonic_seconds: float
    exit_code: int
    pinned_slots: int
    leaked_fds: int
    findings: list[str]
    outside: str = ""


Record = Start | Request | Job | Task | Name | Gauge | Note | Stop


def _kinds(record: type[Any]) -> tuple[frozenset[Any], ...]:
    """Per field: the types that a value read back may have, and for a closed set of words these words."""
    kinds = []
    for hint in typing.get_type_hints(record).values():
        words = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        kinds.append(frozenset(words or ({int, float} if hint is float else {typing.get_origin(hint) or hint})))
    return tuple(kinds)


_TYPES: dict[str, type[Any]] = {t.__name__.lower(): t for t in (Start, Request, Job, Task, Name, Gauge, Note, Stop)}
_KINDS = {name: _kinds(record) for name, record in _TYPES.items()}


def encode(record: Record) -> str:
    """One line without newline: the record's type, then its fields in order."""
    return json.dumps([type(record).__name__.lower(), *record], separators=(",", ":"))


def decode(line: str) -> Record:
    """The inverse of `encode`. Raises ValueError on a line that is not a record (a killed writer's last line)."""
    try:
        name, *values = json.loads(line)
        record = _TYPES[name](*values)
        for field, value, kinds in zip(record._fields, record, _KINDS[name], strict=True):
            if type(value) not in kinds and not (type(value) is str and value in kinds):
                raise TypeError(f"{field} is {value!r}")
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"not a record: {line[:60]!r} ({error})") from error
    if isinstance(record, Note):
        record = record._replace(kind=FORMER.get(record.kind, record.kind))
        if why := misfit(record.kind, record.detail):
            raise ValueError(why)
    if isinstance(record, Job):  # JSON has no tuples
        record = record._replace(wrong=[(block, how) for block, how in record.wrong])
    return record  # type: ignore[no-any-return]


def in_words(error: OSError) -> str:
    """A refusal of the operating system, as one sentence: "ENOSPC (No space left on device): /runs/x/run.json"."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return f"{name} ({error.strerror or error})" + (f": {error.filename}" if error.filename else "")


class HistoryLost(OSError):
    """A history could not be written: the folder of runs is full, read-only or gone. The tier is not the reason."""


class HistoryWriter:
    """Appends records to one process's file. A killed process loses at most what it wrote since its last `flush`.

    Raises `HistoryLost` where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._lost():
            self._file: TextIO = open(path, "a", buffering=1 << 16, encoding="utf-8")

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HistoryLost(error.errno, error.strerror, str(self._path)) from error

    def write(self, *records: Record) -> None:
        with self._lost():
            self._file.write("".join(encode(r) + "\n" for r in records))

    def flush(self) -> None:
        with self._lost():
            self._file.flush()

    def close(self) -> None:
        with self._lost():
            self._file.close()


@dataclass
class History:
    """All records of a run, by type, and the files under the root after the run."""

    starts: list[Start] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    gauges: list[Gauge] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # every file under the root at the end, relative
    options: dict[str, Any] = field(default_factory=dict)  # of the run (processes, threads, seed, ...)

    def add(self, record: Record) -> None:
        name = type(record).__name__.lower()
        getattr(self, name + "s").append(record)

    @classmethod
    def of(cls, records: Iterable[Record], **rest: Any) -> History:
        history = cls(**rest)
        for record in records:
            history.add(record)
        return history

    @classmethod
    def read(cls, run_dir: Path) -> History:
        """Read `history-*.jsonl`, `files.json` and `options.json` of a run folder. A torn last line is dropped."""
        history = cls()
        for path in sorted(run_dir.glob("history-*.jsonl")):
            for record in read_records(path):
                history.add(record)
        for name, kind in (("files", list), ("options", dict)):
            if (path := run_dir / f"{name}.json").exists():
                setattr(history, name, read_json(path, kind))
        return history


def read_records(path: Path) -> Iterator[Record]:
    """Records of one file in order; a last line torn by a killed writer is dropped, any other bad line raises
    `DamagedFile`."""
    try:
        lines = read_file(path, BYTES_MAX).decode().split("\n")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{str(path)!r} is damaged: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield decode(line)
        except ValueError as error:
            if number < len(lines):
                raise DamagedFile(f"{str(path)!r} is damaged: {path.name}, line {number}: {error}") from error
