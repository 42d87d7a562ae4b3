"""What a run folder holds, read back and checked: options.json and results.json. Judging, reports and lists use it.

A folder may come from another machine, an earlier version, or a full disk: what is damaged is named, never trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.findings import Finding
from harness.core.inputs import DamagedFile, UsageError, read_json
from harness.scenarios import scenario, scenarios
from harness.scenarios.option_declaration import declarations

_OPTIONS = {"scenario": str, "tier": str, "seed": int, "command": str}
_RESULTS = {
    **_OPTIONS,
    "verdict": str,
    "verdicts": list,
    "reason": str,
    "run_dir": str,
    "totals": dict,
    "seconds": (int, float),
}
_VERDICT = {"name": str, "value": str, "figure": str, "findings": list, "data": dict}
_VALUES = ("true", "false", "unknown")
_VERSIONS = (1, 2)
"""Of results.json. In the first, which did not name it, a finding was a sentence, and the last said how many more."""
_MORE = re.compile(r"and (\d+) more")


def check_run(run_dir: Path) -> None:
    """Raises `UsageError` unless the folder's options.json names a known scenario and fits its options."""
    path = run_dir / "options.json"
    if not path.exists():
        raise UsageError(f"{str(run_dir)!r} is not a run folder: it has no options.json")
    options = read_json(path, dict)
    _check(path, "it", options, _OPTIONS)
    known = [item.name for item in scenarios()]
    if options["scenario"] not in known:
        raise DamagedFile(f"{str(path)!r} names scenario {options['scenario']!r}; valid choices: {', '.join(known)}")
    for option in declarations(scenario(options["scenario"]).options):
        if option.name in options:
            try:
                option.check(option.name, options[option.name])
            except UsageError as error:
                raise DamagedFile(f"{str(path)!r} is damaged: {error}") from error


def read_results(run_dir: Path) -> dict[str, Any]:
    """results.json, whose findings become `Finding`s. Raises `UsageError` where there is none, or none that `judge`
    could have written."""
    path = run_dir / "results.json"
    results: dict[str, Any] = read_json(path, dict)
    if (version := results.get("version", 1)) not in _VERSIONS:
        raise DamagedFile(f"{str(path)!r} is of version {version!r}; this version of kvtier-harness reads 1 and 2")
    _check(path, "it", results, _RESULTS)
    for number, verdict in enumerate(results["verdicts"]):
        if not isinstance(verdict, dict):
            raise DamagedFile(f"{str(path)!r} is damaged: verdict {number} is {verdict!r}, not an object")
        _check(path, f"verdict {number}", verdict, _VERDICT)
    for value in (results["verdict"], *(verdict["value"] for verdict in results["verdicts"])):
        if value not in _VALUES:
            raise DamagedFile(f"{str(path)!r} is damaged: a verdict is {value!r}; valid: {', '.join(_VALUES)}")
    try:
        return with_findings(results)
    except ValueError as error:
        raise DamagedFile(f"{str(path)!r} is damaged: {error}") from error


def with_findings(results: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a results.json of any version with `Finding`s in its verdicts, as `Results` has them.

    Raises ValueError where one is none."""
    return {**results, "verdicts": [_with_findings(verdict) for verdict in results["verdicts"]]}


def _with_findings(verdict: Mapping[str, Any]) -> dict[str, Any]:
    found = list(verdict["findings"])
    omitted = verdict.get("omitted", 0)
    if found and isinstance(found[-1], str) and (more := _MORE.fullmatch(found[-1])):
        found, omitted = found[:-1], int(more[1])
    return {**verdict, "findings": [Finding.from_json(value) for value in found], "omitted": omitted}


def _check(path: Path, what: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if name not in values:
            raise DamagedFile(f"{str(path)!r} is damaged: {what} has no {name!r}")
        if not isinstance(values[name], kind):
            raise DamagedFile(f"{str(path)!r} is damaged: {name!r} of {what} is {values[name]!r}")
