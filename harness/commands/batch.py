"""Several runs one after the other, for the commands that make more than one: a heading and the verdict of each, the
end at an interrupt, and the worst verdict at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from harness.commands.console import carry_out, say_verdicts
from harness.runner import EXIT_CODES, Results
from harness.runtime.supervisor import Child
from harness.scenarios.base import CommonOptions, Scenario

WORST_FIRST = ("false", "unknown", "true")


def worst(values: Iterable[str]) -> str:
    """The verdict of several: "false" if one is, else "unknown" if one is or there is none, else "true"."""
    found = set(values)
    return next((value for value in WORST_FIRST if value in found), "unknown")


class Batch:
    """The runs that a command makes; `done` holds their results in order."""

    def __init__(self, runs_dir: Path, console: Console, quiet: bool = False, silent: bool = False) -> None:
        """`quiet` shows no progress, `silent` no verdict either."""
        self.done: list[Results] = []
        self._runs_dir, self._console, self._quiet, self._silent = runs_dir, console, quiet or silent, silent

    def run(
        self,
        chosen: Scenario,
        options: CommonOptions,
        heading: str = "",
        on_tick: Callable[[Sequence[Child]], None] = lambda children: None,
    ) -> Results:
        """Make one run. An interrupted run is the last one: the process ends with its exit code."""
        if heading and not self._quiet:
            self._console.rule(heading, align="left", characters="-")
        results = carry_out(
            chosen, options, self._runs_dir, self._console, self._quiet, self._say, also_on_tick=on_tick
        )
        self.done.append(results)
        if results.interrupted:
            sys.exit(results.exit_code)
        return results

    def _say(self, results: Results) -> None:
        if not self._silent:
            say_verdicts(results, self._console)

    @property
    def verdict(self) -> str:
        """The worst verdict of the runs so far."""
        return worst(results.verdict for results in self.done)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]
