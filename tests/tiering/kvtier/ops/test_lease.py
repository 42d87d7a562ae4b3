"""The lease: one holder at a time, and a file whose bytes every version reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvtier.ops.lease import LEASE_BYTES_MAX, LEASE_NAME, EvictorLease, Root


def publish(lease: EvictorLease, root: Root) -> None:
    with lease.acquire() as held:
        assert held is not None
        lease.publish(held, root)


def test_the_files_bytes_are_those_of_every_version(tmp_path: Path) -> None:
    lease = EvictorLease(str(tmp_path))
    publish(lease, Root(12345.6, 7.0, 89.4))
    data = (tmp_path / LEASE_NAME).read_bytes()
    assert len(data) == LEASE_BYTES_MAX == 128
    assert re.fullmatch(rb"[0-9a-f]{16} 12346 7 89\n *", data)


def test_a_measurement_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    lease = EvictorLease(str(tmp_path))
    file = tmp_path / LEASE_NAME
    file.write_bytes(b"00112233445566aa 1 2 3\n".ljust(128))
    assert lease.poll() is None, "the age of the first one read is unknown"
    file.write_bytes(b"00112233445566bb 4096 5 6\n".ljust(128))
    assert lease.poll() == Root(4096, 5, 6)
    assert lease.poll() is None, "once"


@pytest.mark.parametrize("data", [b"", b"half writ", b"aa 1 2\n", b"aa 1 2 3 4\n", b"aa one 2 3\n"])
def test_what_is_no_measurement_is_not_read(tmp_path: Path, data: bytes) -> None:
    lease = EvictorLease(str(tmp_path))
    assert lease.poll() is None
    publish(EvictorLease(str(tmp_path)), Root(1, 2, 3))
    assert lease.poll() is None
    (tmp_path / LEASE_NAME).write_bytes(data)
    assert lease.poll() is None


def test_urgent_eviction_is_requested_until_the_next_measurement(tmp_path: Path) -> None:
    leader, other = EvictorLease(str(tmp_path)), EvictorLease(str(tmp_path))
    other.request_urgent()
    assert not other.is_urgent_requested(), "there is no leader yet"
    publish(leader, Root(1, 2, 3))
    assert not leader.is_urgent_requested()
    other.request_urgent()
    assert leader.is_urgent_requested()
    publish(leader, Root(1, 2, 3))
    assert not leader.is_urgent_requested()


def test_the_leader_is_the_process_that_measured_last(tmp_path: Path) -> None:
    one, other = EvictorLease(str(tmp_path)), EvictorLease(str(tmp_path))
    with one.acquire() as held, other.acquire() as second:
        assert held is not None
        assert second is None
        one.publish(held, Root(1, 2, 3))
    assert (one.is_leader, other.is_leader) == (True, False)
    assert other.poll() is None
    publish(one, Root(4, 5, 6))
    assert other.poll() == Root(4, 5, 6)
    publish(other, Root(7, 8, 9))
    assert one.poll() == Root(7, 8, 9)
    assert (one.is_leader, other.is_leader) == (False, True)
