"""Scripts that show a defect with the peer alone: short, without the harness, and failing as they say.

The slow test runs each on its peer; it is skipped where the peer is not installed (`kvtier-harness install-peer`).
"""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

from harness.adapters import tier_python
from harness.adapters.base import PeerMissing
from harness.findings.promises import REPRO

LINES_MAX = 60
SCRIPTS = sorted(REPRO.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_imports_neither_the_harness_nor_kvtier(script: Path) -> None:
    text = script.read_text()
    assert text.count("\n") < LINES_MAX
    names = [
        name
        for node in ast.walk(ast.parse(text))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
        )
    ]
    assert not [name for name in names if name.startswith(("harness", "kvtier"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_shows_its_defect_on_the_peer(script: Path, tmp_path: Path) -> None:
    try:
        python = tier_python(script.stem.partition("_")[0])
    except PeerMissing as error:
        pytest.skip(str(error))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([python, str(script)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1, done.stderr
    assert "\nDEFECT: " in f"\n{done.stderr}"
