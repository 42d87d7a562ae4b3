"""All mutants by name, and the correct tiers that they derive from."""

from __future__ import annotations

from harness.mutants import (
    block_files,
    block_names,
    blocking_calls,
    capacity,
    contract_instances,
    contract_jobs,
    contract_keys,
    crash_states,
    endpoint,
    faults_and_ends,
    file_races,
    growth,
    held_back,
    lookups,
    protocols,
    schedule,
    strange_files,
    wrong_results,
)
from harness.mutants.base import MUTANTS as ENTERED
from harness.mutants.base import Mutant

__all__ = ["BASES", "MUTANTS", "Mutant"]

_MODULES = (
    *(
        blocking_calls,
        capacity,
        contract_jobs,
        contract_keys,
        contract_instances,
        block_files,
        held_back,
        faults_and_ends,
        wrong_results,
        lookups,
        protocols,
        file_races,
    ),
    *(schedule, block_names, crash_states, strange_files, growth, endpoint),
)
MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for module in _MODULES
    for mutant in ENTERED.values()
    if mutant.tier.startswith(f"{module.__name__}:")
}
"""In the order of the modules, whichever was imported first."""
for _module in _MODULES:
    assert any(m.tier.startswith(_module.__name__ + ":") for m in MUTANTS.values()), f"{_module} has no mutant"

BASES = (
    "reference",
    "kvtier",
    "harness.mutants.block_files:PlainFiles",
    "harness.mutants.schedule:SameQueue",
    "harness.mutants.lookups:SameCpuTier",
    "harness.mutants.protocols:SoundProtocol",
)
"""Correct tiers that the mutants derive from: the control runs. They must pass the same short runs."""
