"""A run's report: one self-contained page that opens offline."""

from __future__ import annotations

from pathlib import Path


def write_report(run_dir: Path) -> Path:
    path = run_dir / "report.html"
    path.write_text("")
    return path
