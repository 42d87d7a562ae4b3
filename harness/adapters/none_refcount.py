"""Counts references to None that compiled code of a tier releases without owning them."""

from __future__ import annotations

import sys


class NoneReferences:
    """References to None lost since construction.

    Before Python 3.12 the loss of the last one aborts the interpreter. Later None is immortal, and `lost` stays 0.
    """

    def __init__(self) -> None:
        self._before = sys.getrefcount(None)

    def lost(self) -> float:
        return float(self._before - sys.getrefcount(None))
