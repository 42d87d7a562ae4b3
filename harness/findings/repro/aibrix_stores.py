"""AIBrix KV cache 0.8.0, SHFSConnector: of two connectors on one folder that put the same block at the same time, one
fails, because both write to the same KEY.tmp. Ends with exit code 1 and a sentence where that is so.
"""

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor

import torch
from aibrix_kvcache.l2.connectors.shfs import SHFSConnector
from aibrix_kvcache.memory import ExternalMemoryRegion

root, size = tempfile.mkdtemp(), 4 << 20
connectors = [SHFSConnector(root, ThreadPoolExecutor(1)) for _ in range(2)]  # of two engines
region = ExternalMemoryRegion(torch.full([size], 7, dtype=torch.uint8), 0, size)


async def put(key):
    return await asyncio.gather(*(connector.put(key, region) for connector in connectors))


failed = 0
for number in range(100):
    failed += sum(not status.is_ok() for status in asyncio.run(put(number.to_bytes(16, "big"))))
if failed:
    raise SystemExit(f"DEFECT: {failed} of 200 puts failed, on a healthy disk")
