"""Writes docs/guarantees.md: each promise of a tier with the rules that judge it, their scenarios and mutants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

from harness.checkers import RULES
from harness.core.findings import Rule
from harness.core.guarantees import GUARANTEES, README, SOURCES, VLLM, Guarantee
from harness.mutants.base import Mutant
from harness.mutants.registry import MUTANTS
from harness.scenarios import scenarios
from harness.scenarios.base import Scenario

HEAD = """\
# Guarantees

**{promises} promises of a tier to its engine, {cited} rules that judge them, {mutants} mutants that break a rule.**
{uncited}{unbroken}Of kvtier {version}.

- A *promise* is one sentence of a contract, or of the README's guarantees, in plain words. Those of the README come
  first; users of kvtier can stop after them. The other sections are for authors of tiers and of checkers.
- A *rule* is what a checker demands of a run. Its id begins with the checker's name, and each finding names its rule.
- A *mutant* is a tier with one known defect that breaks the rule ([mutants.md](mutants.md)).
- A *scenario* is a program of runs, whose records the checkers judge. Those in **bold** detect the row's mutants, so
  run them first; the others judge the same rules on other traffic.

[From the README to a command](#from-the-readme-to-a-command) is the shortest way to check a guarantee yourself.
`kvtier-harness conform` runs the scenarios on any tier. The options of kvtier that a guarantee depends on, and their
defaults: [vllm.md](vllm.md#defaults-and-exceptions-of-the-guarantees). Terms: [glossary.md](glossary.md).

`kvtier-harness docs guarantees` writes this page from the promises in `harness/core/guarantees.py` and from the rules
that the checkers declare. `tests/tiering/harness/core/test_guarantees.py` requires that each promise stands in its
source, and that each sentence of the two contracts has a row here or is listed as no promise.
"""
INDEX_HEAD = """\
### From the README to a command

The fewest runs that judge all rules of the row. `kvtier-harness run SCENARIO --tier NAME` judges another tier.

| guarantee | checkers | commands |
|---|---|---|
"""
DETAILS_HEAD = """
### The rules of each guarantee

"""
RULES_HEAD = """
## Rules

What each rule demands, and which deviation is no finding. The runs of scenarios marked "separate" need more than a tier
and a folder, such as several hosts. Scenarios in **bold** detect the rule's mutants.

Terms of the column *tolerates*:

{terms}
| rule | demands | tolerates | scenarios | mutants |
|---|---|---|---|---|
"""
TERMS = {
    "threads": "The tier's I/O threads in one process, both groups; 32 if the tier does not say.",
    "repetition": (
        "A scenario makes the same situation 3 times. A rule is broken if all show the deviation, undecided if most do."
    ),
    "time to the result": "From the submit of a job to the poll that returns its result.",
    "unloaded life": "The time to the result of a one-block job with nothing else in flight, measured in the same run.",
    "device call, device time": (
        "The harness times calls on the root beside the tier. The typical device call is the median, over "
        "half seconds, of the longest call. The device time is the larger of the longest call and the longest "
        "unloaded life but one."
    ),
    "wake-up delay": (
        "How late a thread of the process that sleeps 10 ms wakes (the canary): the measure of scheduling noise."
    ),
    "hindered time": (
        "Time in which the process's threads could not run: without a CPU, stopped, or waiting for Python's "
        "lock. It is not charged to the tier."
    ),
    "switch interval": (
        "Python's `sys.getswitchinterval()`, 5 ms: how long a thread may keep Python's lock while others wait."
    ),
    "longest service, hand-over": (
        "The longest run of one task, and the longest time for which a thread was free while a task of its own "
        "direction waited ([starvation-bound.md](starvation-bound.md))."
    ),
    "overtaking blocks": "Blocks of jobs that were submitted later and ended earlier.",
    "shortage of the machine": (
        "ENOSPC, EDQUOT, EROFS or EIO while the harness itself saw the root's file system refuse a write; "
        "EMFILE or ENFILE with a limit below 1,024 descriptors; ENOMEM with little memory or an RLIMIT_AS; "
        "EAGAIN for a thread beyond a normal number of threads of the process. The verdict is then "
        "inconclusive."
    ),
}
"""Terms of the tolerances."""
SECTIONS = {README: SOURCES[README], **SOURCES, VLLM: "the interface of vLLM's secondary tiers"}


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
    cited = {rule.id for guarantee in GUARANTEES for rule in rules_of(guarantee)}
    others = len(RULES) - len(cited)
    uncited = f"{others} more rules belong to no promise. " if others else ""
    known = {"cited": len(cited), "uncited": uncited, "unbroken": _without_mutant(), "version": version("kvtier")}
    text = HEAD.format(promises=len(GUARANTEES), mutants=named, **known)
    for source, title in SECTIONS.items():
        text += f"\n## {title[0].upper()}{title[1:]}\n\n`{source}`\n\n"
        if source == README:
            text += INDEX_HEAD + "".join(_index_row(one) for one in GUARANTEES if one.source == README) + DETAILS_HEAD
        text += "| promise | rules | scenarios | mutants |\n|---|---|---|---|\n"
        for guarantee in (one for one in GUARANTEES if one.source == source):
            rules = rules_of(guarantee)
            mutants = dict.fromkeys(name for rule in rules for name in broken_by(rule))
            where = _scenarios(rules)
            text += _row(guarantee.promise, _code(rule.id for rule in rules), where, ", ".join(mutants))
    terms = _row("term", "meaning") + "|---|---|\n" + "".join(_row(*term) for term in TERMS.items())
    text += RULES_HEAD.format(terms=terms)
    for rule in RULES.values():
        tolerates = rule.tolerates or "nothing"
        mutants_of = ", ".join(broken_by(rule)) or "none"
        text += _row(f"`{rule.id}`", rule.text, tolerates, _scenarios([rule], mark=True), mutants_of)
    return text


def _scenarios(rules: Sequence[Rule], mark: bool = False) -> str:
    """The scenarios that judge the rules, in bold and first where they detect mutants, most mutants first; with `mark`
    those that are run apart are marked."""
    apart = {name: alone for rule in rules for name, alone in judged_in(rule).items()}
    detects = Counter(MUTANTS[name].scenario for rule in rules for name in broken_by(rule))
    names = sorted(apart, key=lambda name: -detects[name])
    marks = {name: " (separate)" if mark and apart[name] else "" for name in names}
    return ", ".join(f"**{name}**{marks[name]}" if detects[name] else f"{name}{marks[name]}" for name in names)


def _without_mutant() -> str:
    """A sentence on the rules that no mutant breaks, or nothing."""
    without = [rule for rule in RULES.values() if not broken_by(rule)]
    if not without:
        return ""
    names = [rule.id for rule in without if not rule.id.startswith(("outage/", "power_loss/"))]
    names += [f"{checker}/*" for checker in ("outage", "power_loss") if any(r.checker == checker for r in without)]
    return (
        f"{len(without)} rules have no mutant ({_code(names)}): their runs need\n"
        "several hosts or a loss of power. Real runs judged kvtier by them ([filesystems.md](filesystems.md)). That\n"
        "these rules find a defect is shown by records written by hand. "
    )


def runs_for(guarantee: Guarantee) -> list[Scenario]:
    """The fewest scenarios, by greedy choice, whose checkers judge all of its rules."""
    missing = {rule.checker for rule in rules_of(guarantee)}
    found: list[Scenario] = []
    while missing:
        judging = [one for one in scenarios() if missing & set(one.checkers)]
        best = max(judging, key=lambda one: (not one.apart, len(missing & set(one.checkers))))
        found.append(best)
        missing -= set(best.checkers)
    return found


def _index_row(guarantee: Guarantee) -> str:
    checkers = dict.fromkeys(rule.checker for rule in rules_of(guarantee))
    commands = (
        one.apart.rpartition(": ")[2] if one.apart else f"kvtier-harness run {one.name}" for one in runs_for(guarantee)
    )
    return _row(guarantee.promise, ", ".join(checkers), _code(commands))


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def unbroken() -> Sequence[str]:
    """Rules that a run on one machine judges and that no mutant breaks."""
    return [rule.id for rule in RULES.values() if not broken_by(rule) and not all(judged_in(rule).values())]
