"""What the CUDA driver says to a right batch and to wrong ones, each in a process of its own; and the versions.

Candidate, never run on a CUDA device. The answers decide how a failed batch has to be reported.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from importlib.util import find_spec

import torch

from kvtier.cpu.cuda_driver import find_batched_copy

COUNT, BYTES = 3, 800
CASES = (
    "right",
    "size 0",
    "target 0",
    "source 0",
    "target that is no address of the device",
    "source that is no address of this process",
    "default stream",
)


def one(case: str) -> None:
    on_device = torch.arange(4096, device="cuda")
    pinned = torch.zeros(4096, dtype=torch.int64, pin_memory=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    handle = stream.cuda_stream
    targets = pinned.data_ptr() + torch.arange(COUNT) * BYTES
    sources = on_device.data_ptr() + torch.arange(COUNT) * BYTES
    sizes = torch.full((COUNT,), BYTES)
    match CASES.index(case):
        case 1:
            sizes[1] = 0
        case 2:
            targets[1] = 0
        case 3:
            sources[1] = 0
        case 4:
            targets[1] = 0x10
        case 5:
            sources[1] = 1 << 45
        case 6:
            handle = 0
    copy = find_batched_copy()
    assert copy is not None, "the CUDA driver has no cuMemcpyBatchAsync (CUDA 12.8 and later have it)"
    try:
        copy(targets.data_ptr(), sources.data_ptr(), sizes.data_ptr(), COUNT, handle)
        print("returned")
    except RuntimeError as error:
        print(f"raised {error}")
    try:
        torch.cuda.synchronize()
        words = COUNT * BYTES // 8
        print("bytes right" if torch.equal(pinned[:words], on_device[:words].cpu()) else "bytes not all copied")
    except RuntimeError as error:
        print(f"synchronize raised {str(error).splitlines()[0]}")


def main() -> None:
    driver, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    print(f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, torch {torch.__version__}, ", end="")
    print(f"CUDA {torch.version.cuda}, driver API {version.value}")
    for name in ("cuMemcpyBatchAsync", "cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync_ptsz"):
        print(f"{name}: {'present' if hasattr(driver, name) else 'absent'}")
    for name in ("triton", "cuda"):
        print(f"package {name}: {'present' if find_spec(name) else 'absent'}")
    started = [
        (case, subprocess.Popen([sys.executable, __file__, case], stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        for case in CASES
    ]
    for case, process in started:
        try:
            said = process.communicate(timeout=60)[0].decode(errors="replace").strip().splitlines()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            said = ["hung for 60 s"]
        print(f"{case}: exit code {process.returncode}: {'; '.join(said[-2:])}")


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
