"""The options that every scenario has. A scenario's own options class derives from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from harness.core.inputs import SECONDS_MAX, UsageError
from harness.core.seeds import SEED_MAX
from harness.scenarios.option_declaration import declarations, option

PAGE_BYTES = 4096
BLOCK_BYTES_MAX = 1 << 30
PROCESSES_MAX = 4096
THREADS_MAX = 1024
SLOTS_MAX = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every scenario takes. Sizes in bytes, times in seconds."""

    tier: str = option("kvtier", "the tier to judge: a name from `list`, or module:Class")
    root_dir: str | None = option(
        None, "folder to share; a fresh folder inside it is used and removed (default: the run's)", is_path=True
    )
    processes: int = option(4, "worker processes, each an interpreter of its own", low=1, high=PROCESSES_MAX)
    seconds: float = option(
        30.0, "how long traffic is started for; 0: to the end of the traffic", low=0, high=SECONDS_MAX
    )
    seed: int | None = option(
        None, "the integer that every random choice derives from (default: a fresh one, printed)", low=0, high=SEED_MAX
    )
    block_bytes: int = option(
        256 << 10, "size of a block", low=PAGE_BYTES, high=BLOCK_BYTES_MAX, multiple_of=PAGE_BYTES
    )
    read_threads: int = option(4, "read-priority threads of each process", low=1, high=THREADS_MAX)
    write_threads: int = option(4, "write-priority threads of each process", low=1, high=THREADS_MAX)
    slots: int = option(256, "blocks that a process holds in memory at once", low=2, high=SLOTS_MAX)
    tokens_per_block: int = option(16, "tokens of a block, as the tier hashes them", low=1, high=1 << 16)
    tier_option: tuple[str, ...] = option((), "NAME=VALUE for the tier itself, VALUE as JSON or text; may be repeated")
    keep: bool = option(False, "keep the blocks when the run is over")

    def tier_options(self) -> dict[str, Any]:
        """`tier_option` as keywords."""
        options: dict[str, Any] = {}
        for text in self.tier_option:
            name, equals, value = text.partition("=")
            if not (name and equals):
                raise UsageError(f"--tier-option is {text!r}; it takes NAME=VALUE")
            if name in options:
                raise UsageError(f"--tier-option {name} is given twice; give it once")
            try:
                options[name] = json.loads(value)
            except (ValueError, RecursionError):
                options[name] = value
        return options

    def __post_init__(self) -> None:
        for declared in declarations(type(self)):
            value = declared.check(declared.typed, getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)
        self.tier_options()
