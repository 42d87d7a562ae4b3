"""SGLang 0.5.23, HiCacheFile: a page whose file is cut short exists for ever, and a `set` that returns True does not
repair it. Ends with exit code 1 and a sentence where that is so.
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
os.truncate(os.path.join(root, file), 100)  # as a power loss or a full disk leaves it
assert tier.set("key", page), "the second set failed"
try:
    found = tier.get("key", torch.zeros_like(page))
except OSError:
    found = None
if found is None:
    raise SystemExit("DEFECT: the second set returned True, and the page still cannot be loaded")
