"""Which blocks are evicted: how many bytes of each folder, and its least recently used blocks first. Recency is the
file's mtime, which a load renews only when it has grown old, so it survives restarts and costs no call per hit.
"""

from __future__ import annotations

import bisect
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kvtier.events import FileEvictionReason
from kvtier.ops.catalog import BlockFile
from kvtier.ops.pacing import DutyCycle
from kvtier.ops.sampling import FolderSample


class FolderExcess(NamedTuple):
    """About `bytes` of a folder have to go, of blocks last used up to `cutoff_seconds` (since the epoch)."""

    sample: FolderSample
    bytes: float
    cutoff_seconds: float


class Plan(NamedTuple):
    """What one pass would evict, and which limit requires it."""

    reason: FileEvictionReason
    folders: list[FolderExcess]


def excess_by_folder(samples: Sequence[FolderSample], excess: float, shares: Mapping[str, float]) -> list[FolderExcess]:
    """Folders above an equal share of the root give first, down to a common level, so that no model can displace the
    others. `shares` (model name -> weight) makes shares unequal."""
    if excess <= 0:
        return []
    weight = {id(s): shares.get(s.folder.mapper.run.model_name, 1.0) for s in samples}
    target = max(0.0, sum(s.bytes for s in samples) - excess)
    keep: dict[int, float] = {}
    total_weight = sum(weight.values())
    for one in sorted(samples, key=lambda s: s.bytes / weight[id(s)]):
        share = target * weight[id(one)] / total_weight
        keep[id(one)] = min(one.bytes, share)  # what the smallest leaves of its share goes to the others
        target -= keep[id(one)]
        total_weight -= weight[id(one)]
    over = [(s, s.bytes - keep[id(s)]) for s in samples if s.bytes > keep[id(s)]]
    return [FolderExcess(s, size, _cutoff(s.blocks, size / s.bytes)) for s, size in over]


def _cutoff(blocks: list[BlockFile], fraction: float) -> float:
    """The time of last use up to which blocks make up `fraction` of the sample's bytes."""
    left = fraction * sum(block.bytes for block in blocks)
    for block in sorted(blocks, key=lambda block: block.used_seconds):
        left -= block.bytes
        if left <= 0:
            return block.used_seconds
    return time.time()


class Victims:
    """Lists blocks in the order of their eviction. Remembers where each folder's list ended, for the next pass."""

    def __init__(self, duty: DutyCycle, chance: random.Random) -> None:
        self._duty = duty
        self._random = chance
        self._position: dict[str, str] = {}  # folder -> the first-level folder that was listed last

    def of(self, excess: FolderExcess) -> Iterator[BlockFile]:
        """First the blocks of the sample, the oldest first. Then all others up to the cutoff, one first-level folder
        after the other, from behind the last one that a pass listed to its end."""
        sample, cutoff = excess.sample, excess.cutoff_seconds
        old = sorted((b for b in sample.blocks if b.used_seconds <= cutoff), key=lambda b: b.used_seconds)
        yield from self._duty.over(old)
        if sample.is_whole:
            return
        folder, prefixes = sample.folder, sample.folder.prefixes()
        last = self._position.setdefault(folder.mapper.blocks_path, self._random.choice(prefixes or [""]))
        start = bisect.bisect(prefixes, last)
        for prefix in prefixes[start:] + prefixes[:start]:
            yield from (block for block in self._duty.over(folder.blocks([prefix])) if block.used_seconds <= cutoff)
            self._duty.pause()
            self._position[folder.mapper.blocks_path] = prefix
