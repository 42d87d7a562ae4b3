"""The command line from outside: exit codes, one-sentence complaints, Ctrl-C, and machine-readable output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.commands.conform import plan
from harness.core.history import History
from harness.core.installation import ROOT as REPOSITORY
from harness.scenarios import scenarios
from tests.tiering.harness.scenarios.certain_trace import REQUESTS, write_certain_trace

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


def test_a_run_ends_with_a_line_per_verdict_and_the_path_of_the_report(tmp_path: Path, say: Any) -> None:
    done = harness(tmp_path, "run", "load", *CERTAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "seed 5" in lines[0]
    assert [line for line in lines if line.startswith("pass: all 7 checkers; ")], done.stdout
    for name in ("sharing", "determinism", "starvation", "integrity", "results", "leftovers"):
        assert any(line.split()[:2] == [name, "pass"] for line in lines), done.stdout
    assert lines[-1] == "runs/latest/report.html"
    page = (tmp_path / lines[-1]).read_text()
    assert re.search(r'<h1>load of \w+: <span class="true">pass</span>', page)
    assert "http://" not in page.split("</script>")[-1], "it opens offline"

    again = say("check", "runs/latest", "--json")
    assert again.exit_code == 0, again.err
    assert json.loads(again.out)["verdict"] == "true"
    assert say("report", "runs/latest").out.strip() == "runs/latest/report.html"


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", "load", *CERTAIN, "--json")
    results = json.loads(done.stdout)
    assert (done.returncode, results["exit_code"]) == (0, 0), done.stderr
    assert results["totals"]["requests"] == REQUESTS


def test_a_failure_says_its_seed_its_command_and_the_last_words_of_the_dead(tmp_path: Path, say: Any) -> None:
    broken = "tests.tiering.harness.broken.tiers:Raises"
    wrong = harness(tmp_path, "run", "load", *CERTAIN, "--tier", broken, "--quiet")
    assert wrong.returncode == 1
    first, second, *_ = wrong.stdout.splitlines()
    assert re.match(r"fail: .*results.*; \d+ requests, ", first), "no progress, and the sentence before the figures"
    assert second.split()[0] == "sharing"
    assert "last output of process 0:\n" in wrong.stdout
    assert "  RuntimeError: the tier fell over\n" in wrong.stdout
    assert f"seed 5; again: kvtier-harness run load --tier {broken} --processes 2 --seed 5" in wrong.stdout
    # What is not decided has an exit code of its own.
    (history,) = (tmp_path / "runs" / "latest").glob("history-0.jsonl")
    for path in history.parent.glob("history-*.jsonl"):
        path.unlink()
    assert say("check", "runs/latest").exit_code == 2


def test_ctrl_c_ends_every_child_and_keeps_and_judges_what_was_recorded(tmp_path: Path) -> None:
    arguments = ["run", "load", *SMALL, "--seconds", "600", "--requests", "200"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # A shell that runs the tests in the background has its children ignore SIGINT; a terminal's Ctrl-C is not ignored.
    heeding = ["env", "--default-signal=INT", *command(*arguments)]
    with subprocess.Popen(heeding, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as running:
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
        (["run", "load", "--root-dir", "a" * 300], "--root-dir is 'aaa"),
        (["watch", "a" * 300], "which is too long for a path"),
        (["clean", "a" * 300], "which is too long for a path"),
        (["clean", "nowhere"], "ROOT_DIR is 'nowhere', which is not a directory"),
        (["run", "load", "--root-dir", "nowhere"], "/nowhere', which does not exist"),
        (["run", "load", "--root-dir", "trace.jsonl"], "/trace.jsonl', which is not a directory"),
        (["run", "load", "--trace", "trace.jsonl"], "trace.jsonl, line 2: not JSON"),
        (["run", "load", "--trace", "empty.jsonl"], "empty.jsonl, line 1: the file is empty"),
        (["run", "load", "--trace", "nowhere.jsonl"], "nowhere.jsonl' cannot be read: No such file or directory"),
        (["run", "load", "--runs-dir", "trace.jsonl/runs"], "cannot be made"),
        (["run", "load", "--colour", "blue"], "No such option"),
        (["run", "fly"], "No such command 'fly'"),
        (["observe", "--processes", "0"], "--processes is 0; it must be at least 1"),
        (["observe", "--seconds", "long"], "'long' is not a valid float"),
        (["run", "load", "--options", "nowhere.toml"], "--options: 'nowhere.toml' cannot be read"),
        (["run", "load", "--options", "bad.toml"], "--options: 'bad.toml' is not TOML"),
        (
            ["run", "load", "--options", "strange.toml"],
            "--options: 'strange.toml' has 'colour'; valid choices: block_bytes,",
        ),
        (["run", "load", "--options", "odd.toml"], "--options: 'odd.toml', processes is 2.5; it takes a whole number"),
        (["conform", "memory", "--scenario", "fly"], "--scenario is 'fly'; valid choices: calls, contract, crash, "),
        (["conform", "no_such:Tier"], "there is no module 'no_such'"),
        (["run", "load", "--block-bytes", "4096.5"], "--block-bytes is '4096.5'; it takes a whole number of bytes, or"),
        (["run", "load", "--block-bytes", "64KB"], "--block-bytes is 64000; it must be a multiple of 4096"),
        (["run", "capacity", "--max-bytes", "plenty"], "--max-bytes is 'plenty'; it takes a whole number of bytes, or"),
        (["conform", "memory", "--block-bytes", ""], "--block-bytes is ''; it takes a whole number of bytes, or"),
        (["conform", "memory", "--processes", "0"], "--processes is 0; it must be at least 1"),
        (["compare", "nowhere", "nowhere"], "'nowhere' is not a run folder"),
        (["check", "nowhere"], "'nowhere' is not a run folder"),
        (["report", "nowhere"], "'nowhere' is not a run folder"),
    ],
)
def test_bad_input_gets_one_sentence_and_its_own_exit_code(
    tmp_path: Path, say: Any, arguments: list[str], words: str
) -> None:
    good = {"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [0]}
    (tmp_path / "trace.jsonl").write_text(json.dumps(good) + "\n{oops\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.toml").write_text("seconds = \n")
    (tmp_path / "strange.toml").write_text("colour = 'blue'\n")
    (tmp_path / "odd.toml").write_text("[load]\nprocesses = 2.5\n")
    said = say(*arguments)
    assert said.exit_code == 64, said
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert words in said.err
    assert not (tmp_path / "runs").exists()


def test_list_names_scenarios_and_tiers(say: Any) -> None:
    text = say("list")
    assert text.exit_code == 0
    for word in ("contract", "load", "kvtier-stack", "reference", "module:Class", "sharing"):
        assert word in text.out
    listed = json.loads(say("list", "--json").out)
    assert "load" in [scenario["name"] for scenario in listed["scenarios"]]
    assert listed["tiers"]["reference"].startswith("The reference tier")


def test_options_come_from_a_file_and_what_is_typed_wins(tmp_path: Path, say: Any) -> None:
    lines = ['tier = "kvtier"', "block-bytes = '4KiB'", "slots = 64", "seed = 1", "[load]", "seed = 2", "requests = 4"]
    lines += ["processes = 1", 'tier_option = ["io=buffered", "compiled=false"]', "[sharing]", "lookups = 3"]
    (tmp_path / "options.toml").write_text("\n".join(lines))
    trace = ["--trace", "certain.jsonl", "--speed", "0"]
    said = say("run", "load", "--options", "options.toml", *trace, "--seed", "3", "--json")
    assert said.exit_code == 2, said.err
    options = json.loads((tmp_path / "runs" / "latest" / "options.json").read_text())
    taken = {name: options[name] for name in ("tier", "block_bytes", "processes", "seed", "requests", "tier_option")}
    assert taken == {
        "tier": "kvtier",
        "block_bytes": 4096,
        "processes": 1,
        "seed": 3,
        "requests": 4,
        "tier_option": ["io=buffered", "compiled=false"],
    }
    again = json.loads(said.out)["command"]
    assert "--seed 3" in again
    assert "options.toml" not in again, "the command stands by itself"


def test_conform_asks_a_tier_all_that_a_machine_and_a_folder_can_and_names_the_rest() -> None:
    given = {"seconds": 3.0}
    planned, left_out = plan("kvtier", (), 4, given)
    asked = {item.name: options for item, options in planned}
    assert set(left_out) == {"outage", "power_loss"}
    assert "make shared-volume" in left_out["outage"]
    assert set(asked) == {item.name for item in scenarios()} - set(left_out)
    assert asked["sharing"].seconds == 3.0 < asked["soak"].seconds, "too short a soak gives no verdict"
    planned, left_out = plan("memory", (), 4, given)
    assert left_out["capacity"] == "the tier keeps no limit"


def test_conform_runs_scenarios_on_a_tier_of_ones_own_and_compare_sets_two_runs_side_by_side(
    tmp_path: Path, say: Any
) -> None:
    mine = "tests.tiering.harness.broken.tiers:Leaks"
    scenarios = ["--scenario", "lifecycle", "--scenario", "load"]
    said = say(
        "conform", mine, *scenarios, "--seconds", "0.5", "--seed", "4", "--block-bytes", "4096", "--processes", "3"
    )
    assert said.exit_code == 1, said
    assert "more descriptors than it began with" in said.out
    assert f"{mine}: fail, seed 4; all runs: runs/index.html" in said.out
    *_, load = names = sorted(
        path.name for path in (tmp_path / "runs").iterdir() if path.is_dir() and path.name[0] == "2"
    )
    index = (tmp_path / "runs" / "index.html").read_text()
    assert index.index(names[1]) < index.index(names[0])
    assert say("compare", f"runs/{load}", f"runs/{load}").out.endswith(f"runs/{load}/compare-{load}.html\n")
    said = say("compare", f"runs/{load}", f"runs/{load}", "--output", "nowhere/page.html")
    assert (said.exit_code, len(said.err.splitlines())) == (64, 1)
    assert "--output is 'nowhere/page.html', whose folder does not exist; make it first" in said.err
    differences = json.loads(say("compare", f"runs/{load}", f"runs/{load}", "--json").out)["differences"]
    assert {d["ratio"] for d in differences if d["ratio"] is not None} == {1.0}


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (b"processes = 2.5\n", ", processes is 2.5; it takes a whole number"),
        (b"processes = true\n", ", processes is True; it takes a whole number"),
        (b'processes = "two"\n', ", processes is 'two'; it takes a whole number"),
        (b"processes = 99999\n", ", processes is 99999; it must be at most 4096"),
        (b"[load]\nseconds = nan\n", ", seconds is nan; it takes a finite number from 0 to 2.592e+06"),
        (b"seconds = -1\n", ", seconds is -1; it must be at least 0"),
        (b"seconds = 1979-05-27\n", ", seconds is datetime.date(1979, 5, 27); it takes a number"),
        (b"keep = 1\n", ", keep is 1; valid choices: true, false"),
        (b"tier_option = [1]\n", ", tier_option is 1; it takes a value, as text"),
        (b"tier = 3\n", ", tier is 3; it takes a value, as text"),
        (b'trace = ""\n', ", trace is '', which is empty; it takes a path"),
        (b'trace = "a\\u0000b"\n', ", trace is 'a\\x00b', which contains a NUL byte"),
        (b"proceses = 2\n", " has 'proceses' (did you mean 'processes'?); valid choices: block_bytes, "),
        (b"[lod]\nprocesses = 2\n", " has 'lod'; valid choices: block_bytes, "),
        (b"load = 3\n", ", load is 3; it takes a table of options"),
        (b"[processes]\nload = 1\n", ", processes is {'load': 1}; it takes a whole number"),
        (b'options = "x"\n', " has 'options'"),
        (b"\xff\xfe", " is not TOML: "),
        (b"a = " + b"[" * 2000, " is not TOML: "),
        (b"processes = " + b"9" * 5000, " is not TOML: "),
        (b"processes = 1\nprocesses = 2\n", " is not TOML: "),
        (b"block_bytes = 'much'", ", block_bytes is 'much'; it takes a whole number of bytes, or a number with a unit"),
        (b"block_bytes = 4096.0", ", block_bytes is 4096.0; it takes a whole number"),
        (b"#" * (1 << 20) + b"\n", " holds more than 1,048,576 bytes"),
    ],
)
def test_a_wrong_options_file_names_the_file_the_key_and_the_value(
    tmp_path: Path, say: Any, toml: bytes, words: str
) -> None:
    (tmp_path / "options.toml").write_bytes(toml)
    said = say("run", "load", "--options", "options.toml")
    assert said.exit_code == 64, said
    assert said.err.startswith(f"kvtier-harness: --options: 'options.toml'{words}"), said.err
    assert len(said.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"] == ["options.toml"]


def test_the_page_on_options_files_shows_one_that_is_read(tmp_path: Path, say: Any) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (REPOSITORY / "docs/options-file.md").read_text(), re.DOTALL)
    (tmp_path / "options.toml").write_text("\ufeff" + example.replace("/mnt/pvc", "/nowhere"))
    said = say("run", "load", "--options", "options.toml")
    assert said.err == (
        "kvtier-harness: --root-dir is '/nowhere', which does not exist; make it first, the harness makes no roots\n"
    )


def test_list_names_the_mutants_and_what_is_wrong_with_each(say: Any) -> None:
    listed = json.loads(say("list", "--json").out)["mutants"]
    assert listed["ReturnsStaleSlots"] == "Loads are reported ok and do not change the slots."
    assert "  ReturnsStaleSlots " in say("list").out


def test_runs_of_different_scenarios_are_compared_only_on_demand(tmp_path: Path, say: Any) -> None:
    for name, block_bytes in (("load", 4096), ("other", 8192), ("contract", 4096)):
        made = {"scenario": name.replace("other", "load"), "tier": "memory", "seed": 1, "command": "", "traffic": ""}
        (tmp_path / name).mkdir()
        (tmp_path / name / "options.json").write_text(json.dumps({**made, "block_bytes": block_bytes}))
    said = say("compare", "load", "contract")
    assert (said.exit_code, said.out) == (64, "")
    assert "'load' is a run of load, 'contract' of contract: their figures mean different things; " in said.err
    assert "or --anyway" in said.err
    assert not (tmp_path / "contract" / "compare-load.html").exists()
    assert say("compare", "load", "contract", "--anyway").exit_code == 0
    said = say("compare", "load", "other")
    assert said.exit_code == 0
    assert "options that differ (A, B): block_bytes (4096, 8192)" in said.out
    assert json.loads(say("compare", "load", "other", "--json").out)["options"] == {"block_bytes": [4096, 8192]}
