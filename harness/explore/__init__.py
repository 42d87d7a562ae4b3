"""Every interleaving of the system calls of a few real processes on one root. docs/interleavings.md explains it.

`harness.explore.model` has the types, `harness.explore.engine` the functions:
`explore(program, *, kills=0, preemptions_max=None, reduction=True, limit_seconds=60.0, limit_schedules=None, jobs=None)
-> Exploration`, `replay(program, schedule) -> Outcome`, `minimise(program, violation, limit_seconds=10.0) -> Violation`
and `unavailable() -> str | None`, the reason why system calls cannot be stopped here.
"""
