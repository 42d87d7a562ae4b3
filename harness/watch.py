"""`kvtier-harness watch ROOT_DIR`: judges a root that live engines use, from outside, without disturbing them.

It reads names, sizes and times, the trailers of new blocks, and a few of the new blocks whole; it opens nothing for
writing, moves nothing, and takes no lock. What files cannot tell (hits) it asks the engines' /metrics, where given.
"""

from __future__ import annotations

import mmap
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

from kvtier import BlockFile, BlockIO, Folder, FsTierConfig, folders, read_trailer
from kvtier import KvtierError as RootUnreadable

__all__ = ["RootUnreadable", "Round", "Watch"]

NEW_VERIFIED_MAX = 64  # of the new blocks of a round, so many are read whole
NEW_TRAILERS_MAX = 1000
STALE_TEMP_SECONDS = 600.0
FOREIGN_HITS = "kvtier_foreign_block_hits_total"


@dataclass
class Round:
    """What one look at the root saw. Rates are over the time since the look before."""

    seconds: float = 0.0
    blocks: int = 0
    bytes: int = 0
    new_blocks: int = 0
    gone_blocks: int = 0
    verified: int = 0
    writers: set[str] = field(default_factory=set)  # instances that wrote the new blocks
    foreign_hits: float | None = None  # cross-process hits since the engines began; None without metrics
    findings: list[str] = field(default_factory=list)


class Watch:
    """Looks at a root again and again; each look is compared with the one before."""

    def __init__(self, root_dir: str, metrics: tuple[str, ...] = ()) -> None:
        self.root_dir = root_dir
        self.metrics = metrics
        self._seen: dict[str, int] | None = None  # path -> bytes
        self._looked_seconds = 0.0

    def look(self) -> Round:
        """One round. Raises RootUnreadable when the root cannot be read at all."""
        now = time.monotonic()
        result = Round(seconds=now - self._looked_seconds if self._looked_seconds else 0.0)
        present: dict[str, int] = {}
        for folder in folders(self.root_dir):
            blocks = {block.path: block for block in folder.blocks()}
            present.update({path: block.bytes for path, block in blocks.items()})
            fresh = [block for path, block in blocks.items() if self._seen is None or path not in self._seen]
            self._judge(folder, fresh, result)
        seen = self._seen if self._seen is not None else present
        result.blocks, result.bytes = len(present), sum(present.values())
        result.new_blocks, result.gone_blocks = len(present.keys() - seen.keys()), len(seen.keys() - present.keys())
        self._seen, self._looked_seconds = present, now
        if self.metrics:
            result.foreign_hits = sum(_foreign_hits(address, result.findings) for address in self.metrics)
        return result

    def _judge(self, folder: Folder, fresh: list[BlockFile], result: Round) -> None:
        name = folder.mapper.run.model_name
        seeds: Counter[str] = Counter()
        for block in fresh[:NEW_TRAILERS_MAX]:
            if (trailer := read_trailer(block.path)) is not None:
                result.writers.add(trailer.instance_id.hex())
                seeds[trailer.seed.hex()[:8]] += 1
        if len(seeds) > 1:
            counts = ", ".join(f"{seed}: {count}" for seed, count in seeds.most_common())
            result.findings.append(f"{name}: writers with different seeds, which share nothing ({counts} new blocks)")
        if size := folder.block_bytes:
            blockio = BlockIO(FsTierConfig(folder.mapper.root_dir, size), folder.mapper.quarantine_path)
            view = memoryview(mmap.mmap(-1, size))
            for block in fresh[:NEW_VERIFIED_MAX]:
                outcome = blockio.examine(block.path, block.key, view)
                result.verified += outcome.ok
                if not outcome.ok and outcome.reason != "ENOENT":  # gone meanwhile: evicted
                    result.findings.append(f"{name}: {outcome.reason}: {block.path}")
        stale = [path for path, status in folder.temps() if time.time() - status.st_mtime > STALE_TEMP_SECONDS]
        if stale:
            result.findings.append(
                f"{name}: {len(stale)} temp files older than {STALE_TEMP_SECONDS:g} s, as {stale[0]}"
            )
        if aside := folder.quarantined():
            result.findings.append(f"{name}: {len(aside)} files were set aside, the last as {aside[-1]}")


def _foreign_hits(address: str, findings: list[str]) -> float:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError as error:
        findings.append(f"no metrics at {address}: {error}")
        return 0.0
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(sample.value for sample in samples if sample.name == FOREIGN_HITS)
