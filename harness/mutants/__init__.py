"""Tiers that are wrong on purpose: what the checkers are tested with. A checker that passes one is too weak.

`registry` knows them all, `trial` tries them, `commands` are `python -m harness mutants` and `false-alarms`. No checker
and no scenario knows any of them.
"""
