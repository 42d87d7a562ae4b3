"""The kinds of notes in a history: one NamedTuple each, whose fields are the note's detail. Writers make them, checkers
select notes by them; a note of another kind or with other fields is refused when a history is read.

A kind's name in the file is its class's name in lower case. A field that has its default is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

Blocks: TypeAlias = Sequence[int]


class Phase(NamedTuple):
    """A part of the scenario begins; the text names it."""

    source: str | None = None
    requests: int | None = None  # that were never started


class Fault(NamedTuple):
    """A fault was injected. `process` is the one it is aimed at; None: all."""

    process: int | None = None
    fault: str | None = None  # its name in the registry
    how: str | None = None
    step: str | None = None
    what: str | None = None
    files_left_max: int | None = None  # temp files that may stay behind
    cut: bool | None = None
    number: int | None = None


class Lifted(NamedTuple):
    """A fault or a hang is over."""

    process: int | None = None
    fault: str | None = None


class Hang(NamedTuple):
    """A call of a process hangs, or its host is cut off (`cut`) or not."""

    process: int
    cut: bool | None = None
    number: int | None = None  # of the flood


class Skipped(NamedTuple):
    """A part of the scenario could not be done here; the text says why."""

    fault: str | None = None
    step: str | None = None


class Unfit(NamedTuple):
    """The tier does not claim what the scenario checks."""


class Unready(NamedTuple):
    """Processes did not come up before a fault."""

    fault: str


class Refused(NamedTuple):
    """The tier refused to start on a root with a fault; the text is what it said."""

    fault: str


class Met(NamedTuple):
    """All steps of one fault have been carried out."""

    fault: str
    steps: Mapping[str, int]
    processes: Sequence[int]
    old: Blocks
    new: Blocks
    fresh: Blocks | int
    hurt: int | None  # blocks that can be hurt at most; None: any number
    began_seconds: float
    lifted_seconds: float
    died: Sequence[str]
    failure: str
    new_files: Any
    shapes: Sequence[str]


class Error(NamedTuple):
    """Something failed that should not; with what the operating system refused, if that is the cause."""

    errno: str | None = None
    path: str | None = None
    job_id: int | None = None
    process: int | None = None
    rule: str | None = None  # that it breaks; None: that no call fails


class Canary(NamedTuple):
    """How late a probe thread of the process woke up within one second: the latest and the median.

    `latest` has the wake-ups that were late by more than a millisecond: when the thread ran, how late that was, and how
    much of it the thread was runnable without a CPU. The rest of it waited for the interpreter's lock. Not `accounted`:
    the kernel does not say how long a thread was without a CPU.
    """

    late_seconds: float
    typical_seconds: float | None = None
    latest: Sequence[Sequence[float]] = ()
    accounted: bool = True


class Sampled(NamedTuple):
    """From this moment on the kernel's account of the process with this pid is read; what is notable is `Delayed`."""

    pid: int


class Delayed(NamedTuple):
    """Between `from_seconds` and the note, a thread of the process was runnable for `seconds` and got no CPU. The
    largest of its threads within one sample; `threads` has the seconds of each and its CPU seconds, by its number in
    the kernel. `stopped`: no thread of the process ran in that time."""

    from_seconds: float
    seconds: float
    stopped: bool = False
    threads: Mapping[str, Sequence[float]] = {}


class Pressure(NamedTuple):
    """Seconds lost on the machine between `from_seconds` and the note: stolen by the hypervisor (added up over the
    CPUs), and stalls of any thread for a CPU, I/O or memory (`/proc/pressure`, "some")."""

    from_seconds: float
    steal_seconds: float = 0.0
    cpu_seconds: float = 0.0
    io_seconds: float = 0.0
    memory_seconds: float = 0.0


class Device(NamedTuple):
    """The harness itself stored, read and removed a block beside the root, again and again since `from_seconds`: the
    longest and the median of its calls, and what kind of call was the longest."""

    from_seconds: float
    longest_seconds: float
    median_seconds: float
    call: str


