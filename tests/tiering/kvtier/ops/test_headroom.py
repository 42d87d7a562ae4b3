"""Headroom of a root, and the grant that each process has of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from kvtier.config import CapacityConfig
from kvtier.ops.headroom import Demand, Level, ProcessGrant, headroom_of
from kvtier.ops.lease import Root

CONFIG = CapacityConfig(max_bytes=1000, high_water=0.9, low_water=0.5)


def level(used: float, root_dir: Path) -> Level:
    root = Root(used, 1, 0)
    return Level(root, headroom_of(root, str(root_dir), CONFIG), 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("used", "low", "high", "stores"), [(0, 500, 900, 500), (600, -100, 300, 400), (1100, -600, -200, -100)]
)
def test_headroom_is_counted_from_the_water_marks_and_the_limit(
    tmp_path: Path, used: int, low: int, high: int, stores: int
) -> None:
    assert headroom_of(Root(used, 1, 0), str(tmp_path), CONFIG) == (low, high, stores, "max_bytes")


def test_the_narrower_of_two_limits_is_the_reason(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    both = CapacityConfig(max_bytes=1000 * free, min_free_bytes=2 * free)
    found = headroom_of(Root(0, 0, 0), str(tmp_path), both)
    assert (found.reason, found.stores < 0) == ("min_free_bytes", True)


def test_nothing_is_granted_before_the_first_measurement() -> None:
    due = threading.Event()
    grant = ProcessGrant(due)
    assert (grant.reserve(None, 5, 10), grant.demand, due.is_set()) == (0, Demand.REFUSED, True)


def test_a_grant_is_an_eighth_and_requests_urgent_eviction_once_half_is_used(tmp_path: Path) -> None:
    due = threading.Event()
    grant, full = ProcessGrant(due), level(600, tmp_path)  # of 400 bytes: 50
    assert (grant.reserve(full, 2, 10), grant.demand, due.is_set()) == (2, Demand.NONE, False)
    assert (grant.reserve(full, 1, 10), grant.demand, due.is_set()) == (1, Demand.HALF_USED, True)
    assert (grant.reserve(full, 9, 10), grant.demand) == (2, Demand.REFUSED)
    grant.release(4, 10)
    assert grant.reserve(level(600, tmp_path), 9, 10) == 4, "the fifth is still being written"


def test_the_last_block_may_exceed_the_grant(tmp_path: Path) -> None:
    grant = ProcessGrant(threading.Event())
    assert (grant.reserve(level(600, tmp_path), 2, 80), grant.is_too_small) == (1, True)
