"""LMCache 0.5.6, FSL2Adapter: a process that is killed while it stores a block makes the same store of another process,
which is reported successful, publish a file that cannot be loaded. Exit code 1 and a sentence where that is so.
"""

import os
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


root, size = tempfile.mkdtemp(), 32 << 20
held = block(size, 7)
for number in range(50):
    key = ObjectKey(number.to_bytes(32, "big"), "m", 0)
    if (child := os.fork()) == 0:  # another server, which begins the same store while the first is under way
        other = FSL2Adapter(FSL2AdapterConfig(root))
        while not os.listdir(root):
            pass
        other.submit_store_task([key], [held])
        time.sleep(60)
    tier = FSL2Adapter(FSL2AdapterConfig(root))
    time.sleep(0.1)
    reported = stored(tier, tier.submit_store_task([key], [held]))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lost = reported and load(tier, key, size) != b"\7" * size
    tier.close()
    for name in os.listdir(root):
        os.unlink(os.path.join(root, name))
    if lost:
        raise SystemExit(f"DEFECT: store {number} was reported successful, and its block cannot be loaded")
