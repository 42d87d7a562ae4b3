"""The entry point of `kvtier-harness`. What both commands share, exit codes above all, is in `kvtier.entry`."""

from __future__ import annotations

from kvtier import __version__ as VERSION
from kvtier.entry import EntryPoint, ExitCode, Terminated, errno_text, missing_extra, naming, pip_install

__all__ = ["HARNESS", "VERSION", "ExitCode", "Terminated", "errno_text", "missing_extra", "naming", "pip_install"]

HARNESS = EntryPoint("kvtier-harness", "harness.cli", "harness")
