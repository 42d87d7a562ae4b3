"""SGLang 0.5.23, HiCacheFile: one page whose file is cut short makes `batch_get` raise, so that whole pages of the same
call are not loaded either. Ends with exit code 1 and a sentence where that is so.
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
keys = ["first", "second", "third"]
assert tier.batch_set(keys, [page] * 3)
(file,) = [name for name in os.listdir(root) if name.startswith("second")]
os.truncate(os.path.join(root, file), 100)
try:
    found = tier.batch_get(keys, [torch.zeros_like(page) for _ in keys])
except OSError as error:
    raise SystemExit(f"DEFECT: batch_get of three pages, one of them short, raised {error!r}")
assert [one is None for one in found] == [False, True, False], found
