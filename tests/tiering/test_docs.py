"""The pages of docs/ agree with the code: every page is listed, every link leads somewhere, every verdict and alert has
its section, and the findings that troubleshooting.md quotes are those that the checkers write."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkers import CHECKERS

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TROUBLESHOOTING = (ROOT / "docs/troubleshooting.md").read_text()
WRITTEN_FOR = ("CONTRIBUTING.md", "docs/adapter.md", "docs/architecture.md", "docs/decisions.md", "docs/glossary.md")
FROM_THE_HARNESS = ("results", "the harness: process … hung")
"""A finding whose words a scenario writes."""


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found.read_text()), f"{page}: {target}"


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "docs/index.md").read_text()))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert pages <= listed, f"docs/index.md lacks {sorted(pages - listed)}"


def test_every_verdict_and_every_alert_has_its_section() -> None:
    alerts = re.findall(r"alert: (\w+)", (ROOT / "dashboards/rules.yml").read_text())
    headings = set(re.findall(r"^### (\w+)$", TROUBLESHOOTING, re.M))
    assert alerts
    assert {*CHECKERS, *alerts} <= headings, f"docs/troubleshooting.md lacks {sorted({*CHECKERS, *alerts} - headings)}"


def quotes() -> list[tuple[str, str]]:
    """(checker, words of a finding), from the sections of verdicts."""
    found = []
    for section in re.split(r"^### ", TROUBLESHOOTING.split("\n## Verdicts")[1].split("\n## Alerts")[0], flags=re.M)[
        1:
    ]:
        name = section.split()[0]
        bold = re.findall(r"\*\*(.*?)\*\*", section, re.S)
        found += [(name, " ".join(words.split())) for text in bold for words in re.findall(r'"([^"]+)"', text)]
    return found


def templates(module: str) -> list[str]:
    """The texts in a module's source, with … for each value."""
    texts = []
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


@pytest.mark.parametrize(("checker", "words"), [quote for quote in quotes() if quote != FROM_THE_HARNESS])
def test_a_quoted_finding_is_one_that_the_checker_writes(checker: str, words: str) -> None:
    source = (ROOT / f"harness/checkers/{checker}.py").read_text()
    helpers = re.findall(r"^from harness\.checkers\.(\w+) import", source, re.M)
    texts = [text for name in dict.fromkeys([checker, *helpers]) for text in templates(f"harness/checkers/{name}.py")]
    parts = [part.strip() for part in words.split("…") if part.strip()]
    assert any(all(part in text for part in parts) for text in texts), f"{checker}: no finding says {words!r}"


@pytest.mark.parametrize("page", WRITTEN_FOR)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    paths = re.findall(r"`((?:kvtier|harness|tests|dashboards|docs)/[\w./-]*)`", (ROOT / page).read_text())
    missing = sorted({path for path in paths if "NAME" not in path and not (ROOT / path).exists()})
    assert not missing, f"{page}: {missing}"


def test_the_worker_of_the_debugger_runs_in_its_process(tmp_path: Path) -> None:
    source = (ROOT / "CONTRIBUTING.md").read_text().split("```python\n")[1].split("```")[0]
    source = source.replace("tempfile.mkdtemp()", repr(str(tmp_path)))
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert "exit code 0" in done.stdout, done.stdout + done.stderr
    assert "job" in (tmp_path / "history-0.jsonl").read_text()
