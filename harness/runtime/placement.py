"""Where a worker process runs: on this machine (`Here`), or wherever another `Placement` puts it.

The supervisor starts its workers through a placement. What it sees of a worker is the same for each: messages, signals,
an exit code. `harness/cluster/` places workers on other nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from harness.core.installation import python_path
from harness.runtime.process import JsonProcess
from harness.runtime.worker import Instruction

OnMessage = Callable[[Any, bool], None]
"""Receives each message of a worker, then one call with `ended` true."""


class WorkerProcess(Protocol):
    """A started worker; see `JsonProcess`."""

    is_here: ClassVar[bool]

    @property
    def pid(self) -> int: ...

    @property
    def exit_code(self) -> int | None: ...

    @property
    def ended_outside(self) -> str: ...

    def send(self, message: Any) -> bool: ...

    def signal(self, number: int) -> None: ...

    def last_output(self) -> str: ...

    def reap(self) -> int: ...


class Placement(Protocol):
    """Starts the workers of a run. `words` stand before the command that makes such a run again; `machines` run as many
    workers each."""

    words: ClassVar[tuple[str, ...]]

    @property
    def machines(self) -> int: ...

    def check(self, root_dir: str | None) -> None:
        """Raises `UsageError` where a run on this root cannot be made; nothing is left behind."""

    def begin(self, run_dir: Path, root_dir: Path) -> None:
        """A run begins: workers may be started until `collect`."""

    def start(
        self, instruction: Instruction, env: Mapping[str, str | None], python: str, on_message: OnMessage
    ) -> WorkerProcess:
        """Start one worker. Raises OSError where the operating system refuses it."""

    def collect(self) -> list[str]:
        """All workers have ended: what they wrote elsewhere comes into the run's folder. Returns what was lost, a
        sentence each."""


class Here:
    """This machine. The workers' monotonic clocks are `ahead_ns` nanoseconds ahead of the kernel's."""

    words: ClassVar[tuple[str, ...]] = ()
    machines = 1

    def __init__(self, ahead_ns: int = 0) -> None:
        self._ahead_ns = ahead_ns

    def check(self, root_dir: str | None) -> None:
        """Any root will do."""

    def begin(self, run_dir: Path, root_dir: Path) -> None:
        """Nothing to prepare."""

    def start(
        self, instruction: Instruction, env: Mapping[str, str | None], python: str, on_message: OnMessage
    ) -> WorkerProcess:
        run_dir = Path(instruction.setup.run_dir)
        modules = ["harness.runtime.worker"]
        if self._ahead_ns:
            modules = ["harness.hosts.clock", str(self._ahead_ns), *modules]
        process = JsonProcess(
            python,
            *modules,
            path=python_path(python, run_dir),
            environment=env,
            stderr=run_dir / instruction.stderr_name,
            on_message=on_message,
        )
        process.send(dataclasses.asdict(instruction))
        return process

    def collect(self) -> list[str]:
        return []
