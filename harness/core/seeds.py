"""One integer reproduces a run: every random choice of the harness draws from a stream named here.

Streams are `random.Random`, whose core sequence is the same on every Python, and independent of each other by name: a
new draw in one place never moves the draws in another. Nothing here is used for names of files.
"""

from __future__ import annotations

import hashlib
import os
import random

SEED_MAX = 2**32 - 1


def fresh_seed() -> int:
    """A seed from the kernel's entropy, small enough to be typed; print it with every result."""
    return int.from_bytes(os.urandom(4), "little")


def stream(seed: int, *names: str | int) -> random.Random:
    """The stream called `names` of `seed`, from its beginning: `stream(7, "traffic", 3)`."""
    return random.Random(hashlib.sha256(repr((int(seed), *names)).encode()).digest())
