"""Starts worker processes, waits until they are ready, sends the start signal, kills, pauses, restarts and reaps them.

Scenarios call it. Every worker is an interpreter in a process group of its own. No child outlives the `with` block. The
module does not depend on what the workers do.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from harness.core import notes
from harness.core.history import HistoryWriter, Job, Note, Stop, in_words, read_records
from harness.core.patience import Patience
from harness.runtime.accounting import Watched
from harness.runtime.placement import Here, Placement
from harness.runtime.worker import Instruction

READY_SECONDS_MAX = 180.0
STOP_SECONDS_MAX = 8.0
"""A worker that was sent {"stop"} is killed after this time."""
REAP_SECONDS_MAX = 60.0
"""Time for killed workers, possibly thousands, to end."""
SILENCE_SECONDS_MAX = 60.0
"""A worker without a message for this time hangs. It is made to print its stacks, then killed."""
LOOK_SECONDS = 0.1
"""The parent looks for messages at this interval."""
LOOK_SECONDS_MAX = SILENCE_SECONDS_MAX / 4
"""Between two looks no more than this counts as silence: a longer pause is the parent's own."""
GO_AFTER_SECONDS = 0.2
STACKS_SECONDS_MAX = 5.0
"""Time for a process that did not come up to print its stacks, before it is killed."""
SENT_FROM_OUTSIDE = frozenset(
    {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGXFSZ}
)
"""Signals by which an operator, a supervisor, the OOM killer or a resource limit ends a process."""


class WorkerFailed(Exception):
    """A worker did not come up; the text is one sentence, then the process's last output.

    `outside`: the reason was not the tier, so a second try would prove nothing about it.
    """

    def __init__(self, text: str, outside: bool = False) -> None:
        super().__init__(text)
        self.outside = outside


class Child:
    """One worker process, seen from its parent. Its state changes only inside `Workers`."""

    def __init__(
        self,
        instruction: Instruction,
        events: queue.SimpleQueue[tuple[Child, dict[str, Any]]],
        env: Mapping[str, str | None],
        python: str,
        placement: Placement,
    ) -> None:
        self.instruction = instruction
        self.counts: dict[str, float] = {}
        self.gauges: dict[str, float] = {}
        self.python = python
        self.state = "starting"  # then "ready", "running", "done", "dead"
        self.failure = ""
        self.makes_tier = False  # its tier's constructor has been called
        self.outside = ""  # what ended it, if it was not the tier
        self._signalled: set[int] = set()  # by the harness, or by the process itself
        self.metrics_address: str | None = None
        self.message_seconds = time.monotonic()

        def on_message(message: dict[str, Any], ended: bool) -> None:
            events.put((self, {"event": "end"} if ended else message))

        with _starting(self.label):
            self._process = placement.start(instruction, env, python, on_message)

    @property
    def label(self) -> str:
        return self.instruction.label

    @property
    def process(self) -> int:
        return self.instruction.setup.process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, where its pid names it."""
        return self._process.is_here

    @property
    def alive(self) -> bool:
        return self.state in ("starting", "ready", "running")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.exit_code

    def send(self, **message: Any) -> None:
        """Send the driver a message: `send(go=...)`, `send(release=True)`. No effect once the process has ended."""
        self._process.send(message)

    def signal(self, number: int) -> None:
        """Send a signal to this process, if it still runs."""
        self._signalled.add(number)
        self._process.signal(number)

    def expects(self, number: int) -> None:
        """The process is about to send itself this signal."""
        self._signalled.add(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def last_output(self) -> str:
        """The last lines of its stderr."""
        return self._process.last_output()

    def how_it_ended(self) -> str:
        code = self.exit_code
        if code is None:
            return "still runs"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def ended_from_outside(self) -> str:
        """A sentence if something other than the tier ended this process, else an empty string.

        The sender of a SIGKILL is unknown. The worker announces signals of its own Python code, and the harness records
        those that it sends; any other comes from outside. A crash (SIGSEGV, SIGABRT, ...) is the process's own.
        """
        code = self.exit_code
        if self.outside or code is None:
            return self.outside
        if self._process.ended_outside:
            return self._process.ended_outside
        if not self.makes_tier:
            return f"it {self.how_it_ended()} before its tier was made"
        if code < 0 and -code in SENT_FROM_OUTSIDE and -code not in self._signalled:
            return f"it {self.how_it_ended()}, which neither the tier nor the harness sent"
        return ""

    def was_stopped_by_others(self) -> bool:
        """Whether it stands still by a signal (SIGSTOP) that was not the harness's. Unknown on another machine."""
        if signal.SIGSTOP in self._signalled or not self.is_here:
            return False
        with suppress(psutil.Error):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False

    def reap(self) -> None:
        """Wait for a process that has closed its stdout, or was killed; release its pipes."""
        self._process.reap()


