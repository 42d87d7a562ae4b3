from collections.abc import Sequence

def sizes(paths: list[str], /) -> Sequence[int]: ...
def read_blocks(
    paths: list[str], views: list[memoryview], pages: memoryview, page_bytes: int, flags: int, /
) -> Sequence[int]: ...
def write_blocks(
    paths: list[str],
    views: list[memoryview],
    pages: memoryview,
    page_bytes: int,
    flags: int,
    file_mode: int,
    dir_mode: int,
    /,
) -> Sequence[int]: ...
