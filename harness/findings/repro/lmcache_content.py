"""LMCache 0.5.6, FSL2Adapter: a block file of the right size full of zeros is loaded as the block.

Ends with exit code 1 and a sentence where that is so.
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


root, size, key = tempfile.mkdtemp(), 65536, ObjectKey(b"k" * 32, "m", 0)
tier = FSL2Adapter(FSL2AdapterConfig(root))
assert stored(tier, tier.submit_store_task([key], [block(size, 7)]))
(file,) = os.listdir(root)
with open(os.path.join(root, file), "r+b") as damaged:
    damaged.write(bytes(size))
found = load(tier, key, size)
tier.close()
if found == bytes(size):
    raise SystemExit("DEFECT: the load succeeded with zeros instead of the block")
