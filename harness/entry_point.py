"""The entry point of `kvtier-harness`. What both commands share, such as exit codes, is in `kvtier/exit_codes.py`."""

from __future__ import annotations

from kvtier import __version__ as VERSION
from kvtier.exit_codes import EntryPoint, ExitCode, Terminated, errno_text, missing_extra, naming, pip_install

__all__ = ["HARNESS", "VERSION", "ExitCode", "Terminated", "errno_text", "missing_extra", "naming", "pip_install"]

HARNESS = EntryPoint("kvtier-harness", "harness.cli", "harness")
