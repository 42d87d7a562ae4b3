"""The tier as it was at a commit: its package in a folder of its own, its native extension beside it where there is one.

`compare` times it in turn with the tier of this checkout. Only `kvtier/` is taken: both are driven by today's harness.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sysconfig
import tarfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from harness.bench.contest import REPOSITORY
from harness.bench.disk import Unavailable

PACKAGE = "kvtier"
TWIN_SOURCE = "_batch.c"
TWIN = f"_batch{sysconfig.get_config_var('EXT_SUFFIX')}"
"""What Python looks for first; an installation has it as `_batch.abi3.so`."""
SECONDS_MAX = 60.0


def default_commit(baselines: Path) -> str:
    """The commit whose table was kept last: what it measured is what a change should not make slower."""
    tables = [json.loads(path.read_text()).get("table") for path in sorted(baselines.glob("*.json"))]
    kept: list[dict[str, Any]] = [table for table in tables if table and table["environment"]["git"]]
    if not kept:
        raise Unavailable(f"no table that was measured at a commit is kept in {baselines.name}/; name a commit")
    return str(max(kept, key=lambda table: table["wall_time"])["environment"]["git"]["commit"])


def freeze(revision: str, folder: Path) -> str:
    """Lay `kvtier/` of `revision` into `folder`, and return the commit's short name. Raises `Unavailable`."""
    commit = _git("rev-parse", "--short", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not commit:
        raise Unavailable(f"{revision!r} is no commit of this checkout (in a shallow clone: git fetch --unshallow)")
    archived = _git("archive", commit.decode().strip(), PACKAGE)
    if not archived:
        raise Unavailable(f"{revision!r} has no {PACKAGE}/")
    with tarfile.open(fileobj=io.BytesIO(archived)) as archive:
        archive.extractall(folder, filter="data")
    _build_twin(folder / PACKAGE)
    return commit.decode().strip()


def _build_twin(package: Path) -> None:
    """As the checkout has it: none where the checkout has none, the same file where the source is the same."""
    mine, source = REPOSITORY / PACKAGE, package / TWIN_SOURCE
    names = [f"_batch{suffix}" for suffix in EXTENSION_SUFFIXES]
    found = next((mine / name for name in names if (mine / name).exists()), None)
    if found is None or not source.exists():
        return
    if source.read_bytes() == (mine / TWIN_SOURCE).read_bytes():
        shutil.copy(found, package)
    else:
        compile_twin(source, package / TWIN)


def compile_twin(source: Path, into: Path) -> None:
    """With the compiler and the flags that this Python's extensions are built with. Raises `Unavailable`."""
    flags = " ".join(sysconfig.get_config_var(name) or "" for name in ("LDSHARED", "CFLAGS", "CCSHARED"))
    command = [*shlex.split(flags), f"-I{sysconfig.get_path('include')}", str(source), "-o", str(into)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_MAX)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"the commit's {source.name} cannot be compiled here: {error}") from error


def _git(*arguments: str) -> bytes:
    """What git prints; nothing where it fails. Raises `Unavailable` without git or outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"git cannot be asked for the commit: {error}") from error
    if b"not a git repository" in done.stderr:
        raise Unavailable("this is no git checkout, so there is no commit to compare with")
    return done.stdout
