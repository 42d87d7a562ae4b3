"""What lies in the working directory: a folder `harness` there hides nothing, and a tier's module there is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.installation import ROOT
from tests.tiering.harness.scenarios.certain_trace import write_certain_trace

HOSTILE = 'raise RuntimeError("a module of the working directory was imported")\n'
MY_TIER = "from harness.adapters.reference import MemoryAdapter\n\nclass MyAdapter(MemoryAdapter):\n    pass\n"
SMALL = ["--processes", "2", "--block-bytes", "4096", "--seed", "5", "--quiet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with its own `harness` and `kvtier`, and modules named as the standard library's."""
    for package in ("harness", "kvtier"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(HOSTILE)
    for module in ("random", "queue", "dataclasses"):
        (tmp_path / f"{module}.py").write_text(HOSTILE)
    (tmp_path / "my_tier.py").write_text(MY_TIER)
    write_certain_trace(tmp_path / "certain.jsonl")
    return tmp_path


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as its console script runs: the working directory is not on sys.path."""
    command = [sys.executable, "-P", "-m", "harness", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_workers_import_the_harness_and_the_tier_of_the_working_directory(folder: Path) -> None:
    trace = ["--trace", "certain.jsonl", "--speed", "1"]
    done = harness(folder, "run", "load", "--tier", "my_tier:MyAdapter", *SMALL, *trace)
    assert done.returncode == 0, done
    assert done.stderr == ""


@pytest.mark.slow
def test_a_scenario_with_a_command_of_its_own_finds_the_tier(folder: Path) -> None:
    done = harness(folder, "run", "determinism", "--tier", "my_tier:MyAdapter", "--python", "none", *SMALL)
    assert done.returncode == 0, done


@pytest.mark.parametrize(
    ("tier", "text", "words"),
    [
        (
            "our_tier:A",
            None,
            "there is no module 'our_tier' in the working directory or on PYTHONPATH; ",
        ),
        ("our_tier:A", "import not_installed\n", "our_tier imports 'not_installed', which is missing"),
        ("our_tier:A", "class A:\n    def a(self:\n", "SyntaxError: '(' was never closed (our_tier.py, line 2)"),
    ],
)
def test_a_tier_that_cannot_be_imported_is_one_sentence(folder: Path, tier: str, text: str | None, words: str) -> None:
    if text is not None:
        (folder / "our_tier.py").write_text(text)
    for command in (["conform", tier], ["run", "load", "--tier", tier]):
        done = harness(folder, *command)
        assert (done.returncode, done.stdout) == (64, ""), done
        assert done.stderr.count("\n") == 1, done.stderr
        assert words in done.stderr
    assert not (folder / "runs").exists()
