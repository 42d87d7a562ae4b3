"""The tier of a commit: its package in a separate folder, with its native extension where there is one.

`commit_comparison` times it in turn with the tier of this checkout. Only `kvtier/` is taken: this checkout's harness
drives both.
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

from harness.bench.compared_tiers import REPOSITORY
from harness.bench.disk import Unavailable

PACKAGE = "kvtier"
SOURCES = (Path("fs/_native.c"), Path("_batch.c"))
"""Of the native extension, in its package: today's, and that of commits before the package had folders."""
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
"""The suffix that Python tries first; an installation has `.abi3.so`."""
SECONDS_MAX = 60.0


EARLIEST = "d765911"
"""The first commit whose package has the public names that today's adapters use; older ones cannot be driven."""


def default_commit(baselines: Path) -> str:
    """The commit whose table was kept last: the baseline that a change should not make slower. `EARLIEST` instead of a
    commit before it."""
    tables = [json.loads(path.read_text()).get("table") for path in sorted(baselines.glob("*.json"))]
    kept: list[dict[str, Any]] = [table for table in tables if table and table["environment"]["git"]]
    if not kept:
        raise Unavailable(f"no table that was measured at a commit is kept in {baselines.name}/; name a commit")
    commit = str(max(kept, key=lambda table: table["wall_time"])["environment"]["git"]["commit"])
    return EARLIEST if _is_older(commit) else commit


def _is_older(commit: str) -> bool:
    """Whether `commit` is an ancestor of `EARLIEST`; False where git knows either of them not."""
    base, earliest = (_git("merge-base", EARLIEST, commit).strip(), _git("rev-parse", EARLIEST).strip())
    return bool(base) and base != earliest


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
    _build_native(folder / PACKAGE)
    return commit.decode().strip()


def _build_native(package: Path) -> None:
    """Build it if the checkout has one built; where the source is the same, copy the checkout's file."""
    mine = REPOSITORY / PACKAGE
    own, theirs = (next((s for s in SOURCES if (folder / s).exists()), None) for folder in (mine, package))
    built = own and next((path for path in _built(mine / own) if path.exists()), None)
    if own is None or theirs is None or built is None:
        return
    if own == theirs and (mine / own).read_bytes() == (package / theirs).read_bytes():
        shutil.copy(built, (package / theirs).parent)
    else:
        compile_native(package / theirs, (package / theirs).with_suffix(SUFFIX))


def _built(source: Path) -> list[Path]:
    return [source.with_suffix(suffix) for suffix in EXTENSION_SUFFIXES]


def compile_native(source: Path, into: Path) -> None:
    """Compile with this Python's compiler and flags for extensions. Raises `Unavailable`."""
    flags = " ".join(sysconfig.get_config_var(name) or "" for name in ("LDSHARED", "CFLAGS", "CCSHARED"))
    command = [*shlex.split(flags), f"-I{sysconfig.get_path('include')}", str(source), "-o", str(into)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_MAX)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"the commit's {source.name} cannot be compiled here: {error}") from error


def _git(*arguments: str) -> bytes:
    """The output of git; nothing where it fails. Raises `Unavailable` without git or outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"git cannot read the commit: {error}") from error
    if b"not a git repository" in done.stderr:
        raise Unavailable("this is no git checkout, so there is no commit to compare with")
    return done.stdout
