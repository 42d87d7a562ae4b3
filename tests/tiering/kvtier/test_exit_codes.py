"""The entry points of both commands from outside: every end is one sentence and an exit code of docs/exit-codes.md."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvtier.exit_codes import PACKAGES, ExitCode
from tests.tiering.kvtier.ops.test_catalog import BLOCKS, RUN, path, store

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
KVTIER = [sys.executable, "-m", "kvtier"]
HARNESS = [sys.executable, "-m", "harness"]
BROKEN = "from {0} import {1} as entry; entry.answer(lambda arguments: 1 / 0, {2})"

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def end(
    command: list[str], folder: Path, stdout: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` until it ends; `stdout` names a file to write its output to."""
    with open(stdout or os.devnull, "w") as file:
        output = file if stdout else subprocess.PIPE
        return subprocess.run(
            command, cwd=folder, env=ENVIRONMENT | environment, stdout=output, stderr=subprocess.PIPE, text=True
        )


def said_once(done: subprocess.CompletedProcess[str], program: str) -> str:
    """Its one sentence on stderr."""
    assert done.stderr.startswith(f"{program}: "), done
    assert done.stderr.count("\n") == 1, done.stderr
    assert not done.stdout, done.stdout
    return done.stderr


# --- the table, and a command for each of its rows ---


def passes(folder: Path) -> int:
    store(folder, RUN, range(BLOCKS))
    return end([*KVTIER, "verify", "."], folder).returncode


def fails(folder: Path) -> int:
    tier = store(folder, RUN, range(BLOCKS))
    os.truncate(path(tier, 3), 100)
    return end([*KVTIER, "verify", "."], folder).returncode


def decides_nothing(folder: Path) -> int:
    return end([*HARNESS, "watch", ".", "--seconds", "0"], folder).returncode


def is_misused(folder: Path) -> int:
    return end([*KVTIER, "inspect", "/nowhere"], folder).returncode


def is_broken(folder: Path) -> int:
    return end([sys.executable, "-c", BROKEN.format("kvtier.exit_codes", "KVTIER", [])], folder).returncode


def has_no_room(folder: Path) -> int:
    return end([*KVTIER, "inspect", "."], folder, "/dev/full").returncode


