"""The trailer parser under a coverage-guided fuzzer: `make fuzz-trailer SECONDS=300`. Not collected by pytest.

The fuzzer's bytes are a page, once as they are and once with the page's own checksum made right, since no search finds
a 64-bit hash by itself. Whatever the page holds, `unpack` must answer with a trailer that packs and unpacks to itself,
or with None, and never raise.
"""

from __future__ import annotations

import sys

import xxhash

try:
    import atheris
except ImportError:
    print("SKIPPED: THE TRAILER PARSER IS NOT FUZZED: atheris is not installed here (pip install atheris)")
    sys.exit(0)

with atheris.instrument_imports(include=["kvtier.fs.trailer"]):
    from kvtier.fs.trailer import _CHECK, _HEADER, MAGIC, Trailer


def judge(page: bytes) -> bool:
    """Whether it was a trailer; raises AssertionError when the answer is wrong."""
    trailer = Trailer.unpack(page)
    if trailer is None:
        return False
    assert len(trailer.key) <= 64, trailer
    assert 0 <= trailer.block_bytes < 1 << 64, trailer
    if trailer.traceparent.isascii():  # what is not was never packed by a writer
        assert Trailer.unpack(trailer.pack()) == trailer._replace(traceparent=trailer.traceparent.rstrip("\0")), trailer
    return True


def one(data: bytes) -> None:
    judge(data)
    page = bytearray(data.ljust(4096, b"\0")[:4096])
    page[: len(MAGIC)] = MAGIC
    page[_HEADER.size : _HEADER.size + _CHECK.size] = _CHECK.pack(xxhash.xxh3_64_intdigest(bytes(page[: _HEADER.size])))
    judge(bytes(page))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
