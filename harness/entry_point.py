"""The entry point of `kvtier-harness`. What both commands share, such as exit codes, is in `kvtier/exit_codes.py`."""

from __future__ import annotations

import importlib.util

from kvtier import __version__ as VERSION
from kvtier.exit_codes import PACKAGES, EntryPoint, ExitCode, Terminated, errno_text, missing_extra, naming, pip_install

__all__ = [
    "HARNESS",
    "VERSION",
    "ExitCode",
    "Terminated",
    "check_packages",
    "errno_text",
    "missing_extra",
    "naming",
    "pip_install",
]

HARNESS = EntryPoint("kvtier-harness", "harness.cli", "harness")


def check_packages() -> None:
    """Raises ModuleNotFoundError for a missing package of the harness's extra; imports none. Reports import theirs only
    when a run is over, which is too late to say that one is missing."""
    for name in sorted(PACKAGES[HARNESS.extra]):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
