"""Where this harness is installed: in a checkout of the repository, or as a package without one."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
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
