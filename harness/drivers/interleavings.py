"""Explores programs with the worker's tier: each in a process of its own, which starts the processes of the program.

The worker's own instance of the tier only names the blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.checkers.interleavings import slug
from harness.core import notes
from harness.core.run_files import write_json
from harness.explore import search
from harness.explore.checks import Check
from harness.explore.diagram import rows
from harness.explore.minimise import blocks
from harness.explore.model import CannotExplore, Diverged, Outcome, Program, Violation
from harness.explore.programs import Kit, Spec, in_child, parse
from harness.runtime.worker import Worker

COUNTEREXAMPLES_MAX = 3
"""Of each program so many kinds of violations are shortened and kept."""
MINIMISE_SECONDS = 5.0


def drive(
    worker: Worker,
    programs: Sequence[str] = (),
    kills: int = 1,
    preemptions_max: int | None = None,
    limit_seconds: float = 60.0,
    limit_schedules: int | None = None,
    replay: Mapping[str, Any] | None = None,
    folder: str | None = None,
) -> None:
    """Notes "explored" for each program, "counterexample" for each kind of violation, "skipped" for a program that the
    tier has no operations for, "unfit" where system calls cannot be stopped. `replay`: a counterexample's content.
    `folder`: where the roots are made, in memory by default."""
    if worker.parent.receive("go") is None:
        return
    limits: dict[str, Any] = {"kills": kills, "preemptions_max": preemptions_max, "limit_seconds": limit_seconds}
    limits |= {"limit_schedules": limit_schedules, "folder": Path(folder) if folder else None}
    if why := search.unavailable():
        worker.note(notes.Unfit(), f"system calls cannot be stopped here: {why}")
        return
    kit, made = Kit.of(worker.adapter), 0
    for text in [replay["program"]] if replay else programs:
        if worker.parent.stop.is_set():
            return
        spec = parse(text)
        if why := kit.lacks(spec):
            worker.note(notes.Skipped(), f"{spec.text}: {why}")
            continue
        job = (lambda s=spec: _replayed(kit, s, replay)) if replay else (lambda s=spec: _explored(kit, s, limits))
        try:
            said = in_child(job, lambda: _tick(worker))
        except CannotExplore as error:
            worker.note(notes.Unfit(), f"{spec.text}: {error}")
            continue
        for example in said.pop("examples"):
            file = f"counterexample-{made}-{slug(spec.text)}.json"
            made += 1
            _keep(worker, kit, spec, example, file)
        worker.note(notes.Explored(**said))
        worker.counts["schedules"] = worker.counts.get("schedules", 0) + said["schedules"]
        worker.parent.send("progress", counts=worker.counts, gauges={})


def _tick(worker: Worker) -> bool:
    worker.tick()
    return not worker.parent.stop.is_set()


def _keep(worker: Worker, kit: Kit, spec: Spec, example: dict[str, Any], file: str) -> None:
    """Write a counterexample's file, which replays it, and its note."""
    about = {"tier": worker.instruction.tier, "block_bytes": kit.setup.block_bytes, "tier_options": kit.setup.options}
    schedule = example.pop("schedule")
    write_json(Path(worker.setup.run_dir) / file, {**about, "program": spec.text, "schedule": schedule, **example})
    worker.note(notes.Counterexample(program=spec.text, file=file, **example))


def _explored(kit: Kit, spec: Spec, limits: Mapping[str, Any]) -> dict[str, Any]:
    """All schedules of one program within the limits; fields of `notes.Explored`, and its counterexamples."""
    check = Check(kit, spec)
    program = kit.program(spec, check, check.state)
    found = search.explore(program, **limits)
    examples = [
        _example(kit, spec, program, search.minimise(program, violation, limit_seconds=MINIMISE_SECONDS))
        for violation in found.violations[:COUNTEREXAMPLES_MAX]
    ]
    excused: Counter[str] = Counter()
    for state, schedules in found.final_states.items():
        excused.update(dict.fromkeys(state[0], schedules))  # type: ignore[index]
    return {
        "program": spec.text,
        "processes": len(spec.actors),
        "kills": limits["kills"],
        "preemptions_max": limits["preemptions_max"],
        "schedules": found.schedules,
        "redundant": found.redundant,
        "calls": found.calls,
        "states": len(found.final_states),
        "complete": found.complete,
        "incomplete": found.incomplete,
        "violating": found.violating,
        "first_violating": found.first_violating,
        "seconds": round(found.seconds, 2),
        "excused": dict(excused),
        "examples": examples,
    }


def _replayed(kit: Kit, spec: Spec, replay: Mapping[str, Any]) -> dict[str, Any]:
    """One schedule, as it was recorded."""
    program = kit.program(spec, Check(kit, spec))
    schedule = tuple(map(str, replay["schedule"]))
    try:
        violation = search.replay(program, schedule, lambda outcome: _violation(program, outcome))
    except Diverged as error:
        raise CannotExplore(f"the schedule could not be followed: {error}") from error
    kills = sum(choice.endswith("!") for choice in schedule)
    once = {"schedules": 1, "redundant": 0, "calls": len(schedule), "states": 1, "seconds": 0.0, "excused": {}}
    what = {"program": spec.text, "processes": len(spec.actors), "kills": kills, "preemptions_max": None}
    return {
        **what,
        **once,
        "complete": False,
        "incomplete": "one schedule was replayed",
        "violating": int(bool(violation.texts)),
        "first_violating": int(bool(violation.texts)),
        "examples": [_example(kit, spec, program, violation)] if violation.texts else [],
    }


def _violation(program: Program, outcome: Outcome) -> Violation:
    return Violation(outcome.schedule, outcome.trace, tuple(program.check(outcome)))


def _example(kit: Kit, spec: Spec, program: Program, violation: Violation) -> dict[str, Any]:
    """A counterexample's fields."""
    return {
        "actors": [actor.name for actor in program.actors],
        "texts": list(violation.texts),
        "schedule": list(violation.schedule),
        "trace": [list(row) for row in rows(violation.trace, kit.files)],
        "step": _decisive(program, violation),
    }


def _decisive(program: Program, violation: Violation) -> int:
    """The step after which the rest may take its default course and it still goes wrong."""
    length = 0
    for _, count in [("", 0), *blocks(violation.schedule)]:
        length += count
        prefix = violation.schedule[:length]
        try:
            again = search.replay(program, prefix, lambda outcome: _violation(program, outcome))
        except Diverged:
            continue
        if again.texts and search.kind_of(again) == search.kind_of(violation):
            break
    return max(0, length - count) if length else 0
