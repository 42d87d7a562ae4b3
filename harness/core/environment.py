"""The machine of a run, as one JSON-able dict for its run folder. Runs and reports read it; it changes nothing.

It names no host, user, address or path, so that a result may be published.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "kvtier",
    "numpy",
    "torch",
    "xxhash",
    "cbor2",
    "prometheus-client",
    "opentelemetry-sdk",
    "vllm",
    "lmcache",
)
GIT_SECONDS_MAX = 5.0
_VALUED_OPTIONS = frozenset(
    "acdirmax acdirmin acregmax acregmin actimeo allocsize cache commit data errors local_lock logbsize logbufs "  # noqa: SIM905
    "lookupcache max_read mode nconnect nr_inodes proto retrans rsize sec size stripe timeo vers wsize".split()
)
_SAFE_VALUE = re.compile(r"[\w.%-]{1,32}")


def describe(root_dir: Path | str, project_dir: Path | str | None = None) -> dict[str, Any]:
    """Everything that may explain a figure. An unknown value is None; `root_dir` need not exist yet."""
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cpu_model": _cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "root": _root(Path(root_dir)),
        "packages": _packages(),
        "git": git(Path(project_dir) if project_dir else None),
    }


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    match = re.search(r"^(?:model name|Model|Processor)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _root(root_dir: Path) -> dict[str, Any]:
    """File system of the nearest existing folder at or above `root_dir`."""
    path = Path(os.path.realpath(root_dir))
    while not path.exists():
        path = path.parent
    try:
        file_system, options = parse_mountinfo(Path("/proc/self/mountinfo").read_text(), path)
        disk = os.statvfs(path)
    except OSError:
        return {"file_system": None, "options": None, "free_bytes": None, "total_bytes": None}
    return {
        "file_system": file_system,
        "options": options,
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "total_bytes": disk.f_blocks * disk.f_frsize,
    }


def parse_mountinfo(text: str, path: Path) -> tuple[str | None, list[str] | None]:
    """File system type and mount options of the absolute `path`: the deepest mount point above it, the last of equals.

    Options with a value are kept only if known to be harmless: others may name servers, users or folders.
    """
    best: tuple[int, str, list[str]] | None = None
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        if path != point and point not in path.parents:
            continue
        depth = len(point.parts)
        if best is None or depth >= best[0]:
            given = [o for o in f"{fields[5]},{rest[2]}".split(",") if o]
            best = (depth, rest[0], [o for o in dict.fromkeys(given) if _harmless(o)])
    return (best[1], best[2]) if best else (None, None)


def _harmless(option: str) -> bool:
    name, equals, value = option.partition("=")
    if not equals:
        return re.fullmatch(r"[a-z0-9_]{1,32}", name) is not None
    return name in _VALUED_OPTIONS and _SAFE_VALUE.fullmatch(value) is not None


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git(project_dir: Path | None = None) -> dict[str, Any] | None:
    """Commit of the project, and whether tracked files differ from it; None outside a checkout or without git."""

    def output(*arguments: str) -> str:
        command = ["git", "-C", str(project_dir or Path(__file__).parent), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=GIT_SECONDS_MAX, stdin=subprocess.DEVNULL
        ).stdout.strip()

    try:
        return {"commit": output("rev-parse", "HEAD"), "changed": bool(output("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
