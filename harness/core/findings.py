"""What checkers find: rules, the findings against them, and how a checker collects them. No history, no files.

A `Finding` is its sentence, a `str`, with the record of where and when: code that searches, joins or compares
sentences needs to know nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

FINDINGS_MAX = 20

Kind = Literal["finding", "doubt", "omitted"]
"""A finding breaks a rule; a doubt is why a rule could not be judged; "omitted" stands for those beyond the limit."""


class Rule(NamedTuple):
    """One thing that a checker judges. `id` is "<checker>/<slug>"; `text` says what is demanded, in one sentence;
    `tolerates` says which deviation is no finding, and why; empty: none."""

    id: str
    text: str
    tolerates: str = ""

    @property
    def checker(self) -> str:
        return self.id.partition("/")[0]


class About(NamedTuple):
    """The record of a finding; None is what its checker does not know.

    `seconds` is the moment, by the host's monotonic clock. `process` and `incarnation` name a worker; process -1 is the
    harness. `job` and `request` are numbers within the process, `block` a trace id, `slot` where the process kept it,
    `file` a path below the root, `thread` a group and a number ("load 3"). `writer` is the process that stored the
    block, "3" or "3.1". `trace_id` is W3C's, as hex.
    """

    rule: str = ""
    seconds: float | None = None
    process: int | None = None
    incarnation: int | None = None
    request: int | None = None
    job: int | None = None
    block: int | None = None
    slot: int | None = None
    file: str | None = None
    thread: str | None = None
    writer: str | None = None
    trace_id: str | None = None
    expected: str | None = None
    seen: str | None = None


class Finding(str):
    """A sentence that can be read alone, with the record `about` it."""

    about: About
    kind: Kind

    def __new__(cls, text: str, about: About | None = None, kind: Kind = "finding") -> Finding:
        made = super().__new__(cls, text)
        made.about, made.kind = about or About(), kind
        return made

    @property
    def omitted(self) -> int:
        """How many findings it stands for, if it is of kind "omitted"."""
        return int(self.about.seen or 0) if self.kind == "omitted" else 0

    @property
    def rule(self) -> str:
        """The id of the rule; "" where the checker declares none."""
        return self.about.rule

    def to_json(self) -> dict[str, Any]:
        """The record as `results.json` has it: fields that are known."""
        known = {name: value for name, value in self.about._asdict().items() if value not in (None, "", math.inf)}
        return {"text": str(self), "kind": self.kind, **known}

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> Finding:
        """The inverse; a plain sentence, as earlier versions wrote it, is a finding without a record.

        Raises ValueError with the reason for anything else.
        """
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
            raise ValueError(f"a finding is {value!r}, and has no sentence as its text")
        if (kind := value.get("kind", "finding")) not in get_args(Kind):
            raise ValueError(f"a finding is of kind {kind!r}; valid: {', '.join(get_args(Kind))}")
        fields = {name: value[name] for name in About._fields if name in value}
        for name, given in fields.items():
            if not isinstance(given, _TYPES[name]) or isinstance(given, bool):
                raise ValueError(f"{name!r} of a finding is {given!r}")
        return cls(value["text"], About(**fields), kind)


_NUMBERS = ("process", "incarnation", "request", "job", "block", "slot")
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    name: int if name in _NUMBERS else (int, float) if name == "seconds" else str for name in About._fields
}


class Findings:
    """Collects what a checker finds. Counts all findings and keeps the first `FINDINGS_MAX`; doubts are kept apart, and
    make no verdict "false". `rules`, if given, are those that a finding or doubt may name.
    """

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.count = 0
        self.doubts: list[Finding] = []
        self._rules = frozenset(rule.id for rule in rules)
        self._kept: list[Finding] = []

    def add(self, text: str, rule: Rule | str = "", **known: Any) -> None:
        """A rule is broken; `known` are fields of `About`, beside those that a `Finding` has as text already."""
        self.count += 1
        if self.count <= FINDINGS_MAX:
            self._kept.append(Finding(text, self._about(text, rule, known)))

    def doubt(self, text: str, rule: Rule | str = "", **known: Any) -> None:
        """A rule could not be judged, and why."""
        self.doubts.append(Finding(text, self._about(text, rule, known), "doubt"))

    def _about(self, text: str, rule: Rule | str, known: Mapping[str, Any]) -> About:
        name = rule.id if isinstance(rule, Rule) else rule
        assert not name or not self._rules or name in self._rules, f"no rule {name!r}; declared: {sorted(self._rules)}"
        said = text.about if isinstance(text, Finding) else About()
        return said._replace(rule=name or said.rule, **known)

    def __bool__(self) -> bool:
        """Whether a rule is broken."""
        return self.count > 0

    def list(self) -> list[Finding]:
        """Findings, how many more there were, then doubts: `Verdict.findings`."""
        more = self.count - len(self._kept)
        return [*self._kept, *([omitted(more, "more")] if more else []), *self.doubts]


def omitted(count: int, what: str) -> Finding:
    """Stands in a list for `count` findings that it does not have."""
    return Finding(f"and {count} {what}", About(seen=f"{count}"), "omitted")
