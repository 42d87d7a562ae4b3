"""`make bench-gpu-compare` where there is no CUDA device, and the patch that it would measure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "tests/tiering/benchmarks/gpu"


def run(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, "OUT": str(out), **environment}
    return subprocess.run([FOLDER / "run.sh"], cwd=ROOT, env=here, capture_output=True, text=True)


def test_without_a_device_it_says_unmeasured_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    done = run(tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "no CUDA device" in line
    assert line.endswith("the GPU path stays unmeasured")
    assert not list(tmp_path.iterdir())


def test_without_torch_it_says_unmeasured_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    done = run(tmp_path / "out", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no torch here" in line
    assert not (tmp_path / "out").exists()


def test_a_python_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    done = run(tmp_path / "out", PYTHON="no-such-python")
    assert done.returncode == 64
    assert "PYTHON is no-such-python" in done.stderr


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
def test_the_candidate_applies_to_this_kvtier_and_says_that_it_never_ran() -> None:
    text = (FOLDER / "candidate.patch").read_text()
    assert text.startswith("Candidate, never run on a CUDA device")
    done = subprocess.run(
        ["patch", "--dry-run", "-p1", "--fuzz=0"], cwd=ROOT, input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\nmake candidate.patch again from the changed files"


def test_each_module_that_the_scripts_name_exists_or_is_made_by_the_candidate() -> None:
    made = set(re.findall(r"^\+\+\+ b/(\S+)$", (FOLDER / "candidate.patch").read_text(), re.MULTILINE))
    named = set(re.findall(r"\$root/(kvtier/\S+\.py)", (FOLDER / "run.sh").read_text()))
    for script in FOLDER.glob("*.py"):
        modules = re.findall(r"^from (kvtier[\w.]*) import", script.read_text(), re.MULTILINE)
        named |= {module.replace(".", "/") + ".py" for module in modules}
    assert len(named) >= 2
    assert [path for path in sorted(named) if path not in made and not (ROOT / path).exists()] == []
