"""Block contents as a fast function of the block's identity. Workers fill slots before stores and verify loads by it.

The identity says whose block it is (model, data type, rank, ...) and which one (its tokens, or the trace id that stands
for them): `TierSetup.identity`. It never contains the tier's own key. So a tier that gives two blocks one key returns
visibly wrong bytes.

Word i (64 bits, little-endian) of a block is `seed_of(identity) + i * STEP` modulo 2**64. So every word identifies its
block and its place in it, and any process can verify any byte without shared state. No tier, no file, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

STEP = 0x9E3779B97F4A7C15
"""Odd, so that the words of a block are all distinct; the golden ratio, so that every byte of a word changes."""

POISON = 0xA5
"""Every byte of a slot after `poison`, so that a byte that the load did not touch differs from a zero."""

PAGE_BYTES = 4096
_CHUNK_WORDS = 1 << 14  # 128 KiB: table and scratch stay in the second-level cache
_RUN_WORDS_MIN = 4  # fewer words of one other seed are chance or a flipped bit, not another block
_NEEDLE_BYTES = 16
_MASK = (1 << 64) - 1
_TABLE = np.arange(_CHUNK_WORDS, dtype="<u8") * np.uint64(STEP)

Words = NDArray[np.uint64]
Octets = NDArray[np.uint8]


def seed_of(identity: bytes) -> int:
    """The 64-bit seed of a block's content; never 0, so that no block's first word looks like a hole."""
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "little") or 1


def _words(view: memoryview) -> Words:
    assert view.nbytes > 0 == view.nbytes % 8, f"a block of {view.nbytes} bytes; it takes a multiple of 8"
    return np.frombuffer(view, dtype="<u8")


def fill(view: memoryview, identity: bytes) -> None:
    """Write that block into `view`: writable, C-contiguous, its size in bytes the block's, a multiple of 8."""
    words, seed = _words(view), seed_of(identity)
    for start in range(0, words.size, _CHUNK_WORDS):
        part = words[start : start + _CHUNK_WORDS]
        np.add(_TABLE[: part.size], np.uint64((seed + start * STEP) & _MASK), out=part)


def poison(view: memoryview) -> None:
    """Overwrite a slot before a load, so that `judge` can name the bytes that the load left untouched."""
    np.frombuffer(view, dtype=np.uint8).fill(POISON)


def judge(
    view: memoryview, identity: bytes, *, previous: bytes | None = None, candidates: Mapping[int, object] | None = None
) -> str | None:
    """None when `view` holds exactly the block `identity`; else the difference, as text that a checker can quote.

    "short: ..." the tail is zero or untouched; "hole: ..." zero or untouched pages or bytes elsewhere; "stale: ..." the
    block `previous`, which the slot held before; "other key: ..." the words of another block, named through
    `candidates` (seed -> block) if it is among them; "shifted: ..." the right bytes in the wrong place; "garbage: ..."
    none of these.
    """
    words, seed = _words(view), seed_of(identity)
    scratch = np.empty(min(words.size, _CHUNK_WORDS), dtype="<u8")
    for start in range(0, words.size, _CHUNK_WORDS):
        part = words[start : start + _CHUNK_WORDS]
        expected = np.add(_TABLE[: part.size], np.uint64((seed + start * STEP) & _MASK), out=scratch[: part.size])
        if not np.array_equal(part, expected):
            return _explain(words, seed, None if previous is None else seed_of(previous), candidates or {})
    return None


def _explain(words: Words, seed: int, previous: int | None, candidates: Mapping[int, object]) -> str:
    """The slow path: `words` is wrong somewhere."""
    places = np.arange(words.size, dtype="<u8") * np.uint64(STEP)
    expected = places + np.uint64(seed)
    got, right = words.view(np.uint8), expected.view(np.uint8)
    bad = np.flatnonzero(got != right)
    first, last, count = int(bad[0]), int(bad[-1]), bad.size

    for value, what in ((0, "zero"), (POISON, "untouched")):
        if (got[first:] == value).all():
            return f"short: bytes from {first} on are {what} ({got.size - first} of {got.size})"
        if (got[bad] == value).all():
            return f"hole: {_span(first, last)} {what} ({count} bytes)"

    wrong = np.flatnonzero(words != expected)
    seeds, counts = np.unique(words[wrong] - places[wrong], return_counts=True)
    other, run = int(seeds[counts.argmax()]), int(counts.max())
    # A border inside a word leaves up to one odd word on each side of the other block's run.
    if run >= max(_RUN_WORDS_MIN, wrong.size - 2):
        where = "whole" if wrong.size == words.size else f"bytes {first} to {last}"
        if first and last >= got.size - 8:
            where = f"from byte {first}"
        if other == previous:
            return f"stale: the block that the slot held before, {where}"
        if other in candidates:
            return f"other key: the content of block {candidates[other]}, {where}"
        if shift := _shift(got, right, first):
            return shift
        return f"other key: the content of key-seed {other:#018x}, {where}"
    return _shift(got, right, first) or f"garbage: first bad byte {first}, {count} bytes differ"


def _span(first: int, last: int) -> str:
    pages = (first // PAGE_BYTES, last // PAGE_BYTES)
    where = f"page {pages[0]} is" if pages[0] == pages[1] else f"pages {pages[0]} to {pages[1]} are in part"
    return f"{where}, from byte {first} to {last},"


def _shift(got: Octets, right: Octets, first: int) -> str | None:
    """A text if from byte `first` to the end the right bytes stand at an offset, else None."""
    mine, theirs = got.tobytes(), right.tobytes()
    needle = slice(first, first + _NEEDLE_BYTES)
    if first + _NEEDLE_BYTES > got.size:
        return None
    later = mine.find(theirs[needle], first + 1)
    if later > first and mine[later:] == theirs[first : first + len(mine) - later]:
        return f"shifted: what belongs at byte {first} stands {later - first} bytes later"
    earlier = theirs.find(mine[needle], first + 1)
    if earlier > first and theirs[earlier:] == mine[first : first + len(mine) - earlier]:
        return f"shifted: what belongs at byte {earlier} stands {earlier - first} bytes earlier"
    return None
