"""`Admission`: how many blocks of a store are enqueued, and why the others are refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from kvtier.config import FsTierConfig
from kvtier.fs.admission import BACKLOG_SECONDS, REFUSAL_REASONS, Admission, Grant, Refusal
from kvtier.fs.block_io import BlockOutcome

BLOCK = 4096
FILE = BLOCK + 4096
STORED, PRESENT, FULL = BlockOutcome(), BlockOutcome(skipped=True), BlockOutcome("ENOSPC")


class Keeper:
    """A quota with headroom for `blocks` more."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def reserve(self, blocks: int, file_bytes: int) -> int:
        assert file_bytes == FILE
        granted = min(blocks, self.blocks)
        self.blocks -= granted
        return granted

    def release(self, blocks: int, file_bytes: int) -> None:
        assert file_bytes == FILE
        self.blocks += blocks


def make(slots: int = 1000, queue_blocks: int = 100, quota: Any = None) -> Admission:
    config = FsTierConfig("/kv", BLOCK, store_queue_bytes_max=queue_blocks * BLOCK)
    return Admission(config, slots * BLOCK, quota)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def forward(seconds: float) -> None:
        nonlocal now
        now += seconds

    return forward


def test_the_blocks_that_the_queue_holds_are_granted_and_the_others_refused() -> None:
    admission = make(queue_blocks=5)
    assert admission.reserve(5, 0, 0.0) == Grant(5, "")
    assert admission.reserve(5, 2 * BLOCK, 0.0) == (3, "refused")
    assert admission.reserve(1, 5 * BLOCK, 0.0) == (0, "refused")
    assert admission.reserve(1, 9 * BLOCK, 0.0) == (0, "refused"), "more queued than the limit is no negative grant"


def test_half_of_the_slots_is_a_backlog_only_once_a_store_has_waited_long() -> None:
    admission = make(slots=10)
    assert admission.reserve(4, 5 * BLOCK, 2 * BACKLOG_SECONDS).blocks == 4
    assert admission.reserve(4, 6 * BLOCK, 2 * BACKLOG_SECONDS) == (0, "backlog")
    assert admission.reserve(4, 6 * BLOCK, BACKLOG_SECONDS).blocks == 4, "a burst, which the volume stores in time"


def test_a_quota_limits_what_the_queue_would_hold_and_gets_back_what_ended() -> None:
    keeper = Keeper(3)
    admission = make(queue_blocks=4, quota=keeper)
    assert admission.reserve(9, 0, 0.0) == (3, "full")
    admission.release([STORED, FULL, BlockOutcome("EIO")])
    assert keeper.blocks == 3
    assert make(queue_blocks=2, quota=keeper).reserve(9, 0, 0.0) == (2, "refused"), (
        "the queue holds less than the quota grants"
    )


@pytest.mark.parametrize("reason", ["ENOSPC", "EDQUOT"])
def test_stores_pause_twice_as_long_each_time_and_go_on_once_one_worked(
    reason: str, clock: Callable[[float], None]
) -> None:
    admission, full = make(), BlockOutcome(reason)
    pauses = []
    for _ in range(12):
        assert admission.reserve(2, 0, 0.0).blocks == 2
        admission.release([STORED, full])
        pause = 0.0
        while admission.reserve(2, 0, 0.0) == (0, "ENOSPC"):
            admission.release([])  # a refused store ends too, and does not lengthen the pause
            clock(0.1)
            pause += 0.1
        pauses.append(round(pause, 1))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0], abs=0.11)
    admission.release([PRESENT])
    assert "no space" in repr(admission), "a block that was there already proves no space"
    admission.release([STORED])
    assert "stores go on" in repr(admission)
    admission.release([full])
    clock(0.11)
    assert admission.reserve(1, 0, 0.0).blocks == 1, "the next pause is short again"


def test_only_an_errno_is_no_reason_of_refusals_alone() -> None:
    """Dashboards, rules and the harness tell refusals from failures by these values."""
    assert REFUSAL_REASONS == ("refused", "backlog", "full")
    assert set(Refusal) - set(REFUSAL_REASONS) == {Refusal.NO_SPACE}
