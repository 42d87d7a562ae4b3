"""What a mutant declares: which scenario meets it, which checker must detect it, and in what words.

The modules of `harness.mutants` use it; it knows no tier and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from harness.adapters.base import Adapter

AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])


class Mutant(NamedTuple):
    """A tier that is wrong on purpose. `finding` is a regular expression that one finding of `checker` must match: a
    detection for another reason would be luck."""

    name: str
    tier: str  # module:Class
    defect: str  # the first sentence of the class's docstring
    scenario: str
    checker: str
    finding: str
    options: Mapping[str, Any]  # of the scenario, over those that every short run has


MUTANTS: dict[str, Mutant] = {}
"""Filled by the modules of this package as they are imported; `harness.mutants` imports them all."""


def detected_by(
    checker: str, finding: str, scenario: str = "load", **options: Any
) -> Callable[[AdapterClass], AdapterClass]:
    """Enter the decorated tier into `MUTANTS`."""
    re.compile(finding)

    def enter(mutant: AdapterClass) -> AdapterClass:
        name = mutant.__name__
        assert name not in MUTANTS, f"two mutants are called {name}"
        assert mutant.__doc__, f"{name} does not say what its defect is"
        defect = " ".join((mutant.__doc__ or "").split("\n\n")[0].split())
        MUTANTS[name] = Mutant(name, f"{mutant.__module__}:{name}", defect, scenario, checker, finding, options)
        return mutant

    return enter
