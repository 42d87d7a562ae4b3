"""The device probe measures short runs, and what it has measured when the device refuses a call."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from harness.core.notes import Device
from harness.runtime.device_probe import device_probe


def measured(root: Path) -> list[tuple[float, Device]]:
    found: list[tuple[float, Device]] = []
    root.mkdir()
    with device_probe(root, 4096, lambda at, device: found.append((at, device))):
        pass  # a run that is over at once
    assert [path.name for path in root.parent.iterdir()] == ["root"], "nothing is left behind"
    return found


def test_a_run_that_is_over_at_once_was_measured(tmp_path: Path) -> None:
    ((at, device),) = measured(tmp_path / "root")
    assert device.from_seconds < at
    assert 0 < device.median_seconds <= device.longest_seconds
    assert device.call in ("write", "rename", "read", "unlink")


def test_what_was_measured_before_the_device_refused_a_call_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    ((_, device),) = measured(tmp_path / "root")
    assert device.call == "write"
