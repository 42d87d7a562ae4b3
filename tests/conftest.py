"""For nodes that have torch and little else: what cannot be imported there is not collected, and that is said."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BEHIND = {"harness": ("click", "numpy", "plotly", "psutil", "rich"), "kvtier.telemetry.otel": ("opentelemetry",)}
"""What importing our own packages asks for; kvtier itself asks for nothing that such a node lacks."""
OURS = {"harness", "kvtier", "tests"}

left_out: dict[str, list[str]] = {}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a test file if a package that it imports at its top is not installed."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    if absent := sorted(name for name in _needs(collection_path) if find_spec(name) is None):
        left_out[str(collection_path.relative_to(config.rootpath))] = absent
        return True
    return None


def _needs(path: Path) -> set[str]:
    needs: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                names = [node.module or ""]
            case _:
                continue
        for name in names:
            needs.update(
                package
                for ours, packages in BEHIND.items()
                if f"{name}.".startswith(f"{ours}.")
                for package in packages
            )
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names | OURS and not (path.parent / f"{top}.py").exists():
                needs.add(top)
    return needs


def pytest_addoption(parser: pytest.Parser) -> None:
    if find_spec("pytest_timeout") is None:
        parser.addini("timeout", "of pytest-timeout, which is not installed: no test is timed out")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for path, absent in left_out.items():
        terminalreporter.write_line(f"NOT COLLECTED {path}: not installed: {', '.join(absent)}", yellow=True)
