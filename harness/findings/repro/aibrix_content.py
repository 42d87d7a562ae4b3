"""AIBrix KV cache 0.8.0, SHFSConnector: a block file of the right size full of zeros is loaded as the block.

Ends with exit code 1 and a sentence where that is so.
"""

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import torch
from aibrix_kvcache.l2.connectors.shfs import SHFSConnector
from aibrix_kvcache.memory import ExternalMemoryRegion

root, size, key = tempfile.mkdtemp(), 65536, b"k" * 16
connector = SHFSConnector(root, ThreadPoolExecutor(1))
memory = torch.full([size], 7, dtype=torch.uint8)
region = ExternalMemoryRegion(memory, 0, size)
assert asyncio.run(connector.put(key, region)).is_ok()
with open(os.path.join(root, "6b", "6b", key.hex()), "r+b") as damaged:
    damaged.write(bytes(size))
status = asyncio.run(connector.get(key, region))
if status.is_ok() and not memory.any():
    raise SystemExit("DEFECT: get succeeded with zeros instead of the block")
