"""The Makefile's two environments: a small one to run traffic, a large one with torch to develop."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
RUN_TRAFFIC = ["load", "observe", "scenarios", "soak", "capacity", "power-loss", "mutants", "false-alarms"]
DEVELOP = ["test", "lint", "types", "bench", "dist"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "setup.py", "kvtier/fs/_native.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def would_run(checkout: Path, target: str) -> str:
    """What make would do for a target, without doing it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "-n", target], cwd=checkout, env=kept, capture_output=True, text=True, check=True)
    return done.stdout


def make_environment(checkout: Path, name: str) -> None:
    (checkout / name).mkdir()
    (checkout / name / ".installed").touch()


@pytest.mark.parametrize("target", RUN_TRAFFIC)
def test_what_runs_traffic_makes_the_small_environment(checkout: Path, target: str) -> None:
    commands = would_run(checkout, target)
    assert '-e ".[cli,faults,harness,tracing]"' in commands
    assert ".venv-run/bin/python -m harness" in commands
    assert "torch" not in commands
    assert not re.search(r"\.venv\b(?!-)", commands)


@pytest.mark.parametrize("target", RUN_TRAFFIC)
def test_what_runs_traffic_uses_the_large_environment_where_it_is(checkout: Path, target: str) -> None:
    make_environment(checkout, ".venv")
    commands = would_run(checkout, target)
    assert ".venv/bin/python -m harness" in commands
    assert "pip install" not in commands
    assert ".venv-run" not in commands


@pytest.mark.parametrize("target", DEVELOP)
def test_developing_makes_the_large_environment_torch_first(checkout: Path, target: str) -> None:
    make_environment(checkout, ".venv-run")
    commands = would_run(checkout, target)
    assert commands.index('"torch==2.13.0"') < commands.index('-e ".[dev]"')
    assert ".venv-run" not in commands


def test_clean_removes_both(checkout: Path) -> None:
    make_environment(checkout, ".venv")
    make_environment(checkout, ".venv-run")
    subprocess.run(["make", "clean"], cwd=checkout, capture_output=True, check=True)
    assert sorted(path.name for path in checkout.glob(".venv*")) == []
