"""LMCache 0.5.6, FSL2Adapter with use_odirect: a write that the system cuts short (here by a limit of the file size,
else by a full disk) is reported successful. Ends with exit code 1 and a sentence where that is so.
"""

import os
import resource
import signal
import tempfile
import time

os.environ["LMCACHE_TRACK_USAGE"], os.environ["LMCACHE_LOG_LEVEL"] = "false", "CRITICAL"
import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2Adapter, FSL2AdapterConfig
from lmcache.v1.memory_management import MemoryObjMetadata, TensorMemoryObj


def block(size, value):
    meta = MemoryObjMetadata(torch.Size([size]), torch.uint8, address=0, phy_size=size, ref_count=1)
    return TensorMemoryObj(torch.full([size], value, dtype=torch.uint8), meta, parent_allocator=None)


def stored(tier, task):
    while not (done := tier.pop_completed_store_tasks()):
        time.sleep(0.001)
    return done[task].is_successful()


def load(tier, key, size):
    into = block(size, 0)
    task = tier.submit_load_task([key], [into])
    while (bitmap := tier.query_load_result(task)) is None:
        time.sleep(0.001)
    return bytes(into.byte_array) if bitmap.test(0) else None


root, size, key = tempfile.mkdtemp(), 1 << 20, ObjectKey(b"k" * 32, "m", 0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
memory = torch.zeros(size + 4096, dtype=torch.uint8)
start = -memory.data_ptr() % 4096  # O_DIRECT wants page-aligned memory
held = block(size, 7)
held.raw_data = memory[start : start + size].fill_(7)
tier = FSL2Adapter(FSL2AdapterConfig(root, use_odirect=True))
reported = stored(tier, tier.submit_store_task([key], [held]))
written = [os.path.getsize(os.path.join(root, name)) for name in os.listdir(root)]
tier.close()
if reported and written != [size]:
    raise SystemExit(f"DEFECT: a store of {size} bytes was reported successful, and its file has {written[0]}")
