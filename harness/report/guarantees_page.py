"""Writes docs/guarantees.md: each promise of a tier with the rules that judge it, their scenarios and mutants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.checkers import RULES
from harness.core.findings import Rule
from harness.core.guarantees import GUARANTEES, SOURCES, VLLM, Guarantee
from harness.mutants.base import Mutant
from harness.mutants.registry import MUTANTS
from harness.scenarios import scenarios

HEAD = """\
# Guarantees

**{promises} promises of a tier to its engine, {rules} rules that judge them, {mutants} mutants that break a rule.**
Written by `kvtier-harness docs guarantees` from the declarations; tests compare them with the sources.

A promise is a sentence of a contract in plain words. A *rule* is what a checker demands of a run; its id begins with
the checker's name, and each finding names its rule. A *mutant* is a tier with one known defect that breaks the rule
([mutants.md](mutants.md)). `kvtier-harness conform` runs the scenarios on any tier. Terms:
[glossary.md](glossary.md).
"""
RULES_HEAD = """
## Rules

What each rule demands, and which deviation is no finding. Rules marked *apart* judge scenarios that need more than a
tier and a folder, such as several hosts; constructed histories test them instead of mutants.

| rule | demands | tolerates | scenarios | mutants |
|---|---|---|---|---|
"""
SECTIONS = {**SOURCES, VLLM: "the interface of vLLM's secondary tiers"}


def rules_of(guarantee: Guarantee) -> list[Rule]:
    """Its rules in order; "nonblocking/*" is all of a checker. An unknown id raises KeyError."""
    found: dict[str, Rule] = {}
    for name in guarantee.rules:
        checker, _, slug = name.partition("/")
        several = [rule for rule in RULES.values() if rule.checker == checker] if slug == "*" else [RULES[name]]
        found |= {rule.id: rule for rule in several}
    return list(found.values())


def judged_in(rule: Rule) -> dict[str, bool]:
    """The scenarios whose runs it judges, and whether each is run apart."""
    return {one.name: bool(one.apart) for one in scenarios() if rule.checker in one.checkers}


def broken_by(rule: Rule, mutants: Mapping[str, Mutant] = MUTANTS) -> list[str]:
    """Names of the mutants that break it."""
    return [mutant.name for mutant in mutants.values() if mutant.rule == rule.id]


def page() -> str:
    """docs/guarantees.md."""
    named = sum(bool(mutant.rule) for mutant in MUTANTS.values())
    text = HEAD.format(promises=len(GUARANTEES), rules=len(RULES), mutants=named)
    for source, title in SECTIONS.items():
        text += f"\n## {title[0].upper()}{title[1:]}\n\n`{source}`\n\n"
        text += "| promise | rules | scenarios | mutants |\n|---|---|---|---|\n"
        for guarantee in (one for one in GUARANTEES if one.source == source):
            rules = rules_of(guarantee)
            where = dict.fromkeys(name for rule in rules for name in judged_in(rule))
            mutants = dict.fromkeys(name for rule in rules for name in broken_by(rule))
            text += _row(guarantee.promise, _code(rule.id for rule in rules), ", ".join(where), ", ".join(mutants))
    text += RULES_HEAD
    for rule in RULES.values():
        names = ", ".join(f"{name} (*apart*)" if apart else name for name, apart in judged_in(rule).items())
        tolerates = rule.tolerates or "nothing"
        text += _row(f"`{rule.id}`", rule.text, tolerates, names, ", ".join(broken_by(rule)) or "*apart*")
    return text


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def unbroken() -> Sequence[str]:
    """Rules that a run on one machine judges and that no mutant breaks."""
    return [rule.id for rule in RULES.values() if not broken_by(rule) and not all(judged_in(rule).values())]
