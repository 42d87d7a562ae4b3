"""The package as a user gets it: wheel and sdist are built, checked, installed in fresh environments, run elsewhere.

All tests here are slow and need a package index. `.ci/run` runs those named `contents` and `main_job`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OPTIONAL = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
EXTRAS = sorted(OPTIONAL - {"dev", "gpu", "cluster"})
"""`gpu` and `cluster` are torch alone; `make install` installs torch and `dev`."""
MAIN_JOB = ["kvtier-harness", "run", "load", "--processes", "2", "--seconds", "3", "--requests", "50", "--seed", "7"]
WORKS = {
    "": ["python", "-c", "import kvtier; print(kvtier.FileSystemTierManager)"],
    "cli": ["kvtier", "inspect", "--help"],
    "faults": ["python", "-c", "from importlib.metadata import version; version('mfusepy')"],  # loads no libfuse
    "harness": MAIN_JOB,
    "metrics": ["python", "-c", "import kvtier.telemetry.prometheus"],
    "tracing": ["python", "-c", "import kvtier.telemetry.otel"],
}
"""Extra -> a command that needs it."""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Standard output of a command that has nothing of this checkout on its path. Its exit code must be 0."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "COVERAGE"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Venv:
    """A fresh environment. Commands run from a folder of its own, which holds nothing else."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self.cwd = folder / "elsewhere"
        self.cwd.mkdir(parents=True)
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)

    def install(self, *requirements: object) -> None:
        run(self.bin / "python", "-m", "pip", "install", "--quiet", *requirements, cwd=self.cwd)

    def run(self, command: str, *arguments: object) -> str:
        return run(self.bin / command, *arguments, cwd=self.cwd)


@pytest.fixture
def venv(tmp_path: Path) -> Iterator[Venv]:
    yield Venv(tmp_path)
    shutil.rmtree(tmp_path / "venv")  # pytest would keep it for days


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("kvtier-*.whl")
    return path


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make dist` fills."""
    for tool in ("auditwheel", "build", "twine"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"no {tool} in this environment; `make install` installs it")
    folder = tmp_path_factory.mktemp("dist")
    # -o: make uses the environment of this test run, unchanged.
    run("make", "-o", f"{sys.prefix}/.installed", "dist", f"DEV={sys.prefix}", f"DIST={folder}", cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def sdist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, extracted."""
    folder = tmp_path_factory.mktemp("sdist")
    (path,) = dist.glob("kvtier-*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (extracted,) = folder.iterdir()
    return extracted


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


# --- what is in it ---


def test_contents_are_types_dashboards_rules_and_the_script_of_the_peer(wheel: Path) -> None:
    names = names_in(wheel)
    assert {"kvtier/py.typed", "harness/py.typed", "kvtier/fs/_native.pyi"} <= names
    dashboards = {path.name for path in (ROOT / "dashboards").glob("*.json")} | {"rules.yml", "vllm-names.yml"}
    assert {f"harness/dashboards/{name}" for name in dashboards | {"compose.yaml", "prometheus.yml"}} <= names
    assert {f"harness/adapters/vllm_env/{name}" for name in ("install.sh", "requirements.txt")} <= names
    templates = {path.name for path in (ROOT / "harness/report/templates").iterdir()}
    assert {f"harness/report/templates/{name}" for name in templates} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kvtier", "harness"}
    assert not [name for name in names if name.endswith(".c") or "/tests/" in name]


def test_contents_of_the_index_page_link_to_no_file_of_the_repository(wheel: Path) -> None:
    page = metadata(wheel).get_payload()
    assert isinstance(page, str)
    targets = re.findall(r"!?\[[^\]]*\]\(([^)]*)\)", page)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert "](docs/" in (ROOT / "README.md").read_text(), "README has no link that this test could find"


def test_contents_of_the_metadata_name_author_keywords_and_license(wheel: Path) -> None:
    said = metadata(wheel)
    assert said["Author"]
    assert said["Keywords"]
    assert said["License-Expression"] == "Apache-2.0"
    classifiers = said.get_all("Classifier") or []
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(classifiers)


def test_dist_is_a_manylinux_wheel_for_every_python_and_an_sdist(dist: Path) -> None:
    assert len(list(dist.iterdir())) == 2
    (wheel,) = dist.glob("*.whl")
    assert re.fullmatch(r"kvtier-[\d.]+-cp311-abi3-manylinux_2_\d+_\w+\.whl", wheel.name)
    assert [name for name in names_in(wheel) if name.endswith(".so")] == ["kvtier/fs/_native.abi3.so"]


# --- installed ---


@pytest.mark.parametrize("extra", ["", *(extra for extra in EXTRAS if extra != "harness")])
def test_an_extra_brings_what_its_part_needs(wheel: Path, venv: Venv, extra: str) -> None:
    venv.install(f"{wheel}[{extra}]" if extra else wheel)
    venv.run("python", "-m", "pip", "check")
    venv.run(*WORKS[extra])


def test_main_job_runs_from_a_wheel_in_another_folder(wheel: Path, venv: Venv) -> None:
    venv.install(f"{wheel}[harness]")
    assert "pass: all " in venv.run(*MAIN_JOB)
    latest = venv.cwd / "runs" / "latest"
    assert (latest / "report.html").exists()
    assert json.loads((latest / "results.json").read_text())["verdict"] == "true"
    assert str(ROOT) not in venv.run("python", "-c", "import harness; print(harness.__file__)")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus here: apt-get install prometheus")
def test_observe_from_a_wheel_shows_its_panels(wheel: Path, venv: Venv) -> None:
    venv.install(f"{wheel}[harness,tracing]")
    said = venv.run("kvtier-harness", "observe", "--no-wait", "--seconds", "8", "--processes", "2")
    for panel in ("Bytes moved", "Job latency", "Hit ratio by tier"):
        assert panel in said
    assert "alerts firing" in said


# --- the sdist ---


def test_an_sdist_is_the_repository(sdist: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    tracked = set(run("git", "ls-files", cwd=ROOT).splitlines())
    packed = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert tracked - packed == set()
    assert {name for name in packed - tracked if ".egg-info/" not in name} == {"PKG-INFO", "setup.cfg"}


def test_tests_run_from_an_sdist(sdist: Path) -> None:
    """pytest collects the same number of tests as here, and the quick ones that read the tree pass."""

    def collected(root: Path) -> int:
        out = run(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", cwd=root)
        found = re.search(r"(\d+)(?:/\d+)? tests collected", out)
        assert found, out
        return int(found[1])

    assert collected(sdist) == collected(ROOT) > 1000
    names = ("test_house", "dashboards/test_dashboards", "kvtier/test_config", "harness/test_cli")
    run(sys.executable, "-m", "pytest", "-q", *(f"tests/tiering/{name}.py" for name in names), cwd=sdist)
