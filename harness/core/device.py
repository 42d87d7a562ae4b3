"""Throughput of the device under a folder without any tier, the reference for a run's throughput.

`run` calls it once, when the workers have ended. It leaves nothing behind, and returns a reason where it cannot
measure.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = 4
FILE_BYTES_MAX = 64 << 20
"""Each thread goes round in a file of this size, so that the disk is not filled."""
PAGE_BYTES = 4096


def measure(folder: Path, block_bytes: int, seconds: float) -> dict[str, Any]:
    """Write, then read, blocks of this size with O_DIRECT for about half of `seconds` each.

    {"write_mib_per_second", "read_mib_per_second", "how"}, or {"why"} if it cannot be measured here."""
    assert block_bytes % PAGE_BYTES == 0, f"{block_bytes} bytes are no multiple of {PAGE_BYTES}"
    try:
        place = Path(tempfile.mkdtemp(prefix=f"device-{os.urandom(6).hex()}-", dir=folder))
    except OSError as error:
        return {"why": f"no folder could be made: {error.strerror}"}
    blocks = max(1, FILE_BYTES_MAX // block_bytes)
    files = [os.fspath(place / f"{number}") for number in range(THREADS)]
    memory = [mmap.mmap(-1, block_bytes) for _ in files]
    written = [0] * THREADS
    try:
        for each in memory:
            each.write(os.urandom(block_bytes))  # a device may shrink zeros

        def write(file: int, index: int, number: int) -> None:
            os.pwritev(file, [memory[index]], (number % blocks) * block_bytes)
            written[index] = max(written[index], number % blocks + 1)

        def read(file: int, index: int, number: int) -> None:
            os.preadv(file, [memory[index]], (number % written[index]) * block_bytes)

        rates = {
            "write_mib_per_second": _rate(files, os.O_CREAT | os.O_WRONLY, write, block_bytes, seconds / 2),
            "read_mib_per_second": _rate(files, os.O_RDONLY, read, block_bytes, seconds / 2),
        }
    except OSError as error:
        return {"why": f"O_DIRECT: {error.strerror}"}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    how = f"O_DIRECT, blocks of {block_bytes >> 10} KiB, {THREADS} threads, {seconds:.2g} s"
    return {**{name: round(rate, 1) for name, rate in rates.items()}, "how": how}


def _rate(
    files: list[str], flags: int, transfer: Callable[[int, int, int], None], block_bytes: int, seconds: float
) -> float:
    """MiB/s of all threads together. Raises the OSError of any of them."""
    errors: list[OSError] = []
    blocks = [0] * len(files)

    def work(index: int) -> None:
        try:
            file = os.open(files[index], flags | os.O_DIRECT | os.O_CLOEXEC, 0o600)
            try:
                while not blocks[index] or time.monotonic() < until:
                    transfer(file, index, blocks[index])
                    blocks[index] += 1
            finally:
                os.close(file)
        except OSError as error:
            errors.append(error)

    began = time.monotonic()
    until = began + seconds
    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(blocks) * block_bytes / (1 << 20) / (time.monotonic() - began)
