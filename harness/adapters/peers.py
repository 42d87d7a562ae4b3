"""Environments of peers: tiers of other projects, whose packages live in a virtual environment of their own.

Each peer has an adapter in the module of its name, and beside it the folder NAME_env with the script that makes its
environment. `kvtier-harness install-peer` runs the script; an adapter finds the interpreter of its workers by
`peer_python`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from harness.adapters.base import PeerMissing
from harness.core.installation import CHECKOUT


class Peer(NamedTuple):
    """A tier of another project."""

    name: str
    project: str
    version: str
    tier: str  # the class under test

    @property
    def what(self) -> str:
        """The project and its version."""
        return f"{self.project} {self.version}"

    @property
    def script(self) -> Path:
        """`sh SCRIPT PYTHON FOLDER` makes its environment."""
        return Path(__file__).resolve().parent / f"{self.name}_env" / "install.sh"

    @property
    def variable(self) -> str:
        """The environment variable that names the folder of its environment."""
        return f"KVTIER_PEER_{self.name.upper()}"

    @property
    def how_to_install(self) -> str:
        return f"make one with `kvtier-harness install-peer {self.name} DIR` and set {self.variable}=DIR"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("aibrix", "AIBrix KV cache", "0.8.0", "SHFSConnector"),
        Peer("lmcache", "LMCache", "0.5.6", "FSL2Adapter"),
        Peer("sglang", "SGLang", "0.5.23", "HiCacheFile"),
        Peer("vllm", "vLLM", "0.33.0", "FileSystemTierManager"),
    )
}


def peer_python(name: str) -> str:
    """The Python of a peer's environment: `KVTIER_PEER_<NAME>` names its folder; a checkout has `.venv-<name>` as well.

    Raises `PeerMissing`.
    """
    peer = PEERS[name]
    given = os.environ.get(peer.variable)
    folder = Path(given).absolute() if given else CHECKOUT / f".venv-{name}" if CHECKOUT else None
    where = f"{peer.variable} is {given!r}" if given else f"{peer.variable} is not set"
    if folder is not None:
        python = folder / "bin" / "python"
        if os.access(python, os.X_OK):
            return str(python)
        where += f", and {python} is no program"
    raise PeerMissing(f"there is no environment with {peer.what}: {where}; {peer.how_to_install}")
