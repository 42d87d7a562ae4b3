"""Whether a block that one process reported stored is found by every process that looks it up afterwards.

Judged: the lookups that processes recorded (notes "asked"). After any process reported the block stored, the
`lookups`-th lookup of a process (option, default 1) must be a hit. Every lookup must get an answer. After a hit and
then a miss of one process the count starts again. A miss is no finding where the tier reports that it had no free slot,
or that it evicted blocks since the store: each evicted block explains one lost block.

Not covered: whether the bytes are right (integrity), loads that fail after a hit (results, recovery), how long an
answer takes.

unknown: no process looked up a block that only another process had stored.
"""

from __future__ import annotations

from collections import Counter

from harness.checkers.base import Findings, Lives, Rule, Value, Verdict, of_note
from harness.checkers.evictions import Evictions
from harness.core import notes
from harness.core.history import History

FOUND = Rule(
    "visibility/stored-is-found",
    "A block that any process reported stored is a hit in every later lookup, in every process.",
    "`lookups` - 1 misses in a row (default 0), for volumes that cache names; evictions, and a slot that was missing",
)
ANSWERED = Rule("visibility/answered", "Each lookup is answered with hit or miss in the end.")
RULES = (FOUND, ANSWERED)


def check(history: History) -> Verdict:
    """Judges notes "asked" and `jobs`; reads the option `lookups`."""
    lookups_max = int(history.options.get("lookups", 1))
    lives = Lives(history)
    findings = Findings(RULES)
    stored: dict[int, tuple[float, int]] = {}  # block -> when first reported stored, by whom
    storers: dict[int, set[int]] = {}
    for job in history.jobs:
        if job.direction == "store":
            for block in job.ok:
                stored[block] = min(
                    (job.finished_seconds, job.process), stored.get(block, (job.finished_seconds, 1 << 30))
                )
                storers.setdefault(block, set()).add(job.process)
    misses: Counter[tuple[int, int, int]] = Counter()
    due = found = foreign = worst = unanswered = no_room = evicted = 0
    evictions = Evictions(history)
    asks = [n for n in history.notes if n.is_a(notes.Asked)]
    for note in sorted(asks, key=lambda n: float(n.detail["asked_seconds"])):
        asked_seconds = float(note.detail["asked_seconds"])
        life = lives.at(note.process, asked_seconds)
        who = f"process {note.process}" + (f" (start {life.incarnation})" if life.incarnation else "")
        known = of_note(note, seconds=asked_seconds, incarnation=life.incarnation, request=note.detail.get("request"))
        for block, verdict in zip(note.detail["blocks"], note.detail["verdicts"], strict=True):
            if verdict == "r":
                unanswered += 1
                findings.add(
                    f"{who} asked for block {block} and never got an answer", rule=ANSWERED, **known, block=block
                )
            if block not in stored or stored[block][0] > asked_seconds:
                continue
            since, by = stored[block]
            due += 1
            where = (note.process, life.incarnation, block)
            if verdict == "h":
                found += 1
                foreign += note.process not in storers[block]
                worst = max(worst, misses.pop(where, 0) + 1)
            elif verdict == "m" and note.detail.get("no_room"):
                no_room += 1
            elif verdict == "m" and evictions.explain(block, since, asked_seconds):
                evicted += 1
            elif verdict == "m":
                misses[where] += 1
                if misses[where] == lookups_max:
                    times = f"at lookup {lookups_max}" if lookups_max > 1 else ""
                    findings.add(
                        f"{who} got a miss {times}{' ' if times else ''}for block {block}, "
                        f"{asked_seconds - since:.3f} s after process {by} had reported it stored",
                        rule=FOUND,
                        **known,
                        block=block,
                        expected="a hit",
                        seen="a miss",
                    )
    value: Value = "false" if findings else "true" if foreign else "unknown"
    figure = (
        f"{found} of {due} questions after a reported store were answered with a hit, {foreign} of them about blocks "
        f"that only others had stored; {worst} lookups at most, {lookups_max} allowed; {unanswered} unanswered; "
        f"explained: {no_room} no room, {evicted} evicted"
    )
    data = {
        "questions": due,
        "hits": found,
        "hits_of_others": foreign,
        "lookups_needed": worst,
        "unanswered": unanswered,
        "no_room": no_room,
        "evicted": evicted,
    }
    return Verdict("visibility", value, figure, findings.list(), data)
