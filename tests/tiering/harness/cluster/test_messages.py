"""Messages, files and clocks between two nodes, over a store in memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from harness.cluster.channel import PAYLOADS_MAX, Inbox, Outbox
from harness.cluster.clocks import WINDOW_SAMPLES, ClockDifference
from harness.cluster.files import PIECE_BYTES, Files, write_piece
from tests.tiering.harness.cluster.memory_store import MemoryStore


def test_messages_come_in_order_with_their_payloads() -> None:
    store = MemoryStore()
    outbox, inbox = Outbox(store, "a"), Inbox(store, "a")
    outbox.send({"n": 1})
    outbox.send({"n": 2}, b"\n\0bytes\n")
    assert [inbox.receive(1), inbox.receive(1)] == [({"n": 1}, b""), ({"n": 2}, b"\n\0bytes\n")]
    with pytest.raises(TimeoutError):
        inbox.receive(0.01)
    assert store.values() == 0, "what was received is not kept"


def test_a_slow_receiver_holds_payloads_back_and_not_messages() -> None:
    store = MemoryStore()
    outbox, inbox = Outbox(store, "a"), Inbox(store, "a")
    for _ in range(PAYLOADS_MAX):
        outbox.send({}, b"x")
    outbox.send({"small": True})
    sent = threading.Event()
    thread = threading.Thread(target=lambda: (outbox.send({}, b"x"), sent.set()))
    thread.start()
    assert not sent.wait(0.05)
    inbox.receive(1)
    assert sent.wait(10)
    thread.join()


def test_files_are_copied_as_they_grow_shrink_and_are_replaced(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    files = Files(here)

    def copied() -> int:
        pieces = list(files.fresh())
        for head, data in pieces:
            write_piece(there, head, data)
        assert {p.name: p.read_bytes() for p in there.iterdir()} == {p.name: p.read_bytes() for p in here.iterdir()}
        return len(pieces)

    (here / "history-1.jsonl").write_bytes(b"x" * (2 * PIECE_BYTES + 5))
    (here / "stderr-1.txt").write_bytes(b"one\n")
    assert copied() == 4
    with open(here / "stderr-1.txt", "ab") as file:
        file.write(b"two\n")
    assert copied() == 1
    assert copied() == 0
    (here / "fresh").write_bytes(b"other")
    (here / "fresh").replace(here / "stderr-1.txt")
    assert copied() == 1
    (here / "history-1.jsonl").write_bytes(b"short")
    assert copied() == 1


def test_the_shortest_round_trip_gives_the_difference_and_drift_widens_its_bound() -> None:
    clock = ClockDifference()
    clock.first(10.0, 510.4, 10.4)  # 500.2 ahead, within 0.2
    clock.first(11.0, 511.001, 11.002)  # 500.0 ahead, within 0.001
    clock.fix()
    assert clock.ahead_ns == pytest.approx(500e9, abs=1)
    assert clock.bound_seconds == pytest.approx(0.001)
    for n in range(WINDOW_SAMPLES):
        late = 0.5 if n % 2 else 0.0  # answers that came late say less, and spoil nothing
        clock.renew(20.0 + n, 520.006 + n, 20.002 + n + late)
    assert clock.bound_seconds == pytest.approx(0.005 + 0.001, abs=1e-6)
    for n in range(WINDOW_SAMPLES):
        clock.renew(40.0 + n, 540.0001 + n, 40.0002 + n)
    assert clock.bound_seconds == pytest.approx(0.006, abs=1e-6), "the worst moment of the run counts"
