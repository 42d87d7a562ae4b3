"""Block content: any process can verify a block, and describe how a wrong one differs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core import content

PAGE = content.PAGE_BYTES
SIZE = 4 * PAGE
KEY, OTHER = b"key one" * 5, b"key two" * 5


def block(key: bytes, size: int = SIZE) -> bytearray:
    data = bytearray(size)
    content.fill(memoryview(data), key)
    return data


def how(data: bytearray, **more: object) -> str:
    said = content.judge(memoryview(data), KEY, **more)  # type: ignore[arg-type]
    assert said is not None
    return said


@given(st.binary(max_size=64), st.integers(1, 5000))
def test_what_fill_writes_judge_accepts(key: bytes, words: int) -> None:
    assert content.judge(memoryview(block(key, 8 * words)), key) is None


def test_a_block_larger_than_the_table_is_one_sequence() -> None:
    words = memoryview(block(KEY, 4 << 20)).cast("Q")
    seed = content.seed_of(KEY)
    for place in (0, 1, 16383, 16384, 16385, 100_000, len(words) - 1):
        assert words[place] == (seed + place * content.STEP) % 2**64
    assert content.judge(words.cast("B"), KEY) is None


@given(st.binary(max_size=64), st.integers(0, SIZE - 1), st.integers(1, 255))
def test_any_changed_byte_is_seen_and_located(key: bytes, place: int, change: int) -> None:
    data = block(key)
    data[place] ^= change
    said = content.judge(memoryview(data), key)
    assert said is not None
    assert str(place) in said or said.startswith(("short", "hole"))


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_block_is_right_for_its_key_alone(one: bytes, two: bytes) -> None:
    assert (content.judge(memoryview(block(one)), two) is None) == (one == two)


@pytest.mark.parametrize(("value", "word"), [(0, "zero"), (content.POISON, "untouched")])
@pytest.mark.parametrize("cut", [0, 1, 4096, 5000, SIZE - 1])
def test_a_short_block_is_described_with_its_first_byte(value: int, word: str, cut: int) -> None:
    data = block(KEY)
    data[cut:] = bytes([value]) * (SIZE - cut)
    while cut < SIZE and block(KEY)[cut] == value:  # where the right byte is the same, nobody can tell
        cut += 1
    assert how(data) == f"short: bytes from {cut} on are {word} ({SIZE - cut} of {SIZE})"


def test_a_slot_that_a_load_never_touched_is_untouched() -> None:
    data = block(KEY)
    content.poison(memoryview(data))
    assert how(data).startswith("short: bytes from 0 on are untouched")


def test_a_hole_names_its_page() -> None:
    data = block(KEY)
    data[PAGE : 2 * PAGE] = bytes(PAGE)
    assert how(data).startswith("hole: page 1 is")
    data[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    assert how(data).startswith("hole: pages 1 to 2")


def test_another_keys_block_is_named() -> None:
    assert how(block(OTHER)) == f"other key: the content of key-seed {content.seed_of(OTHER):#018x}, whole"
    assert how(block(OTHER), candidates={content.seed_of(OTHER): 17}) == "other key: the content of block 17, whole"


@pytest.mark.parametrize("cut", [PAGE, PAGE + 3])
def test_a_torn_block_is_described_with_the_start_of_the_other(cut: int) -> None:
    data = block(KEY)
    data[cut:] = block(OTHER)[cut:]
    said = how(data, candidates={content.seed_of(OTHER): 17})
    prefix, _, place = said.rpartition(" ")
    assert prefix == "other key: the content of block 17, from byte"
    assert cut <= int(place) < cut + 8


def test_the_block_that_the_slot_held_before_is_stale() -> None:
    assert how(block(OTHER), previous=OTHER) == "stale: the block that the slot held before, whole"


@pytest.mark.parametrize("by", [1, 8, 4096])
def test_shifted_bytes_differ_from_garbage(by: int) -> None:
    right = block(KEY)
    assert how(bytearray(by) + right[:-by]).startswith("shifted: what belongs at byte 0 stands")
    assert how(right[by:] + bytearray(by)).startswith(("shifted", "garbage")) or by == 8
    late = right[:PAGE] + bytearray(b"\xee" * by) + right[PAGE:-by]
    assert f"stands {by} bytes later" in how(late)


def test_garbage_is_described_with_its_size() -> None:
    data = block(KEY)
    for place in (100, 9000):
        data[place] ^= 0xFF
    assert how(data) == "garbage: first bad byte 100, 2 bytes differ"


def test_sizes_that_hold_no_whole_words_are_a_programmers_error() -> None:
    for size in (0, 7, 12):
        with pytest.raises(AssertionError, match=f"{size} bytes"):
            content.fill(memoryview(bytearray(size)), KEY)
