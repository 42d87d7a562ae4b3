"""The tiers that a bench compares, each a warm process that forks for every measurement. `plan` alternates them.

A measurement that fails (a missing peer, a time-out, a failed block) is a sentence in `gaps`, never a figure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.adapters import tier_python
from harness.adapters.base import PeerMissing, TierSetup
from harness.runtime.process import ChildEnded, JsonProcess

SECONDS_MAX = 60.0
"""Of one measurement; a tier that needs longer has no figure."""
IMPORT_SECONDS_MAX = 120.0
END_SECONDS_MAX = 10.0
REPOSITORY = Path(__file__).resolve().parents[2]

# The limit of queued stores is the memory of a patient engine here: a flood is queued by both, not refused by one.
_KVTIER: Mapping[str, Any] = {"store_queue_bytes_max": 1 << 34}
CONTESTANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "kvtier": ("kvtier", _KVTIER),
    "kvtier-direct": ("kvtier", {**_KVTIER, "io": "direct"}),
    "kvtier-buffered": ("kvtier", {**_KVTIER, "io": "buffered"}),
    "kvtier-durable": ("kvtier", {**_KVTIER, "durability": "durable"}),
    "kvtier-pure": ("kvtier", {**_KVTIER, "compiled": False}),
    "vllm": ("vllm", {"raise_none_refcount": True}),
    "raw": ("raw", {}),
}
"""Name in tables -> tier and the adapter's options. Integrity verification and metrics are on."""


@dataclass
class Contestant:
    """One name of `CONTESTANTS`. `close` ends its process. `package` is a folder whose packages come before the
    checkout's: another version of the tier."""

    name: str
    python: str | None = None
    package: Path | None = None
    gaps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tier, self.options = CONTESTANTS[self.name]
        self.missing: str | None = None
        self._process: JsonProcess | None = None
        try:
            python = self.python or (sys.executable if self.tier == "raw" else tier_python(self.tier))
            self._start(python)
        except PeerMissing as error:
            self.missing = str(error)

    def _start(self, python: str) -> None:
        paths = [str(path) for path in (self.package, REPOSITORY) if path]
        self._process = JsonProcess(
            python,
            "harness.bench.child",
            self.tier,
            path=os.pathsep.join(paths),
            environment={"PYTHONWARNINGS": "ignore"},
            stderr=Path("/dev/stderr") if os.environ.get("BENCH_DEBUG") else None,
        )
        answer = self._receive(IMPORT_SECONDS_MAX)
        if "ready" not in answer:
            raise PeerMissing(answer.get("missing") or f"{self.tier} did not start: {answer['error']}")

    def measure(
        self,
        measure: str,
        root: Path | None = None,
        *,
        arguments: Mapping[str, Any],
        block_bytes: int = 4096,
        slots: int = 1,
        processes: int = 1,
        seconds_max: float = SECONDS_MAX,
    ) -> list[dict[str, Any]]:
        """Run `measure` with `arguments` in `processes` processes, each on a tier of its own: one dict each. Without a
        figure the list is empty and `gaps` has the reason."""
        if self.missing is not None:
            return []
        assert self._process is not None
        setup = TierSetup(
            str(root), block_bytes, slots, options=dict(self.options), serve_metrics=self.tier == "kvtier"
        )
        order = {
            "measure": measure,
            "setup": setup.to_json(),
            "arguments": dict(arguments),
            "processes": processes,
            "seconds_max": seconds_max,
        }
        self._process.send(order)
        answer = self._receive(seconds_max + 30)
        if "error" in answer:
            self.gaps.append(f"{self.name}, {measure}: {answer['error']}")
            return []
        results: list[dict[str, Any]] = answer["results"]
        return results

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        try:
            answer: dict[str, Any] = self._process.receive(seconds)
        except TimeoutError:
            self._process.kill()
            return {"error": f"no answer within {seconds:g} s"}
        except ChildEnded:
            return {"error": f"its process died; {self._process.last_output(1) or 'it printed nothing'}"}
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.end(END_SECONDS_MAX)


def in_turn(contestants: Sequence[Contestant], round_number: int) -> list[Contestant]:
    """The order of a round. It rotates, so that no contestant always follows the same one."""
    present = [contestant for contestant in contestants if contestant.missing is None]
    at = round_number % max(1, len(present))
    return present[at:] + present[:at]