@contextmanager
def _starting(label: str) -> Iterator[None]:
    """Turns a refusal of the operating system (EAGAIN, ENOMEM, EMFILE, ENOSPC, ...) into a `WorkerFailed`."""
    try:
        yield
    except OSError as error:
        text = f"process {label} could not be started: {in_words(error)}"
        raise WorkerFailed(text, outside=True) from error


def _oom_kills() -> int:
    """Processes that the kernel's OOM killer has ended since boot; 0 where /proc/vmstat lacks the count."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


class Workers:
    """The worker processes of a run, as a context manager. `on_tick` is called about four times a second."""

    def __init__(
        self,
        on_tick: Callable[[Sequence[Child]], None] = lambda children: None,
        placement: Placement | None = None,
    ) -> None:
        self._placement = placement or Here()
        self.children: list[Child] = []
        self._events: queue.SimpleQueue[tuple[Child, dict[str, Any]]] = queue.SimpleQueue()
        self._on_tick = on_tick
        self._looked_seconds = time.monotonic()
        self._oom_kills_before = _oom_kills()
        self.broken_off = ""  # why the run ended early; the ends of its processes are then not judged
        self._incomplete: list[Child] = []
        self.troubles: list[str] = []  # failures of the harness itself, a sentence each

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.broken_off:
                for child in self.children:
                    if child.alive and not child.outside:
                        child.outside = f"the harness ended it: {self.broken_off}"
            self.stop()
        finally:  # also when a second Ctrl-C interrupts `stop`
            for child in self.children:
                if child.alive:
                    child.resume()
                    child.kill()
            self.wait(seconds=REAP_SECONDS_MAX)

    def watched(self) -> list[Watched]:
        """Workers that run on this machine now."""
        return [Watched(child.process, child.pid) for child in list(self.children) if child.alive and child.is_here]

    def start(
        self, instruction: Instruction, env: Mapping[str, str | None] | None = None, python: str = sys.executable
    ) -> Child:
        """Start one worker. `env` is laid over this process's environment; a value of None removes the name."""
        child = Child(instruction, self._events, env or {}, python, self._placement)
        self.children.append(child)
        return child

    def await_ready(self, children: Iterable[Child], seconds: float | None = None) -> None:
        """Until each is ready. Raises `WorkerFailed` when one dies or time is up (default: `READY_SECONDS_MAX`)."""
        children, seconds = list(children), READY_SECONDS_MAX if seconds is None else seconds
        self.until(lambda: all(c.state != "starting" for c in children), seconds)
        late = [child for child in children if child.state == "starting"]
        for child in late:
            child.outside = f"it was not ready after {seconds:g} s, and the harness ended it"
            child.signal(signal.SIGABRT)  # faulthandler prints every thread's stack: its last output
        self.wait(late, STACKS_SECONDS_MAX)
        for child in children:
            if child.state in ("starting", "dead"):
                self.explain(child)
                why = child.failure or child.ended_from_outside() or f"it {child.how_it_ended()}"
                # A refusal of the tier is one sentence; only an unexplained end needs the last output.
                output = "" if child.failure else child.last_output()
                text = f"process {child.label} did not come up: {why}" + (f"\n{output}" if output else "")
                raise WorkerFailed(text, outside=bool(child.ended_from_outside()))

    def go(self, children: Iterable[Child]) -> float:
        """Start them at one common moment, and return it (monotonic seconds)."""
        start_seconds = time.monotonic() + GO_AFTER_SECONDS
        for child in children:
            child.state = "running"
            child.message_seconds = start_seconds
            child.send(go=start_seconds)
        return start_seconds

    def restart(self, child: Child, env: Mapping[str, str | None] | None = None, **changes: Any) -> Child:
        """Start the next incarnation of a process that ended, with changed arguments of its driver if any."""
        assert not child.alive, f"process {child.label} still runs"
        old = child.instruction
        arguments = {**old.arguments, **changes}
        instruction = Instruction(old.tier, old.setup, arguments, old.driver, old.incarnation + 1)
        return self.start(instruction, env, child.python)

    def wait(self, children: Iterable[Child] | None = None, seconds: float | None = None) -> None:
        """Until the given ones (default: all) have ended, or time is up. One that sends no message is killed."""
        watched = self.children if children is None else list(children)
        self.until(lambda: not any(c.alive for c in watched), seconds)

    def stop(self) -> None:
        """Send all {"stop"}, and wait up to `STOP_SECONDS_MAX`."""
        for child in self.children:
            if child.alive:
                child.send(stop=True)
        self.wait(seconds=STOP_SECONDS_MAX)

    def until(self, satisfied: Callable[[], bool], seconds: float | None = None) -> bool:
        """Handle the workers' messages until `satisfied()`, or until time is up; returns which."""
        tick_due = time.monotonic()
        patience = None if seconds is None else Patience(seconds)
        while not satisfied():
            now = time.monotonic()
            self._pardon_own_pause(now)
            if patience and patience.is_over():
                return False
            if now >= tick_due:
                tick_due = now + 0.25
                self._kill_silent(now)
                self._on_tick(self.children)
            try:
                self._handle(*self._events.get(timeout=LOOK_SECONDS))
                for _ in range(self._events.qsize()):  # a worker whose message waits is not silent
                    self._handle(*self._events.get())
            except queue.Empty:
                continue
        self._on_tick(self.children)
        return True

    def _pardon_own_pause(self, now: float) -> None:
        """Charge no worker with a long time in which this process did not look for messages."""
        pardoned, self._looked_seconds = now - self._looked_seconds - LOOK_SECONDS_MAX, now
        if pardoned > 0:
            for child in self.children:
                child.message_seconds = min(now, child.message_seconds + pardoned)

    def _handle(self, child: Child, message: dict[str, Any]) -> None:
        child.message_seconds = time.monotonic()
        match message["event"]:
            case "ready":
                child.state = "ready"
                child.metrics_address = message["metrics_address"]
                self._write_targets()
            case "progress":
                child.counts, child.gauges = message["counts"], message["gauges"]
            case "making":
                child.makes_tier = True
            case "signal":
                child.expects(message["number"])
            case "outside":
                child.outside = message["text"]
            case "failed":
                child.failure = message["text"]
            case "done":
                child.counts = message["counts"]
            case "end":
                child.reap()
                child.state = "done" if child.exit_code == 0 else "dead"
                self._write_targets()
                if child.state == "dead" and not child.failure:  # `await_ready` quotes a tier that refused
                    self.explain(child)
                    if not self._try(lambda: write_post_mortem(child)):
                        self._incomplete.append(child)

    def explain(self, child: Child) -> None:
        """Add the OOM killer to the reason why a process ended from outside, if it ended one."""
        kills = _oom_kills() - self._oom_kills_before
        if kills and child.exit_code == -signal.SIGKILL and (outside := child.ended_from_outside()):
            processes = "1 process" if kills == 1 else f"{kills} processes"
            child.outside = f"{outside}; the kernel's OOM killer has ended {processes} since the run began"
            self._oom_kills_before += kills

    def _write_targets(self) -> None:
        self._try(lambda: write_targets(self.children))

    def _try(self, write: Callable[[], None]) -> bool:
        """Write a file of the run. A failure is recorded, and the run goes on."""
        try:
            write()
        except OSError as error:
            self.troubles.append(in_words(error))
            return False
        return True

    def complete(self) -> None:
        """Write the histories that could not be completed while the disk was full."""
        self._incomplete = [c for c in self._incomplete if not self._try(lambda c=c: write_post_mortem(c))]  # type: ignore[misc]

    def _kill_silent(self, now: float) -> None:
        for child in self.children:
            silence = now - child.message_seconds
            if child.state == "running" and silence > SILENCE_SECONDS_MAX:
                if child.was_stopped_by_others():
                    child.outside = "it was stopped by a signal that neither the tier nor the harness sent"
                child.signal(signal.SIGABRT)  # faulthandler prints every thread's stack: its last output
                if silence > SILENCE_SECONDS_MAX + 5:
                    child.kill()


