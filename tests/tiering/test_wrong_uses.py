"""Wrong uses of both commands: one sentence with the bad value, an exit code of the table, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import harness.cli
import kvtier.ops.cli
from harness.core.history import Note, Start, Stop, encode
from tests.tiering.wrong_uses import REFUSED

REPOSITORY = Path(__file__).parents[2]
NAME = {"h": "kvtier-harness", "k": "kvtier"}
MAIN: dict[str, Callable[[list[str]], Any]] = {"h": harness.cli.main, "k": kvtier.ops.cli.main}

LINES = [line for line in REFUSED.splitlines() if line and not line.startswith("#")]
CASES = [(*line.partition(" -> ")[0].split(" | "), int(line.partition(" -> ")[2] or 64)) for line in LINES]

RUN_FILES = ("options", "results", "run", "environment", "files", "history-0", "history-harness")
DAMAGE = {
    "empty": b"",
    "text": b"hello",
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "object": b"{}",
    "latin": b'"caf\xe9"',
    "deep": b"[" * 100_000,
    "NULs": b"\0" * 10,
    "cut": None,
    "fifo": None,
    "folder": None,
}


class Said(NamedTuple):
    """How a command ended."""

    exit_code: int
    out: str
    err: str


def write_run(folder: Path) -> None:
    """A run folder as a run of no requests would leave it."""
    folder.mkdir()
    options = {"scenario": "load", "tier": "memory", "seed": 1, "command": "python -m harness run load", "processes": 1}
    files: dict[str, Any] = {"options": options, "environment": {"cpus": 2}, "files": []}
    files["run"] = {"interrupted": False, "reason": "", "seconds": 1.0, "device": {}}
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    records = [Start(0, 0, 1, "memory", "x", 0.0, 0.0, {}), Stop(0, 0, 1.0, 0, 0, 0, [])]
    (folder / "history-0.jsonl").write_text("".join(encode(record) + "\n" for record in records))
    (folder / "history-harness.jsonl").write_text(encode(Note(-1, 0.0, "phase", "traffic starts", {})) + "\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files that the wrong uses name."""
    folder = tmp_path_factory.mktemp("world")
    write_run(folder / "run")
    for name in ("folder", "root"):
        (folder / name).mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    request = {"timestamp": 0, "input_length": 1, "output_length": 1}
    no_tree = "".join(json.dumps({**request, "hash_ids": ids}) + "\n" for ids in ([1, 2], [2]))
    contents = {
        "file": b"x",
        "empty": b"",
        "bin": bytes(range(256)),
        "latin": b"caf\xe9 = 1\n",
        "deep": b"[" * 100_000,
        "huge-number": b'{"timestamp": ' + b"9" * 5000 + b"}",
        "no-tree": no_tree.encode(),
        "broken_import.py": b"1 / 0\n",
        "broken_syntax.py": b"def (:\n",
        "interrupted.py": b"import signal\nsignal.raise_signal(signal.SIGINT)\n",
        "terminated.py": b"import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket"))
        yield folder


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path, str], Said]:
    """Carry out a line in this process, in a folder."""

    def said(folder: Path, line: str) -> Said:
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        command, *arguments = shlex.split(line)
        before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
        try:
            with pytest.raises(SystemExit) as ended:
                MAIN[command](arguments)
        finally:
            signal.signal(signal.SIGINT, before)
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    return said


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*")}


