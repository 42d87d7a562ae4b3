"""The native extension of block I/O, and the checksum that it calls by address: those of this machine, or none of both.

`CHECKSUM` is 0 where `_native` is not built or of another version, or where the xxhash package is not a library with
XXH3 in it: block I/O then handles blocks one by one and calls none of the functions here.
"""

from __future__ import annotations

import ctypes
import importlib

import xxhash

__all__ = ["CHECKSUM", "read_blocks", "sizes", "write_blocks"]

_NAMES = ("XXH3_64bits_dispatch", "XXH3_64bits")
"""The one that picks the processor's best instructions first."""
_SAMPLE = bytes(range(256)) * 5


def find_checksum() -> int:
    """The address of the xxhash package's own XXH3; 0 where it cannot be found or computes something else."""
    try:
        library = ctypes.CDLL(importlib.import_module("xxhash._xxhash").__file__)
    except (ImportError, AttributeError, OSError):
        return 0
    for name in _NAMES:
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
            if function(_SAMPLE, len(_SAMPLE)) == xxhash.xxh3_64_intdigest(_SAMPLE):
                return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


CHECKSUM = 0
try:
    from kvtier.fs._native import VERSION, read_blocks, sizes, write_blocks

    CHECKSUM = find_checksum() if VERSION == 2 else 0
except ImportError:
    pass