def write_targets(children: Sequence[Child]) -> None:
    """file_sd.json of the run folder: the processes that serve /metrics, for Prometheus's `file_sd_configs`."""
    run_dir = Path(children[0].instruction.setup.run_dir)
    served = [
        {"targets": [child.metrics_address], "labels": {"instance": f"process-{child.label}", "run": run_dir.name}}
        for child in children
        if child.metrics_address and child.alive and child.is_here
    ]
    fresh = run_dir / ".file_sd.json"
    fresh.write_text(json.dumps(served, indent=1) + "\n", encoding="utf-8")
    fresh.replace(run_dir / "file_sd.json")  # a reader never sees half of it


def write_post_mortem(child: Child) -> None:
    """Complete the history of a process that could not: its jobs without a result as "info", and a Stop record."""
    path = child.instruction.history_path
    finished: set[int] = set()
    submitted: dict[int, Note] = {}
    stopped = False
    for record in read_records(path) if path.exists() else ():
        match record:
            case Job():
                finished.add(record.job_id)
            case Note() if record.is_a(notes.Submitted):
                submitted[record.detail["job_id"]] = record
            case Stop():
                stopped = True
    now = time.monotonic()
    after = path.with_name(f"history-{child.label}-after.jsonl")
    after.unlink(missing_ok=True)  # half of one that did not fit
    with closing(HistoryWriter(after)) as writer:
        for job_id in submitted.keys() - finished:
            at, detail = submitted[job_id].monotonic_seconds, submitted[job_id].detail
            what = (child.process, job_id, detail["request"], detail["direction"], detail["blocks"])
            writer.write(Job(*what, at, at, now, time.time(), "info", [], [], 0, [], 0))
        if not stopped:
            code = child.exit_code
            assert code is not None
            writer.write(
                Stop(child.process, child.instruction.incarnation, now, code, 0, 0, [], child.ended_from_outside())
            )
