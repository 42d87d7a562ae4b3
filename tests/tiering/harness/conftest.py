"""The command line in the process of a test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Said(NamedTuple):
    """What a command that ended at once left behind."""

    exit_code: int
    out: str
    err: str


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Call the command line in this process: for what starts no other."""
    from harness.cli import main  # here: a node without click collects the tests that need none

    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def said(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    yield said
    signal.signal(signal.SIGTERM, before)
