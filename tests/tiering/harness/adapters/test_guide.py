"""The example of docs/adapter.md is complete and passes; its mistakes get the findings that the page explains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.timeout(600)  # of all the runs that the fixture makes
ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PAGE = (ROOT / "docs/adapter.md").read_text()
EXAMPLE = PAGE.split("```python\n")[1].split("```")[0]


MISTAKES = {
    "flat view": (
        "return self._view",
        'return self._view.cast("B")',
        "the slots have the shape (4194304,), not (64, 65536)",
    ),
    "sub-view": ("self._slots[slot])", "self._view[slot])", "multi-dimensional sub-views are not implemented"),
    "no parent": ("(parent or self._first)", "self._first", "a block's key does not depend on the tokens before it"),
    "failed blocks left out": (
        "(job_id, ok, failed)",
        "(job_id, ok, [])",
        "a job of 5 blocks ended with 4 ok and 0 failed, 0 of them not",
    ),
}


BROKEN_BY_MISTAKES = (
    "slots_are_memory",
    "keys_name_prefixes",
    "stored_blocks_load",
    "another_instance_finds_them",
    "a_vanished_block_is_no_data",
)
"""Promises that show the mistakes; the others take their time."""


class Conformed(NamedTuple):
    exit_code: int
    output: str


@pytest.fixture(scope="module")
def conformed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conformed]:
    """ "" and each mistake -> how `conform` on the example ends. The runs are made at the same time."""
    sources = {"": EXAMPLE, **{name: EXAMPLE.replace(right, wrong) for name, (right, wrong, _) in MISTAKES.items()}}
    started = {}
    for name, source in sources.items():
        folder = tmp_path_factory.mktemp("example")
        (folder / "folder_tier.py").write_text(source)
        command = [sys.executable, "-m", "harness"]
        if name:
            command += ["run", "contract", "--tier", "folder_tier:FolderAdapter", "--quiet"]
            command += [part for promise in BROKEN_BY_MISTAKES for part in ("--promise", promise)]
        else:
            command += ["conform", "folder_tier:FolderAdapter", "--quiet", "--scenario", "contract"]
            command += ["--scenario", "load", "--seconds", "2", "--seed", "7"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
        output = subprocess.PIPE
        started[name] = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, text=True)
    ended = {name: (process.communicate(), process.returncode) for name, process in started.items()}
    return {name: Conformed(code, "".join(output)) for name, (output, code) in ended.items()}


def test_the_example_passes_the_contract_and_a_load(conformed: dict[str, Conformed]) -> None:
    assert conformed[""].exit_code == 0, conformed[""].output


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_the_finding_that_the_page_explains(conformed: dict[str, Conformed], name: str) -> None:
    right, _, finding = MISTAKES[name]
    assert finding in PAGE
    assert EXAMPLE.count(right) == 1
    assert conformed[name].exit_code == 1, conformed[name].output
    assert finding in " ".join(conformed[name].output.split())
