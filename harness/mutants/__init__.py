"""Mutants: tiers with one known defect each, which the checkers must detect. A checker that passes one is too weak.

`registry` lists them, `trial` runs them; `kvtier-harness mutants` and `false-alarms` call it. No checker and no
scenario knows any of them.
"""
