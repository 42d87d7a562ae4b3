"""The suite that every tier of the conformance page is judged by: short runs, and the guarantees that they decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from harness.adapters.base import Adapter

CONTROLS = ("kvtier", "reference")
"""Tiers that are judged in the same run, and must pass."""


@dataclass(frozen=True)
class Case:
    """One run for each tier. `of_tier`: further options of a tier by its name. `calm`: the device has no fault."""

    name: str
    what: str
    scenario: str
    options: tuple[str, ...] = ()
    of_tier: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    calm: bool = False


def _programs(*texts: str) -> tuple[str, ...]:
    return tuple(option for text in texts for option in ("--program", text))


def _faults(*names: str) -> tuple[str, ...]:
    return tuple(option for name in names for option in ("--fault", name))


_ONE_THREAD = {"lmcache": ("--tier-option", "one_thread=true")}

SUITE = (
    Case("contract", "One promise of the interface after the other, in one process.", "contract"),
    Case("lifecycle", "Opening, closing and opening again.", "lifecycle", ("--seconds", "1"), calm=True),
    Case(
        "load",
        "Traffic with shared prefixes in two processes; every loaded byte is checked.",
        "load",
        ("--processes", "2", "--requests", "150", "--speed", "0", "--seconds", "5", "--block-bytes", "16384"),
        calm=True,
    ),
    Case(
        "sharing",
        "Several processes store and load the same blocks at the same time.",
        "sharing",
        ("--seconds", "1"),
        calm=True,
    ),
    Case("crash", "Processes are killed under load, and started again.", "crash", ("--seconds", "1"), calm=True),
    Case(
        "retention",
        "Blocks are looked up long after their store.",
        "retention",
        ("--seconds", "1", "--blocks", "640"),
        calm=True,
    ),
    Case("keys", "Keys and file names in several processes and environments.", "determinism", ("--seconds", "0.5")),
    Case(
        "calls",
        "How long each call of the scheduler's thread takes.",
        "calls",
        ("--seconds", "2", "--read-threads", "2", "--write-threads", "2"),
        calm=True,
    ),
    Case(
        "size",
        "Block files are cut or emptied.",
        "faults",
        _faults("damage_truncate", "damage_lose_last_page", "damage_empty"),
    ),
    Case(
        "content",
        "Block files keep their size, with other content: a bit, zero pages, all zero, another block.",
        "faults",
        _faults("damage_bit_flip", "damage_zero_page", "damage_zero_fill", "damage_swap"),
    ),
    Case(
        "errors",
        "Writes and reads fail or are cut short.",
        "faults",
        _faults("eio_write", "eio_read", "short_write", "short_read", "enospc_write"),
    ),
    Case(
        "orders",
        "The system calls of two processes in every order that can differ.",
        "interleavings",
        (
            "--kills",
            "0",
            *_programs("store A | lookup A", "store A | load A", "store A | store A", "A: store A | load A"),
        ),
        _ONE_THREAD,
    ),
    Case(
        "kills",
        "The same, with one process killed before any call; at most 400 schedules.",
        "interleavings",
        ("--kills", "1", "--schedules", "400", *_programs("store A | store A", "store A | then store A, load A")),
        _ONE_THREAD,
    ),
    Case(
        "short-file",
        "The system calls around a block file that was cut short, in every order that can differ.",
        "interleavings",
        ("--kills", "0", *_programs("A short: load A | store A", "A short: store A | store A")),
        _ONE_THREAD,
    ),
)


@dataclass(frozen=True)
class Row:
    """A guarantee in a user's words. `judged`: "case:rule", each may have wildcards; `why`: why any user expects it."""

    name: str
    promise: str
    severity: str
    why: str
    judged: tuple[str, ...]

    def decides(self, case: str, rule: str) -> bool:
        return any(fnmatchcase(f"{case}:{rule}", pattern) for pattern in self.judged)

    @property
    def cases(self) -> set[str]:
        """The cases that it is judged by."""
        return {pattern.partition(":")[0] for pattern in self.judged}


def _calm(*rules: str) -> tuple[str, ...]:
    """The rules in each case in which the device has no fault."""
    return tuple(f"{case.name}:{rule}" for case in SUITE if case.calm for rule in rules)


