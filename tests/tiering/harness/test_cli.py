"""The command line from outside: exit codes, one-sentence complaints, Ctrl-C, and machine-readable output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.history import History
from harness.launch import REPOSITORY
from tests.tiering.harness.certain_trace import REQUESTS, write_certain_trace

SMALL = ["--tier", "memory", "--processes", "2", "--block-bytes", "4096", "--seed", "5"]
CERTAIN = [*SMALL, "--trace", "certain.jsonl", "--speed", "1"]


@pytest.fixture(autouse=True)
def certain_trace(tmp_path: Path) -> None:
    write_certain_trace(tmp_path / "certain.jsonl")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "harness", *arguments]


def harness(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in an empty folder, as somebody else's project would."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "60"}
    return subprocess.run(command(*arguments), cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


def test_a_run_ends_with_a_line_per_verdict_and_the_path_of_the_report(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", "load", *CERTAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "seed 5" in lines[0]
    for name in ("sharing", "determinism", "starvation", "integrity", "results", "leftovers"):
        assert any(line.split()[:2] == [name, "true"] for line in lines), done.stdout
    assert lines[-1] == "runs/latest/report.html"
    page = (tmp_path / lines[-1]).read_text()
    assert "everything that was checked holds" in page
    assert "http://" not in page.split("</script>")[-1], "it opens offline"

    again = harness(tmp_path, "check", "runs/latest", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["verdict"] == "true"
    remade = harness(tmp_path, "report", "runs/latest")
    assert remade.stdout.strip() == "runs/latest/report.html"


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", "load", *CERTAIN, "--json")
    results = json.loads(done.stdout)
    assert (done.returncode, results["exit_code"]) == (0, 0), done.stderr
    assert results["totals"]["requests"] == REQUESTS


def test_quiet_shows_no_progress(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", "load", *CERTAIN, "--quiet")
    assert done.stdout.splitlines()[0].startswith("sharing")


def test_false_and_unknown_have_exit_codes_of_their_own(tmp_path: Path) -> None:
    broken = "tests.tiering.harness.broken_tiers:LoadsNothing"
    wrong = harness(tmp_path, "run", "load", *CERTAIN, "--tier", broken)
    assert wrong.returncode == 1
    assert "again: python -m harness run load" in wrong.stdout
    assert harness(tmp_path, "run", "load", *CERTAIN, "--processes", "1").returncode == 2


def test_ctrl_c_ends_every_child_and_keeps_and_judges_what_was_recorded(tmp_path: Path) -> None:
    arguments = ["run", "load", *SMALL, "--seconds", "600", "--requests", "200"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command(*arguments), cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "2 processes" in line and "MiB/s" in line:
                break  # traffic has started
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
    assert running.returncode == 130, rest
    assert "interrupted; what was recorded until then is kept and judged" in rest
    run_dir = (tmp_path / "runs" / "latest").resolve()
    history = History.read(run_dir)
    assert len(history.starts) == 2
    assert not any(psutil.pid_exists(start.pid) for start in history.starts)
    assert [stop.exit_code for stop in history.stops] == [0, 0]
    results = json.loads((run_dir / "results.json").read_text())
    assert results["interrupted"]
    assert results["verdict"] != "true"
    assert (run_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "load", "--tier", "nonsense"], "tier is 'nonsense'; valid choices: kvtier,"),
        (["run", "load", "--tier", "no_such:Tier"], "there is no module 'no_such'"),
        (["run", "load", "--processes", "-1"], "--processes is -1; it must be at least 1"),
        (["run", "load", "--processes", "many"], "'many' is not a valid integer"),
        (["run", "load", "--root-dir", "nowhere"], "--root-dir is 'nowhere', which does not exist"),
        (["run", "load", "--root-dir", "trace.jsonl"], "--root-dir is 'trace.jsonl', which is not a directory"),
        (["run", "load", "--trace", "trace.jsonl"], "trace.jsonl, line 2: not JSON"),
        (["run", "load", "--trace", "empty.jsonl"], "empty.jsonl, line 1: the file is empty"),
        (["run", "load", "--trace", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["run", "load", "--runs-dir", "trace.jsonl/runs"], "cannot be made"),
        (["run", "load", "--colour", "blue"], "No such option"),
        (["run", "fly"], "No such command 'fly'"),
        (["check", "nowhere"], "'nowhere' is not a run folder"),
        (["report", "nowhere"], "'nowhere' is not a run folder"),
    ],
)
def test_bad_input_gets_one_sentence_and_its_own_exit_code(tmp_path: Path, arguments: list[str], words: str) -> None:
    good = {"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [0]}
    (tmp_path / "trace.jsonl").write_text(json.dumps(good) + "\n{oops\n")
    (tmp_path / "empty.jsonl").write_text("")
    done = harness(tmp_path, *arguments)
    assert done.returncode == 64, done.stdout + done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_list_names_scenarios_and_tiers(tmp_path: Path) -> None:
    done = harness(tmp_path, "list")
    assert done.returncode == 0
    for word in ("load", "kvtier", "memory", "module:Class", "sharing"):
        assert word in done.stdout