def assert_one_sentence(command: str, said: Said) -> None:
    sentence = said.err.lstrip("\n")  # click begins a new line after a ^C
    assert len(sentence.splitlines()) == 1, said.err
    assert sentence.startswith(f"{NAME[command]}: ")
    assert "Traceback" not in said.err + said.out
    assert "internal error" not in said.err


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("line", "words", "code"), CASES, ids=[case[0] for case in CASES])
def test_a_wrong_use_is_one_sentence_with_the_value(
    world: Path, say: Callable[[Path, str], Said], line: str, words: str, code: int
) -> None:
    before, running = files_of(world), children()
    said = say(world, line)
    assert_one_sentence(line.split()[0], said)
    assert said.exit_code == code, said
    assert words in said.err
    assert said.out == ""
    assert files_of(world) == before, "nothing is made"
    assert children() <= running, "nothing runs"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_damaged_file_of_a_run_is_named_or_made_again(
    tmp_path: Path, say: Callable[[Path, str], Said], name: str, damage: str
) -> None:
    write_run(tmp_path / "whole")
    say(tmp_path, "h check whole")
    (tmp_path / "whole" / "report.html").unlink()  # 5 MB
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    (path,) = (tmp_path / "damaged").glob(f"{name}.json*")
    whole = path.read_bytes()
    path.unlink()
    if damage == "fifo":
        os.mkfifo(path)
    elif damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(whole[: len(whole) // 2] if (content := DAMAGE[damage]) is None else content)
    for line in ("h check damaged", "h report damaged", "h compare --json whole damaged"):
        said = say(tmp_path, line)
        if said.exit_code in (0, 2):
            # Not read by this command, made again from the rest, or a last line as a killed writer leaves it.
            assert said.err == ""
            assert "Traceback" not in said.out
        else:
            assert said.exit_code in (64, 74), said
            assert_one_sentence("h", said)
            assert path.name in said.err
        if name == "options":
            assert said.exit_code == 64
    assert not list((tmp_path / "damaged").glob(".*")), "no temp file stays"


ENVIRONMENTS = {
    "ASCII locale": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII streams": {"PYTHONIOENCODING": "ascii"},
    "one column": {"COLUMNS": "1", "LINES": "1"},
    "no number of columns": {"COLUMNS": "wide", "TERM": "bogus"},
    "no home, no temp folder": {"HOME": "/nosuch", "TMPDIR": "/nosuch"},
    "no docstrings": {"PYTHONOPTIMIZE": "2"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_strange_environment_changes_no_answer(world: Path, environment: str) -> None:
    code = (
        "import os, harness.cli, kvtier.ops.cli\n"
        "CAFE = os.fsdecode(b'caf\\xc3\\xa9')\n"
        "def say(main, *arguments):\n"
        "    try: main(list(arguments))\n"
        "    except SystemExit as ended: print('code', ended.code)\n"
        "say(harness.cli.main, 'list')\n"
        "say(harness.cli.main, 'run', 'load', '--tier', 'ReturnStaleSlots')\n"
        "say(harness.cli.main, 'run', 'load', '--root-dir', CAFE)\n"
        "say(harness.cli.main, 'compare', 'run', 'run', '--json')\n"
        "say(kvtier.ops.cli.main, 'inspect', CAFE)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", **ENVIRONMENTS[environment]}
    done = subprocess.run([sys.executable, "-c", code], cwd=world, env=env, capture_output=True, text=True, check=False)
    codes = re.findall(r"^code (\d+)$", done.stdout, re.MULTILINE)
    assert (done.returncode, codes) == (0, ["0", "64", "64", "0", "64"]), done.stdout[-500:] + done.stderr
    assert "(did you mean 'ReturnsStaleSlots'?)" in done.stderr
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ("{h} list >&-", (0,), ""),
        ("{h} run load --seconds nan 2>&-", (64,), ""),
        ("{h} list <&- >&- 2>&-", (0,), ""),
        ("{h} list >/dev/full", (74,), "ENOSPC"),
        ("cd gone && rmdir ../gone && {h} run load --root-dir x", (64,), "working directory is gone"),
        ("cd gone && rmdir ../gone && {h} run load --trace x", (64,), "working directory is gone"),
        ("{h} run load --root-dir $(printf 'x\\377')", (64,), "which does not exist"),
        ("{h} check $(printf 'x\\377')", (64,), "is not a run folder"),
        ("{k} inspect $(printf 'x\\377')", (64,), "x"),
        ("{h} run load --trace <(echo)", (64,), "is a FIFO; it must be a regular file"),
    ],
)
def test_closed_and_full_streams_lost_folders_and_names_of_any_bytes(
    tmp_path: Path, shell: str, code: tuple[int, ...], words: str
) -> None:
    (tmp_path / "gone").mkdir()
    python = shlex.quote(sys.executable)
    line = shell.format(h=f"{python} -m harness", k=f"{python} -m kvtier")
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, check=False)
    err = done.stderr.decode(errors="replace")
    assert done.returncode in code, err
    assert words in err
    assert "Traceback" not in err
    assert "internal error" not in err
    assert {path.name for path in tmp_path.iterdir()} <= {"gone"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["HOME", "TMPDIR", "COLUMNS", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "TERM"]
)
def test_a_run_ends_in_good_order_whatever_a_variable_says(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "harness", "run", "load", "--processes", "1", "--requests", "3", "--speed", "0"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), name: "::nonsense::"}
    done = subprocess.run(
        [*command, "--seconds", "1", "--block-bytes", "16KiB", "--trace-every", "1", "--quiet"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_root_whose_name_is_no_text_is_used_and_reported(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/kv\xff"
    os.mkdir(root)
    command = [sys.executable, "-m", "harness", "run", "load", "--processes", "1", "--requests", "3", "--speed", "0"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*map(os.fsencode, command), b"--root-dir", root, b"--seconds", b"1", b"--block-bytes", b"16KiB", b"--quiet"],
        cwd=tmp_path, env=env, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert (tmp_path / "runs" / "latest" / "report.html").exists()
    assert os.listdir(root) == []
