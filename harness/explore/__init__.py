"""Every interleaving of the system calls of a few real processes on one root. docs/interleavings.md explains it.

`model` has the types, `search` the functions: `explore` runs all schedules of a program, `replay` runs one, `minimise`
shortens one that fails, and `unavailable` says why system calls cannot be stopped here.
"""
