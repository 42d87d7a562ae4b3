"""The harness installed away from its repository, as a wheel lays it out: dashboards, and environments of peers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
IGNORED = shutil.ignore_patterns("__pycache__")
VARIABLES = ("KVTIER_PEER_VLLM", "HARNESS_VLLM_PYTHON")

FAKE_PYTHON = """\
#!/bin/sh
# A Python for install.sh: writes down what it is asked, makes the environment, and downloads nothing.
echo "$@" >> "$LOG"
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"pip "*vllm==*) exit "${FAIL:-0}" ;;
*torch.version.cuda*) exit 1 ;;
*import_vllm*) ls "$PYTHONPATH" >> "$LOG" ;;
esac
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages with both packages as a wheel has them, and another package beside them."""
    folder = tmp_path / "site-packages"
    for package in ("kvtier", "harness"):
        shutil.copytree(ROOT / package, folder / package, ignore=IGNORED)
    shutil.copytree(ROOT / "dashboards", folder / "harness" / "dashboards", ignore=IGNORED)
    (folder / "neighbour.py").touch()
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def run(site: Path, cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(site), "COLUMNS": "400", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def harness(site: Path, cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(site, cwd, "-m", "harness", *arguments, **environment)


# --- dashboards and rules ---


def test_dashboards_and_rules_are_those_of_the_package(site: Path, elsewhere: Path) -> None:
    found = run(
        site, elsewhere, "-c", "from harness.monitoring.live_dashboards import DASHBOARDS; print(DASHBOARDS)"
    ).stdout.strip()
    assert found == str(site / "harness" / "dashboards")


@pytest.mark.parametrize("absent", ["overview.json", "rules.yml", "vllm-names.yml", "."])
def test_observe_without_its_dashboards_is_refused(site: Path, elsewhere: Path, absent: str) -> None:
    folder = site / "harness" / "dashboards"
    if absent == ".":
        shutil.rmtree(folder)
    else:
        (folder / absent).unlink()
    done = harness(site, elsewhere, "observe", "--seconds", "1", "--no-wait")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"kvtier-harness: skipped: {folder} has no ")
    assert done.stderr.count("\n") == 1
    assert "rules.yml" in done.stderr if absent == "." else absent in done.stderr
    assert list(elsewhere.iterdir()) == []


# --- environments of peers ---


def test_a_missing_peer_is_one_sentence_with_the_command_that_installs_it(site: Path, elsewhere: Path) -> None:
    done = harness(site, elsewhere, "run", "load", "--tier", "vllm")
    assert done.returncode == 2
    assert done.stderr == (
        "kvtier-harness: skipped: there is no environment with vLLM 0.33.0: KVTIER_PEER_VLLM is not set; make one "
        "with `kvtier-harness install-peer vllm DIR` and set KVTIER_PEER_VLLM=DIR\n"
    )
    done = harness(site, elsewhere, "run", "load", "--tier", "vllm", KVTIER_PEER_VLLM="nowhere")
    assert done.returncode == 2
    assert f"KVTIER_PEER_VLLM is 'nowhere', and {elsewhere}/nowhere/bin/python is no program" in done.stderr
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    path = tmp_path / "fake-python"
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)
    return path


def test_a_peer_is_installed_and_then_found(site: Path, elsewhere: Path, fake_python: Path) -> None:
    log = elsewhere / "log"
    arguments = ("install-peer", "vllm", "peers/vllm", "--python", str(fake_python))
    done = harness(site, elsewhere, *arguments, LOG=str(log))
    assert done.returncode == 0, done.stderr
    folder = elsewhere / "peers" / "vllm"
    assert done.stdout.splitlines()[-1] == f"export KVTIER_PEER_VLLM={folder}"
    asked = log.read_text()
    assert "vllm==0.33.0" in asked
    assert "torch==2.13.0" in asked
    assert asked.endswith("\nharness\nkvtier\n"), "what the last check can import"
    code = "from harness.adapters import tier_python; print(tier_python('vllm'))"
    found = run(site, elsewhere, "-c", code, KVTIER_PEER_VLLM="peers/vllm").stdout.strip()
    assert found == str(folder / "bin" / "python")
    again = harness(site, elsewhere, *arguments, LOG=str(log))
    assert again.returncode == 0, "an environment that is there is installed over"


def test_an_installation_that_fails_is_an_error_of_the_environment(
    site: Path, elsewhere: Path, fake_python: Path
) -> None:
    arguments = ("install-peer", "vllm", "peer", "--python", str(fake_python))
    done = harness(site, elsewhere, *arguments, LOG=str(elsewhere / "log"), FAIL="7")
    assert done.returncode == 74
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("kvtier-harness: vllm is not installed: install.sh ended with exit code 7")
    assert "export" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("vlm", "peer"), "'vlm' is not one of 'aibrix', 'lmcache', 'sglang', 'vllm'"),
        (("vllm", ""), "DIR is '', which is empty"),
        (("vllm", "full"), "full' holds other files; name a new folder, or an environment that install-peer made"),
        (("vllm", "full/file"), "full/file' is not a folder"),
        (("vllm", "peer", "--python", "no-such-python"), "no-such-python' is not a program"),
        (("vllm", "peer", "--python", "false"), "false' does not run as Python 3.11 or later"),
    ],
)
def test_a_wrong_use_of_install_peer_makes_nothing(
    site: Path, elsewhere: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    (elsewhere / "full").mkdir()
    (elsewhere / "full" / "file").touch()
    done = harness(site, elsewhere, "install-peer", *arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["file", "full"]


def test_another_interpreter_gets_the_harness_without_the_packages_beside_it(site: Path, elsewhere: Path) -> None:
    """Its own packages must not be hidden by those that were compiled for this interpreter."""
    code = (
        "import json; from pathlib import Path; from harness.core.installation import python_path\n"
        "print(json.dumps([python_path('/another/python', Path('run')), python_path('/another/python', Path('run'))]))"
    )
    (elsewhere / "run").mkdir()
    done = run(site, elsewhere, "-c", code)
    assert done.stderr == ""
    first, second = json.loads(done.stdout)
    assert first == second
    folder = Path(first.split(os.pathsep)[0])
    assert sorted(path.name for path in folder.iterdir()) == ["harness", "kvtier"]
    assert (folder / "harness").resolve() == site / "harness"
    assert str(site) not in first.split(os.pathsep)[:1]
