"""What adapters of peers share: the interpreter of the peer's environment, its options, and slots as plain memory.

Jobs of a peer without a queue run inside `submit_*`; `Finished` results wait here for the next `poll`.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, ClassVar

from harness.adapters.base import Adapter, Finished, PeerMissing, TierSetup
from harness.adapters.peers import PEERS, peer_python


def check_version(name: str, package: str) -> None:
    """Raises `PeerMissing` unless this interpreter has the package in the version that the adapter knows."""
    peer = PEERS[name]
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise PeerMissing(f"{peer.what} is not installed for {sys.executable}; {peer.how_to_install}") from None
    if found != peer.version:
        raise PeerMissing(f"{peer.project} here is {found}, the adapter knows {peer.version}; {peer.how_to_install}")


class PeerAdapter(Adapter):
    """A tier of another project that keeps each block in a file; `name` is its peer's."""

    exposes_files: ClassVar[bool] = True
    seed_policies: ClassVar[tuple[str, ...]] = ("fixed",)
    choices: ClassVar[Mapping[str, bool]] = {}  # options of the tier and their defaults

    @classmethod
    def python(cls) -> str:
        return peer_python(cls.name)

    @classmethod
    def check_options(cls, setup: TierSetup) -> None:
        if unknown := sorted(set(setup.options) - set(cls.choices)):
            takes = ", ".join(cls.choices) or "none"
            raise ValueError(f"unknown option {', '.join(unknown)}; the {cls.name} tier takes {takes}")
        for option, value in setup.options.items():
            if not isinstance(value, bool):
                raise ValueError(f"{option} is {value!r}; valid choices: true, false")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self.check_options(setup)
        self.options: dict[str, Any] = {**self.choices, **setup.options}
        self.memory = mmap.mmap(-1, setup.slots * setup.block_bytes)  # anonymous: page-aligned, as O_DIRECT wants it
        self._view = memoryview(self.memory).cast("B", (setup.slots, setup.block_bytes))
        self.finished: list[Finished] = []

    @property
    def view(self) -> memoryview:
        return self._view

    def poll(self) -> list[Finished]:
        finished, self.finished = self.finished, []
        return finished
