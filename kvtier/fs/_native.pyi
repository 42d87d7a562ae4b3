from collections.abc import Sequence

from kvtier.hashing import OffloadKey

VERSION: int

def sizes(paths: list[str], /) -> Sequence[int]: ...
def read_blocks(
    paths: list[str],
    keys: list[OffloadKey],
    views: list[memoryview],
    pages: memoryview,
    page_bytes: int,
    trailer: bytes,
    checksum: int,
    flags: int,
    by_use: int,
    /,
) -> Sequence[int]: ...
def write_blocks(
    paths: list[str],
    keys: list[OffloadKey],
    views: list[memoryview],
    pages: memoryview,
    page_bytes: int,
    trailer: bytes,
    checksum: int,
    flags: int,
    file_mode: int,
    dir_mode: int,
    /,
) -> Sequence[int]: ...
