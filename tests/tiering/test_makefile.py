"""The Makefile's environments (a small one for traffic, a large one with torch), its test targets, and .ci/run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
RUN_TRAFFIC = [
    "load",
    "observe",
    "scenarios",
    "interleavings",
    "soak",
    "capacity",
    "power-loss",
    "mutants",
    "false-alarms",
]
DEVELOP = ["test", "test-fast", "lint", "types", "docs-check", "bench", "dist"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "setup.py", "kvtier/fs/_native.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=checkout, env=kept | environment, capture_output=True, text=True)


def would_run(checkout: Path, target: str) -> str:
    """The commands of a target, printed by make and not run."""
    done = make(checkout, "-n", target)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_environment(checkout: Path, name: str) -> None:
    (checkout / name).mkdir()
    (checkout / name / ".installed").touch()


@pytest.mark.parametrize("target", RUN_TRAFFIC)
def test_a_traffic_target_makes_the_small_environment(checkout: Path, target: str) -> None:
    commands = would_run(checkout, target)
    assert '-e ".[cli,faults,harness,tracing]"' in commands
    assert ".venv-run/bin/python -m harness" in commands
    assert "torch" not in commands
    assert not re.search(r"\.venv\b(?!-)", commands)


@pytest.mark.parametrize("target", RUN_TRAFFIC)
def test_a_traffic_target_uses_the_large_environment_if_it_exists(checkout: Path, target: str) -> None:
    make_environment(checkout, ".venv")
    commands = would_run(checkout, target)
    assert ".venv/bin/python -m harness" in commands
    assert "pip install" not in commands
    assert ".venv-run" not in commands


@pytest.mark.parametrize("target", DEVELOP)
def test_a_development_target_makes_the_large_environment_torch_first(checkout: Path, target: str) -> None:
    make_environment(checkout, ".venv-run")
    commands = would_run(checkout, target)
    assert commands.index('"torch==2.13.0"') < commands.index('-e ".[dev]"')
    assert ".venv-run" not in commands


def test_clean_removes_every_environment(checkout: Path) -> None:
    for name in (".venv", ".venv-run", ".venv-3.11", ".venv-vllm"):
        make_environment(checkout, name)
    assert make(checkout, "clean").returncode == 0
    assert sorted(path.name for path in checkout.glob(".venv*")) == [".venv-vllm"]


def test_each_path_of_test_fast_exists(checkout: Path) -> None:
    command = would_run(checkout, "test-fast").splitlines()[-1]
    paths = re.findall(r"tests/[^\s=]+", command)
    assert "tests/tiering/kvtier" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


SHIM = 127
"""Exit code of pyenv's program for a version that is not chosen."""


def pythons(folder: Path, **exit_codes: int) -> str:
    """A PATH with a program of each named version, which works unless its exit code is `SHIM`; and no other Python."""
    for version, code in exit_codes.items():
        program = folder / f"python{version.replace('_', '.').removeprefix('v')}"
        program.write_text(f"#!/bin/sh\nexit {SHIM if code == SHIM else 0}\n")
        program.chmod(0o755)
    for tool in ("make", "sh", "touch", "echo"):
        (folder / tool).symlink_to(shutil.which(tool) or "")
    return str(folder)


@pytest.mark.parametrize(
    ("present", "code", "summary"),
    [
        ({"v3_11": 0, "v3_13": 0}, 0, "ran on: 3.11 3.13; not installed: 3.12 3.14"),
        ({"v3_11": 1, "v3_12": 0}, 2, "ran on: 3.11 3.12; not installed: 3.13 3.14"),
        ({"v3_11": 0, "v3_12": SHIM}, 0, "ran on: 3.11; not installed: 3.12 3.13 3.14"),
        ({}, 2, "ran on: none; not installed: 3.11 3.12 3.13 3.14"),
    ],
    ids=["two pass", "one fails", "one does not start", "none"],
)
def test_ci_matrix_names_the_versions_it_ran_on_and_those_it_lacks(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, present: dict[str, int], code: int, summary: str
) -> None:
    path = pythons(tmp_path_factory.mktemp("bin"), **present)
    for version in present:  # made before, so that each stands for an environment
        environment = checkout / f".venv-{version.removeprefix('v').replace('_', '.')}"
        (environment / "bin").mkdir(parents=True)
        (environment / "bin/python").write_text(f"#!/bin/sh\nexit {present[version]}\n")
        (environment / "bin/python").chmod(0o755)
        (environment / ".installed").touch()
    done = make(checkout, "ci-matrix", PATH=path)
    assert f"ci-matrix: {summary}\n" in done.stdout
    assert done.returncode == code, done.stderr
    if not present:
        assert "no tests ran; install one of these" in done.stderr


def test_each_stage_of_ci_is_a_target_of_the_makefile(checkout: Path) -> None:
    script = (ROOT / ".ci/run").read_text()
    targets = set(re.findall(r"stage [\w-]+ make ([\w-]+)", script))
    assert {"load", "test", "lint", "types", "docs-check"} <= targets
    phony = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())
    assert targets <= phony
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0