class Calls(NamedTuple):
    """One kind of call of the scheduler's thread in one window: how often it was made, how often it took as long as a
    delayed call of the device (`delay_seconds`), its median and its longest.

    `condition` is "quiet", "delayed" (each call of the device takes `delay_seconds` longer), or "large" (the root has
    many files).
    """

    number: int
    condition: str
    call: str
    files: int
    began_seconds: float
    over_seconds: float
    delay_seconds: float
    made: int
    slow: int
    median_seconds: float
    longest_seconds: float
    cpu_seconds: float = 0.0  # median CPU time of the thread that called


class Counts(NamedTuple):
    """What the tier counted until its end."""

    counts: Mapping[str, float]


class Scraped(NamedTuple):
    """What the tier's own endpoint said at the end of its incarnation: quantity, as `adapters.metric_meanings` names
    it, and value."""

    values: Mapping[str, float]


class Submitted(NamedTuple):
    """A job was submitted; it stands here until its result is known."""

    job_id: int
    request: int
    direction: str
    blocks: Blocks


class Asked(NamedTuple):
    """Blocks that a process looked for, with a letter for each verdict: h, m or r."""

    blocks: Blocks
    verdicts: str
    asked_seconds: float | None = None
    request: int | None = None
    step: int | None = None
    no_room: bool | None = None  # the tier says that it found a block and had no slot to load it into


class Stepped(NamedTuple):
    """A process has carried out a step, with jobs still open and the tier's counts."""

    step: int
    open: int
    counts: Mapping[str, float]


class Promise(NamedTuple):
    """A promise of the contract: begun, kept or broken. The text is its name."""

    outcome: str
    words: str | None = None
    why: str | None = None
    seconds: float | None = None


class Flood(NamedTuple):
    """A flood of one direction with single blocks of the other is over."""

    number: int
    probe: str
    flood: str
    flood_blocks: int
    began_seconds: float
    over_seconds: float
    settled: bool
    jobs_ahead: int
    answer_seconds: float
    repetition: int | None = None  # of the same flood in this process


class Unloaded(NamedTuple):
    """Single blocks of one direction were stored or loaded one by one, and nothing else was in flight. `tag` is that of
    their jobs."""

    tag: int
    direction: str
    began_seconds: float
    over_seconds: float


class Opening(NamedTuple):
    """A root whose `file` holds something hostile was opened, or refused."""

    file: str
    outcome: str
    error: str
    said: str


class Cell(NamedTuple):
    """The names that one Python derives under one setting."""

    python: str
    start: str
    expected: str
    seed: str | None
    algorithm: str
    policy: str
    status: str
    why: str | None = None
    digest: str | None = None
    names: Any = None


class Pair(NamedTuple):
    """A second process opened the root of a first one with another setting."""

    first: str
    second: str
    shares: bool
    status: str
    why: str
    said: str
    same_names: bool


class Race(NamedTuple):
    """Processes of different seeds opened one root at one moment, or `again` afterwards: what became of each.

    `warned`: a process wrote a warning, so that one that was accepted may have been told.
    """

    root: int
    again: bool
    answers: Sequence[Mapping[str, str]]
    warned: bool


class Instance(NamedTuple):
    """The id by which an instance of the tier calls itself."""

    id: str


class Created(NamedTuple):
    """Names of temp files that a process made."""

    process: int
    names: Sequence[str]


class Removed(NamedTuple):
    """A block's file was removed from outside."""

    block: int
    from_seconds: float


class Missed(NamedTuple):
    """Blocks that a reader had seen and no longer found."""

    blocks: Blocks


class Evicted(NamedTuple):
    """The tier removed blocks from the root to keep its limit."""

    started_seconds: float
    finished_seconds: float
    blocks: int
    bytes: int


class Sample(NamedTuple):
    """Bytes and files of the root, added up between two moments."""

    from_seconds: float
    to_seconds: float
    bytes: int
    files: int


