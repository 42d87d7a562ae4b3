"""Whether all nodes mount the same volume: each writes a token below the root, and waits until it sees all others'."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from harness.core.history import in_words

POLL_SECONDS = 0.05


def token_path(root: Path, run: str, rank: int) -> Path:
    """A node's token; a killed run leaves at most this file."""
    return root / f".harness-token-{run}-{rank}"


def write_token(root: Path, run: str, rank: int) -> str:
    """Returns why it cannot be written, "" where it was."""
    if not root.is_dir():
        return "does not exist" if not root.exists() else "is not a directory"
    try:
        with open(token_path(root, run, rank), "x", encoding="utf-8") as file:
            file.write(run)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot be written: {in_words(error)}"
    return ""


def unseen_tokens(root: Path, run: str, ranks: int, seconds: float) -> list[int]:
    """The ranks whose tokens are not seen within `seconds`."""
    waiting, deadline = set(range(ranks)), time.monotonic() + seconds
    while True:
        waiting = {rank for rank in waiting if not _holds(token_path(root, run, rank), run)}
        if not waiting or time.monotonic() >= deadline:
            return sorted(waiting)
        with contextlib.suppress(OSError):
            os.listdir(root)  # a client that remembers that a name is missing looks at the folder anew
        time.sleep(POLL_SECONDS)


def remove_token(root: Path, run: str, rank: int) -> None:
    with contextlib.suppress(OSError):
        token_path(root, run, rank).unlink()


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def where(root: str, here: str, path: str) -> str:
    """A path below `root` as a node names it that mounts the volume at `here`; any other path as it is."""
    return str(Path(here) / Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path
