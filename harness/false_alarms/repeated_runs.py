"""A series of control runs: which runs, in which order, from one seed, and a log that a later call resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness.adapters import adapter_class
from harness.core.inputs import DamagedFile, read_file
from harness.core.seeds import SEED_MAX, stream
from harness.false_alarms.correct_tiers import CONTROLS
from harness.mutants.base import Mutant
from harness.scenarios import scenario, scenarios

LOG_BYTES_MAX = 1 << 30
OUTCOMES = ("pass", "fail", "inconclusive")


class Cell(NamedTuple):
    """One run of the series. `tier` is a name in `CONTROLS`, or a mutant's."""

    condition: str
    tier: str
    scenario: str
    repetition: int

    def seed(self, series: int) -> int:
        return stream(series, "false-alarms", *self).randint(0, SEED_MAX)


@dataclass(frozen=True)
class Row:
    """What came of a run: a line of the log. `outcome` is "pass", "fail", "inconclusive", or "not run" with the reason.

    A mutant passes if its checker found it right; it fails whatever the finding was about.
    """

    condition: str
    tier: str
    scenario: str
    repetition: int
    seed: int
    outcome: str
    why: str = ""  # the first finding or doubt, or the reason
    rules: list[str] = field(default_factory=list)  # that findings name
    findings: list[dict[str, Any]] = field(default_factory=list)
    is_mutant: bool = False
    seconds: float = 0.0
    load: float = 0.0  # runnable threads of the machine in the minute before, per core
    command: str = ""
    folder: str = ""  # of a run that did not pass
    commit: str = ""  # of the harness, if it is a checkout
    explained: str = ""  # written into the log by hand: what a failure or an inconclusive run was due to

    @property
    def cell(self) -> Cell:
        return Cell(self.condition, self.tier, self.scenario, self.repetition)


class Log:
    """The rows of one or more series, one JSON line each after a head with the seed of their series. Logs may be put
    one behind the other. Appended to while the last series goes on."""

    def __init__(self, path: Path | None, seed: int) -> None:
        """An existing log is continued, with the seed of its last series. Raises `DamagedFile` and OSError."""
        self._series: list[tuple[int, list[Row]]] = [(seed, [])]
        self._path = path
        if path is not None and path.exists():
            self._series = read_log(path)
            self._cut_torn_line(path)
        elif path is not None:
            self._append({"series": seed})

    @staticmethod
    def _cut_torn_line(path: Path) -> None:
        """A row behind the torn line would make that line damage."""
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(seed for seed, _ in self._series))

    @property
    def seed(self) -> int:
        """Of the series that goes on."""
        return self._series[-1][0]

    @property
    def rows(self) -> list[Row]:
        """Of all series."""
        return [row for _, rows in self._series for row in rows]

    def done(self) -> set[Cell]:
        """Runs that the series has."""
        return {row.cell for seed, rows in self._series for row in rows if seed == self.seed}

    def add(self, row: Row) -> None:
        self._series[-1][1].append(row)
        self._append(asdict(row))

    def _append(self, value: Mapping[str, Any]) -> None:
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(value, separators=(",", ":")) + "\n")


def read_log(path: Path) -> list[tuple[int, list[Row]]]:
    """Seed and rows of each series. A torn last line is left out; any other bad line raises `DamagedFile`."""
    lines = read_file(path, LOG_BYTES_MAX).decode("utf-8", "replace").split("\n")
    try:
        series: list[tuple[int, list[Row]]] = [(int(json.loads(lines[0])["series"]), [])]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{str(path)!r} is no log of false-alarms: its first line names no series") from error
    for number, line in enumerate(lines[1:], 2):
        try:
            values = json.loads(line) if line else {}
            if "series" in values:
                series.append((int(values["series"]), []))
            elif values:
                series[-1][1].append(Row(**values))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise DamagedFile(f"{str(path)!r} is damaged: line {number}: {error}") from error
    return series


def plan(
    seed: int, conditions: Sequence[str], tiers: Sequence[str], names: Sequence[str], mutants: Sequence[Mutant] = ()
) -> Iterator[Cell]:
    """All runs, again and again: each repetition has every combination once, in an order of its own."""
    if mutants:
        pairs = [(mutant.name, mutant.scenario) for mutant in mutants if mutant.scenario in names]
    else:
        pairs = [(tier, name) for tier in tiers for name in names if not lacks(tier, name)]
    repetition = 0
    while pairs and conditions:
        cells = [
            Cell(condition, tier, name, repetition)
            for condition in conditions
            for tier, name in pairs
            if mutants or condition not in CONTROLS[tier].unfit
        ]
        stream(seed, "order", repetition).shuffle(cells)
        yield from cells
        repetition += 1


def lacks(tier: str, name: str) -> str:
    """Why a control tier is not run in a scenario; "": it is."""
    control, chosen = CONTROLS[tier], scenario(name)
    if control.scenarios and name not in control.scenarios:
        return "the tier does not keep its guarantees there"
    return chosen.lacks(adapter_class(control.tier))


def names_of_scenarios() -> list[str]:
    """Those that need no more than a tier and a folder."""
    return [item.name for item in scenarios() if not item.apart]
