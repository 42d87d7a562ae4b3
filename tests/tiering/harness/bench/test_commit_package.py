"""The tier of a commit: taken from git as it was, its native extension built beside it, or a sentence why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.bench import commit_package
from harness.bench.commands import bench
from harness.bench.compared_tiers import REPOSITORY
from harness.bench.disk import Unavailable
from harness.core import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=kvtier", "-c", "user.email=kvtier@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two commits of `kvtier/`: the second returns 2, the first 1, in Python and in C."""
    folder = tmp_path / "checkout"
    package = folder / "kvtier"
    package.mkdir(parents=True)
    git(folder, "init", "-q")
    for number in (1, 2):
        (package / "__init__.py").write_text(f"__version__ = '{number}'\n")
        (package / "fs").mkdir(exist_ok=True)
        (package / "fs/__init__.py").touch()
        (package / "fs/_native.c").write_text(NATIVE.replace("NUMBER", str(number)))
        (folder / "README.md").write_text("not the tier\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", str(number))
    monkeypatch.setattr(commit_package, "REPOSITORY", folder)
    return folder


NATIVE = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, NULL};
PyMODINIT_FUNC PyInit__native(void) {
    PyObject *made = PyModule_Create(&module);
    PyModule_AddIntConstant(made, "number", NUMBER);
    return made;
}
"""


def said(folder: Path, expression: str) -> str:
    command = [sys.executable, "-c", f"import kvtier; print({expression})"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_package_is_that_of_the_commit_alone(checkout: Path, tmp_path: Path) -> None:
    into = tmp_path / "frozen"
    assert commit_package.freeze("HEAD~1", into) == git(checkout, "rev-parse", "--short", "HEAD~1")
    assert said(into, "kvtier.__version__") == "1"
    assert [entry.name for entry in into.iterdir()] == ["kvtier"]
    assert not list(into.rglob("*.so"))  # the checkout has no extension, so the commit gets none


def test_a_bench_process_imports_nothing_that_the_earliest_commit_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports today's harness and the commit's `kvtier`, whose modules had other names."""
    monkeypatch.setattr(commit_package, "_build_native", lambda package: None)
    try:
        commit_package.freeze(commit_package.EARLIEST, tmp_path)
    except Unavailable as error:
        pytest.skip(str(error))
    code = "import harness.bench.child, harness.adapters.kvtier, kvtier; print(kvtier.__file__)"
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path}/kvtier/__init__.py\n", "")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
@pytest.mark.parametrize("name", [f"_native{commit_package.SUFFIX}", "_native.abi3.so"])
def test_a_native_extension_is_compiled_from_the_commits_source(checkout: Path, tmp_path: Path, name: str) -> None:
    commit_package.compile_native(checkout / "kvtier/fs/_native.c", checkout / "kvtier/fs" / name)
    commit_package.freeze("HEAD~1", tmp_path / "then")
    commit_package.freeze("HEAD", tmp_path / "now")
    numbers = [said(tmp_path / name, "__import__('kvtier.fs._native').fs._native.number") for name in ("then", "now")]
    assert numbers == ["1", "2"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_a_native_extension_that_cannot_be_compiled_is_one_sentence(checkout: Path, tmp_path: Path) -> None:
    (checkout / f"kvtier/fs/_native{commit_package.SUFFIX}").touch()
    (checkout / "kvtier/fs/_native.c").write_text("this is no C\n")
    git(checkout, "commit", "-q", "-a", "-m", "broken")
    (checkout / "kvtier/fs/_native.c").write_text("another\n")
    with pytest.raises(Unavailable, match=r"the commit's _native\.c cannot be compiled here"):
        commit_package.freeze("HEAD", tmp_path / "frozen")


@pytest.mark.parametrize("revision", ["no-such-commit", "--help", "", "HEAD:kvtier"])
def test_what_is_no_commit_is_named(checkout: Path, tmp_path: Path, revision: str) -> None:
    with pytest.raises(Unavailable, match=rf"^{revision!r} is no commit of this checkout"):
        commit_package.freeze(revision, tmp_path / "frozen")


def test_a_commit_without_the_tier_is_named(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / "kvtier")
    git(checkout, "commit", "-q", "-a", "-m", "gone")
    with pytest.raises(Unavailable, match=r"^'HEAD' has no kvtier/$"):
        commit_package.freeze("HEAD", tmp_path / "frozen")


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_package, "REPOSITORY", tmp_path)
    with pytest.raises(Unavailable, match="this is no git checkout"):
        commit_package.freeze("HEAD", tmp_path / "frozen")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="git cannot read the commit"):
        commit_package.freeze("HEAD", tmp_path / "frozen")


def test_the_default_is_the_commit_of_the_table_that_was_kept_last(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="name a commit"):
        commit_package.default_commit(tmp_path)
    for name, commit, wall_time in (("a", "new", "2026-11-23"), ("b", "old", "2026-11-22"), ("c", None, "2026-11-24")):
        table = {"wall_time": wall_time, "environment": {"git": commit and {"commit": commit}}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"table": table}))
    (tmp_path / "d.json").write_text("{}")
    assert commit_package.default_commit(tmp_path) == "new"


def test_a_baseline_before_the_first_commit_that_can_be_driven_is_replaced_by_that_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = git(checkout, "rev-parse", "HEAD~1"), git(checkout, "rev-parse", "HEAD")
    for kept, earliest, expected in ((older, newer, newer), (newer, older, newer), (newer, newer, newer)):
        table = {"wall_time": 1, "environment": {"git": {"commit": kept}}}
        (tmp_path / "kept.json").write_text(json.dumps({"table": table}))
        monkeypatch.setattr(commit_package, "EARLIEST", earliest)
        assert commit_package.default_commit(tmp_path) == expected


@pytest.mark.parametrize("seen", [None, {"commit": "abc", "changed": True}])
def test_a_table_of_code_that_no_commit_holds_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, object] | None
) -> None:
    monkeypatch.setattr(environment, "git", lambda: seen)
    done = CliRunner().invoke(bench, ["table", "--size", "smoke", "--section", "idle", "--save"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "commit them first" in done.stderr


def test_compare_without_the_commit_is_unknown() -> None:
    done = CliRunner().invoke(bench, ["compare", "--against", "no-such-commit"])
    assert done.exit_code == 2
    in_git = (REPOSITORY / ".git").exists()
    why = "'no-such-commit' is no commit of this checkout" if in_git else "this is no git checkout"
    assert done.stdout.startswith(f"inconclusive: {why}")
