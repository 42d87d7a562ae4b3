"""A scenario is one file and a checker is one module: nothing else names them, and every command finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import harness.checkers
import harness.scenarios
from harness.adapters import adapter_class
from harness.checkers import CHECKERS
from harness.checkers.base import Verdict
from harness.cli import cli
from harness.commands.conform import plan
from harness.core.history import History
from harness.runner import run
from harness.scenarios import names, scenario, scenarios

ROOT = Path(__file__).parents[4]
SCENARIO = '''"""Two processes store nothing; it shows that a file is enough."""

from harness.scenarios.base import CommonOptions, Scenario


def run(context, plan):
    children = [context.start(0, "replay", {"requests": [], "window": 1, "start_seconds_max": None})]
    context.workers.await_ready(children)
    context.workers.go(children)
    context.workers.wait(children)


SCENARIO = Scenario(
    name="added",
    text=__doc__ or "",
    options=CommonOptions,
    checkers=("leftovers",),
    prepare=lambda options: None,
    run=run,
    short={"processes": 1, "slots": 2},
    tiers=("reference",),
    on_hosts={},
)
'''


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A scenario in a folder of its own, beside those of the package."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "added.py").write_text(SCENARIO)
    (folder / "helper.py").write_text('"""Declares no scenario."""\n')
    monkeypatch.setattr(harness.scenarios, "__path__", [*harness.scenarios.__path__, str(folder)])
    harness.scenarios._texts.cache_clear()
    yield
    harness.scenarios._texts.cache_clear()


def test_a_file_more_is_a_scenario_for_every_command(added: None, tmp_path: Path) -> None:
    assert "added" in names()
    assert "helper" not in names()
    group = cli.get_command(click.Context(cli), "run")
    assert isinstance(group, click.Group)
    help_text = group.get_help(click.Context(group))
    assert re.search(r"added +Two processes store nothing; it shows", help_text)
    assert "added" in [item.name for item, _ in plan("reference", (), 1, {"seconds": 0.0})[0]]
    chosen = scenario("added")
    results = run(chosen, chosen.options(**chosen.short, tier="reference", seed=1), tmp_path / "runs")
    assert (results.scenario, [verdict["name"] for verdict in results.verdicts]) == ("added", ["leftovers"])
    assert results.verdict == "true", results


def test_a_module_more_is_a_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from harness.checkers.base import Verdict\n"
    text += "def check(history): return Verdict('silence', 'true', '', [], {})\n"
    (tmp_path / "silence.py").write_text(text)
    monkeypatch.setattr(harness.checkers, "__path__", [*harness.checkers.__path__, str(tmp_path)])
    found = harness.checkers.found()
    assert set(found) == {*CHECKERS, "silence"}
    assert found["silence"](History()) == Verdict("silence", "true", "", [], {})


@pytest.mark.parametrize("name", CHECKERS)
def test_a_checker_is_called_like_its_module(name: str) -> None:
    assert CHECKERS[name](History()).name == name


@pytest.mark.parametrize("name", names())
def test_what_a_scenario_declares_fits_together(name: str) -> None:
    chosen = scenario(name)
    assert chosen.name == name
    assert set(chosen.checkers) <= set(CHECKERS)
    assert chosen.options(**chosen.short)
    assert chosen.options(**(chosen.on_hosts or {}))
    assert not [tier for tier in chosen.tiers if chosen.lacks(adapter_class(tier))]


def test_no_module_and_no_make_target_lists_the_scenarios() -> None:
    """A single one may be named, by an example or for what is special about it."""
    for path in [*(ROOT / "harness").rglob("*.py"), ROOT / "Makefile"]:
        for line in path.read_text().splitlines():
            words = set(re.findall(r"\w+" if path.name == "Makefile" else r'"(\w+)"', line)) - set(CHECKERS)
            listed = {item.name for item in scenarios() if not item.apart} & words
            assert len(listed) < 2, f"{path}: {line}"
