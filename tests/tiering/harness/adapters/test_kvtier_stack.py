"""The adapter of the whole stack: which stores wrote no file, and whether its manager and its file tier agree."""

from __future__ import annotations

from pathlib import Path

from harness.adapters.base import Finished, TierSetup
from harness.adapters.kvtier import KvtierStackAdapter
from kvtier import Event, JobFinished


class _MissesJobs(KvtierStackAdapter):
    """The file tier's accounts lack each finished job."""

    def on_event(self, event: Event) -> None:
        if not isinstance(event, JobFinished):
            super().on_event(event)


def store(stack: KvtierStackAdapter, job_id: int, keys: list[bytes]) -> Finished:
    stack.request_started(f"r{job_id}")
    stack.submit_store(job_id, keys, list(range(len(keys))), f"r{job_id}")
    stack.drain()
    (finished,) = stack.poll()
    stack.request_finished(f"r{job_id}")
    return finished


def setup(root: Path) -> TierSetup:
    return TierSetup(str(root), block_bytes=4096, slots=8, n_read_threads=1, n_write_threads=1)


def test_a_block_already_in_memory_is_stored_without_a_file(tmp_path: Path) -> None:
    stack = KvtierStackAdapter(setup(tmp_path))
    try:
        first, second = stack.keys(range(32))
        assert not store(stack, 1, [first]).in_memory
        (tmp_path / stack.file_name(first)).unlink()
        again = store(stack, 2, [first, second])
        assert list(again.ok) == [first, second]
        assert list(again.in_memory) == [first]
        assert not (tmp_path / stack.file_name(first)).exists()
        assert (tmp_path / stack.file_name(second)).exists()
        assert stack.findings() == []
    finally:
        stack.close()


def test_a_file_tier_that_accounts_for_fewer_blocks_than_it_was_given_is_a_finding(tmp_path: Path) -> None:
    stack = _MissesJobs(setup(tmp_path))
    try:
        store(stack, 1, stack.keys(range(32)))
        assert stack.findings() == ["the manager gave the file tier 2 blocks to store, and its finished jobs count 0"]
    finally:
        stack.close()
