"""Measures the folders of a root from samples. Block hashes are uniform over the 4096 first-level folders: some of them
are a fair sample of all, which makes a measurement of millions of files cheap.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from kvtier.ops.catalog import BlockFile, Folder
from kvtier.ops.pacing import DutyCycle

SAMPLE_BLOCKS = 10_000  # enough to know a folder's size to 1 %


@dataclass
class FolderSample:
    """A folder, estimated from the sampled `blocks`; `is_whole`: they are all that there are."""

    folder: Folder
    bytes: float = 0.0
    files: float = 0.0
    blocks: list[BlockFile] = field(default_factory=list)
    is_whole: bool = True


class Sampler:
    """Takes another sample each time."""

    def __init__(self, duty: DutyCycle, chance: random.Random) -> None:
        self._duty = duty
        self._random = chance

    def sample(self, folder: Folder) -> FolderSample:
        """A folder's bytes and ages: from all of it when it is small, else from some of its first-level folders."""
        prefixes = folder.prefixes()
        self._random.shuffle(prefixes)
        sample, seen = FolderSample(folder), 0
        for prefix in prefixes:
            seen += 1
            sample.blocks += self._duty.over(folder.blocks([prefix]))
            self._duty.pause()
            if len(sample.blocks) >= SAMPLE_BLOCKS or self._duty.stopped:
                break
        scale = len(prefixes) / max(1, seen)
        sample.bytes, sample.files = scale * sum(b.bytes for b in sample.blocks), scale * len(sample.blocks)
        sample.is_whole = seen == len(prefixes)
        return sample
