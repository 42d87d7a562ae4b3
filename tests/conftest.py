"""Collection on a node with torch and little else: a test file whose imports are missing is left out and named."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import kvtier

ROOT = Path(__file__).parents[1]
OURS = ("harness", "kvtier", "tests")

left_out: dict[str, list[str]] = {}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a test file if a package that it imports at its top is not installed."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    if absent := sorted(name for name in _needs(collection_path) if find_spec(name) is None):
        left_out[str(collection_path.relative_to(config.rootpath))] = absent
        return True
    return None


@cache
def _needs(path: Path) -> frozenset[str]:
    """Third-party packages that a file imports at its top, itself or through our own modules."""
    needs: set[str] = set()
    open_files, seen = [path], {path}
    while open_files:
        file = open_files.pop()
        for name in _imported(file):
            top = name.partition(".")[0]
            if top in OURS:
                inner = set(_files(name)) - seen
                open_files += inner
                seen |= inner
            elif top not in sys.stdlib_module_names and not (file.parent / f"{top}.py").exists():
                needs.add(top)
    return frozenset(needs)


@cache
def _imported(path: Path) -> tuple[str, ...]:
    """Dotted names of what a file imports at its top; those in `if` and `try` are optional."""
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Import():
                found += (alias.name for alias in node.names)
            case ast.ImportFrom():
                found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


@cache
def _files(dotted: str) -> tuple[Path, ...]:
    """Files of ours that an import of this name runs. `kvtier` loads the module of a public name on demand."""
    package, _, name = dotted.partition(".")
    if package == "kvtier" and (module := kvtier._MODULE_OF.get(name)):
        dotted = f"kvtier.{module}"
    parts = dotted.split(".")
    bases = [ROOT.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
    return tuple(file for base in bases for file in (base / "__init__.py", base.with_suffix(".py")) if file.exists())


def pytest_addoption(parser: pytest.Parser) -> None:
    """What pyproject.toml sets for plug-ins that are not installed: accepted, without effect."""
    if find_spec("pytest_timeout") is None:
        parser.addini("timeout", "of pytest-timeout, which is not installed: no test is timed out")
    if find_spec("pytest_benchmark") is None:
        parser.addoption("--benchmark-disable", action="store_true", help="of pytest-benchmark, which is not installed")


def pytest_configure(config: pytest.Config) -> None:
    if find_spec("pytest_timeout") is None:
        config.addinivalue_line("markers", "timeout(seconds): of pytest-timeout, which is not installed")


if find_spec("pytest_benchmark") is None:

    @pytest.fixture
    def benchmark() -> None:
        pytest.skip("pytest-benchmark is not installed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for path, absent in left_out.items():
        terminalreporter.write_line(f"NOT COLLECTED {path}: not installed: {', '.join(absent)}", yellow=True)
