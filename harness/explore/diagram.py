"""A schedule as people read it: one column for each process, one row for each call with its result."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness.explore.model import Call

COLUMN_CHARACTERS = 44
_LONG = re.compile(r"[0-9a-f]{12,}")


class Row(NamedTuple):
    """One step: the actor, its call, and how that ended."""

    actor: int
    call: str
    result: str


def rows(trace: Sequence[Call], files: Mapping[str, str]) -> list[Row]:
    """The steps of a trace, with short names: `files` has the path of each block's file below the root."""
    return [Row(call.actor, shorten(call.text or call.name, files), shorten(call.result, files)) for call in trace]


def shorten(text: str, files: Mapping[str, str]) -> str:
    """A call's text in which a block's file is "A.bin", its folder "A/", and a long random number cut."""
    for block, path in files.items():
        if path:
            text = text.replace(path, f"{block}.bin")
    folders = {os.path.dirname(path): block for block, path in reversed(list(files.items())) if path.count("/") > 1}
    for folder, block in folders.items():
        text = text.replace(folder, f"folder of {block}")
    return _LONG.sub(lambda found: f"{found[0][:6]}~", text)


def diagram(actors: Sequence[str], trace: Sequence[Sequence[object]], step: int) -> str:
    """The columns as text. The row of `step`, from 0, is marked: there it goes wrong."""
    width = COLUMN_CHARACTERS
    lines = [" " * 6 + "  ".join(f"process {name}"[:width].ljust(width) for name in actors).rstrip()]
    lines.append(" " * 6 + "  ".join("-" * width for _ in actors))
    for number, (actor, call, result) in enumerate(trace):
        cell = textwrap.wrap(f"{call} {result}".rstrip(), width, subsequent_indent="    ", break_long_words=True)
        for index, line in enumerate(cell or [""]):
            mark = ">>" if number == step else "  "
            head = f"{mark}{number + 1:>3} " if index == 0 else f"{mark}    "
            lines.append((head + " " * (int(str(actor)) * (width + 2)) + line).rstrip())
    return "\n".join(lines)
