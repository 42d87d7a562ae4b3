"""JUnit XML of runs, for CI: a test suite for each run, a test case for each rule of its checkers.

A rule with findings is a failure. A rule that could not be judged is skipped, with the reason. A finding that names no
rule counts against a case of the checker's own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from harness.checkers import RULES
from harness.core.findings import Finding
from harness.core.run_files import write_text
from harness.report.verdict_text import VERDICT_WORDS

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, even escaped."""
_STAMP = "%Y%m%dT%H%M%SZ"  # begins the name of a run's folder


class Case(NamedTuple):
    """A rule and how it went: "true", "false" with the findings, or "unknown" with the reasons."""

    rule: str
    value: str
    texts: Sequence[str] = ()


def cases(results: Mapping[str, Any]) -> list[Case]:
    """The rules that a run was judged by, in the order of its checkers, and the run itself if it was broken off."""
    found = [case for verdict in results["verdicts"] for case in _cases(verdict)]
    return [*found, *([Case("run", "unknown", [results["reason"]])] if results["reason"] else [])]


def _cases(verdict: Mapping[str, Any]) -> list[Case]:
    name, value = verdict["name"], verdict["value"]
    against: dict[str, list[Finding]] = {}
    doubts: dict[str, list[Finding]] = {}
    for finding in verdict["findings"]:
        (doubts if finding.kind == "doubt" else against).setdefault(finding.rule or name, []).append(finding)
    rules = [rule.id for rule in RULES.values() if rule.checker == name]
    if not rules or name in against or (value == "false" and not against):
        rules.append(name)
    made = []
    for rule in dict.fromkeys([*rules, *against]):
        # Without a doubt of its own, a rule of an inconclusive checker is as undecided as the checker.
        general = doubts.get(name) or ([] if doubts else [verdict["figure"]])
        why = doubts.get(rule) or (general if value == "unknown" else [])
        if rule in against or (value == "false" and not against):
            more = [f"and {verdict['omitted']} more findings"] if verdict["omitted"] else []
            made.append(Case(rule, "false", [*(against.get(rule) or [verdict["figure"]]), *more]))
        else:
            made.append(Case(rule, "unknown" if why else "true", why))
    return made


def write_junit(path: Path, runs: Iterable[Mapping[str, Any]]) -> Path:
    """Write the file for the results of runs (as `Results` or results.json have them). Raises OSError."""
    root = ElementTree.Element("testsuites", name="kvtier-harness")
    for number, results in enumerate(runs):
        root.append(_suite(number, results))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_text(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')
    return path


def _suite(number: int, results: Mapping[str, Any]) -> ElementTree.Element:
    listed = cases(results)
    counts = {value: sum(case.value == value for case in listed) for value in VERDICT_WORDS}
    suite = ElementTree.Element(
        "testsuite",
        name=results["scenario"],
        package=_text(results["tier"]),
        id=f"{number}",
        timestamp=_started(Path(results["run_dir"]).name),
        hostname="localhost",
        tests=f"{len(listed)}",
        failures=f"{counts['false']}",
        errors="0",
        skipped=f"{counts['unknown']}",
        time=f"{results['seconds']:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("tier", "seed", "command", "verdict", "run_dir"):
        ElementTree.SubElement(properties, "property", name=name, value=_text(results[name]))
    for case in listed:
        element = ElementTree.SubElement(
            suite, "testcase", name=case.rule, classname=_text(f"{results['tier']}.{results['scenario']}"), time="0"
        )
        if case.value == "false":
            failure = ElementTree.SubElement(element, "failure", type="finding", message=_text(case.texts[0]))
            failure.text = _text("\n".join([*map(_whole, case.texts), f"again: {results['command']}"]))
        elif case.value == "unknown":
            ElementTree.SubElement(element, "skipped", message=_text("; ".join(case.texts)))
    output = [f"process {label}:\n{said}" for label, said in (results.get("last_output") or {}).items()]
    ElementTree.SubElement(suite, "system-out")
    ElementTree.SubElement(suite, "system-err").text = _text("\n".join(output))
    return suite


def _whole(text: str) -> str:
    """A finding with its record, on one line."""
    if not isinstance(text, Finding):
        return text
    known = {name: value for name, value in text.to_json().items() if name not in ("text", "kind", "rule")}
    return f"{text} [{', '.join(f'{name} {value}' for name, value in known.items())}]" if known else text


def _started(folder: str) -> str:
    """ISO 8601 without a zone, as the schema wants it."""
    try:
        began = datetime.strptime(folder[:16], _STAMP)
    except ValueError:
        began = datetime.now(UTC).replace(tzinfo=None)
    return began.isoformat(timespec="seconds")


def _text(value: object) -> str:
    return _ILLEGAL.sub("�", str(value))
