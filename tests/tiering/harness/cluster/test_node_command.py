"""The command `node` in processes of its own, which talk through torch's store."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.core import notes
from harness.core.history import History
from harness.core.installation import ROOT

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
COMMAND = [sys.executable, "-m", "harness", "node"]
AHEAD_SECONDS = 5000


def other_clock() -> list[str]:
    """The start of a command whose monotonic clock is ahead of ours, as another machine's is; [] where none can be."""
    command = ["unshare", "--time", "--monotonic", str(AHEAD_SECONDS), "--fork", "--kill-child"]
    if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode:
        return command
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ended(NamedTuple):
    """A cluster of two nodes after its run."""

    codes: tuple[int, int]
    out: str
    errors: tuple[str, str]
    run_dir: Path
    root: Path
    clocks_differ: bool


def two_nodes(folder: Path, *command: str, prefix: tuple[list[str], list[str]] = ([], [])) -> Ended:
    """Rank 0 runs `command`; rank 1's path of the root is a link."""
    root, link = folder / "root", folder / "mounted-elsewhere"
    root.mkdir()
    link.symlink_to(root)
    address = ["--address", "127.0.0.1", "--port", str(free_port()), "--nodes", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    (temporary := folder / "temporary").mkdir()
    pipes["env"] = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    run = ["--", "run", *command, "--root-dir", str(root), "--json"]
    first = subprocess.Popen([*prefix[0], *COMMAND, *address, "--rank", "0", *run], **pipes)
    here = ["--root-dir-here", str(link)]
    second = subprocess.Popen([*prefix[1], *COMMAND, *address, "--rank", "1", *here, *run], **pipes)
    try:
        out, errors = first.communicate(timeout=200)
        other_errors = second.communicate(timeout=40)[1]
    finally:
        first.kill()
        second.kill()
    runs = list((folder / "runs").glob("2*"))
    codes = (first.returncode, second.returncode)
    return Ended(codes, out, (errors, other_errors), runs[0] if runs else folder, root, bool(prefix[1]))


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_over_two_nodes_is_recorded_and_judged_as_on_one(tmp_path: Path) -> None:
    options = ["--seed", "3", "--seconds", "0", "--block-bytes", "16384", "--slots", "64"]
    ended = two_nodes(tmp_path, "sharing", *options, prefix=([], other_clock()))
    assert ended.codes == (0, 0), f"{ended.errors} {ended.out}"
    assert ended.errors == ("", "")
    results = json.loads(ended.out)
    assert results["command"].startswith("kvtier-harness node -- run sharing ")
    history = History.read(ended.run_dir)
    assert {s.process for s in history.starts} == {0, 1, 2}
    assert all(s.exit_code == 0 for s in history.stops)
    starts = [start.monotonic_seconds for start in history.starts]
    assert max(starts) - min(starts) < AHEAD_SECONDS / 2, "all records are on the clock of rank 0"
    there = json.loads((ended.run_dir / "nodes.json").read_text())[1]
    about = next(note for note in history.notes if note.is_a(notes.Node))
    assert set(there["processes"]) == set(about.detail["processes"]) == {1}
    assert 0 < about.detail["clock_bound_seconds"] < 1
    assert there["environment"]["root"]["file_system"]
    canaries = {n.process for n in history.notes if n.is_a(notes.Canary)}
    assert canaries == {0, 1, 2}, "what each process measured came along"
    assert not list(ended.root.iterdir()), "no token and no block is left"
    assert not list((tmp_path / "temporary").iterdir()), "the agent left its folder"


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    environment = {**variables, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment)


HERE = "--address 127.0.0.1"


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--rank 1 --nodes 2 -- run load", 64, "the address of rank 0 is unknown"),
        ("--rank 0 --nodes 1 -- walk load", 64, "what runs on the nodes is 'walk load'; valid: run"),
        (
            f"--rank 1 --nodes 2 {HERE} --port 1 --join-seconds 0.1 -- run load",
            74,
            "rank 0 was not reached at 127.0.0.1:1 within 0.1 s: ECONNREFUSED",
        ),
        (
            "--rank 0 --nodes 2 --address 192.0.2.1 -- run load",
            64,
            "rank 0 cannot listen at 192.0.2.1:29631: EADDRNOTAVAIL",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(arguments: str, code: int, words: str) -> None:
    done = called(*arguments.split())
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
