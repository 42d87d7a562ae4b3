"""Promises about keys: they join equal prefixes and separate everything else, in full length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from harness.adapters.base import Adapter
from harness.drivers.promises.subject import Block, Subject, keys_of, require

BITS = (0, 7, 8, 16, 24, 30)
"""Of a token, which is below 2**31: each changes the key."""
BITS_MIN = 80
"""Independent bits of a key: among 10**9 blocks the chance that two have equal keys is then below one in a million."""
SAMPLE_BLOCKS = 256
NEIGHBOURS = ((1, 23), (12, 3), (123, 0), (0, 123), (3, 12), (23, 1), (1 << 16, 1), (1, 1 << 16), (1 << 20, 2), (1, 2))
"""Two tokens each, which differ in order, in where one ends, or only above a number of bits."""
LONG_BLOCKS = 1024


def keys_name_prefixes(subject: Subject) -> None:
    """Keys are equal for equal prefixes in every instance, different for different ones, and chained after a parent."""
    one, two = subject.open(), subject.open()
    tokens = subject.tokens(6)
    keys = one.keys(tokens)
    size = subject.setup.tokens_per_block
    require(len(keys) == 6, f"6 blocks of tokens gave {len(keys)} keys")
    require(len(set(keys)) == 6, f"6 different blocks gave {len(set(keys))} different keys")
    require(two.keys(tokens) == keys, "two instances name the same tokens differently")
    require(one.keys(tuple(tokens)) == keys, "a list and a tuple of the same tokens have different keys")
    require(one.keys(tokens[: 3 * size]) == keys[:3], "a block's key depends on tokens behind it")
    require(one.keys(tokens[3 * size :], keys[2]) == keys[3:], "keys chained after a parent are not those of the whole")
    changed = one.keys([tokens[0] + 1, *tokens[1:]])
    require(not set(changed) & set(keys), "a block's key does not depend on the tokens before it")
    long = subject.tokens(LONG_BLOCKS)
    changed = one.keys([long[0] + 1, *long[1:]])
    require(
        not set(changed) & set(one.keys(long)), f"a key in a chain of {LONG_BLOCKS} does not depend on its first token"
    )
    require(one.keys([]) == [], "no tokens have a key")
    if size > 1:
        require(one.keys(tokens[:-1]) == keys[:5], "a block that is not full has a key, or another key")
    require(one.none_hash_digest() == two.none_hash_digest(), "two instances of one process have different seeds")


def keys_tell_tokens_apart(subject: Subject) -> None:
    """Every token of a block counts, at its place and in all its bits."""
    adapter, size = subject.open(), subject.setup.tokens_per_block
    tokens = [1000 + i for i in range(size)]
    families = [[*tokens]]
    for place in range(size):
        families += [[*tokens[:place], tokens[place] ^ (1 << bit), *tokens[place + 1 :]] for bit in BITS]
    families += [[first, second] * (size // 2) + [7] * (size % 2) for first, second in NEIGHBOURS if size > 1]
    names = [tuple(adapter.keys(family)) for family in families]
    different = {tuple(family) for family in families}
    require(
        len(set(names)) == len(different),
        f"{len(different)} blocks that differ in one token, its bits or its place have {len(set(names))} keys",
    )
    (first,) = adapter.keys(tokens)
    for number, key in enumerate(adapter.keys(tokens, first)):
        require(key != first, f"block {number + 1} has the key of the block before it, which has the same tokens")


def keys_have_their_full_length(subject: Subject) -> None:
    """A key has at least 80 independent bits, and the keys behind it depend on all of them."""
    adapter = subject.open()
    keys = [adapter.keys(subject.tokens(1))[0] for _ in range(SAMPLE_BLOCKS)]
    bits = rank(keys)
    require(bits >= BITS_MIN, f"{SAMPLE_BLOCKS} keys have {bits} independent bits, {BITS_MIN} are needed")
    tokens = subject.tokens(1)
    children = [adapter.keys(tokens, key)[0] for key in keys]
    bits = rank(children)
    require(bits >= BITS_MIN, f"keys after {SAMPLE_BLOCKS} parents have {bits} independent bits of {BITS_MIN}")
    parent, deaf = keys[0], 0
    for place in range(len(parent)):
        deaf += adapter.keys(tokens, _flipped(parent, place)) == adapter.keys(tokens, parent)
    heard = 8 * (len(parent) - deaf)
    require(heard >= BITS_MIN, f"a block's key depends on {heard} bits of its parent's, {BITS_MIN} are needed")


def rank(keys: Sequence[bytes]) -> int:
    """How many bits of the keys are independent of each other: the rank over GF(2) of the keys' differences."""
    basis: dict[int, int] = {}
    first = int.from_bytes(keys[0], "big")
    for key in keys[1:]:
        value = int.from_bytes(key, "big") ^ first
        while value and (top := value.bit_length()) in basis:
            value ^= basis[top]
        if value:
            basis[value.bit_length()] = value
    return len(basis)


def _flipped(key: bytes, place: int) -> bytes:
    return key[:place] + bytes([key[place] ^ 1]) + key[place + 1 :]


