"""Two hosts of a GlusterFS volume store the same blocks at the same moments: each store succeeds on both."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.core.installation import ROOT
from harness.faults import FaultUnavailable
from harness.hosts import gluster_hosts
from kvtier.config import FsTierConfig
from kvtier.fs.block_io import BlockIO
from kvtier.hashing import OffloadKey

BLOCK = 65536
ROUNDS, BLOCKS, ROUND_SECONDS = 100, 8, 0.06
"""Each block is in a folder of its own, below one of its own."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stores_of_two_hosts_at_once_succeed_on_both(tmp_path: Path) -> None:
    try:
        with gluster_hosts() as volume:
            begin = str(time.monotonic() + 3)
            stores = [
                subprocess.Popen(
                    host.command([sys.executable, __file__, str(host.mount), begin]),
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
                for host in volume.hosts
            ]
            reasons = [json.loads(store.communicate()[0]) for store in stores]
    except FaultUnavailable as reason:
        pytest.skip(str(reason))
    assert reasons == [[], []], "why stores failed, by host"


def store_all(mount: str, begin: float) -> list[str]:
    """Store every block at its moment; the reasons of those that failed."""
    os.makedirs(base := f"{mount}/base", exist_ok=True)
    io = BlockIO(FsTierConfig(root_dir=mount, block_bytes=BLOCK), f"{mount}/quarantine")
    io.probe(base)
    view, failed = memoryview(mmap.mmap(-1, BLOCK)), []
    for number in range(ROUNDS * BLOCKS):
        time.sleep(max(0.0, begin + number // BLOCKS * ROUND_SECONDS - time.monotonic()))
        path = f"{base}/{number:03x}/00_g0/{number}.bin"
        if reason := io.write_block(path, OffloadKey(number.to_bytes(36, "big")), view).reason:
            failed.append(reason)
    return failed


if __name__ == "__main__":
    print(json.dumps(store_all(sys.argv[1], float(sys.argv[2]))))
