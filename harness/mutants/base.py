"""What a mutant declares: its defect, its scenario, the rule that must detect it, and the expected finding.

It knows no tier and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from harness.adapters.base import Adapter
from harness.core.findings import Finding

AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])


class Mutant(NamedTuple):
    """A tier with one known defect. `finding` is a regular expression; a finding of `checker`, against `rule` where one
    is named, must match it, so that a detection for another reason does not count."""

    name: str
    tier: str  # module:Class
    defect: str  # the first sentence of the class's docstring
    scenario: str
    checker: str
    finding: str
    options: Mapping[str, Any]  # of the scenario, over those that every short run has
    rule: str = ""

    def explains(self, finding: str) -> bool:
        """Whether this finding is about the defect."""
        about = finding.rule if isinstance(finding, Finding) else ""
        return (not self.rule or about == self.rule) and bool(re.search(self.finding, finding))


MUTANTS: dict[str, Mutant] = {}
"""The modules of this package enter their mutants at import; `registry` imports all modules."""


def detected_by(
    rule: str, finding: str, scenario: str = "load", **options: Any
) -> Callable[[AdapterClass], AdapterClass]:
    """A decorator that enters a tier into `MUTANTS`. `rule` is the id of the rule that the defect breaks, or only the
    name of its checker."""
    re.compile(finding)
    checker, slash, _ = rule.partition("/")

    def enter(mutant: AdapterClass) -> AdapterClass:
        name = mutant.__name__
        assert name not in MUTANTS, f"two mutants have the name {name}"
        assert mutant.__doc__, f"{name} has no docstring; it must state the defect"
        defect = " ".join((mutant.__doc__ or "").split("\n\n")[0].split())
        MUTANTS[name] = Mutant(
            name, f"{mutant.__module__}:{name}", defect, scenario, checker, finding, options, rule if slash else ""
        )
        return mutant

    return enter


def breaks(promise: str, finding: str) -> Callable[[AdapterClass], AdapterClass]:
    """`detected_by` for a defect that breaks one promise of the contract."""
    rule = f"contract/{promise.replace('_', '-')}"
    return detected_by(rule, rf"^{promise}: .*({finding})", "contract", promise=(promise,), block_bytes=4096)
