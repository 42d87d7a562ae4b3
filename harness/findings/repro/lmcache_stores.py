"""LMCache 0.5.6, FSL2Adapter: of two instances on one folder that store the same block at the same time, one fails,
because both write to the same KEY.tmp. Ends with exit code 1 and a sentence where that is so.
"""

import os
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
tiers = [FSL2Adapter(FSL2AdapterConfig(root)) for _ in range(2)]  # of two servers
blocks = [block(size, 7) for _ in tiers]
failed = 0
for number in range(20):
    key = ObjectKey(number.to_bytes(32, "big"), "m", 0)
    tasks = [tier.submit_store_task([key], [held]) for tier, held in zip(tiers, blocks)]
    failed += sum(not stored(tier, task) for tier, task in zip(tiers, tasks))
    for name in os.listdir(root):
        os.unlink(os.path.join(root, name))
for tier in tiers:
    tier.close()
if failed:
    raise SystemExit(f"DEFECT: {failed} of 40 stores failed, on a healthy disk")
