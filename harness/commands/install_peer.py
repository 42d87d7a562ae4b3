"""The command `install-peer`: makes the virtual environment in which the workers of a peer's tier run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click

from harness.adapters.peers import PEERS, Peer
from harness.commands.click_types import PATH
from harness.core.inputs import UsageError

NEEDED_PYTHON = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"


class InstallFailed(Exception):
    """The script of a peer failed; the text is one sentence. What the script said stands above it."""


@click.command(name="install-peer")
@click.argument("peer", metavar="PEER", type=click.Choice(sorted(PEERS)))
@click.argument("dir", type=PATH)
@click.option("--python", default=sys.executable, help="makes the environment  [default: this Python]")
def install_peer(peer: str, dir: str, python: str) -> None:
    """Make the environment of a peer, a tier of another project, in the new folder DIR.

    PEER is aibrix, lmcache, sglang or vllm. Installs the peer's wheel, a build of torch and what they import: 1.5 to
    3 GB with a CPU build. Set KVTIER_PEER_VLLM=DIR to run --tier vllm.
    """
    chosen, target = PEERS[peer], Path(dir).absolute()
    interpreter = _interpreter(python)
    _check_target(target)
    _run(chosen, interpreter, target)
    click.echo(f"{chosen.what} is installed in {target}; for --tier {peer} set")
    click.echo(f"export {chosen.variable}={target}")


def _interpreter(python: str) -> str:
    found = shutil.which(python)
    if not found:
        raise UsageError(f"--python {python!r} is not a program")
    if subprocess.run([found, "-c", NEEDED_PYTHON], capture_output=True).returncode:
        raise UsageError(
            f"--python {python!r} does not run as Python 3.11 or later with the modules venv and ensurepip"
        )
    return os.path.abspath(found)


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(f"DIR {str(target)!r} is not a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / "bin" / "python").exists():
        raise UsageError(
            f"DIR {str(target)!r} holds other files; name a new folder, or an environment that install-peer made"
        )


def _run(peer: Peer, python: str, target: Path) -> None:
    """Run the peer's script to its end. Raises `InstallFailed`; an interrupt ends the script and its children."""
    script = subprocess.Popen(["sh", str(peer.script), python, str(target)], process_group=0)
    try:
        code = script.wait()
    finally:
        if script.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGTERM)
            script.wait()
    if code:
        raise InstallFailed(
            f"{peer.name} is not installed: install.sh ended with exit code {code}; its output above says why. "
            f"Remove {target} or run the command again"
        )
