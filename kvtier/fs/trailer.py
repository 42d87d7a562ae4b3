"""`Trailer`: the page that ends each block file. Packed and unpacked here, checksums included; used by all code
that reads or writes block files. It opens a file only to read one trailer.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
from typing import NamedTuple, Self

import xxhash

from kvtier.config import PAGE_BYTES

MAGIC = b"KVTIER\r\n"
VERSION = 1
XXH3_64 = 1
_HEADER = struct.Struct("<8sHHHHQQQ16s8s64s64s")  # everything of the trailer but its own checksum
_CHECK = struct.Struct("<Q")
_WRITER, _TRACE = slice(40, 56), slice(128, 192)  # their places in it; `_native.c` has some more of them


class Trailer(NamedTuple):
    """Key, checksum and writer of a block file's block. `traceparent` is the writer's W3C trace context, or ""."""

    key: bytes
    block_bytes: int
    checksum: int
    instance_id: bytes  # 16 bytes, one per tier instance
    created_ns: int  # wall clock of the writer
    traceparent: str = ""
    seed: bytes = bytes(8)  # the first 8 bytes of the digest of the writer's NONE_HASH

    def pack(self) -> bytes:
        """What the page begins with; a trace context that is not ASCII or too long is dropped rather than truncated."""
        trace = self.traceparent.encode("ascii", "ignore")
        numbers = VERSION, XXH3_64, len(self.key), 0, self.block_bytes, self.checksum, self.created_ns
        texts = self.instance_id, self.seed, self.key, trace if len(trace) <= 64 else b""
        header = _HEADER.pack(MAGIC, *numbers, *texts)
        return header + _CHECK.pack(xxhash.xxh3_64_intdigest(header))

    @classmethod
    def unpack(cls, page: bytes | memoryview | mmap.mmap) -> Self | None:
        """The trailer in a page, or None when the page is not one: any damage to it shows in its own checksum."""
        header = bytes(page[: _HEADER.size])
        if len(page) < _HEADER.size + _CHECK.size or header[: len(MAGIC)] != MAGIC:
            return None
        if _CHECK.unpack(page[_HEADER.size : _HEADER.size + _CHECK.size])[0] != xxhash.xxh3_64_intdigest(header):
            return None
        _, version, algorithm, key_length, _, size, *rest = _HEADER.unpack(header)
        checksum, created_ns, instance_id, seed, key, trace = rest
        if version != VERSION or algorithm != XXH3_64 or key_length > len(key):
            return None
        return cls(key[:key_length], size, checksum, instance_id, created_ns, _text(trace), seed)


def writer_of(page: memoryview) -> tuple[bytes, str]:
    """Instance id and trace context in a page that was found right."""
    return bytes(page[_WRITER]), _text(bytes(page[_TRACE]))


@functools.lru_cache(maxsize=1024)
def _text(trace: bytes) -> str:
    return trace.rstrip(b"\0").decode("ascii", "replace")


def read_trailer(path: str) -> Trailer | None:
    """The trailer of a file, read without its block; None without a trailer, or when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(descriptor).st_size
            return Trailer.unpack(os.pread(descriptor, PAGE_BYTES, size - PAGE_BYTES)) if size > PAGE_BYTES else None
        finally:
            os.close(descriptor)
    except OSError:
        return None
