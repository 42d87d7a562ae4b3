"""Whether the tier keeps each promise that its engine relies on.

Judged: the results that the driver "contract" recorded (notes "promise"). A promise whose check began and did not end
is broken: the call hung or ended its process. So is an error that the worker recorded, and a process that ended by
itself.

Not covered: several processes, floods, crashes, faults.

unknown: no promise was checked, or the process was stopped before the last one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from harness.checkers.base import (
    About,
    Finding,
    Findings,
    Rule,
    Value,
    Verdict,
    called,
    grouped,
    of_note,
    unexplained_ends,
    was_meant_to_die,
)
from harness.checkers.machine_refusals import Shortages
from harness.core import notes
from harness.core.history import History

_GROWTH = (
    "caches that fill up to a bound within the time; growth in fewer than 1,536 operations, where the machine is too "
    "slow for more; by the lower end of the 95 % interval 0.1 objects of Python, 128 "
    "bytes, 0.002 descriptors or threads, 0.01 entries of queues for each operation; in all 100 objects, 1 MiB, 3 "
    "descriptors or threads, 8 entries"
)
_OF_PROMISES = {
    "slots_are_memory": (
        "The slots are writable, contiguous bytes of the shape that the setup states.",
        "",
    ),
    "keys_name_prefixes": (
        "Keys are equal for equal prefixes in every instance, different for different ones, and chained after a"
        " parent.",
        "",
    ),
    "keys_tell_tokens_apart": (
        "Every token of a block counts, at its place and in all its bits.",
        "",
    ),
    "keys_have_their_full_length": (
        "A key has at least 80 independent bits, and the keys behind it depend on all of them.",
        "keys of fewer bits than a cryptographic hash has, from 80 on",
    ),
    "keys_are_used_in_full": (
        "A block stored under one key is no hit under a key that differs in any one byte.",
        "",
    ),
    "models_are_separate": (
        "Engines of different models share no block, however alike the models' names are.",
        "a tier that refuses the second instance, with a reason",
    ),
    "data_types_are_separate": (
        "Engines whose blocks have different data types share no block.",
        "the same; adapters that do not pass the data type on are not asked",
    ),
    "ranks_are_separate": (
        "Ranks of one engine share no block, nor do engines with different numbers of ranks.",
        "the same; adapters that do not pass the rank on are not asked",
    ),
    "groups_are_separate": (
        "Blocks of different groups of layers are different blocks.",
        "tiers without groups are not asked",
    ),
    "salts_are_separate": (
        "Requests with different cache salts, or without one, share no block; those with the same salt do.",
        "tiers without salts are not asked",
    ),
    "many_keys_stay_apart": (
        "Of many blocks each is found under its own key, with its own bytes.",
        "",
    ),
    "absent_blocks_are_misses": (
        "A block that was never stored is a miss.",
        "",
    ),
    "stored_blocks_load": (
        "A stored block is found and loads with its bytes, into other slots and in another order.",
        "",
    ),
    "hits_in_flight_load": (
        "A block that is a hit while its store is in flight can be loaded at once.",
        "a miss, or no answer, while the store is in flight",
    ),
    "another_instance_finds_them": (
        "A block that one instance stored is found by an earlier instance, which had missed it, and by a later one.",
        "",
    ),
    "jobs_touch_only_their_slots": (
        "A store leaves its slots unchanged, a load writes its own slots, and no job writes another's.",
        "bytes in the slots of a load that failed",
    ),
    "slots_are_free_after_the_result": (
        "After a job's result the tier neither reads nor writes its slots.",
        "",
    ),
    "large_jobs_lose_nothing": (
        "A job over all slots stores and loads every block, also its last.",
        "",
    ),
    "many_jobs_at_once": (
        "Each of many jobs in flight together has its own result.",
        "",
    ),
    "storing_twice_is_harmless": (
        "A present block may be stored again, by this or another instance, also at the same time.",
        "",
    ),
    "nothing_comes_without_a_job": (
        "There is no result without a job, also after a drain, and each job has one result.",
        "",
    ),
    "absent_blocks_fail_to_load": (
        "A load of blocks that were never stored fails for these, and has one result.",
        "that stored blocks of the same job fail with them",
    ),
    "empty_calls_are_harmless": (
        "Calls without blocks, requests without calls, and steps without work change nothing.",
        "",
    ),
    "job_numbers_may_come_again": (
        "After its result a job's number may be used for another job, which has its own result.",
        "",
    ),
    "results_come_once_whenever_polled": (
        "Each result comes from one poll, also when others were polled before and when nothing is polled for long.",
        "",
    ),
    "a_job_may_name_a_block_twice": (
        "A job that names a block twice has one result, and both slots of a load have its bytes.",
        "",
    ),
    "lookups_answer_each_key": (
        "A lookup has one verdict for each key at its place, the same again, for each of several requests at once.",
        "",
    ),
    "lookups_cost_the_same_per_key": (
        "A lookup, and the step that sends it, cost the caller's thread no more for each key when there are many keys.",
        "3 times as much by the lower end of the 95 % interval, or 5 microseconds more; time without a CPU",
    ),
    "requests_may_end_before_their_jobs": (
        "Stores of a finished request have results. A request may end without a lookup, or without a load of its hits.",
        "",
    ),
    "requests_do_not_disturb_each_other": (
        "The end of one request takes no answer and no job from another, also of one with the same name before.",
        "",
    ),
    "pending_work_is_reported": (
        "Work is pending while a job has no result, and none is once all results were taken.",
        "tiers that do not say are not asked",
    ),
    "slots_of_failed_loads_are_given_back": (
        "After a load that failed its slots serve other jobs, whose blocks have their bytes.",
        "",
    ),
    "drain_waits_for_all": (
        "After a drain every store and load submitted before it has its result, and the results are true.",
        "",
    ),
    "close_answers_for_all": (
        "After close every store and load in flight has one result, and each block reported stored is found and right.",
        "stores that close cancels: they have a result, failed; a tier with `answers_at_close = False` may give none",
    ),
    "calls_after_close_are_harmless": (
        "An instance may be closed, polled and drained again. A submit after close returns or raises: no hang, "
        "no thread that stays, no second result, no wrong byte.",
        "a submit after close that raises, or has no result: it is a caller's error",
    ),
    "others_come_and_go": (
        "Instances that open, store, load and close take nothing from one that stores and loads at the same time.",
        "",
    ),
    "a_reopened_root_has_everything": (
        "An instance that opens a root again finds all that earlier ones stored, each time.",
        "",
    ),
    "a_vanished_block_is_no_data": (
        "A block whose file vanishes between lookup and load is not reported loaded with wrong bytes and fails "
        "no other block; a later instance misses it, and it can be stored again.",
        "",
    ),
    "a_failed_load_becomes_a_miss": (
        "A block that could not be loaded is a miss in the next request, until it is stored again.",
        "a load that brought the right bytes from elsewhere",
    ),
    "objects_are_no_blocks": (
        "A folder, FIFO, socket, useless link or device node at a block's name is no data, holds no call, and harms no "
        "other block.",
        "a store there that fails; device nodes where the harness may not make one",
    ),
    "a_store_changes_no_other_block": (
        "A store at a name where somebody left a link to another block's file does not change that block.",
        "a store there that fails",
    ),
    "links_are_not_followed_by_stores": (
        "A store at a name where somebody left a symbolic link makes and changes no file outside the root.",
        "a store there that fails",
    ),
    "others_cannot_write": (
        "What a tier makes under the root has no permission to write that the process's umask takes away, and the "
        "umask stays.",
        "",
    ),
    "accounts_are_in_order": (
        "The tier's own checks find nothing, its gauges are numbers, and its schedule covers the stored bytes.",
        "",
    ),
    "counts_are_of_what_happened": (
        "The blocks that a tier counts as stored, loaded and failed are those of its results, in each instance from 0.",
        "tiers that count nothing, and those that count files below a memory of their own",
    ),
    "metrics_are_true": (
        "Counters, histograms and gauges of a tier's own endpoint are those of the results of its instance, from 0.",
        "tiers without an endpoint, and adapters that do not say what its samples mean",
    ),
    "events_are_reported_once": (
        "Each block that an instance stored is reported once as having appeared, and none that was not stored.",
        "tiers without events are not asked",
    ),
    "instances_have_their_own_ids": (
        "Each instance has an id of its own, also after it is opened again on the same root.",
        "tiers whose blocks carry no id are not asked",
    ),
    "close_gives_everything_back": (
        "A closed instance leaves no thread running and no descriptor open.",
        "",
    ),
    "surroundings_stay": (
        "A tier leaves its process as it is: directory, umask, signals, environment, random generator, locale, time "
        "zone, collector. It changes no list that it is given.",
        "",
    ),
    "hits_leave_nothing": (
        "A lookup that hits leaves nothing behind: memory, objects, descriptors, threads and queues do not grow "
        "with the number of such lookups.",
        _GROWTH,
    ),
    "misses_leave_nothing": (
        "A lookup that misses leaves nothing behind, however many different blocks were missed.",
        _GROWTH,
    ),
    "stores_leave_nothing": (
        "A store leaves nothing in the process: storing the same blocks again, also when their files are gone, "
        "lets nothing grow.",
        _GROWTH,
    ),
    "loads_leave_nothing": (
        "A load leaves nothing behind, however often the same blocks are loaded.",
        _GROWTH,
    ),
    "failures_leave_nothing": (
        "A load that fails leaves nothing behind, however many different blocks were absent.",
        _GROWTH,
    ),
    "requests_leave_nothing": (
        "A request leaves nothing behind: nothing grows with the number of requests that have ended.",
        _GROWTH,
    ),
}
"""Promise by name -> what is demanded, and what is tolerated."""
ENDS = Rule("contract/ends", "No call of the tier ends or hangs its process.")
RULES = (*(Rule(f"contract/{name.replace('_', '-')}", *texts) for name, texts in _OF_PROMISES.items()), ENDS)


def _rule(promise: str) -> str:
    """The rule of a promise; histories of earlier versions have others."""
    return f"contract/{promise.replace('_', '-')}" if promise in _OF_PROMISES else ""


def check(history: History) -> Verdict:
    """Judges notes "promise" and "error"."""
    findings = Findings(RULES)
    shortages = Shortages(history)
    asked = _asked(history)
    for one in asked:
        text = f"{one.name}: {one.why}"
        if one.kept == "true" or (one.seconds is None and was_meant_to_die(history, one.process)):
            continue
        if short := shortages.of_time(one.begun_seconds, one.ended_seconds):
            findings.doubt(f"{text} ({short})", seconds=one.begun_seconds)
        else:
            moment = one.ended_seconds if math.isfinite(one.ended_seconds) else one.begun_seconds
            known = {"seconds": moment, "process": one.process, "expected": one.words}
            findings.add(f"{text} (promise: {one.words})", rule=_rule(one.name), **known)
    ends, outside = unexplained_ends(history)
    if len(ends) > sum(one.seconds is None for one in asked):  # not each of them in a promise
        for text in grouped(ends):
            findings.add(text, rule=ENDS)
    errors = (n for n in history.notes if n.is_a(notes.Error) and n.process >= 0 and not shortages.of_error(n))
    for text in grouped(((called(n.process), Finding(n.text, About(**of_note(n)))) for n in errors), colon=True):
        findings.add(text, rule=ENDS)
    for text in grouped(outside, colon=True):
        findings.doubt(text)
    ended = [one for one in asked if one.seconds is not None or not was_meant_to_die(history, one.process)]
    kept = sum(one.kept == "true" for one in ended)
    value: Value = "false" if findings else "unknown" if findings.doubts or not ended else "true"
    left_out = [note.text for note in history.notes if note.is_a(notes.Skipped) and note.process >= 0]
    figure = f"{kept} of {len(ended)} promises were kept" if ended else "no promise was asked for"
    figure += f"; left out: {'; '.join(left_out)}" if left_out else ""
    table = [{"promise": one.words, "kept": one.kept, "why": one.why, "seconds": one.seconds} for one in ended]
    worst = {one["promise"]: one for one in [*table, *(one for one in table if one["kept"] != "true")]}
    return Verdict("contract", value, figure, findings.list(), {"promises": list(worst.values())})


class _Asked(NamedTuple):
    """A promise that a process was asked for once. `seconds` is None if it never ended."""

    process: int
    name: str
    words: str
    begun_seconds: float
    kept: str = "false"
    why: str = "its process died or hung in it"
    seconds: float | None = None
    ended_seconds: float = math.inf


def _asked(history: History) -> list[_Asked]:
    """In order; a note without "begun" is the outcome of the process's last one."""
    found: list[_Asked] = []
    last: dict[tuple[int, str], int] = {}
    for note in sorted((n for n in history.notes if n.is_a(notes.Promise)), key=lambda n: n.monotonic_seconds):
        which, detail = (note.process, note.text), note.detail
        if detail["outcome"] == "begun":
            last[which] = len(found)
            found.append(_Asked(note.process, note.text, detail["words"], note.monotonic_seconds))
        else:
            kept = "true" if detail["outcome"] == "kept" else "false"
            ended = {"why": detail["why"], "seconds": detail["seconds"], "ended_seconds": note.monotonic_seconds}
            found[last[which]] = found[last[which]]._replace(kept=kept, **ended)
    return found