def keys_are_used_in_full(subject: Subject) -> None:
    """A block stored under one key is no hit under a key that differs in any one byte."""
    adapter = subject.open()
    (block,) = subject.blocks(adapter, 1)
    subject.store(adapter, [block])
    others = [Block(_flipped(block.key, place), b"") for place in range(len(block.key))]
    names = {adapter.file_name(other.key) for other in others} if adapter.exposes_files else set()
    require(not names or adapter.file_name(block.key) not in names, "keys that differ in a byte have one file name")
    require(len(names) in (0, len(others)), f"{len(others)} keys that differ in a byte have {len(names)} file names")
    verdicts = subject.look_up(adapter, others)
    require(
        "hit" not in verdicts,
        f"a block is found under a key that differs in byte {verdicts.index('hit') if 'hit' in verdicts else 0}",
    )


_Owned = tuple[Adapter, Sequence[Block]]


def _apart(subject: Subject, first: _Owned, second: _Owned, what: str) -> None:
    """Blocks of two owners: neither finds the other's, and after both stored, each loads its own."""
    (one, mine), (two, theirs) = first, second
    subject.store(one, mine)
    found = subject.look_up(two, theirs)
    hits = found.count("hit")
    require(not hits, f"{hits} of {len(found)} blocks are found that only another {what} stored")
    subject.store(two, theirs)
    for adapter, blocks in ((one, mine), (two, theirs), (subject.open(**_whose(one)), mine)):
        subject.load_all(adapter, blocks, f"blocks beside those of another {what}")


def _whose(adapter: Adapter) -> dict[str, object]:
    return {name: getattr(adapter.setup, name) for name in ("model_name", "dtype", "ranks", "rank")}


def _separate_setups(subject: Subject, what: str, *setups: Mapping[str, object]) -> None:
    """Instances with these setups share no block, though their tokens are equal. One may be refused instead."""
    tokens = subject.tokens(4)
    owners: list[Adapter] = []
    for changes in setups:
        try:
            owners.append(subject.open(**changes))
        except Exception as refusal:  # told, so nothing is mixed up
            require(owners and str(refusal), f"an instance of one {what} alone cannot be opened: {refusal}")
    for other in owners[1:]:
        first, second = ((owner, subject.blocks_of(owner, tokens)) for owner in (owners[0], other))
        _apart(subject, first, second, what)


def models_are_separate(subject: Subject) -> None:
    """Engines of different models share no block, however alike the models' names are."""
    names = ("org/model", "org_model", "org/Model", "org/model2")
    for other in names[1:]:
        _separate_setups(subject, "model", {"model_name": names[0]}, {"model_name": other})


def data_types_are_separate(subject: Subject) -> None:
    """Engines whose blocks have different data types share no block."""
    _separate_setups(subject, "data type", {"dtype": "bfloat16"}, {"dtype": "float16"})


def ranks_are_separate(subject: Subject) -> None:
    """Ranks of one engine share no block, nor do engines with different numbers of ranks."""
    two = {"ranks": 2, "rank": 0}
    _separate_setups(subject, "rank", two, {"ranks": 2, "rank": 1})
    _separate_setups(subject, "number of ranks", two, {"ranks": 1, "rank": 0})


def groups_are_separate(subject: Subject) -> None:
    """Blocks of different groups of layers are different blocks."""
    adapter, size = subject.open(), subject.setup.tokens_per_block
    tokens = subject.tokens(3)
    mine = subject.blocks_of(adapter, tokens)
    theirs = []
    for i, block in enumerate(mine):
        key = adapter.other_group(block.key)
        if key is None:
            return  # the tier has no groups
        theirs.append(Block(key, adapter.setup.identity(tokens[: (i + 1) * size], group=1)))
    _apart(subject, (adapter, mine), (adapter, theirs), "group of layers")


def salts_are_separate(subject: Subject) -> None:
    """Requests with different cache salts, or without one, share no block; those with the same salt do."""
    adapter, size = subject.open(), subject.setup.tokens_per_block
    tokens = subject.tokens(3)
    families: list[list[Block]] = [subject.blocks_of(adapter, tokens)]
    for salt in ("tenant-a", "tenant-b", "tenant-"):
        keys = adapter.salted_keys(tokens, salt)
        if keys is None:
            return  # the tier has no salts
        require(keys == subject.open().salted_keys(tokens, salt), "two instances name blocks of one salt differently")
        identities = [adapter.setup.identity(tokens[: (i + 1) * size], salt=salt) for i in range(len(keys))]
        families.append([Block(*pair) for pair in zip(keys, identities, strict=True)])
    require(
        len({key for family in families for key in keys_of(family)}) == 12, "blocks of different salts have equal keys"
    )
    for family in families[1:]:
        _apart(subject, (adapter, families[0]), (adapter, family), "salt")


def many_keys_stay_apart(subject: Subject) -> None:
    """Of many blocks each is found under its own key, with its own bytes."""
    adapter, random = subject.open(), Random(1)
    batch = min(subject.setup.slots, 64)
    blocks = [block for _ in range(8) for block in subject.blocks(adapter, batch)]
    for first in range(0, len(blocks), batch):
        subject.store(adapter, blocks[first : first + batch])
    random.shuffle(blocks)
    other = subject.open()
    for first in range(0, len(blocks), batch):
        subject.load_all(other, blocks[first : first + batch], "blocks of many")
    strangers = subject.look_up(other, subject.blocks(other, batch))
    require("hit" not in strangers, f"beside {len(blocks)} stored blocks, blocks never stored are hits")
