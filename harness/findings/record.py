"""What is kept of a run: one JSON file for each tier and version, from which the pages are made.

A case that is run again replaces its earlier record; the others stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.adapters.peers import PEERS
from harness.core.run_files import write_json
from harness.entry_point import VERSION
from harness.explore.diagram import diagram
from harness.findings.suite import CONTROLS, ROWS, SUITE, Case
from harness.report.junit import cases

TEXTS_MAX = 3
TEXT_CHARACTERS = 400
PASS, FAIL, INCONCLUSIVE = "true", "false", "unknown"


def label(tier: str) -> str:
    """The name and version of a tier, for people."""
    return f"{PEERS[tier].what} {PEERS[tier].tier}" if tier in PEERS else f"{tier} {VERSION}"


def version(tier: str) -> str:
    """The version of a tier; a control has that of this checkout."""
    return PEERS[tier].version if tier in PEERS else VERSION


def file_name(tier: str) -> str:
    """The name of a tier's record and page, without a suffix."""
    return f"{tier}-{version(tier)}"


def record(case: Case, results: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """What is kept of one run: its command, and for each rule of the suite how it went, with examples."""
    rules: dict[str, dict[str, Any]] = {}
    cut_off = _cut_off(results)
    for rule, value, texts in cases(results):
        if value == PASS and rule.startswith("interleavings/") and cut_off:
            value, texts = INCONCLUSIVE, [f"not all schedules were run of: {', '.join(cut_off)}"]
        if any(row.decides(case.name, rule) for row in ROWS):
            kept = [_one_line(text) for text in texts[:TEXTS_MAX]] if value != PASS else []
            rules[rule] = {"value": value, **({"texts": kept} if kept else {})}
    found = {
        "command": results["command"],
        "reason": _one_line(results["reason"] or ""),
        "seconds": round(results["seconds"], 1),
        "rules": rules,
    }
    if shown := shortest(run_dir):
        found["counterexamples"] = shown
    return found


def _cut_off(results: Mapping[str, Any]) -> list[str]:
    """Programs of an interleavings run of which a limit left schedules out."""
    programs = [one for verdict in results["verdicts"] for one in verdict["data"].get("programs", ())]
    return [one["program"] for one in programs if one.get("all of them") == "no"]


def shortest(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The shortest counterexample of each kind of violation that an interleavings run kept, as a diagram."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(run_dir.glob("counterexample-*.json")):
        example = json.loads(path.read_text())
        for text in example["texts"]:
            rule = f"interleavings/{text.partition(':')[0].replace(' ', '-')}"
            if rule not in found or len(example["trace"]) < found[rule]["calls"]:
                found[rule] = {
                    "program": example["program"],
                    "calls": len(example["trace"]),
                    "text": text,
                    "schedule": example["schedule"],
                    "diagram": diagram(example["actors"], example["trace"], example["step"]),
                }
    return found


def keep(folder: Path, tier: str, seed: int, facts: str, case: Case, found: Mapping[str, Any]) -> None:
    """Write a case's record into the tier's file, in the order of the suite. Raises OSError."""
    path = folder / f"{file_name(tier)}.json"
    whole = read(path) if path.exists() else {}
    order = [one.name for one in SUITE]
    kept = {**whole.get("cases", {}), case.name: {**found, "seed": seed, "facts": facts}}
    kept = {name: kept[name] for name in order if name in kept}
    write_json(path, {"tier": tier, "label": label(tier), "version": version(tier), "cases": kept})


def read(path: Path) -> dict[str, Any]:
    """A tier's record."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder: the controls first, then the peers by name."""
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda one: (_place(one["tier"]), one["tier"]))


def _place(tier: str) -> int:
    return CONTROLS.index(tier) if tier in CONTROLS else len(CONTROLS)


def value_of(values: Sequence[str]) -> str:
    """The worst of several."""
    return next((value for value in (FAIL, INCONCLUSIVE, PASS) if value in values), INCONCLUSIVE)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 3] + "..."
