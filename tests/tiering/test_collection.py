"""The layout of the tests, and their collection by a Python that has pytest and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTEST = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with links to pytest and its own needs."""
    for name in PYTEST:
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            (tmp_path / top).symlink_to(Path(str(installed.locate_file(top))))
    return tmp_path


def test_gpu_tests_are_collected_with_pytest_alone_and_the_rest_is_named(bare: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(bare), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    # -S: without the packages of the environment. The command is that of `make bench-gpu`.
    command = [sys.executable, "-S", "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/tiering/kvtier", "tests/tiering/harness/checkers", "tests/tiering/benchmarks"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 5, f"5: nothing was selected\n{done.stdout}\n{done.stderr}"
    left_out = dict(re.findall(r"^NOT COLLECTED (\S+): not installed: (.*)$", done.stdout, re.MULTILINE))
    assert left_out["tests/tiering/benchmarks/test_gpu.py"] == "torch, xxhash"
    assert "hypothesis" in left_out["tests/tiering/kvtier/test_manager.py"]
    assert "tests/tiering/kvtier/test_vllm_interface.py" not in left_out


@pytest.mark.parametrize("package", ["kvtier", "harness"])
def test_each_folder_of_tests_has_the_name_of_a_folder_of_source(package: str) -> None:
    tests = ROOT / "tests/tiering" / package
    folders = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("*.py")}
    assert "." in folders
    without_source = {folder for folder in folders if not (ROOT / package / folder).is_dir()}
    assert without_source <= {"broken"}, "only tiers with a defect, for the tests, have no folder of source"
