"""Tracked text uses no word of docs/words.txt: terms that the glossary replaces, and phrases that say nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
WORDS = "docs/words.txt"
CHECKED = (  # to be widened to all tracked text
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/adapter.md",
    "docs/architecture.md",
    "docs/architecture.svg",
    "docs/decisions.md",
    "docs/glossary.md",
    "docs/index.md",
    "docs/troubleshooting.md",
    "tests/tiering/harness/adapters/test_guide.py",
    "tests/tiering/test_docs.py",
)


def banned() -> dict[str, str]:
    """Phrase -> the term to use instead."""
    lines = (ROOT / WORDS).read_text().splitlines()
    pairs = [line.split(" -> ") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), f"{WORDS}: a line that is not 'phrase -> term'"
    return dict(pairs)


def pattern(phrase: str) -> re.Pattern[str]:
    """Whole words in any case; white space of any kind, also over a line's end; a trailing * stands for any ending."""
    stem = phrase.removesuffix("*")
    parts = r"[\s#*/>]+".join(map(re.escape, stem.split()))
    end = "" if stem != phrase else r"(?![\w-])"
    return re.compile(rf"(?<![\w-]){parts}{end}", re.IGNORECASE)


def found_in(text: str) -> list[str]:
    """ "line: phrase -> term" for each use."""
    uses = [
        (text.count("\n", 0, match.start()) + 1, phrase, term)
        for phrase, term in banned().items()
        for match in pattern(phrase).finditer(text)
    ]
    return [f"line {line}: {phrase!r}; say {term}" for line, phrase, term in sorted(uses)]


@pytest.mark.parametrize("name", CHECKED)
def test_no_banned_word_is_used(name: str) -> None:
    uses = found_in((ROOT / name).read_text())
    assert not uses, f"{name}:\n" + "\n".join(uses)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("the bad file is set\n# aside", 1),
        ("Convicted, acquitted", 2),
        ("processes are told at start", 1),
        ("a class of options, a twin-engine, an offset aside, a crewed ship, obeying", 0),
        ("the quarantine of a defect that was detected", 0),
    ],
)
def test_phrases_are_found_as_whole_words(text: str, count: int) -> None:
    assert len(found_in(text)) == count
