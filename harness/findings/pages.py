"""The pages made from records: docs/conformance.md, and docs/findings/TIER-VERSION.md for each peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.adapters import adapter_class
from harness.adapters.peers import PEERS
from harness.checkers import RULES
from harness.findings.promises import KNOWN, promised, script
from harness.findings.record import FAIL, INCONCLUSIVE, PASS, file_name, value_of
from harness.findings.suite import CONTROLS, DOCUMENTED, ROWS, SUITE, Case, Row, does_not_apply

WORDS = {PASS: "pass", FAIL: "fail", INCONCLUSIVE: "inconclusive", "": "not applicable"}

CONFORMANCE_HEAD = """\
# Conformance: what holds for each tier

One suite of {cases} short cases judges file tiers of several projects. {controls} are the controls of the same suite.
A row is a guarantee, a column a tier with its version. A failing cell links to its finding, with a command that
replays it. A finding counts where the tier's own words promise the guarantee, or any user would expect it; the finding
says which. The worst rule of a row decides its cell. A pass says that these runs found nothing.

`make conformance PEER=NAME` runs the suite for a tier and the controls, and writes this page from the records in
`docs/findings/`. [adapter.md](adapter.md) says how to judge a tier of your own, and
[findings-vllm-0.33.md](findings-vllm-0.33.md) what other runs found in vLLM's tier.
"""

CASES_HEAD = """
## Cases

| case | what is done | command |
|---|---|---|
"""

KNOWN_HEAD = """
## Defects known before

| tier | known from its source or tracker | here | by, or why |
|---|---|---|---|
"""

FINDINGS_HEAD = """\
# Findings: {label}

{about} Severity is the user's loss: wrong bytes, lost store, starvation, leak, only untidy.
[conformance.md](../conformance.md) compares all tiers.

{facts} Written from the records of the runs.
"""


class Cell(NamedTuple):
    """A tier's verdict of a row. `rules`: the failing or undecided ones, as (case, rule, its record)."""

    value: str  # a key of WORDS
    rules: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    reason: str = ""


def cell(record: Mapping[str, Any], row: Row) -> Cell:
    """The verdict of a row from a tier's record."""
    if reason := does_not_apply(adapter_class(record["tier"]), row):
        return Cell("", (), reason)
    judged = [
        (case, rule, found)
        for case, kept in record["cases"].items()
        for rule, found in kept["rules"].items()
        if row.decides(case, rule) and (record["tier"], f"{case}:{rule}") not in DOCUMENTED
    ]
    absent = sorted(row.cases - record["cases"].keys())
    value = value_of([found["value"] for _, _, found in judged] + [INCONCLUSIVE] * bool(absent))
    return Cell(value, [one for one in judged if one[2]["value"] == value != PASS])


def conformance(found: Sequence[Mapping[str, Any]]) -> str:
    """docs/conformance.md."""
    head = CONFORMANCE_HEAD.format(cases=len(SUITE), controls=" and ".join(CONTROLS))
    lines = [head, f"| guarantee | a failure means | {' | '.join(_title(one) for one in found)} |"]
    lines += [f"|---|---|{'---|' * len(found)}"]
    for row in ROWS:
        cells = [_linked(one, row) for one in found]
        lines.append(f"| {row.promise} | {row.severity} | {' | '.join(cells)} |")
    reasons = [
        f"- {_title(one)}, {row.name}: {reason}." for row in ROWS for one in found if (reason := cell(one, row).reason)
    ]
    lines += ["", "Not applicable:", "", *reasons] if reasons else []
    own = [
        f'- {_title(one)}, `{where}`: "{sentence}" ({place}).'
        for one in found
        for (tier, where), (sentence, place) in DOCUMENTED.items()
        if tier == one["tier"]
    ]
    lines += ["", "Left out, because the tier says that it does not promise it:", "", *own] if own else []
    lines += [KNOWN_HEAD.rstrip("\n")]
    lines += [f"| {PEERS[tier].what} | {defect} | {shown} | {why} |" for tier, defect, shown, why in KNOWN]
    lines += [CASES_HEAD.rstrip("\n")]
    lines += [f"| {case.name} | {case.what} | `{_command(case)}` |" for case in SUITE]
    return "\n".join(lines) + "\n"


def _title(record: Mapping[str, Any]) -> str:
    return str(record["label"])


def _linked(record: Mapping[str, Any], row: Row) -> str:
    value = cell(record, row).value
    if value == FAIL and record["tier"] in PEERS:
        return f"[fail](findings/{file_name(record['tier'])}.md#{row.name})"
    return WORDS[value]


def _command(case: Case) -> str:
    options = " ".join(f"'{option}'" if " " in option or "*" in option else option for option in case.options)
    return f"kvtier-harness run {case.scenario} --tier TIER {options}".rstrip().replace("|", r"\|")


def findings(record: Mapping[str, Any]) -> str:
    """docs/findings/TIER-VERSION.md."""
    failing = [(row, found) for row in ROWS if (found := cell(record, row)).value == FAIL]
    undecided = [(row, found) for row in ROWS if (found := cell(record, row)).value == INCONCLUSIVE]
    about = f"{len(failing)} of {len(ROWS)} guarantees fail in {len(record['cases'])} cases."
    facts = " ".join(dict.fromkeys(kept["facts"] for kept in record["cases"].values()))
    lines = [FINDINGS_HEAD.format(label=record["label"], about=about, facts=facts)]
    for row, found in failing:
        lines += _section(record, row, found)
    if undecided:
        lines += ["## Inconclusive", ""]
        for row, found in undecided:
            texts = [text for _, _, one in found.rules for text in one.get("texts", ())]
            lines.append(f"- {row.promise} {texts[0] if texts else 'No case judged it.'}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _section(record: Mapping[str, Any], row: Row, found: Cell) -> list[str]:
    tier = record["tier"]
    lines = [f"## {row.name}", "", f"**Expected**: {row.promise} {promised(tier, row)}", ""]
    lines += [f"**Severity**: {row.severity}.", "", "**Seen**:", ""]
    shown: dict[str, Any] = {}
    for case, rule, one in found.rules:
        lines.append(f"- {case}, `{rule}`: {RULES[rule].text if rule in RULES else rule}")
        lines += [f"  - {_plain(text)}" for text in one.get("texts", ())]
        example = record["cases"][case].get("counterexamples", {}).get(rule)
        if example and (not shown or example["calls"] < shown["calls"]):
            shown = example
    if shown:
        lines += [
            "",
            f"**Shortest counterexample**, {shown['calls']} calls of `{shown['program']}`: {shown['text']}",
            "",
        ]
        lines += ["```text", shown["diagram"], "```"]
    lines += ["", "**Replay**:", "", "```"]
    lines += list(dict.fromkeys(record["cases"][case]["command"] for case, _, _ in found.rules))
    lines += ["```", ""]
    if name := script(tier, row.name):
        lines += [f"**Without the harness**: [{name}](../../harness/findings/repro/{name})", ""]
    return lines


def _plain(text: str) -> str:
    return text.replace("<", r"\<").replace("|", r"\|")