class Soon(NamedTuple):
    """Blocks whose visibility on another host is timed; `missed`: that host had looked for them before."""

    blocks: Blocks
    missed: bool


class Power(NamedTuple):
    """The power failed while a process stored."""

    failure: str
    file_system: str
    way: str
    writer: int
    reader: int
    durable: bool
    found_seconds: float


class CrashPhase(NamedTuple):
    """All states that a crash may leave of one recorded phase were judged. `steps`: calls that change files."""

    way: str
    durable: bool
    phase: str
    steps: int
    points: int
    rules: Mapping[str, int]  # states within each set of rules
    states: int  # all different ones
    outcomes: Mapping[
        str, int
    ]  # states in which something broke, by what; "missing": a block reported stored is not there


class CrashState(NamedTuple):
    """A state that a crash may leave, in which the tier did something wrong; the text says what. `outcome`: "wrong",
    "lost", "refused", "store", "silent"."""

    way: str
    phase: str
    outcome: str
    crash: str
    rules: Sequence[str]
    block: int | None = None


class Room(NamedTuple):
    """The least that was free at a place, or with `errno` a time in which it was short of something."""

    place: str
    path: str
    least_free_bytes: float
    errno: str | None = None
    from_seconds: float | None = None
    until_seconds: float | None = None


class Node(NamedTuple):
    """Another node of the run: the processes that ran on it, by how much their clocks may differ from the harness's at
    most, and how the node was lost, if it was."""

    node: int
    processes: Sequence[int]
    clock_bound_seconds: float
    lost: str


class Explored(NamedTuple):
    """The schedules of one program were run. `complete`: all, or all with at most `preemptions_max`; else `incomplete`
    says why not. `excused`: schedules after which something is so by design."""

    program: str
    processes: int
    kills: int
    preemptions_max: int | None
    schedules: int
    redundant: int
    calls: int
    states: int
    complete: bool
    incomplete: str
    violating: int
    first_violating: int
    seconds: float
    excused: Mapping[str, int]


class Counterexample(NamedTuple):
    """The shortest schedule that was found of one kind of violation. `trace`: (actor, call, result) of each step;
    `step` is the one at which it goes wrong, from 0. `file`, in the run's folder, replays it."""

    program: str
    actors: Sequence[str]
    texts: Sequence[str]
    trace: Sequence[Sequence[Any]]
    step: int
    file: str


About: TypeAlias = (
    Phase | Fault | Lifted | Hang | Skipped | Unfit | Unready | Refused | Met | Error | Canary | Sampled | Delayed
    | Pressure | Device | Calls | Counts | Scraped | Submitted | Asked | Stepped | Promise | Flood | Unloaded | Opening
    | Cell | Pair | Race | Instance | Created | Removed | Missed | Evicted | Sample | Soon | Power | CrashPhase
    | CrashState | Room | Node | Explored | Counterexample
)  # fmt: skip

KINDS: Mapping[str, type[Any]] = {kind.__name__.lower(): kind for kind in About.__args__}
FORMER = {"skip": "skipped"}
"""Kinds of earlier versions, and what they are called now."""


def detail_of(about: About) -> dict[str, Any]:
    """What a history holds of it: its fields without those that have their default."""
    defaults = type(about)._field_defaults
    return {name: value for name, value in about._asdict().items() if name not in defaults or value != defaults[name]}


def misfit(kind: str, detail: Mapping[str, Any]) -> str:
    """Why a note is none of the declared kinds; "" when it is one."""
    declared = KINDS.get(kind)
    if declared is None:
        return f"a note of kind {kind!r}; known kinds: {', '.join(KINDS)}"
    if unknown := detail.keys() - set(declared._fields):
        return f"a note of kind {kind!r} with {sorted(unknown)}; its fields: {', '.join(declared._fields)}"
    if missing := set(declared._fields) - declared._field_defaults.keys() - detail.keys():
        return f"a note of kind {kind!r} without {sorted(missing)}"
    return ""
