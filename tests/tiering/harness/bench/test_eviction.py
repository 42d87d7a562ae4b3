"""The bench of a pass of eviction, on a root of a thousand files: it measures, and what should go is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bench import eviction


@pytest.mark.slow
def test_a_small_root_is_brought_to_its_low_water_mark_and_blocks_in_use_stay(tmp_path: Path) -> None:
    found = eviction.measure(tmp_path, files=1000, seconds_max=60.0, seed=1)
    assert found["finished"]
    share = found["left"] / (1000 + eviction.LOADED_BLOCKS)
    assert abs(share - eviction.LOW_WATER / eviction.HIGH_WATER / eviction.ABOVE) < 0.005
    assert found["left_but_older_than_the_cutoff"] <= 20, "a block in use is one of the root's, of which a share goes"
    assert found["evictor_rss_bytes"] > 0
    assert found["p99_seconds"]["with"] > 0
