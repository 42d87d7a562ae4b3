"""What the observers of the adapter for kvtier write, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.adapters import adapter_class
from harness.adapters.base import TierSetup


@pytest.mark.parametrize("run_dir", ["", "run"])
def test_metrics_are_written_to_the_run_folder_and_nowhere_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("root", "run"):
        (tmp_path / folder).mkdir()
    adapter_class("kvtier")(TierSetup(str(tmp_path / "root"), 4096, 4, run_dir=run_dir, serve_metrics=True)).close()
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.openmetrics")]
    assert written == (["run/metrics-0.openmetrics"] if run_dir else [])
