"""`kvtier-harness watch ROOT_DIR`: an audit of a root that live engines use, from outside and read-only.

It reads names, sizes and times, the trailers of new blocks, and a few new blocks whole. It opens nothing for writing,
moves nothing, and takes no lock. Hits, which files do not show, come from the engines' /metrics where given.
Files in quarantine and unpublished temp files count from `window_seconds` before the start; older ones are counted
apart.
"""

from __future__ import annotations

import mmap
import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.core.limits import amount
from kvtier import BlockFile, BlockIO, Folder, FsTierConfig, folders, read_trailer
from kvtier import KvtierError as RootUnreadable

__all__ = ["RootUnreadable", "Round", "Watch"]

NEW_VERIFIED_MAX = 64  # new blocks of a round that are read whole
NEW_TRAILERS_MAX = 1000
STALE_TEMP_SECONDS = 600.0
WINDOW_SECONDS = 3600.0
LISTED_MAX = 20  # files of one kind in one look
_QUARANTINED = re.compile(r".+\.(\w+)\.[0-9a-f]{8}")  # <name of the block's file>.<reason>.<random>
CROSS_PROCESS_HITS = "kvtier_cross_process_hit_blocks_total"


@dataclass
class Round:
    """One look at the root: totals, and what is new since the look before, `seconds` earlier."""

    seconds: float = 0.0
    blocks: int = 0
    bytes: int = 0
    new_blocks: int = 0
    gone_blocks: int = 0
    verified: int = 0
    writers: set[str] = field(default_factory=set)  # instances that wrote new blocks
    cross_process_hits: float | None = None  # since the engines' start; None without metrics
    findings: list[str] = field(default_factory=list)  # each file once, in the first look that finds it
    unreadable: dict[str, str] = field(default_factory=dict)  # path -> why it is not judged
    older: int = 0  # files in quarantine, and temp files, from before the window


class Watch:
    """Repeated looks at a root, each compared with the one before."""

    def __init__(
        self,
        root_dir: str,
        metrics: tuple[str, ...] = (),
        window_seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root_dir = root_dir
        self.metrics = metrics
        self.since_seconds = clock() - window_seconds  # since the epoch; older files are not judged
        self._clock = clock
        self._reported: set[str] = set()
        self._seen: dict[str, int] | None = None  # path -> bytes
        self._looked_seconds = 0.0

    def look(self) -> Round:
        """One round. Raises RootUnreadable if the root cannot be read."""
        now = time.monotonic()
        result = Round(seconds=now - self._looked_seconds if self._looked_seconds else 0.0)
        present: dict[str, int] = {}
        for folder in folders(self.root_dir, result.unreadable):
            blocks = {block.path: block for block in folder.blocks()}
            present.update({path: block.bytes for path, block in blocks.items()})
            fresh = [block for path, block in blocks.items() if self._seen is None or path not in self._seen]
            self._judge(folder, fresh, result)
        seen = self._seen if self._seen is not None else present
        result.blocks, result.bytes = len(present), sum(present.values())
        result.new_blocks, result.gone_blocks = len(present.keys() - seen.keys()), len(seen.keys() - present.keys())
        self._seen, self._looked_seconds = present, now
        if self.metrics:
            result.cross_process_hits = sum(_cross_process_hits(address, result.unreadable) for address in self.metrics)
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
            result.findings.append(
                f"{name}: writers with different seeds share no blocks (new blocks by seed: {counts})"
            )
        if size := folder.block_bytes:
            blockio = BlockIO(FsTierConfig(folder.mapper.root_dir, size), folder.mapper.quarantine_path)
            view = memoryview(mmap.mmap(-1, size))
            for block in fresh[:NEW_VERIFIED_MAX]:
                outcome = blockio.verify_block(block.path, block.key, view)
                result.verified += outcome.ok
                if outcome.ok or outcome.reason == "ENOENT":  # evicted during the look
                    continue
                if (outcome.reason or "").startswith("E"):  # an errno: the host or the permissions, not the block
                    result.unreadable[block.path] = f"cannot be read: {outcome.reason}"
                else:
                    result.findings.append(f"{name}: {outcome.reason}: {block.path}")
        now = self._clock()
        stale = ((path, status, status.st_mtime + STALE_TEMP_SECONDS) for path, status in folder.temps())
        self._report(
            result,
            [(path, at, f"{path}: {amount(status.st_size)}") for path, status, at in stale if at <= now],
            f"{name}: temp file unpublished for {STALE_TEMP_SECONDS:g} s,",
        )
        self._report(
            result,
            [
                (path, status.st_ctime, f"{path}: {_reason(path)}, {amount(status.st_size)}")
                for path, status in folder.quarantined()
            ],
            f"{name}: quarantined",
        )

    def _report(self, result: Round, found: list[tuple[str, float, str]], what: str) -> None:
        """Add findings for paths that no look has reported; each is (path, time of the finding, description)."""
        fresh = [one for one in found if one[0] not in self._reported]
        self._reported.update(path for path, _, _ in fresh)
        judged = [(at, text) for _, at, text in fresh if at >= self.since_seconds]
        result.older += len(fresh) - len(judged)
        for at, text in judged[:LISTED_MAX]:
            result.findings.append(f"{what} {age_text(max(0.0, self._clock() - at))} ago: {text}")
        if (more := len(judged) - LISTED_MAX) > 0:
            result.findings.append(f"{what}: {more} more files")


def _reason(path: str) -> str:
    """The reason in the name of a file in quarantine."""
    match = _QUARANTINED.fullmatch(os.path.basename(path))
    return f"reason {match[1]}" if match else "reason unknown"


def age_text(seconds: float) -> str:
    """A duration for people."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _cross_process_hits(address: str, unreadable: dict[str, str]) -> float:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError as error:
        unreadable[f"http://{address}/metrics"] = f"cannot be read: {error}"
        return 0.0
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(sample.value for sample in samples if sample.name == CROSS_PROCESS_HITS)
