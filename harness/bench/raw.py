"""The machine's ceilings, measured in the same run as the tiers: device, file system, memory.

`child` runs these as the contestant without a tier.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Go = Callable[[], None]


def device(go: Go, path: str, block_bytes: int, volume_bytes: int, threads: int) -> dict[str, Any]:
    """MiB/s of `threads` threads that overwrite, then read, one preallocated file with O_DIRECT, a block a call."""
    flags = os.O_RDWR | os.O_CREAT | os.O_DIRECT
    descriptor = os.open(path, flags, 0o600)
    if os.fstat(descriptor).st_size < volume_bytes:
        _lay_out(descriptor, volume_bytes)
    buffers = [mmap.mmap(-1, block_bytes) for _ in range(threads)]
    for buffer in buffers:
        buffer.write(os.urandom(4096) * (block_bytes // 4096))
    go()
    results: dict[str, Any] = {}
    for name, move in (("store", os.pwritev), ("cold", os.preadv)):
        offsets = iter(range(0, volume_bytes, block_bytes))
        lock = threading.Lock()

        def work(buffer: mmap.mmap, move: Any = move, offsets: Any = offsets, lock: Any = lock) -> None:
            while True:
                with lock:
                    offset = next(offsets, None)
                if offset is None:
                    return
                if move(descriptor, [buffer], offset) != block_bytes:
                    raise OSError("a short transfer on the ceiling's file")

        results[name] = volume_bytes / _in_threads(work, buffers) / (1 << 20)
    os.close(descriptor)
    return results


def fio(go: Go, path: str, block_bytes: int, volume_bytes: int) -> dict[str, Any]:
    """The same through fio: MiB/s of asynchronous direct I/O on one preallocated file; {} without fio."""
    if shutil.which("fio") is None:
        go()
        return {}
    go()
    results = {}
    for name, mode in (("store", "write"), ("cold", "read")):
        command = [
            *("fio", "--name=ceiling", f"--filename={path}", f"--rw={mode}", f"--bs={block_bytes}"),
            *(f"--size={volume_bytes}", "--direct=1", "--ioengine=libaio", "--iodepth=32", "--thread", "--numjobs=1"),
            *("--overwrite=1", "--output-format=json", "--loops=1", "--invalidate=1"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        text = done.stdout[done.stdout.index("{") :]
        results[name] = json.loads(text)["jobs"][0][mode]["bw_bytes"] / (1 << 20)
    return results


def files(go: Go, folder: str, block_bytes: int, blocks: int, threads: int) -> dict[str, Any]:
    """MiB/s of the least that one file per block can cost: `threads` threads create, write, close; then open, read,
    close. One flat folder, no temp name, no trailer, no checksum."""
    os.makedirs(folder, exist_ok=True)
    buffers = [mmap.mmap(-1, block_bytes) for _ in range(threads)]
    for buffer in buffers:
        buffer.write(os.urandom(4096) * (block_bytes // 4096))
    go()
    results: dict[str, Any] = {}
    write = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT
    for name, flags, move in (("store", write, os.pwritev), ("cold", os.O_RDONLY | os.O_DIRECT, os.preadv)):
        numbers = iter(range(blocks))
        lock = threading.Lock()

        def work(
            buffer: mmap.mmap, flags: int = flags, move: Any = move, numbers: Any = numbers, lock: Any = lock
        ) -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                descriptor = os.open(f"{folder}/{number:08x}", flags, 0o600)
                try:
                    move(descriptor, [buffer], 0)
                finally:
                    os.close(descriptor)

        results[name] = blocks * block_bytes / _in_threads(work, buffers) / (1 << 20)
    return results


def floor(go: Go, calls: str, folder: str, block_bytes: int, blocks: int, threads: int) -> dict[str, Any]:
    """MiB/s and CPU s/GiB of `floor.c`: `threads` threads make the system calls of the tier `calls` ("kvtier", "vllm")
    for each block, and do nothing else; {} without the program's source or a C compiler."""
    source, compiler = Path(__file__).with_name("floor.c"), shutil.which("cc")
    if compiler is None or not source.exists():
        go()
        return {}
    with tempfile.TemporaryDirectory(prefix="bench-floor-") as made:
        program = f"{made}/floor"
        subprocess.run([compiler, "-O2", "-pthread", "-o", program, source], check=True, stdin=subprocess.DEVNULL)
        go()
        command = [program, calls, folder, str(block_bytes), str(blocks), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def memcpy(go: Go, size_bytes: int, repeats: int) -> dict[str, Any]:
    """MiB/s of copying memory to memory on one thread, best of `repeats`."""
    source, target = bytearray(size_bytes), bytearray(size_bytes)
    go()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        target[:] = source
        best = min(best, time.perf_counter() - started)
    return {"mib_per_second": size_bytes / best / (1 << 20)}


def _lay_out(descriptor: int, volume_bytes: int) -> None:
    os.posix_fallocate(descriptor, 0, volume_bytes)
    with mmap.mmap(-1, 1 << 20) as page:
        for offset in range(0, volume_bytes, 1 << 20):
            os.pwrite(descriptor, page, offset)


def _in_threads(work: Callable[[mmap.mmap], None], buffers: list[mmap.mmap]) -> float:
    """Seconds until all have ended; raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(buffer: mmap.mmap) -> None:
        try:
            work(buffer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(buffer,)) for buffer in buffers]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if errors:
        raise errors[0]
    return seconds
