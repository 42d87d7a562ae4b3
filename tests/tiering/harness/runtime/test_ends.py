"""How runs end that do not end by themselves: SIGTERM, SIGKILL and what it leaves, full disks, damaged run folders."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.core.history import History
from harness.core.installation import ROOT as REPOSITORY
from harness.core.run_root import left_behind
from tests.tiering.harness.scenarios.certain_trace import write_certain_trace

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
SMALL = ["--tier", "memory", "--processes", "2", "--block-bytes", "4096", "--seed", "5"]
HARNESS = [sys.executable, "-m", "harness"]
LONG = [*HARNESS, "run", "load", *SMALL, "--seconds", "600", "--requests", "200", "--root-dir", "root"]


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HARNESS, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


@contextmanager
def running(folder: Path, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A run whose traffic has started; killed with its workers if a test leaves it."""
    (folder / "root").mkdir(exist_ok=True)
    with subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "2 processes" in line and "MiB/s" in line:
                    break
            yield process
        finally:
            process.kill()


def run_dir(folder: Path) -> Path:
    (found,) = [path for path in (folder / "runs").iterdir() if path.is_dir() and not path.is_symlink()]
    return found


# --- SIGTERM ---


def test_sigterm_ends_a_run_that_a_script_started_in_the_background(tmp_path: Path) -> None:
    # A shell without job control has its background processes ignore SIGINT.
    script = f"{shlex.join(LONG)} & echo $!; wait $!; exit $?"
    with running(tmp_path, ["sh", "-c", script]) as shell:
        (command,) = psutil.Process(shell.pid).children()
        assert int(Path(f"/proc/{command.pid}/status").read_text().split("SigIgn:")[1].split()[0], 16) & 2, "ignored"
        command.terminate()
        rest, complaint = shell.communicate()
    assert shell.returncode == 143, (rest, complaint)
    assert "terminated by SIGTERM; what was recorded until then is kept and judged" in rest
    assert (rest.splitlines()[-1], complaint) == ("runs/latest/report.html", "")
    history = History.read(run_dir(tmp_path))
    assert not any(psutil.pid_exists(start.pid) for start in history.starts)
    assert [stop.exit_code for stop in history.stops] == [0, 0]
    results = json.loads((run_dir(tmp_path) / "results.json").read_text())
    assert (results["interrupted"], results["exit_code"]) == (True, 143)
    assert list((tmp_path / "root").iterdir()) == [], "neither blocks nor a mark are left"


