"""The device probe measures short runs, and what it has measured when the device refuses a call."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.checkers.evidence import HELD_FACTOR, UNMEASURED_SECONDS
from harness.core.notes import Device
from harness.runtime import device_probe as device_probe_module
from harness.runtime.device_probe import LONG_SECONDS, device_probe


def measured(root: Path, until_it_ends: bool = False) -> list[tuple[float, Device]]:
    """The notes of a run that is over at once, or as soon as the device has refused a call."""
    found: list[tuple[float, Device]] = []
    root.mkdir()
    with device_probe(root, 4096, lambda at, device: found.append((at, device))):
        for thread in threading.enumerate():
            if until_it_ends and thread.name == "device probe":
                thread.join()
    assert [path.name for path in root.parent.iterdir()] == ["root"], "nothing is left behind"
    return found


def test_a_run_that_is_over_at_once_was_measured(tmp_path: Path) -> None:
    ((at, device),) = measured(tmp_path / "root")
    assert device.from_seconds < at
    assert 0 < device.median_seconds <= device.longest_seconds
    assert device.call in ("write", "rename", "read", "unlink")


class Full:
    """A device that has no space left after so many rounds; it takes `seconds` for the refusal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rounds: int, seconds: float = 0.0) -> None:
        self._rounds, self._seconds, self._ahead, self._write = rounds, seconds, 0.0, os.pwritev
        monkeypatch.setattr(os, "pwritev", self._refuse)
        monkeypatch.setattr(device_probe_module, "time", SimpleNamespace(monotonic=self._monotonic))
        monkeypatch.setattr(device_probe_module, "PAUSE_SECONDS", 0.0001)

    def _monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def _refuse(self, *arguments: Any) -> int:
        self._rounds -= 1
        if self._rounds >= 0:
            return self._write(*arguments)
        self._ahead += self._seconds
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_was_measured_before_the_device_refused_a_call_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Full(monkeypatch, rounds=1, seconds=0.1)
    ((_, device),) = measured(tmp_path / "root", until_it_ends=True)
    assert device.call == "write"
    assert device.longest_seconds >= 0.1, "the refusal took longest"
    assert device.median_seconds < 0.1


def test_a_device_that_refuses_each_call_at_once_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal says nothing about the time of a call that is carried out."""
    Full(monkeypatch, rounds=0)
    assert measured(tmp_path / "root") == []


def test_a_first_call_that_takes_long_counts_though_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LONG_SECONDS == UNMEASURED_SECONDS / HELD_FACTOR, "a faster one would only lower what a wait must exceed"
    Full(monkeypatch, rounds=0, seconds=2 * LONG_SECONDS)
    ((_, device),) = measured(tmp_path / "root")
    assert device.longest_seconds >= 2 * LONG_SECONDS
