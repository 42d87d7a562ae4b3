"""Help and version texts need no heavy package: each sub-command is imported when it is called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from harness.cli import cli
from harness.commands.lazy import LazyGroup

ROOT = Path(__file__).parents[4]
HEAVY = ("jinja2", "plotly", "numpy", "prometheus_client", "psutil", "rich", "opentelemetry", "matplotlib", "torch")
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise ImportError(f"{{name}} was imported")
sys.meta_path.insert(0, Blocker())
import harness.cli
harness.cli.main({arguments})
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["docs", "--help"], ["run", "fly"]], ids=" ".join
)
def test_help_and_version_import_no_heavy_package(tmp_path: Path, arguments: list[str]) -> None:
    code = BLOCKED.format(heavy=HEAVY, arguments=arguments)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "was imported" not in done.stderr
    assert done.returncode == (64 if "fly" in arguments else 0), done.stderr


@pytest.mark.parametrize(
    "arguments", [["run", "load", "--processes", "0"], ["conform", "reference", "--seconds", "-1"]]
)
def test_a_refused_run_imports_nothing_that_draws(tmp_path: Path, arguments: list[str]) -> None:
    code = BLOCKED.format(heavy=("jinja2", "plotly", "numpy", "matplotlib"), arguments=arguments)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 64, done.stderr
    assert "was imported" not in done.stderr


def commands(group: click.Group, *above: str) -> list[tuple[str, ...]]:
    """Each sub-command of a group, with those above it."""
    context, found = click.Context(group), []
    for name in group.list_commands(context):
        found.append((*above, name))
        inner = group.get_command(context, name)
        found += commands(inner, *above, name) if isinstance(inner, click.Group) else []
    return found


def test_every_sub_command_can_be_imported_and_has_a_line_in_the_help() -> None:
    found = commands(cli)
    for name in (("run", "load"), ("bench", "table"), ("bench", "compare"), ("docs", "faults"), ("shared-volume",)):
        assert name in found
    for name in found:
        command: click.Command | None = cli
        for part in name:
            assert isinstance(command, click.Group)
            text = command.get_help(click.Context(command, info_name="kvtier-harness"))
            assert f"  {part} " in text
            assert not isinstance(command, LazyGroup) or command._members()[part].text
            command = command.get_command(click.Context(command), part)
        assert command is not None
        assert command.help, name


def test_no_module_of_the_harness_is_a_command_beside_the_one_command() -> None:
    """What `python -m` still reaches are the processes that the harness starts itself: they have no click command."""
    for path in (ROOT / "harness").rglob("*.py"):
        text = path.read_text()
        assert '__name__ == "__main__"' not in text or "import click" not in text, path
