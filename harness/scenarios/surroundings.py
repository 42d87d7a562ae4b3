"""What may surround a process and must not change the names of its blocks; the determinism scenario uses it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

OTHER_HOST = ("unshare", "--uts", "sh", "-c", 'hostname another-host && exec "$@"', "sh")
"""Starts a command on a host of another name, where this process may do so."""


class Surroundings(NamedTuple):
    """A process's environment beside this one's: variables, a command before its own, modules imported first."""

    text: str
    env: Mapping[str, str]
    prefix: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    elsewhere: bool = False  # in another working directory


USUAL = Surroundings("fresh", {})


def surroundings() -> list[Surroundings]:
    """Those that this machine can make."""
    locale = {"LC_ALL": "C", "LANG": "tr_TR.UTF-8", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"}
    home = {"TZ": "Asia/Kathmandu", "HOME": "/", "USER": "somebody", "LOGNAME": "somebody"}
    late = ("zoneinfo", "decimal", "numpy", "xml.dom.minidom", "asyncio", "sqlite3")
    found = [
        Surroundings("another working directory, time zone and home", home, elsewhere=True),
        Surroundings("another locale, python -OO", locale),
        Surroundings("another order of imports", {}, preload=late),
    ]
    if _can_rename_the_host():
        found.append(Surroundings("another host name", {"HOSTNAME": "another-host"}, OTHER_HOST))
    return found


def together(differences: list[Surroundings]) -> Surroundings:
    """All of them at once."""
    return Surroundings(
        "other surroundings",
        {name: value for one in differences for name, value in one.env.items()},
        tuple(part for one in differences for part in one.prefix),
        tuple(name for one in differences for name in one.preload),
        any(one.elsewhere for one in differences),
    )


@cache
def _can_rename_the_host() -> bool:
    try:
        return subprocess.run([*OTHER_HOST, "true"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def folder(one: Surroundings, run_dir: Path) -> Path | None:
    """The working directory; None: this process's."""
    if not one.elsewhere:
        return None
    path = run_dir / "elsewhere"
    path.mkdir(exist_ok=True)
    return path
