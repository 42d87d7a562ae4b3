"""The native extension of block I/O, and the checksum that it calls by address: those of this machine, or none of both.

`batch` is None where `_batch` is not compiled, or where the xxhash package is not a library with XXH3 in it: everything
goes block by block then.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import xxhash

_NAMES = ("XXH3_64bits_dispatch", "XXH3_64bits")
"""The one that picks the processor's best instructions first."""
_SAMPLE = bytes(range(256)) * 5


def _find() -> tuple[Any, int]:
    try:
        twin = importlib.import_module("kvtier.fs._native")
        library = ctypes.CDLL(importlib.import_module("xxhash._xxhash").__file__)
    except (ImportError, AttributeError, OSError):
        return None, 0
    for name in _NAMES:
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
            if function(_SAMPLE, len(_SAMPLE)) == xxhash.xxh3_64_intdigest(_SAMPLE):
                return twin, ctypes.cast(function, ctypes.c_void_p).value or 0
    return None, 0


batch, XXH3_64 = _find()
