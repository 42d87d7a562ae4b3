"""SGLang 0.5.23, HiCacheFile: a page file of the right size full of zeros is loaded as the page.

Ends with exit code 1 and a sentence where that is so.
"""

import os
import tempfile

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig

ranks = dict(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1)
kind = dict(is_mla_model=False, enable_storage_metrics=False, is_page_first_layout=False)
root, size = tempfile.mkdtemp(), 65536
tier = HiCacheFile(HiCacheStorageConfig(**ranks, **kind, model_name="m"), root)
page = torch.full([size], 7, dtype=torch.uint8)
assert tier.set("key", page)
(file,) = os.listdir(root)
with open(os.path.join(root, file), "r+b") as damaged:
    damaged.write(bytes(size))
found = tier.get("key", torch.ones_like(page))
if found is not None and not found.any():
    raise SystemExit("DEFECT: get returned zeros instead of the page")
