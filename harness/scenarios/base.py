"""What a scenario is, what it is given, and how its options are declared; scenarios and `run` build on it.

It starts no process by itself and judges nothing.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.adapters import OptionRefused, adapter_class, check_options
from harness.adapters.base import Adapter, TierSetup
from harness.core.history import HistoryWriter, Note, note_of
from harness.core.inputs import UsageError as UsageError
from harness.core.limits import Machine, Needs, shortage
from harness.core.notes import About
from harness.runtime.supervisor import Child, Workers
from harness.runtime.worker import Instruction
from harness.scenarios.common_options import CommonOptions as CommonOptions
from harness.scenarios.option_declaration import option as option


def tier_setup(options: CommonOptions, root_dir: str, run_dir: str) -> TierSetup:
    """What the options say to the tier of any process."""
    return TierSetup(
        root_dir=root_dir,
        block_bytes=options.block_bytes,
        slots=options.slots,
        n_read_threads=options.read_threads,
        n_write_threads=options.write_threads,
        tokens_per_block=options.tokens_per_block,
        run_dir=run_dir,
        options=options.tier_options(),
    )


def check_tier(options: CommonOptions) -> None:
    """Raises `UsageError` for options that the tier says it refuses; starts nothing."""
    setup = tier_setup(options, options.root_dir or os.sep, "")
    setup = dataclasses.replace(
        setup,
        # None and 0 stand for what the scenario itself decides.
        n_read_threads=options.read_threads or CommonOptions.read_threads,
        n_write_threads=options.write_threads or CommonOptions.write_threads,
        slots=options.slots or CommonOptions.slots,
        max_bytes=getattr(options, "max_bytes", 0),
    )
    try:
        check_options(options.tier, setup)
    except OptionRefused as error:
        given = " ".join(f"--tier-option {text}" for text in options.tier_option)
        raise UsageError(f"tier {options.tier!r} refuses {given or 'its options'}: {error}") from error


def common_needs(options: CommonOptions, prepared: Any = None, root_blocks: int = 0, **changes: Any) -> Needs:
    """What every scenario needs at least; `changes` are fields of `Needs` that a scenario knows better. `root_blocks`
    count only where the tier keeps a file per block and has no options, which may bound what it keeps."""
    tier = adapter_class(options.tier)
    threads = 0 if tier.runs_in_submit else (options.read_threads or 0) + (options.write_threads or 0)
    kept = root_blocks if tier.exposes_files and not options.tier_option else 0
    needs = Needs(options.processes, threads, options.slots, options.block_bytes, kept)
    return dataclasses.replace(needs, **changes)


def check_machine(
    chosen: Scenario, options: CommonOptions, runs_dir: Path, prepared: Any = None, machines: int = 1
) -> None:
    """Raises `UsageError` where this machine, one of `machines` with as many processes each, has less than the scenario
    needs at least; starts nothing. Without `prepared` only what the options alone say is checked, which takes no
    time."""
    machine = Machine.here(Path(options.root_dir or runs_dir), runs_dir)
    needs = chosen.needs(options, prepared)
    needs = dataclasses.replace(needs, processes=-(-needs.processes // machines))
    if lacking := shortage(needs, machine):
        raise UsageError(f"{chosen.name}: {lacking}")


@dataclass
class Context:
    """What `Scenario.run` is given: its options, the run's folder, the shared root, and the workers to start.

    `options.seed` is an integer by now. Whatever the scenario does that a checker or reader must know goes through
    `note`. The folder and the workers are cleaned up by the caller.
    """

    options: Any  # the scenario's own options class
    run_dir: Path
    root_dir: Path
    workers: Workers
    python: str  # the interpreter of the tier's workers
    sees_mounts: bool = True  # whether workers see what is mounted here while they run
    _notes: HistoryWriter | None = None

    def setup(self, process: int, **changes: Any) -> TierSetup:
        """The tier's setup for a process, from the options, with changed fields if any."""
        setup = tier_setup(self.options, str(self.root_dir), str(self.run_dir))
        return dataclasses.replace(setup, process=process, **changes)

    def start(
        self,
        process: int,
        driver: str = "replay",
        arguments: Mapping[str, Any] | None = None,
        env: Mapping[str, str | None] | None = None,
        **changes: Any,
    ) -> Child:
        """Start a worker for `process`: a driver with its keywords, an environment, and changes to its setup."""
        tier = self.options.tier
        instruction = Instruction(tier, self.setup(process, **changes), dict(arguments or {}), driver)
        return self.workers.start(instruction, env, self.python)

    def note(self, monotonic_seconds: float, about: About, text: str = "") -> None:
        """Record what the scenario itself did: a phase, a fault, its end. Process -1 is the harness."""
        if self._notes is None:
            self._notes = HistoryWriter(self.run_dir / "history-harness.jsonl")
        self._notes.write(note_of(-1, monotonic_seconds, about, text))
        self._notes.flush()

    def close(self, notes: Iterable[Note] = ()) -> None:
        """Write the last notes, and all that could not be written until now."""
        if self._notes is None and notes:
            self._notes = HistoryWriter(self.run_dir / "history-harness.jsonl")
        if self._notes is not None:
            with closing(self._notes):
                self._notes.write(*notes)


@dataclass(frozen=True)
class Scenario:
    """One scenario: its name, options class, what drives it, and the checkers that judge its history.

    `text` is its module's docstring: a sentence, then paragraphs on what is done, what it shows and what it does not.
    Fewer than `seconds_min` of traffic give no verdict. `short` are options of a run that takes seconds: mutants and
    false alarms use them. `tiers` are correct tiers that such a run must pass. `on_hosts` are options of a run on two
    hosts that share a volume; None: it does not run there. `on_nodes`: it runs over several nodes. `apart` says how a
    scenario is run that needs more than a tier and a folder: `conform` leaves it out. `lacks` says why a tier cannot be
    judged by it; "": it can.
    """

    name: str
    text: str
    options: type[CommonOptions]
    checkers: tuple[str, ...]
    prepare: Callable[[Any], Any]  # options -> what `run` needs; raises UsageError; touches nothing
    run: Callable[[Context, Any], None]
    needs: Callable[[Any, Any], Needs] = common_needs  # options, what `prepare` returned or None -> lower bounds
    seconds_min: float = 0.0
    short: Mapping[str, Any] = field(default_factory=dict)
    tiers: tuple[str, ...] = ("kvtier", "reference")
    on_hosts: Mapping[str, Any] | None = None
    on_nodes: bool = False
    apart: str = ""
    lacks: Callable[[type[Adapter]], str] = lambda tier: ""

    @property
    def title(self) -> str:
        """The first sentence; lists of scenarios print it."""
        return " ".join(self.text.split("\n\n", 1)[0].split())

    @property
    def proves(self) -> str:
        """The paragraphs after it; help texts and the report print them."""
        return self.text.partition("\n\n")[2].strip()  # no text under python -OO


def check_root(root_dir: str) -> None:
    """Raises `UsageError` when `root_dir` is not a directory in which this process can make folders."""
    path = Path(root_dir)
    if not path.exists():
        raise UsageError(f"--root-dir is {root_dir!r}, which does not exist; make it first, the harness makes no roots")
    if not path.is_dir():
        raise UsageError(f"--root-dir is {root_dir!r}, which is not a directory")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".harness-", dir=path))
    except OSError as error:
        raise UsageError(f"--root-dir is {root_dir!r}, where no folder can be made: {error.strerror}") from error
