"""docs/error-rates.md: how often correct tiers failed or were inconclusive, and mutants passed, under each condition.

Every figure comes from the log of a series.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from harness.core.statistics import CONFIDENCE, upper_bound
from harness.false_alarms.conditions import CONDITIONS
from harness.false_alarms.correct_tiers import CONTROLS
from harness.false_alarms.repeated_runs import OUTCOMES, Row

PAGE_HEAD = """\
# Error rates of the verdicts

{summary} Written by `kvtier-harness false-alarms --write docs/error-rates.md` from the log of a series.

A control run judges a correct tier, and must pass. Each run is a short one with real processes; its condition, tier,
scenario and seed derive from one seed. A bound holds with {confidence:.0%} confidence (Clopper and Pearson; without an
event about 3 / runs). It covers the runs of this machine and of these conditions, as if each run had the same rate.
The load is that of the whole machine in the minute before a run, in runnable threads for each core: runs were made
beside other work where it is high, the quiet ones too.
"""


def page(seeds: Sequence[int], rows: Sequence[Row]) -> str:
    """The page for the rows of one or more series."""
    controls = [row for row in rows if not row.is_mutant and row.outcome in OUTCOMES]
    mutants = [row for row in rows if row.is_mutant and row.outcome in OUTCOMES]
    lines = [PAGE_HEAD.format(summary=summary(seeds, controls), confidence=CONFIDENCE)]
    for title, key, order in (
        ("Condition", lambda row: row.condition, list(CONDITIONS)),
        ("Tier", lambda row: row.tier, list(CONTROLS)),
        ("Scenario", lambda row: row.scenario, sorted({row.scenario for row in controls})),
    ):
        lines += [f"## Correct tiers by {title.lower()}", "", *_rates(title.lower(), key, order, controls), ""]
    lines += ["## Control runs that failed", "", *_failed(controls), ""]
    lines += ["## Control runs that were inconclusive", "", *_reasons(controls), ""]
    if mutants:
        lines += ["## Mutants under the same conditions", "", *_mutants(mutants), ""]
    lines += ["## Rules that a correct tier does not keep", "", *_broken(), ""]
    if left_out := _left_out(rows):
        lines += ["## Not run", "", *left_out, ""]
    lines += ["## What the conditions are", "", "| condition | |", "|---|---|"]
    lines += [f"| {name} | {what} |" for name, (what, _) in CONDITIONS.items()]
    return "\n".join(lines) + "\n"


def summary(seeds: Sequence[int], controls: Sequence[Row]) -> str:
    """The result in a sentence or two."""
    count = Counter(row.outcome for row in controls)
    quiet = [row for row in controls if row.condition == "quiet"]
    unknown = sum(row.outcome == "inconclusive" for row in quiet)
    bound = upper_bound(count["fail"], len(controls))
    since = len(list(itertools.takewhile(lambda row: row.outcome != "fail", reversed(controls))))
    latest = f"The last {since} had no failure (at most {upper_bound(0, since):.1%}). " if count["fail"] else ""
    return (
        f"**{count['fail']} of {len(controls)} runs of correct tiers failed** (upper bound of the rate {bound:.1%}), "
        f"{count['inconclusive']} were inconclusive; on the quiet machine {unknown} of {len(quiet)}. {latest}"
        f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; "
        f"commits {', '.join(sorted({row.commit for row in controls if row.commit})) or 'not known'}."
    )


def _rates(title: str, key: Callable[[Row], str], order: Iterable[str], rows: Sequence[Row]) -> list[str]:
    lines = [
        f"| {title} | runs | pass | fail | inconclusive | fail, at most | inconclusive, at most | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [*order, ""]:
        mine = [row for row in rows if not name or key(row) == name]
        if not mine:
            continue
        count = Counter(row.outcome for row in mine)
        bounds = (upper_bound(count[outcome], len(mine)) for outcome in ("fail", "inconclusive"))
        cells = [name or "**all**", len(mine), *(count[outcome] for outcome in OUTCOMES), *(f"{b:.1%}" for b in bounds)]
        lines.append(f"| {' | '.join(map(str, cells))} | {median(row.load for row in mine):.1f} |")
    return lines


def _failed(rows: Sequence[Row]) -> list[str]:
    failed = [row for row in rows if row.outcome == "fail"]
    if not failed:
        return ["None."]
    lines = ["| condition | tier | scenario | commit | rule | finding | due to |", "|---|---|---|---|---|---|---|"]
    for row in failed:
        cells = (row.condition, row.tier, row.scenario, row.commit, ", ".join(row.rules), row.why, row.explained)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return lines


def _reasons(rows: Sequence[Row]) -> list[str]:
    """The reasons by rule or checker, most frequent first."""
    unknown = [row for row in rows if row.outcome == "inconclusive"]
    if not unknown:
        return ["None."]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in unknown:
        rule = next((f["rule"] for f in row.findings if "rule" in f), "")
        groups.setdefault((row.scenario, rule), []).append(row)
    lines = ["| runs | scenario | rule | conditions | reason of the first |", "|---|---|---|---|---|"]
    for (name, rule), mine in sorted(groups.items(), key=lambda item: -len(item[1])):
        where = ", ".join(f"{c} {n}" for c, n in Counter(row.condition for row in mine).most_common())
        lines.append(f"| {len(mine)} | {name} | {rule} | {where} | {_cell(mine[0].why)} |")
    return lines


def _mutants(rows: Sequence[Row]) -> list[str]:
    lines = [
        "A mutant passes if its checker found it right with each of three seeds. It must not; it may be inconclusive.",
        "",
        "| condition | mutants | fail | inconclusive | pass | pass, at most |",
        "|---|---|---|---|---|---|",
    ]
    for name in [*CONDITIONS, ""]:
        mine = [row for row in rows if not name or row.condition == name]
        if not mine:
            continue
        count = Counter(row.outcome for row in mine)
        cells = [name or "**all**", len(mine), *(count[outcome] for outcome in ("fail", "inconclusive", "pass"))]
        lines.append(f"| {' | '.join(map(str, cells))} | {upper_bound(count['pass'], len(mine)):.1%} |")
    passed = sorted({(row.tier, row.condition) for row in rows if row.outcome == "pass"})
    named = ", ".join(f"{mutant} ({condition})" for mutant, condition in passed)
    return [*lines, "", f"Passed: {named or 'none'}."]


def _broken() -> list[str]:
    broken = [(name, rule, why) for name, control in CONTROLS.items() for rule, why in control.breaks.items()]
    return ["Findings against them are not counted.", "", *(f"- {name}: `{rule}`: {why}" for name, rule, why in broken)]


def _left_out(rows: Sequence[Row]) -> list[str]:
    reasons = Counter((row.condition, row.why) for row in rows if row.outcome == "not run")
    return [f"- {condition}: {why} ({count} runs)" for (condition, why), count in reasons.items()]


def _cell(text: str) -> str:
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    text = text if len(text) <= 300 else text[:297] + "..."
    return text.replace("|", "\\|")
