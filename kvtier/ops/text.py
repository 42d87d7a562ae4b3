"""Bytes, ages and paths as text for people, in what the command `kvtier` prints."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def age_text(seconds: float) -> str:
    """Seconds for people."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def path_text(path: str) -> str:
    """A path; quoted and escaped when it holds control characters, which a terminal would interpret."""
    return path if path.isprintable() else repr(path)
