"""What the device alone can do: a figure or a reason, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

from harness.core.device import measure


def test_rates_or_a_reason_and_no_file_left(tmp_path: Path) -> None:
    found = measure(tmp_path, 65536, 0.1)
    assert list(tmp_path.iterdir()) == []
    if "why" in found:
        assert found["why"].startswith("O_DIRECT: ")
        return
    assert found["write_mib_per_second"] > 0
    assert found["read_mib_per_second"] > 0
    assert found["how"] == "O_DIRECT, blocks of 64 KiB, 4 threads, 0.1 s"


def test_where_nothing_can_be_written_a_reason_is_given(tmp_path: Path) -> None:
    assert measure(tmp_path / "nowhere", 4096, 0.1) == {"why": "no folder could be made: No such file or directory"}
