"""All mutants by name, and the correct tiers that they derive from."""

from __future__ import annotations

from harness.mutants import capacity, files, jobs, lookups, names, schedule
from harness.mutants.base import MUTANTS, Mutant

__all__ = ["BASES", "MUTANTS", "Mutant"]

for _module in (capacity, files, jobs, lookups, names, schedule):
    assert any(m.tier.startswith(_module.__name__ + ":") for m in MUTANTS.values()), f"{_module} has no mutant"

BASES = (
    "reference",
    "kvtier",
    "harness.mutants.files:PlainFiles",
    "harness.mutants.schedule:SameQueue",
    "harness.mutants.lookups:SameCpuTier",
)
"""Correct tiers that the mutants derive from: the control runs. They must pass the same short runs."""
