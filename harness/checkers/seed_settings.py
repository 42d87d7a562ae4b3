"""Which processes share blocks under each setting of the hash seed, and whether a root of another seed is refused.

Judged from the notes of the scenario `determinism`:
- "cell": the names that one process derives for the same blocks under one setting, and the *family* of that setting by
  the rules of sharing. Processes of one family have equal names and seed digests. Those of two families have none in
  common. A setting that must be refused is refused with a text that names PYTHONHASHSEED. In each process different
  blocks have different names.
- "pair": a process opened a root that another had filled. If the rules let them share, it is accepted without a
  warning. Otherwise it is refused or warned on stderr, and derives none of the other's names.
- "race": processes of different seeds opened one root at the same time, and again later: one seed is accepted.
- "created": temp files of a process whose application seeded every random generator alike: no name comes twice.
- "instance": the ids of instances: none comes twice.

Not covered: settings that were skipped (listed), names of blocks that were not derived.

unknown: the tier refused every cell, fewer than two processes of one family were compared, or no pair was tried.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from harness.checkers.base import Findings, Rule, Value, Verdict, bookkeeping, is_bookkeeping, some
from harness.core import notes
from harness.core.findings import Finding, omitted
from harness.core.history import History

SHARES = Rule(
    "seed_settings/shares",
    "Processes that the rules let share derive equal keys, names and digests of the hash seed, in every environment: "
    "Python, start method, working directory, locale, time zone, host "
    "name, order of imports.",
)
SEPARATE = Rule(
    "seed_settings/separate", "Processes that the rules separate have no name and no digest of a hash seed in common."
)
REFUSAL = Rule(
    "seed_settings/refusal",
    'The seed policy "env" without PYTHONHASHSEED is refused, and the message names that variable.',
)
OWN_NAMES = Rule("seed_settings/own-names", "In each process one block has one name, and two blocks have two.")
REFUSED_ROOTS = Rule(
    "seed_settings/refused",
    "A process of the same model with another hash seed or hash algorithm than the root's is refused, or warned, when "
    "it opens the root.",
)
ONE_OWNER = Rule(
    "seed_settings/one-owner",
    "Of processes with different hash seeds that open a root at the same time, only those of one hash seed are "
    "accepted, then and later.",
    "tiers that warn instead of refusing: a warning does not say which root it is about",
)
ADMITTED = Rule(
    "seed_settings/admitted", "A process with the root's hash seed and hash algorithm is accepted without a warning."
)
UNIQUE_NAMES = Rule(
    "seed_settings/unique-temp-names",
    "No two processes make temp files of the same name, also where the application seeds all random generators.",
)
UNIQUE_IDS = Rule(
    "seed_settings/unique-ids",
    "No two instances have the same id, also where the application seeds all random generators.",
)
RULES = (SHARES, SEPARATE, REFUSAL, OWN_NAMES, REFUSED_ROOTS, ONE_OWNER, ADMITTED, UNIQUE_NAMES, UNIQUE_IDS)


OF_A_KIND_MAX = 3
REFUSED, PRIVATE = "refused", "private"
_Family = tuple[str, str]  # algorithm, family


def check(history: History) -> Verdict:
    """Judges notes of kind "cell", "pair", "created" and "instance"."""
    cells = [n.detail for n in history.notes if n.is_a(notes.Cell)]
    if cells and all(cell["status"] in ("refused", "missing") for cell in cells):
        why = some(dict.fromkeys(str(cell["why"]) for cell in cells), 3)
        return Verdict("seed_settings", "unknown", f"none of {len(cells)} cells could be opened: {why}", [], {})
    missing = Counter(str(c["why"]) for c in cells if c["status"] == "missing")
    pairs = [n.detail for n in history.notes if n.is_a(notes.Pair)]
    # Each kind of finding is heard, however many there are of another.
    uniqueness, pairing, refusing, sharing, parting = (Findings(RULES) for _ in range(5))
    instances = Counter(str(n.detail["id"]) for n in history.notes if n.is_a(notes.Instance))
    for name, count in instances.items():
        if count > 1:
            uniqueness.add(f"{count} instances call themselves {name} in what they write", rule=UNIQUE_IDS, seen=name)
    created = _created(history, uniqueness)
    for pair in pairs:
        _pair(pair, pairing)
    races = [n.detail for n in history.notes if n.is_a(notes.Race)]
    _races(races, pairing)
    refused = sum(_refusal(c, refusing) for c in cells if c["expected"] == REFUSED and c["status"] != "missing")
    compared = _compare(cells, sharing, parting)
    kinds = (uniqueness, pairing, refusing, sharing, parting)
    findings = [text for kind in kinds for text in _first(kind)]
    total = sum(kind.count for kind in kinds)
    value: Value = "false" if findings else "true" if compared and pairs else "unknown"
    pythons = sorted({str(c["python"]) for c in cells if c["status"] != "missing"})
    figure = (
        f"{len(cells) - sum(missing.values())} cells on Python {some(pythons)}, {compared} of them compared within "
        f"their family, {refused} refused as they must be, {sum(missing.values())} skipped; {len(pairs)} pairs on "
        f"one root, {len(races)} races; {created} temp names and {len(instances)} instance ids, all told apart; "
        f"{total} findings"
    )
    data = {
        "cells": len(cells),
        "compared": compared,
        "refused": refused,
        "skipped": dict(missing),
        "pairs": len(pairs),
        "temp_names": created,
        "instances": len(instances),
        "pythons": pythons,
    }
    return Verdict("seed_settings", value, figure, findings, data)


def _first(kind: Findings) -> list[Finding]:
    more = kind.count - OF_A_KIND_MAX
    return [*kind.list()[:OF_A_KIND_MAX], *([omitted(more, "more of this kind")] if more > 0 else [])]


def _where(cell: dict[str, Any]) -> str:
    seed = "unset" if cell["seed"] is None else repr(cell["seed"])
    return f"{cell['algorithm']}, {cell['policy']}, PYTHONHASHSEED {seed}, Python {cell['python']}, {cell['start']}"


def _refusal(cell: dict[str, Any], findings: Findings) -> bool:
    if cell["status"] != "refused":
        findings.add(f"{_where(cell)}: accepted, though nobody could know with whom it shares", rule=REFUSAL)
    elif "PYTHONHASHSEED" not in cell["why"]:
        findings.add(f"{_where(cell)}: refused without naming PYTHONHASHSEED: {cell['why']}", rule=REFUSAL)
    else:
        return True
    return False


def _compare(cells: list[dict[str, Any]], sharing: Findings, parting: Findings) -> int:
    """Names and digests of the cells that have any; returns how many had somebody to be compared with."""
    families: dict[_Family, list[dict[str, Any]]] = defaultdict(list)
    for number, cell in enumerate(cells):
        if cell["expected"] == REFUSED or cell["status"] == "missing":
            continue
        if cell["status"] != "names":
            what = "raised" if cell["status"] == "raised" else "refused, though the rules allow it"
            sharing.add(f"{_where(cell)}: {what}: {cell['why']}", rule=SHARES)
            continue
        own = f"{PRIVATE} {number}" if cell["expected"] == PRIVATE else cell["expected"]
        families[cell["algorithm"], own].append(cell)
        _tell_apart(cell, parting)
    owners: dict[tuple[str, str], tuple[_Family, dict[str, Any]]] = {}
    for family, members in families.items():
        first = members[0]
        for cell in members[1:]:
            if cell["names"] != first["names"] or cell["digest"] != first["digest"]:
                sharing.add(f"no sharing, though the rules say so: [{_where(first)}] and [{_where(cell)}]", rule=SHARES)
        for cell in members:
            marks = {("seed", str(cell["digest"]))} | {("name", str(name)) for _, _, name in cell["names"]}
            for mark in marks:
                theirs, other = owners.setdefault(mark, (family, cell))
                if theirs != family:
                    what = "the seed's digest" if mark[0] == "seed" else f"the name {mark[1]}"
                    text = f"{what} is common to [{_where(other)}] and [{_where(cell)}], which must not share"
                    parting.add(text, rule=SEPARATE, file=mark[1] if mark[0] == "name" else None)
                    break
    return sum(len(members) for members in families.values() if len(members) > 1)


def _tell_apart(cell: dict[str, Any], findings: Findings) -> None:
    """One block, one name; two blocks, two names."""
    names: dict[int, set[str]] = defaultdict(set)
    for block, _, name in cell["names"]:
        names[block].add(name)
    if any(len(mine) > 1 for mine in names.values()):
        findings.add(f"{_where(cell)}: the same tokens have two names in one process", rule=OWN_NAMES)
    if len(set().union(*names.values())) < len(names):
        findings.add(f"{_where(cell)}: different tokens have the same name", rule=OWN_NAMES)


def _pair(pair: dict[str, Any], findings: Findings) -> None:
    what = f"a root of [{pair['first']}], opened with [{pair['second']}]"
    told = pair["status"] == "refused" or bool(pair["said"])
    if pair["shares"] and pair["status"] != "names":
        findings.add(f"{what}: refused, though they share: {pair['why']}", rule=ADMITTED)
    elif pair["shares"] and pair["said"]:
        findings.add(f"{what}: they share, yet it complains: {pair['said']}", rule=ADMITTED)
    elif not pair["shares"] and not told:
        findings.add(f"{what}: accepted without an error, though they share nothing", rule=REFUSED_ROOTS)
    if pair["status"] == "names" and pair["same_names"] != pair["shares"]:
        findings.add(f"{what}: names are {'the same' if pair['same_names'] else 'different'}", rule=SHARES)


def _races(races: list[dict[str, Any]], findings: Findings) -> None:
    """One seed owns a root: the same for all who open it at one moment and afterwards, and none is left without."""
    owners: dict[int, dict[str, str]] = defaultdict(dict)  # root -> digest -> a setting that was accepted with it
    for race in races:
        accepted = {a["digest"]: a["setting"] for a in race["answers"] if a["status"] == "names"}
        others = [a["setting"] for a in race["answers"] if a["digest"] not in accepted]
        when = "again" if race["again"] else "at one moment"
        if not accepted and race["answers"] and not race["again"]:
            findings.add(f"{some(others)} opened a fresh root {when}, and all were refused", rule=ADMITTED)
        owners[race["root"]] |= accepted
        if len(owners[race["root"]]) > 1 and not race["warned"]:
            both = " and ".join(f"[{setting}]" for setting in sorted(owners[race["root"]].values())[:2])
            findings.add(
                f"a root opened {when}: {both} were accepted, though they share nothing",
                rule=ONE_OWNER,
                expected="one seed",
                seen=f"{len(owners[race['root']])} seeds",
            )


def _created(history: History, findings: Findings) -> int:
    """Temp files by who made them; returns how many there were."""
    blocks, own = {n.name for n in history.names}, bookkeeping(history)
    makers: dict[str, set[int]] = defaultdict(set)
    for note in history.notes:
        if note.is_a(notes.Created):
            for name in note.detail["names"]:
                if name not in blocks and not is_bookkeeping(name, own):
                    makers[name].add(note.detail["process"])
    for name, processes in makers.items():
        if len(processes) > 1:
            findings.add(
                f"processes {some(sorted(processes))} all made the temp file {name}: its name follows from the "
                "generators that the application seeds, or from the block alone",
                rule=UNIQUE_NAMES,
                process=min(processes),
                file=name,
            )
    return len(makers)
