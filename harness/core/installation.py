"""Where this harness is installed: in a checkout of the repository, or as a package without one."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
"""The folder from which `harness` and `kvtier` are imported: the checkout, or a site-packages."""
CHECKOUT = ROOT if (ROOT / "pyproject.toml").is_file() else None
DASHBOARDS = ROOT / "dashboards" if CHECKOUT else PACKAGE / "dashboards"
"""Grafana dashboards, recording and alert rules. A wheel has them inside the package (setup.py)."""


def import_root(python: str, folder: Path) -> Path:
    """A folder that makes `harness` and `kvtier` importable in the interpreter `python`.

    For an interpreter of another environment it must hold these two alone: packages of this site-packages would hide
    that interpreter's own, and may be compiled for another version. Then it is `folder`/packages, made here, with two
    links; raises OSError.
    """
    if CHECKOUT or os.path.abspath(python) == sys.executable:
        return ROOT
    packages = folder.absolute() / "packages"
    packages.mkdir(exist_ok=True)
    for name in ("harness", "kvtier"):
        with suppress(FileExistsError):
            (packages / name).symlink_to(ROOT / name)
    return packages


def python_path(python: str, folder: Path) -> str:
    """PYTHONPATH for a process of the interpreter `python`: the harness first, then the caller's own entries.

    `folder` is `import_root`'s. Without the working directory, whose modules would hide the standard library's; the
    module of a tier is found there by `adapters.adapter_class`.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(import_root(python, folder)), *filter(None, given)]))


def module_command(python: str, module: str) -> list[str]:
    """The start of a command that runs a module of the harness; -P: a folder `harness` or `kvtier` in the working
    directory is not imported in its place."""
    return [python, "-P", "-m", module]


def tracing_is_installed() -> bool:
    """Whether the packages of the extra `tracing` are here; without them runs leave no spans."""
    try:
        names = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        return all(importlib.util.find_spec(name) is not None for name in names)
    except ModuleNotFoundError:
        return False
