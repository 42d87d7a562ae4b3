"""The pre-commit hooks: local, so that they need no network, and each refuses what its command refuses."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
(REPOSITORY,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
HOOKS: dict[str, dict[str, Any]] = {hook["id"]: hook for hook in REPOSITORY["hooks"]}


def run(hook: str, *files: Path) -> subprocess.CompletedProcess[str]:
    """Run a hook's command as pre-commit does, with the tools of the environment that runs this test."""
    command = shlex.split(HOOKS[hook]["entry"].replace(".venv/bin/", f"{sys.prefix}/bin/"))
    return subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)


def test_hooks_use_the_checkouts_own_tools() -> None:
    assert REPOSITORY["repo"] == "local"
    assert list(HOOKS) == ["ruff-format", "ruff", "mypy", "words"]
    for hook in HOOKS.values():
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


@pytest.mark.parametrize(
    ("hook", "text", "message"),
    [
        ("ruff", "import os\n", "F401"),
        ("mypy", "def f(x): ...\n", "no-untyped-def"),
    ],
)
def test_a_hook_refuses_a_bad_file(tmp_path: Path, hook: str, text: str, message: str) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(text)
    done = run(hook, bad)
    assert done.returncode == 1
    assert message in done.stdout


def test_the_format_hook_rewrites_a_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("x = {  'a':1 }\n")
    assert run("ruff-format", bad).returncode == 0
    assert bad.read_text() == 'x = {"a": 1}\n'


def test_the_words_hook_runs_the_check_of_words() -> None:
    done = run("words", Path("--collect-only"))
    assert done.returncode == 0, done.stdout
    assert "test_words.py" in done.stdout