def signalled(number: int) -> Callable[[Path], int]:
    def ended(folder: Path) -> int:
        store(folder, RUN, range(BLOCKS))
        evict = [*KVTIER, "evict", ".", "--max-bytes", "1GB", "--every", "0.1"]
        # A shell that runs the tests in the background has its children ignore SIGINT.
        heeding = ["env", "--default-signal=INT", *evict]
        with subprocess.Popen(heeding, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            assert running.stdout.readline()
            running.send_signal(number)
            running.communicate()
        return running.returncode

    return ended


def loses_its_reader(folder: Path) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = subprocess.run(
            [*HARNESS, "list"], cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert done.stderr == "", "a broken pipe is quiet"
    return done.returncode


WAYS: dict[ExitCode, Callable[[Path], int]] = {
    ExitCode.PASS: passes,
    ExitCode.FAIL: fails,
    ExitCode.INCONCLUSIVE: decides_nothing,
    ExitCode.USAGE: is_misused,
    ExitCode.INTERNAL: is_broken,
    ExitCode.IO: has_no_room,
    ExitCode.INTERRUPTED: signalled(signal.SIGINT),
    ExitCode.BROKEN_PIPE: loses_its_reader,
    ExitCode.TERMINATED: signalled(signal.SIGTERM),
}


def rows() -> Iterator[tuple[int, str]]:
    for line in (ROOT / "docs/exit-codes.md").read_text().splitlines():
        if match := re.match(r"\| (\d+) \| ([a-z ]+) \| .+ \|", line):
            yield int(match[1]), match[2]


def test_the_page_lists_every_exit_code_and_no_other() -> None:
    assert list(rows()) == [(code.value, code.name.lower().replace("_", " ")) for code in ExitCode]


@needs_dev_full
@pytest.mark.parametrize("code", [pytest.param(code, id=name) for code, name in rows()])
def test_a_command_ends_with_each_code(tmp_path: Path, code: int) -> None:
    assert WAYS[ExitCode(code)](tmp_path) == code


# --- sentences ---


@pytest.mark.parametrize(
    ("module", "name", "program"),
    [("kvtier.exit_codes", "KVTIER", "kvtier"), ("harness.entry_point", "HARNESS", "kvtier-harness")],
)
def test_a_bug_is_one_sentence_and_a_traceback_only_with_debug(
    tmp_path: Path, module: str, name: str, program: str
) -> None:
    def broken(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return end([sys.executable, "-c", BROKEN.format(module, name, arguments)], tmp_path, **environment)

    sentence = said_once(broken(["inspect"]), program)
    assert "internal error, which is a bug: ZeroDivisionError: division by zero (<string>, line 1)" in sentence
    assert f"{program} --debug" in sentence
    for done in (broken(["--debug", "inspect"]), broken(["inspect"], KVTIER_DEBUG="1")):
        assert done.returncode == ExitCode.INTERNAL
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith(sentence)


@needs_dev_full
@pytest.mark.parametrize(
    ("program", "command"), [("kvtier", [*KVTIER, "inspect", "."]), ("kvtier-harness", [*HARNESS, "list"])]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_named(
    tmp_path: Path, program: str, command: list[str], unbuffered: str
) -> None:
    done = end(command, tmp_path, "/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (
        ExitCode.IO,
        f"{program}: ENOSPC (No space left on device): standard output\n",
    )


@pytest.mark.parametrize("program", [KVTIER, HARNESS])
def test_a_closed_standard_output_is_no_error(tmp_path: Path, program: list[str]) -> None:
    done = end(["sh", "-c", 'exec "$@" --help >&-', "sh", *program], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("program", "command"), [("kvtier", KVTIER), ("kvtier-harness", HARNESS)])
def test_both_say_their_version_their_help_and_what_option_is_unknown(
    tmp_path: Path, program: str, command: list[str]
) -> None:
    assert re.fullmatch(rf"{program}, version \d+\.\d+\.\d+\n", end([*command, "--version"], tmp_path).stdout)
    alone = end(command, tmp_path)
    assert (alone.returncode, alone.stdout) == (ExitCode.USAGE, "")
    assert alone.stderr.startswith(f"Usage: {program} [OPTIONS] COMMAND")
    unknown = end([*command, "--colour"], tmp_path)
    assert unknown.returncode == ExitCode.USAGE
    assert "'--colour'" in said_once(unknown, program)


# --- extras ---


HIDE = """
import os, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["HIDDEN"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def without(packages: set[str], command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command and its child processes as in an environment that lacks `packages`."""
    (folder / "hide").mkdir(exist_ok=True)
    (folder / "hide/sitecustomize.py").write_text(HIDE)
    python_path = os.pathsep.join([str(folder / "hide"), str(ROOT)])
    return end(command, folder, PYTHONPATH=python_path, HIDDEN=" ".join(packages))


KVTIER_INSPECT, HARNESS_OBSERVE = [*KVTIER, "inspect", "."], [*HARNESS, "observe"]


@pytest.mark.parametrize(
    ("program", "command", "package", "install"),
    [
        *(("kvtier", KVTIER_INSPECT, name, "pip install 'kvtier[cli]'") for name in sorted(PACKAGES["cli"])),
        ("kvtier", KVTIER_INSPECT, "xxhash", "pip install kvtier"),
        *(
            ("kvtier-harness", HARNESS_OBSERVE, name, "pip install 'kvtier[harness]'")
            for name in sorted(PACKAGES["harness"])
        ),
    ],
)
def test_a_missing_package_is_one_sentence_that_names_its_extra(
    tmp_path: Path, program: str, command: list[str], package: str, install: str
) -> None:
    done = without({package}, command, tmp_path)
    assert done.returncode == ExitCode.USAGE, done
    sentence = said_once(done, program)
    assert re.search(rf"the package '{package}(\.[a-z_.]+)?' is missing; install it: ", sentence)
    assert sentence.endswith(f"install it: {install}\n")


def test_a_load_run_needs_the_extra_of_the_harness_alone(tmp_path: Path) -> None:
    others = set.union(*PACKAGES.values()) - PACKAGES["harness"] - PACKAGES[""]
    development = {"hypothesis", "pytest", "yaml", "jsonschema", "matplotlib", "vllm"}
    small = ["--processes", "2", "--block-bytes", "4096", "--requests", "8", "--seconds", "0", "--speed", "0"]
    done = without(others | development, [*HARNESS, "run", "load", *small, "--trace-every", "2", "--json"], tmp_path)
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line == "kvtier-harness: no spans are recorded; for spans: pip install 'kvtier[tracing]'"
    results = json.loads(done.stdout)
    assert results["reason"] == ""
    assert "false" not in {verdict["value"] for verdict in results["verdicts"]}
    assert not list((tmp_path / "runs").glob("*/spans-*"))


def test_the_packages_of_each_extra_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, packages in PACKAGES.items():
        required = {re.split(r"[<>=!\[; ]", one)[0].replace("-", "_") for one in extras[extra]}
        required = {one.partition("_")[0] if one.startswith("opentelemetry") else one for one in required}
        assert packages == required, extra
