"""Whether every process derives the same file name for the same tokens, and exactly those names are on disk.

Judged: a block has one name in all processes and restarts; two blocks have two names; all hash seeds are equal; and, if
the files under the root were listed, the block files are those of the blocks reported stored.

- A block file has the suffix of block names. The tier's own files and quarantined files are none; `leftovers` judges
  all others.
- A store that failed, or whose process ended, may have left its file or not.
- A file in quarantine does not count as missing.

Not covered: the content of files (integrity), names of blocks outside the traffic, other platforms and Python versions.

unknown: no block was named by two processes.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

from harness.checkers.base import (
    Findings,
    Lives,
    Rule,
    Value,
    Verdict,
    bookkeeping,
    is_bookkeeping,
    is_quarantined,
    some,
)
from harness.core.history import History

ONE_NAME = Rule("determinism/one-name", "A block has the same name in all processes and incarnations.")
OWN_NAME = Rule("determinism/own-name", "Different blocks, also of different groups of layers, have different names.")
ONE_SEED = Rule("determinism/one-seed", "All processes that share a root chain their keys from the same hash seed.")
ON_DISK = Rule(
    "determinism/on-disk",
    "A block whose store was reported ok has its file, under its name.",
    "files in quarantine; blocks that a tier with memory above the files reports as held there",
)
NO_OTHERS = Rule(
    "determinism/no-other-files",
    "Every block file is that of a block that was stored.",
    "stores that failed, and those of processes that died: their files may be there or not",
)
RULES = (ONE_NAME, OWN_NAME, ONE_SEED, ON_DISK, NO_OTHERS)


def check(history: History) -> Verdict:
    """Judges `names`, `starts`, `jobs` and `files`."""
    findings = Findings(RULES)
    by_block: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    by_name: dict[str, set[int]] = defaultdict(set)
    for name in history.names:
        by_block[name.block][name.name].add(name.process)
        by_name[name.name].add(name.block)
    digests: dict[str, list[int]] = defaultdict(list)
    for start in history.starts:
        digests[start.none_hash_digest].append(start.process)
    if len(digests) > 1:
        texts = [f"{digest} (process {some(sorted(set(p)), 3)})" for digest, p in digests.items()]
        findings.add(f"{len(digests)} different seeds of the chain: {some(texts)}", rule=ONE_SEED)
    compared = sum(len(set().union(*names.values())) - 1 for names in by_block.values())
    for block, names in by_block.items():
        if len(names) > 1:
            texts = [f"{n} (process {some(sorted(p), 3)})" for n, p in names.items()]
            findings.add(
                f"block {block} has {len(names)} names: {some(texts, 3)}",
                rule=ONE_NAME,
                block=max(block, -1 - block),
                file=next(iter(names)),
            )
    for text, blocks in by_name.items():
        if len(blocks) > 1:
            findings.add(f"{some(map(_called, sorted(blocks)))} share the name {text}", rule=OWN_NAME, file=text)
    on_disk: set[str] = set()
    expected: set[str] = set()
    if history.files and by_name:
        on_disk, expected = _compare_files(history, by_block, by_name, findings)
    others = len(on_disk - expected)
    listing = f"{len(expected & on_disk)} of {len(expected)} stored blocks have their file, {others} other block files"
    if not (history.files and by_name):
        listing = "files on disk not compared"
    value: Value = "false" if findings else "true" if compared else "unknown"
    own = sum(block >= 0 for block in by_block)
    also = "each" if len(by_block) == 2 * own else len(by_block) - own
    groups = f", {also} also in another group of layers" if also else ""
    figure = (
        f"{own} blocks named{groups}; {compared} names derived again by another process, {findings.count} findings; "
        f"{listing}"
    )
    data = {
        "blocks_named": len(by_block),
        "names_compared": compared,
        "files_expected": len(expected),
        "files_on_disk": len(on_disk),
        "none_hash_digests": len(digests),
    }
    return Verdict("determinism", value, figure, findings.list(), data)


def _called(block: int) -> str:
    return f"block {block}" if block >= 0 else f"block {-1 - block} of another group"


def _compare_files(
    history: History,
    by_block: dict[int, dict[str, set[int]]],
    by_name: dict[str, set[int]],
    findings: Findings,
) -> tuple[set[str], set[str]]:
    """Block files there and block files wanted; differences become findings."""
    suffixes = {PurePosixPath(name).suffix for name in by_name}
    own = bookkeeping(history)
    on_disk = {f for f in history.files if PurePosixPath(f).suffix in suffixes and not is_bookkeeping(f, own)}
    quarantined = " ".join(PurePosixPath(f).name for f in history.files if is_quarantined(f))
    expected: set[str] = set()
    possible: set[str] = set()
    for job in history.jobs:
        if job.direction == "store":
            written = [block for block in job.ok if block not in set(job.in_memory)]
            expected.update(_names(by_block, written, job.process))
            possible.update(name for block in job.blocks for name in by_block.get(block, ()))
    lives = Lives(history)
    if any(not life.ended_well for life in lives.all()):
        possible.update(by_name)  # a dead process may have stored what nobody heard of
    for name in sorted(expected - on_disk):
        if PurePosixPath(name).name not in quarantined:
            blocks = some(sorted(by_name[name]))
            findings.add(
                f"{name} is missing on disk, though a store of block {blocks} was reported ok",
                rule=ON_DISK,
                file=name,
                block=min(by_name[name]),
            )
    for name in sorted(on_disk - expected - possible):
        blocks = some(sorted(by_name[name])) if name in by_name else ""
        what = f"is block {blocks}, which nobody stored" if blocks else "is no name that any process derived"
        findings.add(f"{name} is on disk, but {what}", rule=NO_OTHERS, file=name)
    return on_disk, expected


def _names(by_block: dict[int, dict[str, set[int]]], blocks: list[int], process: int) -> list[str]:
    """What `process` calls these blocks."""
    return [name for block in blocks for name, who in by_block.get(block, {}).items() if process in who]