ROWS = (
    Row(
        "bytes",
        "A load that succeeds returns the bytes that were stored under its key.",
        "wrong bytes",
        "Other bytes become other tokens, and nobody notices.",
        (
            *_calm("integrity/bytes"),
            "orders:interleavings/wrong-bytes",
            "contract:contract/stored-blocks-load",
            "contract:contract/jobs-touch-only-their-slots",
            "contract:contract/large-jobs-lose-nothing",
            "contract:contract/many-keys-stay-apart",
        ),
    ),
    Row(
        "apart",
        "Different tokens, models, groups and salts have different blocks.",
        "wrong bytes",
        "A block of another prompt or another tenant is served.",
        ("contract:contract/*-are-separate", "contract:contract/keys-*", "keys:determinism/own-name"),
    ),
    Row(
        "size",
        "A block file of the wrong size is not loaded.",
        "wrong bytes",
        "Power loss, a full disk or a killed copy leaves such files.",
        ("size:faults/no-wrong-byte", "size:integrity/bytes", "short-file:interleavings/wrong-bytes"),
    ),
    Row(
        "content",
        "A block file of the right size with other content is not loaded.",
        "wrong bytes",
        "Trackers report files of the right size full of zeros; a power loss leaves them too. It takes a checksum.",
        ("content:faults/no-wrong-byte", "content:integrity/bytes"),
    ),
    Row(
        "reported",
        "A write that fails or is cut short is not reported stored, and is not served.",
        "lost store",
        "The result of a store says whether the block is there.",
        ("errors:faults/reported", "errors:faults/no-wrong-byte", "errors:faults/no-block", "errors:integrity/bytes"),
    ),
    Row(
        "found",
        "A block that was reported stored is found and loaded by every process that shares the root.",
        "lost store",
        "This is what a shared tier is for.",
        (
            *_calm("visibility/stored-is-found", "sharing/stored-is-found"),
            "contract:contract/another-instance-finds-them",
            "contract:contract/a-reopened-root-has-everything",
            "orders:interleavings/failed-load",
            "orders:interleavings/lost-store",
            "keys:determinism/on-disk",
        ),
    ),
    Row(
        "stores",
        "Processes that store the same block at the same time all succeed.",
        "lost store",
        "Processes that share a prefix store the same blocks.",
        (
            *_calm("results/no-failure"),
            "orders:interleavings/failed-store",
            "orders:interleavings/next-process",
            "contract:contract/storing-twice-is-harmless",
        ),
    ),
    Row(
        "killed",
        "A killed process loses no block that another process reported stored, and stops no later store.",
        "lost store",
        "Processes are killed every day, by deployments and by the memory limit.",
        (
            "crash:recovery/*",
            "kills:interleavings/lost-store",
            "kills:interleavings/next-process",
            "kills:interleavings/wrong-bytes",
            "kills:interleavings/stuck",
        ),
    ),
    Row(
        "repair",
        "A block whose file cannot be loaded becomes a miss and can be stored again.",
        "lost store",
        "Otherwise the lookup calls it a hit for ever, and each request loads in vain.",
        (
            "size:faults/repaired",
            "size:faults/works-again",
            "size:faults/no-block",
            "contract:contract/a-failed-load-becomes-a-miss",
            "short-file:interleavings/lost-store",
            "short-file:interleavings/next-process",
        ),
    ),
    Row(
        "others",
        "A block that fails harms no other block of its job.",
        "lost store",
        "A job of many blocks is no reason to lose those that are whole.",
        (
            "errors:faults/others-unharmed",
            "size:faults/others-unharmed",
            "contract:contract/a-vanished-block-is-no-data",
        ),
    ),
    Row(
        "results",
        "Each job has exactly one result, which names its blocks, also under errors.",
        "starvation",
        "Without its result a job keeps its slots.",
        (
            *_calm("results/one-result", "results/accounts", "results/no-error"),
            "errors:faults/one-result",
            "size:faults/one-result",
            "orders:interleavings/results",
            "orders:interleavings/raised",
            "orders:interleavings/stuck",
            "contract:contract/*result*",
            "contract:contract/many-jobs-at-once",
        ),
    ),
    Row(
        "waits",
        "Lookups and submits do not wait for the device.",
        "starvation",
        "The scheduler's thread calls them in each step.",
        ("calls:nonblocking/*", "load:nonblocking/habit", "load:nonblocking/all-ended"),
    ),
    Row(
        "names",
        "Equal prefixes have equal keys and names in every process.",
        "lost store",
        "Otherwise processes share nothing, without an error.",
        ("keys:determinism/one-name", "keys:determinism/one-seed", "keys:seed_settings/shares", "load:determinism/*"),
    ),
    Row(
        "temp",
        "A process leaves no file behind but blocks, also when it is killed.",
        "leak",
        "Nobody else removes them, and the disk fills.",
        (
            *_calm("leftovers/files"),
            "errors:faults/no-leftovers",
            "kills:interleavings/left-over",
            "orders:interleavings/left-over",
        ),
    ),
    Row(
        "closed",
        "A closed tier leaves no thread and no descriptor.",
        "leak",
        "Engines open and close tiers in one process.",
        (*_calm("leftovers/descriptors", "leftovers/slots"), "contract:contract/close-gives-everything-back"),
    ),
    Row(
        "calls",
        "Calls without blocks, twice, after a close or in any order do no harm.",
        "only untidy",
        "The interface allows them.",
        tuple(
            f"contract:contract/{rule}"
            for rule in (
                *("calls-after-close-are-harmless", "empty-calls-are-harmless", "ends", "job-numbers-may-come-again"),
                *("a-job-may-name-a-block-twice", "lookups-answer-each-key", "others-come-and-go", "requests-*"),
                *("absent-blocks-*", "drain-waits-for-all", "close-answers-for-all", "slots-*"),
            )
        ),
    ),
)


def does_not_apply(tier: type[Adapter], row: Row) -> str:
    """Why a tier cannot be judged by a row; "": it can."""
    if row.name == "waits" and tier.runs_in_submit:
        return "the tier has no queue: a call returns when its I/O is done"
    return ""


DOCUMENTED = {
    ("lmcache", "errors:faults/others-unharmed"): (
        "For store operation, we only provide a coarse-grained error handling, which means that we only report the "
        "error at the task level.",
        "L2AdapterInterface",
    ),
}
"""(tier, "case:rule") -> the tier's own words that it does not promise the rule there, and where they stand. The rule
is left out."""
