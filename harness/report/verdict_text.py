"""Words for people: a run's verdicts, and values of any kind. The JSON files keep `true`, `false` and `unknown`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VERDICT_WORDS = {"true": "pass", "false": "fail", "unknown": "inconclusive"}
SHORT_NAMES_MAX = 2
"""Verdicts that `short_summary` names; it counts the rest."""


def summary(results: Mapping[str, Any]) -> str:
    """A run's verdict, with the checkers that decided it."""
    word = VERDICT_WORDS[results["verdict"]]
    names = deciding(results)
    reason = results["reason"].splitlines()[0] if results["reason"] else ""
    return f"{word}: {join(names) or reason}" if names or (reason and word != "pass") else word


def short_summary(results: Mapping[str, Any]) -> str:
    """The same for a narrow column."""
    word, names = VERDICT_WORDS[results["verdict"]], deciding(results)
    more = f" +{len(names) - SHORT_NAMES_MAX}" if len(names) > SHORT_NAMES_MAX else ""
    return f"{word}: {', '.join(names[:SHORT_NAMES_MAX])}{more}" if names else word


def deciding(results: Mapping[str, Any]) -> list[str]:
    """The checkers whose verdict is the run's own; none for a pass."""
    return [v["name"] for v in results["verdicts"] if v["value"] == results["verdict"] != "true"]


def words(name: str) -> str:
    return name.replace("_", " ")


def text(value: Any) -> str:
    """A value for a person: whole numbers with commas, others to four digits, lists with commas."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(key))} {text(item)}" for key, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(text(item) for item in value)
    return str(value)


def join(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
