"""Requests to replay: recorded traces, synthetic ones of the same shape, and the hit ratios that they allow.

Scenarios make traffic with it, and checkers compute the hit ratio that sharing could have reached. It keeps no clock
and never sleeps. A block is a trace id: prefix-chained and global, so equal ids mean equal prefixes.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.inputs import UsageError, read_file
from harness.core.seeds import stream

TRACE_BYTES_MAX = 1 << 30
"""A larger trace is refused: its requests are held in memory, in several times this."""
BLOCK_IDS_MAX = 2**31
"""Ids lie below this, so that the tokens of any two blocks differ in one 31-bit token."""

TRACE_BLOCK_TOKENS = 512  # tokens per block of the Mooncake traces
_BATCH_MS = 3000  # their clock: some ten requests every three seconds
_BATCH_REQUESTS = 10
_BLOCKS_MAX = 247  # their longest request
_KEYS = ("timestamp", "input_length", "output_length", "hash_ids")


class TraceError(ValueError):
    """A trace cannot be used; one sentence that names the file and the line."""


class TraceRequest(NamedTuple):
    """One line of a trace. `hash_ids` are the ids of its prompt's blocks, in order, the last one perhaps not full."""

    timestamp_ms: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


class PlannedRequest(NamedTuple):
    """A request with its place in the whole trace and when it is meant to start, in seconds after the run's start."""

    start_seconds: float
    request: int
    trace: TraceRequest


class HitRatio(NamedTuple):
    """Blocks looked up, and how many of them the cache would have held."""

    hit_blocks: int
    blocks: int

    @property
    def ratio(self) -> float:
        return self.hit_blocks / self.blocks if self.blocks else 0.0


def read_trace(path: Path | str) -> list[TraceRequest]:
    """The requests of a Mooncake JSONL file, in order. Raises `TraceError` at the first line that cannot be one.

    Refused: an empty file, a blank line, a line that is no JSON object, a missing key, a negative or fractional number,
    time running backwards, a request without blocks, and a block that follows another block than it did before (ids
    name prefixes; a trace that breaks this makes every tier look as if it shared too little). Unknown keys are ignored.
    Also refused: what is no regular file, and more than `TRACE_BYTES_MAX` bytes. docs/traces.md describes the format.
    """
    try:
        lines = read_file(path, TRACE_BYTES_MAX).split(b"\n")
    except UsageError as error:
        raise TraceError(str(error)) from error
    if not lines[-1]:
        lines.pop()  # behind the last newline
    if not lines:
        raise TraceError(f"{path}, line 1: the file is empty; a trace has one JSON object per line")
    requests: list[TraceRequest] = []
    parents: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            request = _parse(line)
            if requests and request.timestamp_ms < requests[-1].timestamp_ms:
                raise ValueError(f"timestamp {request.timestamp_ms} is earlier than the line above's")
            for parent, block in zip((-1, *request.hash_ids), request.hash_ids, strict=False):
                if (known := parents.setdefault(block, parent)) != parent:
                    first = next(n for n, above in enumerate(requests, 1) if block in above.hash_ids)
                    raise ValueError(
                        f"hash_ids must form a prefix tree, in which an id always follows the same id: {block} "
                        f"{_after(parent)} here, but {_after(known)} in line {first} (docs/traces.md)"
                    )
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}, line {number}: {error}") from error
        requests.append(request)
    return requests


def _after(parent: int) -> str:
    return "is the first id" if parent < 0 else f"follows {parent}"


def _parse(line: bytes) -> TraceRequest:
    if not line.strip():
        raise ValueError("the line is blank; a trace has one JSON object per line")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object was expected, not {_short(values)}")
    if missing := [key for key in _KEYS if key not in values]:
        raise ValueError(f"key {', '.join(map(repr, missing))} is missing; a request has {', '.join(_KEYS)}")
    for key in _KEYS[:3]:
        if not _whole(values[key]):
            raise ValueError(f"{key} is {_short(values[key])}; it takes a whole number, zero or more")
    blocks = values["hash_ids"]
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"hash_ids is {_short(blocks)}; it takes a list of at least one block id")
    for block in blocks:
        if not _whole(block) or block >= BLOCK_IDS_MAX:
            raise ValueError(f"hash_ids holds {_short(block)}; an id is a whole number from 0 to {BLOCK_IDS_MAX - 1}")
    if len(set(blocks)) < len(blocks):
        raise ValueError("hash_ids names one block twice; each stands for a longer prefix than the one before")
    return TraceRequest(values["timestamp"], values["input_length"], values["output_length"], tuple(blocks))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Conversation:
    """Turns of one dialogue: the blocks of its last prompt, how often it came back, and when it may come again."""

    def __init__(self, blocks: list[int], turns: int, ready_batch: int) -> None:
        self.blocks = blocks
        self.turns = turns
        self.ready_batch = ready_batch


