"""Tracked text uses no word of docs/words.txt: terms that the glossary replaces, and phrases that say nothing."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
WORDS = "docs/words.txt"
FOLDERS = (".ci", "kvtier", "harness", "dashboards", "docs", "tests")
SUFFIXES = {"", ".c", ".h", ".json", ".md", ".patch", ".py", ".pyi", ".sh", ".svg", ".toml", ".txt", ".yaml", ".yml"}
EXEMPT = (WORDS, "tests/tiering/test_words.py")
"""They name the words."""


def tracked() -> list[str]:
    """Every text file of the repository, also where it is an extracted sdist without git."""
    paths = [path for path in ROOT.glob("*") if path.is_file()]
    paths += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [path.relative_to(ROOT).as_posix() for path in paths if path.suffix in SUFFIXES]
    return sorted(name for name in texts if "__pycache__" not in name and name not in EXEMPT)


@cache
def banned() -> dict[str, str]:
    """Phrase -> the term to use instead."""
    lines = (ROOT / WORDS).read_text().splitlines()
    pairs = [line.split(" -> ") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), f"{WORDS}: a line that is not 'phrase -> term'"
    return dict(pairs)


@cache
def pattern(phrase: str) -> re.Pattern[str]:
    """Whole words in any case; white space of any kind, also over a line's end; a trailing * stands for any ending."""
    stem = phrase.removesuffix("*")
    parts = r"[\s#*/>]+".join(map(re.escape, stem.split()))
    end = "" if stem != phrase else r"(?![\w-])"
    return re.compile(rf"(?<![\w-]){parts}{end}", re.IGNORECASE)


def found_in(text: str) -> list[str]:
    """ "line: phrase -> term" for each use. A phrase is looked for where all its words are somewhere in the text."""
    folded = text.casefold()
    uses = [
        (text.count("\n", 0, match.start()) + 1, phrase, term)
        for phrase, term in banned().items()
        if all(word in folded for word in phrase.removesuffix("*").casefold().split())
        for match in pattern(phrase).finditer(text)
    ]
    return [f"line {line}: {phrase!r}; say {term}" for line, phrase, term in sorted(uses)]


def test_no_banned_word_is_used() -> None:
    names = tracked()
    assert {"README.md", "kvtier/fs/_native.c", "docs/vllm.md", "tests/tiering/test_docs.py"} <= set(names)
    uses = {name: found for name in names if (found := found_in((ROOT / name).read_text(errors="replace")))}
    assert not uses, "".join(f"\n{name}\n  " + "\n  ".join(found) for name, found in uses.items())


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
