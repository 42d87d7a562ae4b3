"""The example of docs/adapter.md is complete and passes; its mistakes get the findings that the page explains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PAGE = (ROOT / "docs/adapter.md").read_text()
EXAMPLE = PAGE.split("```python\n")[1].split("```")[0]


def conform(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "folder_tier.py").write_text(source)
    command = [sys.executable, "-m", "harness", "conform", "folder_tier:FolderAdapter", "--quiet", *options]
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_the_example_passes_the_contract_and_a_load(tmp_path: Path) -> None:
    done = conform(tmp_path, EXAMPLE, "--scenario", "contract", "--scenario", "load", "--seconds", "2", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "finding"),
    [
        ("return self._view", 'return self._view.cast("B")', "the slots have the shape (4194304,), not (64, 65536)"),
        ("self._slots[slot])", "self._view[slot])", "multi-dimensional sub-views are not implemented"),
        ("(parent or FIRST)", "FIRST", "a block's key does not depend on the tokens before it"),
        ("(job_id, ok, failed)", "(job_id, ok, [])", "a job of 5 blocks ended with 4 ok and 0 failed, 0 of them not"),
    ],
    ids=["flat view", "sub-view", "no parent", "failed blocks left out"],
)
def test_a_mistake_gets_the_finding_that_the_page_explains(
    tmp_path: Path, right: str, wrong: str, finding: str
) -> None:
    assert finding in PAGE
    assert EXAMPLE.count(right) == 1
    done = conform(tmp_path, EXAMPLE.replace(right, wrong), "--scenario", "contract")
    assert done.returncode == 1, done.stdout + done.stderr
    assert finding in " ".join(done.stdout.split())