def synthetic_trace(seed: int, requests: int, *, hit_target: float = 0.3664) -> list[TraceRequest]:
    """A trace shaped like Mooncake's conversation trace, the same for the same arguments.

    Every prompt opens with one shared system block; a conversation comes back after some batches with all its blocks
    and a few new ones; prompts have about 24 blocks with a long tail; requests arrive about ten per timestamp. Whether
    the next request opens a conversation or continues one is steered so that the block-hit ratio of one endless shared
    cache is `hit_target`; few conversations come back often, which puts four private caches at about half of it.
    """
    assert requests >= 1, f"{requests} requests; a trace has at least one"
    assert 0 <= hit_target < 0.9, f"a hit target of {hit_target}; below 0.9 there is room for new blocks"
    rng = stream(seed, "traffic")
    gap_batches = max(1.0, 0.03 * requests / _BATCH_REQUESTS)  # as in the recording: 3 % of the time between turns
    trace: list[TraceRequest] = []
    open_conversations: list[_Conversation] = []
    blocks_next, hit_blocks, total_blocks, batch = 1, 0, 0, 0
    while len(trace) < requests:
        for _ in range(min(requests - len(trace), 1 + int(rng.expovariate(1 / (_BATCH_REQUESTS - 0.5))))):
            wanted = hit_blocks < hit_target * total_blocks
            ready = [c for c in open_conversations if wanted and c.ready_batch <= batch]
            old = 1 if trace else 0
            if ready:
                # Those that came back often come back again: the heavy tail of the recording.
                conversation = rng.choices(ready, [c.turns**1.25 for c in ready])[0]
                old = len(conversation.blocks)
                new = min(_BLOCKS_MAX - old, int(rng.expovariate(1 / 4)))
                conversation.turns += 1
            else:
                conversation = _Conversation([0], 1, 0)
                open_conversations.append(conversation)
                new = min(_BLOCKS_MAX - 1, 1 + int(rng.lognormvariate(math.log(11), 1.1)))
            conversation.blocks = conversation.blocks + list(range(blocks_next, blocks_next + new))
            conversation.ready_batch = batch + 1 + int(rng.expovariate(1 / gap_batches))
            blocks_next += new
            hit_blocks += old
            total_blocks += len(conversation.blocks)
            input_length = len(conversation.blocks) * TRACE_BLOCK_TOKENS - rng.randrange(TRACE_BLOCK_TOKENS)
            output_length = 1 + int(rng.lognormvariate(math.log(300), 0.8))
            trace.append(TraceRequest(batch * _BATCH_MS, input_length, output_length, tuple(conversation.blocks)))
        batch += 1
    return trace


def deal(requests: Sequence[TraceRequest], processes: int) -> list[list[TraceRequest]]:
    """Round-robin: request i goes to process i modulo `processes`, in order."""
    assert processes >= 1, f"{processes} processes"
    return [list(requests[process::processes]) for process in range(processes)]


def plan(
    requests: Sequence[TraceRequest], process: int, processes: int, duration_seconds: float, speed: float | None = None
) -> list[PlannedRequest]:
    """The requests of `process` with intended starts, open loop: a late request does not delay the next one's start.

    `speed` is how many times faster than recorded; None fits the whole trace into `duration_seconds`. Requests that
    would start at or after `duration_seconds` are left out.
    """
    assert 0 <= process < processes, f"process {process} of {processes}"
    assert speed is None or speed > 0, f"a speed of {speed}"
    if not requests:
        return []
    first_ms = requests[0].timestamp_ms
    if speed is None:
        # The last batch starts one batch before the end, not on it.
        speed = (requests[-1].timestamp_ms - first_ms + _BATCH_MS) / 1000 / duration_seconds
    planned = (
        PlannedRequest((requests[i].timestamp_ms - first_ms) / 1000 / speed, i, requests[i])
        for i in range(process, len(requests), processes)
    )
    return [request for request in planned if request.start_seconds < duration_seconds]


def tokens_of(block: int, tokens_per_block: int) -> tuple[int, ...]:
    """Tokens (each below 2**31) of a trace block, a fixed function of its id; any two ids differ in every token.

    The key of a block follows by chaining along its request: an id determines the blocks before it.
    """
    assert 0 <= block < BLOCK_IDS_MAX, f"block {block}; ids lie below {BLOCK_IDS_MAX}"
    assert tokens_per_block >= 1, f"{tokens_per_block} tokens per block"
    # Odd factors are bijections modulo 2**31.
    return tuple((block * 0x9E3779B1 + place * 0x85EBCA6B) % BLOCK_IDS_MAX for place in range(tokens_per_block))


def oracle_hit_ratio(
    requests: Iterable[Sequence[int]], owners: Iterable[int] | None = None, capacity_blocks: int | None = None
) -> HitRatio:
    """The block-hit ratio that exactly these requests (block ids, in order) allow, if each stored its blocks at once.

    A hit is a block of the leading run that the cache holds: what follows a missing block has to be computed anyway.

    `owners` names each request's process: every process then has a cache of its own; None is one shared cache.
    `capacity_blocks` bounds each cache, least recently used out first; None never forgets.
    """
    if capacity_blocks is not None:
        assert capacity_blocks >= 1, f"a cache of {capacity_blocks} blocks"
    caches: dict[int, OrderedDict[int, None]] = {}
    hit_blocks = total_blocks = 0
    for owner, blocks in _owned(requests, owners):
        cache = caches.setdefault(owner, OrderedDict())
        hit_blocks += next((place for place, block in enumerate(blocks) if block not in cache), len(blocks))
        total_blocks += len(blocks)
        for block in blocks:
            cache[block] = None
            if capacity_blocks is not None:
                cache.move_to_end(block)
                if len(cache) > capacity_blocks:
                    cache.popitem(last=False)
    return HitRatio(hit_blocks, total_blocks)


def _owned(requests: Iterable[Sequence[int]], owners: Iterable[int] | None) -> Iterator[tuple[int, Sequence[int]]]:
    if owners is None:
        return ((0, blocks) for blocks in requests)
    return zip(owners, requests, strict=True)
