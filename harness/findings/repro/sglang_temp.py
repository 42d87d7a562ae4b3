"""SGLang 0.5.23, HiCacheFile: the temp file of a process that is killed while it stores a page stays for ever; neither
opening the folder nor storing the page again removes it. Exit code 1 and a sentence where that is so.
"""

import os
import signal
import tempfile
import time

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig

ranks = dict(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1)
kind = dict(is_mla_model=False, enable_storage_metrics=False, is_page_first_layout=False)
root, size = tempfile.mkdtemp(), 32 << 20
tier = HiCacheFile(HiCacheStorageConfig(**ranks, **kind, model_name="m"), root)
page = torch.full([size], 7, dtype=torch.uint8)
if (child := os.fork()) == 0:
    tier.set("key", page)
    time.sleep(60)
while not os.listdir(root):
    pass
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
tier = HiCacheFile(HiCacheStorageConfig(**ranks, **kind, model_name="m"), root)
assert tier.set("key", page)
if left := [name for name in os.listdir(root) if name.endswith(".tmp")]:
    raise SystemExit(f"DEFECT: the temp file of the killed process stays: {left[0]}")
