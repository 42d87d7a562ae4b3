"""Faults below a tier, injected on demand by scenarios and tests. No tier is named here.

`FAULTS` lists all of them with a tier's guarantees. A fault that this machine cannot inject raises `FaultUnavailable`;
a caller skips it with that text.
"""

from harness.faults.damage import DAMAGES, Damage, HostileConfig, hostile_configs, mangle, stale_temps
from harness.faults.mounts import FaultFs, SmallDisk, is_mounted, read_only, small_disk
from harness.faults.processes import (
    PUBLISH_STEPS,
    Injection,
    PublishStep,
    SteppedClock,
    fd_limit,
    file_size_limit,
    strace_inject,
)
from harness.faults.rules import FaultUnavailable, Rule
from harness.faults.table import FAULTS, GUARANTEES, Fault, describe_faults

__all__ = [
    "DAMAGES",
    "FAULTS",
    "GUARANTEES",
    "PUBLISH_STEPS",
    "Damage",
    "Fault",
    "FaultFs",
    "FaultUnavailable",
    "HostileConfig",
    "Injection",
    "PublishStep",
    "Rule",
    "SmallDisk",
    "SteppedClock",
    "describe_faults",
    "fd_limit",
    "file_size_limit",
    "hostile_configs",
    "is_mounted",
    "mangle",
    "read_only",
    "small_disk",
    "stale_temps",
    "strace_inject",
]
