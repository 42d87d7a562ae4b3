"""Traffic for two processes whose verdict is certain, for tests that need one."""

from __future__ import annotations

import json
from pathlib import Path

REQUESTS = 40
_HALF_MS = 400


def write_certain_trace(path: Path) -> None:
    """Each process stores ten blocks; later it asks for five of the other's, beside five new ones: hits that only the
    other can have made possible, and loads and stores that meet."""
    half = REQUESTS // 2
    first = [(0, i) for i in range(half)]
    second = [(_HALF_MS, half + i if i & 2 else i ^ 1) for i in range(half)]
    lines = [
        {"timestamp": at_ms, "input_length": 1, "output_length": 1, "hash_ids": [block]}
        for at_ms, block in first + second
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
