"""LMCache 0.5.6, FSL2Adapter: the temp file of a process that is killed while it stores a block stays for ever; neither
opening the folder nor another store of other blocks removes it. Exit code 1 and a sentence where that is so.
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


root, size = tempfile.mkdtemp(), 32 << 20
held = block(size, 7)
if (child := os.fork()) == 0:
    FSL2Adapter(FSL2AdapterConfig(root)).submit_store_task([ObjectKey(b"a" * 32, "m", 0)], [held])
    time.sleep(60)
while not os.listdir(root):
    pass
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
tier = FSL2Adapter(FSL2AdapterConfig(root))
assert stored(tier, tier.submit_store_task([ObjectKey(b"b" * 32, "m", 0)], [held]))
tier.close()
if left := [name for name in os.listdir(root) if name.endswith(".tmp")]:
    raise SystemExit(f"DEFECT: the temp file of the killed process stays: {left[0]}")
