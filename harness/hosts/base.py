"""Interface of a test host and a shared volume: mount points, how to run a command on a host, cut it off, switch it
off, and restart the server. Each file system implements it; nothing here starts a process.
"""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar


def write_program(path: Path, command: Sequence[str]) -> str:
    """A program at `path` that runs `command` with its own arguments appended; returns its path as text."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return str(path)


class Host(ABC):
    """One host of a volume. `mount`: the volume's folder *as a process on this host names it*."""

    def __init__(self, name: str, mount: Path, folder: Path) -> None:
        self.name, self.mount, self._folder = name, mount, folder

    @abstractmethod
    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that, run here, runs `argv` there: same standard streams, same exit code, and dies with it."""

    def python(self, interpreter: str = sys.executable) -> str:
        """A program that behaves as `interpreter` does, but runs on this host: what workers are started with."""
        return write_program(self._folder / f"python-{self.name}", self.command([interpreter]))

    @abstractmethod
    def cut(self) -> None:
        """From now on no packet of the volume passes between this host and the server, in either direction."""

    @abstractmethod
    def heal(self) -> None:
        """Undo `cut`."""

    @abstractmethod
    def lose_power(self) -> None:
        """Everything that runs on the host ends at once and sends nothing more; nothing is written back."""

    @abstractmethod
    def power_on(self) -> None:
        """Undo `lose_power`: the host is up again with the volume mounted, and nothing of the past in its memory."""


class Volume(ABC):
    """A volume and its hosts.

    `seen_here` is the volume as this process sees it, whatever happens to the hosts. `visible_seconds_max` is the bound
    that is stated for it: by then what one host stored is found by the other. `cannot` names scenarios that make no
    sense on it, and why.
    """

    file_system: ClassVar[str]
    visible_seconds_max: float
    cannot: Mapping[str, str]
    mount_options: str
    sees_mounts: bool  # whether hosts see what is mounted on this machine later
    hosts: Sequence[Host]
    seen_here: Path

    @abstractmethod
    def server_death(self) -> str:
        """How the server ended by itself, a sentence; "" while it runs. After such an end nothing can be judged."""

    @abstractmethod
    def restart_server(self, down_seconds: float) -> None:
        """Kill the server, and start it again after so long."""