# --- what SIGKILL leaves ---


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder in which a run was killed; returns the root."""
    with running(tmp_path, LONG) as process:
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
    psutil.wait_procs(workers)  # they end since their parent is gone
    assert not any(worker.is_running() for worker in workers)
    (left,) = left_behind(str(tmp_path / "root"))
    assert left.state == "killed"
    (left.path / "block").write_bytes(bytes(3 << 20))
    return tmp_path / "root"


def test_the_next_run_mentions_the_folder_of_a_killed_one_and_clean_removes_it(tmp_path: Path, killed: Path) -> None:
    (killed / "precious").write_text("data")
    (killed / "harness-unmarked").mkdir()
    write_certain_trace(tmp_path / "certain.jsonl")
    trace = ["--trace", "certain.jsonl", "--speed", "1"]
    following = harness(tmp_path, "run", "load", *SMALL, *trace, "--root-dir", "root", "--json")
    assert following.returncode == 0, following
    (line,) = [line for line in following.stderr.splitlines() if "killed run" in line]
    assert line.startswith("kvtier-harness: 1 folder of a killed run in ")
    assert re.search(r"\(3\.0 MiB in 2 files\); to remove: kvtier-harness clean", line)
    command = shlex.split(line.partition("to remove: ")[2])
    (name,) = [left.path.name for left in left_behind(str(killed))]

    listed = harness(tmp_path, "clean", "root")
    assert listed.returncode == 0
    assert listed.stdout.startswith(f"{name}: 3.0 MiB in 2 files, run of ")
    assert listed.stdout.endswith("nothing is removed; to remove: kvtier-harness clean root --yes\n")
    assert (killed / name / "block").exists()

    removed = harness(tmp_path, *command[1:])
    assert (removed.returncode, removed.stdout.endswith(": removed\n")) == (0, True), removed
    assert sorted(path.name for path in killed.iterdir()) == ["harness-unmarked", "precious"]
    assert harness(tmp_path, "clean", "root").stdout == "no folder of a killed run in root\n"


def test_clean_leaves_a_run_that_lives_and_one_of_another_host(tmp_path: Path) -> None:
    with running(tmp_path, LONG) as process:
        (left,) = left_behind(str(tmp_path / "root"))
        assert left.state == "live"
        other = tmp_path / "root" / "harness-elsewhere"
        other.mkdir()
        mark = {**vars(left.mark), "run": "elsewhere", "boot_id": "another", "host": "host-7"}
        (tmp_path / "root" / ".harness-elsewhere.json").write_text(json.dumps(mark))
        done = harness(tmp_path, "clean", "root", "--yes")
        assert f"not removed, its run lives (process {process.pid} on " in done.stdout
        assert "not removed, its run was on host 'host-7'; to include it: --other-hosts" in done.stdout
        assert left.path.is_dir()
        assert other.is_dir()
        done = harness(tmp_path, "clean", "root", "--yes", "--other-hosts")
        assert "harness-elsewhere: 0.0 MiB in 0 files" in done.stdout
        assert left.path.is_dir()
        assert not other.exists()


def test_clean_follows_no_link(tmp_path: Path, killed: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("data")
    (left,) = left_behind(str(killed))
    (left.path / "link").symlink_to(precious)
    # A second mark, whose folder is a link.
    (killed / "harness-linked").symlink_to(precious)
    mark = {**vars(left.mark), "run": "linked"}
    (killed / ".harness-linked.json").write_text(json.dumps(mark))
    # What is no mark: another name inside, a link, no JSON.
    (killed / ".harness-a.json").write_text(json.dumps(mark))
    (killed / ".harness-b.json").symlink_to(left.mark_path)
    (killed / ".harness-c.json").write_text("{")
    assert len(left_behind(str(killed))) == 2
    done = harness(tmp_path, "clean", "root", "--yes")
    assert done.returncode == 74
    assert done.stderr.startswith("kvtier-harness: ENOTDIR (")
    assert "harness-linked" in done.stderr
    assert not left.path.exists()
    assert (precious / "data").exists()


# --- full disks ---

PRIVATE = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]


def on_a_small_disk(folder: Path, size: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The harness with runs/ on a file system of that size, in a mount namespace that ends with it."""
    (folder / "runs").mkdir()
    (folder / "root").mkdir()
    mounted = f"mount -t tmpfs -o size={size} small runs; exec {shlex.join([*HARNESS, *arguments])}"
    if subprocess.run([*PRIVATE, "mount -t tmpfs none /mnt"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    return subprocess.run([*PRIVATE, mounted], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


FILLS_THE_DISK = """
import os
from harness.adapters.reference import MemoryAdapter

class Fills(MemoryAdapter):
    def close(self):
        super().close()
        if self.setup.process == 0:
            os.unlink(f"{self.setup.run_dir}/.reserve")  # so that another program takes its room, too
            there = os.statvfs(self.setup.run_dir)
            with open(f"{self.setup.run_dir}/filler", "wb") as file:
                file.write(bytes(there.f_bavail * there.f_frsize - ROOM_LEFT))
"""


@pytest.mark.parametrize(("room_left", "page"), [(1 << 20, "report.html"), (4 << 10, "results.json")])
def test_the_verdict_is_printed_although_its_files_cannot_be_written(tmp_path: Path, room_left: int, page: str) -> None:
    write_certain_trace(tmp_path / "certain.jsonl")
    (tmp_path / "fills.py").write_text(f"ROOM_LEFT = {room_left}\n{FILLS_THE_DISK}")
    certain = ["run", "load", *SMALL, "--tier", "fills:Fills", "--trace", "certain.jsonl", "--speed", "1"]
    done = on_a_small_disk(tmp_path, "128m", *certain, "--root-dir", "root", "--quiet")
    words = {0: "pass", 1: "fail", 2: "inconclusive"}
    assert done.stdout.startswith(f"{words[done.returncode]}: "), done
    assert done.returncode == 0 or page != "report.html"
    assert f"{page}' cannot be written: ENOSPC (No space left on device)\n" in done.stderr
    assert all(line.startswith("kvtier-harness: ") for line in done.stderr.splitlines())


def test_a_full_disk_at_the_start_is_one_sentence(tmp_path: Path) -> None:
    done = on_a_small_disk(tmp_path, "4k", "run", "load", *SMALL, "--requests", "4", "--root-dir", "root")
    assert (done.returncode, done.stdout) == (64, "")
    (sentence,) = done.stderr.splitlines()
    assert "runs" in sentence
    assert list((tmp_path / "root").iterdir()) == []


def test_output_that_cannot_be_written_does_not_end_a_run(tmp_path: Path) -> None:
    write_certain_trace(tmp_path / "certain.jsonl")
    certain = [*HARNESS, "run", "load", *SMALL, "--trace", "certain.jsonl", "--speed", "1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            certain, cwd=tmp_path, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (74, "kvtier-harness: ENOSPC (No space left on device): standard output\n")
    assert json.loads((run_dir(tmp_path) / "results.json").read_text())["verdict"] == "true"


# --- damaged run folders ---


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; `damaged` copies it."""
    folder = tmp_path_factory.mktemp("recorded")
    write_certain_trace(folder / "certain.jsonl")
    done = harness(folder, "run", "load", *SMALL, "--trace", "certain.jsonl", "--speed", "1", "--quiet")
    assert done.returncode == 0, done
    return run_dir(folder)


def _no_scenario(text: str) -> str:
    return json.dumps({**json.loads(text), "scenario": "fly"})


def _torn(text: str) -> str:
    lines = text.splitlines()
    return "\n".join([lines[0], lines[1][: len(lines[1]) // 2], *lines[2:]])


def copy_damaged(recorded: Path, run: Path, name: str, damage: Callable[[str], str]) -> None:
    run.mkdir()
    for path in recorded.iterdir():
        if path.is_file():
            text = path.read_text()
            copy = damage(text) if path.name == name else text
            (run / path.name).write_text(copy, encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize(
    ("name", "damage", "commands"),
    [
        ("options.json", lambda text: text[:40], ("check", "report", "compare")),
        ("options.json", lambda text: "[]", ("check", "report", "compare")),
        ("options.json", lambda text: "{}", ("check",)),
        ("options.json", _no_scenario, ("check",)),
        ("files.json", lambda text: "{}", ("check",)),
        ("run.json", lambda text: "[]", ("check",)),
        ("environment.json", lambda text: "[", ("report", "compare")),
        ("history-0.jsonl", _torn, ("check", "report", "compare")),
        ("history-0.jsonl", lambda text: "\udcff" + text, ("check",)),
    ],
)
def test_a_damaged_run_folder_is_one_sentence_that_names_the_file(
    tmp_path: Path, recorded: Path, say: Any, name: str, damage: Callable[[str], str], commands: tuple[str, ...]
) -> None:
    copy_damaged(recorded, tmp_path / "run", name, damage)
    for command in commands:
        done = say(command, *(["run", "run"] if command == "compare" else ["run"]))
        assert (done.exit_code, done.out) == (64, ""), done
        assert done.err.count("\n") == 1, done.err
        assert name in done.err


@pytest.mark.parametrize("damage", [lambda text: text[:40], lambda text: text.replace('"figure"', '"number"')])
def test_damaged_results_are_judged_again(
    tmp_path: Path, recorded: Path, say: Any, damage: Callable[[str], str]
) -> None:
    copy_damaged(recorded, tmp_path / "run", "results.json", damage)
    assert say("report", "run").exit_code == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["verdict"] == "true"
