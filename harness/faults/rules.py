"""Rules of the fault file system: which requests fail or change, and how. It does no I/O."""

from __future__ import annotations

import errno
import fnmatch
import re
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from random import Random
from typing import Any

from harness.core import seeds

OPERATIONS = (
    *("open", "create", "read", "write", "flush", "fsync", "release", "truncate", "rename", "link", "unlink"),
    *("getattr", "readdir", "mkdir", "rmdir", "symlink", "readlink", "chmod", "chown", "utimens", "statfs"),
)
"""The kernel's requests to a file system. "flush" is each close(), "release" the last; "*" in a rule means all."""

ACTIONS = ("short", "zero", "bit_flip", "delay", "hang", "truncate", "vanish")
ON_DATA = ("short", "zero", "bit_flip")  # these need bytes: operations "read" and "write" only


class FaultUnavailable(Exception):
    """This machine cannot inject the fault; the text is a sentence that names what is missing. Report it as skipped."""


@dataclass(frozen=True)
class Rule:
    """One fault of `FaultFs`: requests of `operations` (spaces between) on a path like `path` undergo `action`.

    `path` is a shell pattern over the absolute path inside the mount ("/ab/*.bin"; `*` also spans slashes); a rename
    or link matches with either of its names. `action`, with `amount` in the unit it needs:

    - an errno's name ("EIO"): the request fails, the backing file untouched; with `late` it is *done* and then
      reported failed, as a network file system does whose reply was lost
    - "short": only the first `amount` bytes are read or written, and so reported
    - "zero": bytes from `amount` on (counted within the request) are zeros
    - "bit_flip": the lowest bit of the byte at file offset `amount` (-1: the middle of each request) is inverted;
      only requests that contain that byte match. Flipped on "read" it comes back right next time, on "write" never
    - "delay": `amount` seconds pass first; "hang": until `lift` (both afterwards, if `late`)
    - "truncate": the backing file is cut to `amount` bytes first; "vanish": its name is unlinked first

    Of the matching requests, counted from 1 in the order of their arrival, it acts on the `nth` alone if `nth` is not
    0, else on each `every`-th, with `probability` drawn from `seed`; `times` limits the acts, 0 does not. With
    `direct_only` only requests on files opened with O_DIRECT match ("open"/"create": with that flag).
    """

    operations: str
    action: str
    amount: float = 0
    path: str = "*"
    nth: int = 0
    every: int = 1
    times: int = 0
    probability: float = 1.0
    seed: int = 0
    late: bool = False
    direct_only: bool = False

    def __post_init__(self) -> None:
        names = self.operations.split()
        if unknown := [n for n in names if n not in OPERATIONS and n != "*"]:
            raise ValueError(f"operations name {', '.join(map(repr, unknown))}; valid: *, {', '.join(OPERATIONS)}")
        if not names:
            raise ValueError(f"operations are empty; valid: *, {', '.join(OPERATIONS)}")
        if self.action not in ACTIONS and not hasattr(errno, self.action):
            raise ValueError(f"action is {self.action!r}; valid: an errno's name, {', '.join(ACTIONS)}")
        if self.action in ON_DATA and not set(names) <= {"read", "write"}:
            raise ValueError(f"action {self.action!r} works on the operations read and write, not {self.operations!r}")
        if self.late and self.action not in ("delay", "hang") and not self.error:
            raise ValueError(f"action {self.action!r} cannot be late; an errno, delay and hang can")
        if self.amount < 0 and not (self.action == "bit_flip" and self.amount == -1):
            raise ValueError(f"amount is {self.amount}; it must be at least 0")
        if self.nth < 0 or self.every < 1 or self.times < 0 or not 0 <= self.probability <= 1:
            raise ValueError(
                f"nth is {self.nth}, every {self.every}, times {self.times}, probability {self.probability}; "
                "valid: nth >= 0, every >= 1, times >= 0, 0 <= probability <= 1"
            )

    @property
    def error(self) -> int:
        """The errno that the request fails with; 0 if the action is another."""
        return 0 if self.action in ACTIONS else int(getattr(errno, self.action))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(self.path))

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(OPERATIONS if "*" in self.operations.split() else self.operations.split())

    def matches(self, operation: str, paths: tuple[str, ...], offset: int, size: int, direct: bool) -> bool:
        """Whether a request is one that this rule counts. `offset` and `size` are bytes, of reads and writes only."""
        if operation not in self._names or (self.direct_only and not direct):
            return False
        if self.action == "bit_flip" and self.amount >= 0 and not offset <= self.amount < offset + size:
            return False
        return any(self._pattern.match(path) for path in paths)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Armed:
    """A rule at work: requests that matched, requests that it acted on, its own random stream."""

    def __init__(self, rule: Rule, number: int) -> None:
        self.rule = rule
        self.hits = self.acts = 0
        self._random: Random = seeds.stream(rule.seed, "faultfs", number)

    def strikes(self) -> bool:
        """Count one matching request; whether the rule acts on it. Under the table's lock."""
        rule = self.rule
        self.hits += 1
        if rule.times and self.acts >= rule.times:
            return False
        due = self.hits == rule.nth if rule.nth else self.hits % rule.every == 0
        if due and rule.probability < 1:
            due = self._random.random() < rule.probability
        self.acts += due
        return due


class Table:
    """The rules in force and what they did; every request passes `strike`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lifted = threading.Event()  # replaced at each lift: a hang ends with the rules of its time
        self._armed: list[_Armed] = []
        self._requests: Counter[str] = Counter()
        self._held = 0

    def inject(self, rules: list[Rule]) -> None:
        with self._lock:
            self._armed += [_Armed(rule, len(self._armed) + i) for i, rule in enumerate(rules)]

    def lift(self) -> None:
        with self._lock:
            self._armed = []
            self._lifted.set()
            self._lifted = threading.Event()

    def counts(self) -> dict[str, Any]:
        with self._lock:
            rules = [{"rule": a.rule.to_json(), "hits": a.hits, "acts": a.acts} for a in self._armed]
            return {"requests": dict(self._requests), "rules": rules, "held": self._held}

    def strike(self, operation: str, paths: tuple[str, ...], offset: int, size: int, direct: bool) -> list[Rule]:
        """The rules that act on this request, in the order of their injection."""
        with self._lock:
            self._requests[operation] += 1
            return [
                a.rule for a in self._armed if a.rule.matches(operation, paths, offset, size, direct) and a.strikes()
            ]

    def hold(self, rule: Rule) -> None:
        """Keep the calling request back: for the delay, or until the next lift."""
        with self._lock:
            lifted = self._lifted
            if not any(a.rule is rule for a in self._armed):
                return  # lifted between strike and here
            self._held += 1
        lifted.wait(rule.amount if rule.action == "delay" else None)
        with self._lock:
            self._held -= 1
