"""`kvtier evict`: rounds of an `Evictor`, once until the root is within its limits or for ever, and their results as
text or as JSON lines. Called by the command line, in the main thread.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from kvtier.config import CapacityConfig, ConfigError, KvtierError
from kvtier.exit_codes import ExitCode, errno_text
from kvtier.fs.admission import Evicted
from kvtier.ops.catalog import bases
from kvtier.ops.evictor import Evictor
from kvtier.ops.text import age_text, path_text, size_text
from kvtier.ops.unaccounted_files import Coverage, cover
from kvtier.ops.victims import Plan

STUCK_SECONDS = 10.0  # a round ends when nothing was evicted for so long
STATUS_SECONDS = 60.0
NOT_KNOWN = "whether the root is within its limits is not known"


class EndSignal:
    """SIGINT and SIGTERM as an orderly end. `number` is the signal that arrived: it called `on_signal`, and ended
    `wait`. A second one kills the process as if none were caught. An ignored SIGINT stays ignored."""

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self.number = 0
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._on_arrival)
        return self

    def _on_arrival(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for one in self._before:
            signal.signal(one, signal.SIG_DFL)
        self._on_signal()

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, or until a signal arrives."""
        if not self.number:
            select.select([self._read], [], [], seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)


class Evict:
    """Evictions below one root. Raises ConfigError for a share of a model that has no folder, RootError if there
    is no root."""

    def __init__(self, root_dir: str, config: CapacityConfig, as_json: bool) -> None:
        self._root_dir, self._config, self._as_json = root_dir, config, as_json
        self._coverage = cover(root_dir)
        _check_shares(config, self._coverage)
        self._evictor = Evictor(root_dir, config, self._coverage.unreadable)
        self._files = self._bytes = self._collected = self._rounds = 0  # since the start
        self._problems: list[str] = []  # as printed last
        self._trouble = ""  # why the last round failed

    # --- three ways to run ---

    def dry_run(self) -> int:
        """Print what would be evicted. FAIL: something would be."""
        plan = self._evictor.plan() if self._coverage.bases else Plan("max_bytes", [])
        for sample, size, cutoff in plan.folders:
            mapper = sample.folder.mapper
            what = {"model": mapper.run.model_name, "rank": mapper.rank, "bytes": round(size)}
            unused = max(0.0, time.time() - cutoff)
            text = f"would evict about {size_text(size)} of {what['model']}, rank {what['rank']}, not used for "
            self._say(
                {**what, "unused_seconds": unused, "reason": plan.reason}, f"{text}{age_text(unused)} ({plan.reason})"
            )
        self._say({"coverage": self._coverage.as_dict()}, *self._new_problems())
        if not plan.folders and self._coverage.is_complete:
            self._say(None, "nothing has to be evicted")
        return self._exit_code(bool(plan.folders))

    def once(self) -> int:
        """Evict until the root is within its limits, and collect garbage. INCONCLUSIVE: that is not known."""
        evicted: list[Evicted] = []
        if self._coverage.bases:
            evicted = self._settle(time.sleep)
            self._evictor.gc.collect_for(math.inf)
        event, texts = self._facts(evicted)
        self._say({**event, **self._state()}, *texts, *self._new_problems(), *self._left_texts())
        return self._exit_code(self._evictor.excess_bytes > 0)

    def every(self, seconds: float) -> int:
        """A round now and after each such pause, until SIGINT or SIGTERM. Exit code: 128 + the signal's number."""
        began = status_seconds = time.monotonic()
        limits = {"max_bytes": self._config.max_bytes, "min_free_bytes": self._config.min_free_bytes}
        start = {"event": "start", "every_seconds": seconds, **limits, "coverage": self._coverage.as_dict()}
        self._say(start, self._intention(seconds), *self._new_problems())
        with EndSignal(self._evictor.stop) as end:
            while not end.number:
                try:
                    self._round(end)
                    if time.monotonic() >= status_seconds:
                        self._status(began)
                        status_seconds = time.monotonic() + STATUS_SECONDS
                    self._trouble = ""
                except (OSError, KvtierError) as error:  # the volume may come back
                    if isinstance(error, BrokenPipeError):
                        raise
                    text = f"{errno_text(error)}: {error.filename}" if isinstance(error, OSError) else str(error)
                    if self._trouble != text:
                        self._trouble = text
                        self._say({"event": "error", "error": text}, f"this round failed: {text}")
                end.wait(seconds)
        name = signal.Signals(end.number).name
        self._say(
            {"event": "end", "signal": name, **self._totals(began), **self._state()},
            f"ended by {name}; {self._totals_text(began)}; {'; '.join(self._left_texts())}",
        )
        return 128 + end.number

    # --- rounds ---

    def _round(self, end: EndSignal) -> None:
        if bases(self._root_dir) != self._coverage.bases:
            self._look_again()
        if not self._coverage.bases:  # no lease file is made where no engine has been
            return
        event, texts = self._facts(self._settle(end.wait, end))
        self._rounds += 1
        if texts:
            self._say({"event": "round", **event, **self._state()}, "; ".join(texts + self._left_texts()))

    def _settle(self, wait: Callable[[float], None], end: EndSignal | None = None) -> list[Evicted]:
        """Step until no excess is left, or until nothing is evicted any more."""
        evictor, evicted = self._evictor, list[Evicted]()
        least, since = math.inf, time.monotonic()
        while True:
            pause = evictor.step()
            evicted += (new := evictor.take_facts())
            size = evictor.root.bytes if evictor.root else math.inf
            now = time.monotonic()
            if new or size < least:
                least, since = size, now
            is_settled = evictor.root is not None and evictor.excess_bytes <= 0
            if is_settled or now - since > STUCK_SECONDS or (end and end.number):
                return evicted
            wait(pause)

    def _look_again(self) -> None:
        fresh, noted = cover(self._root_dir), self._coverage.unreadable
        noted.clear()
        noted.update(fresh.unreadable)
        fresh.unreadable, self._coverage = noted, fresh  # the evictor goes on filling the same mapping

    def _status(self, began: float) -> None:
        self._look_again()
        self._say({"event": "status", **self._totals(began), **self._state()}, *self._new_problems())
        self._say(None, f"{'; '.join(self._left_texts())}; {self._totals_text(began)}")

    # --- output ---

    def _say(self, event: dict[str, Any] | None, *texts: str) -> None:
        for line in texts if not self._as_json else [json.dumps(event)] if event else []:
            print(line, flush=True)

    def _new_problems(self) -> list[str]:
        before, self._problems = self._problems, self._coverage.problems()
        return self._problems if self._problems != before else []

    def _intention(self, seconds: float) -> str:
        limits = []
        if self._config.max_bytes is not None:
            limits.append(f"blocks take at most {size_text(self._config.max_bytes)}")
        if self._config.min_free_bytes is not None:
            limits.append(f"at least {size_text(self._config.min_free_bytes)} stay free")
        marks = f"evict above {self._config.high_water:.0%} of a limit, down to {self._config.low_water:.0%}"
        limits.append(f"{marks}; a round every {seconds:g} s, until SIGINT or SIGTERM")
        return f"evicting below {path_text(self._root_dir)}: {'; '.join(limits)}"

    def _facts(self, evicted: list[Evicted]) -> tuple[dict[str, Any], list[str]]:
        """What a round did, for a program and for people; no text when it did nothing."""
        gc, texts = self._evictor.gc, list[str]()
        files, size = sum(one.files for one in evicted), sum(one.bytes for one in evicted)
        collected, gc.removed = gc.removed, 0
        self._files, self._bytes, self._collected = self._files + files, self._bytes + size, self._collected + collected
        ages = [age for one in evicted for age in one.ages_seconds]
        reasons = sorted({one.reason for one in evicted})
        event = {"evicted_files": files, "evicted_bytes": size, "reasons": reasons, "collected_files": collected}
        event |= {"swept_files": collected}  # the name of an earlier version
        event |= {"least_age_seconds": min(ages, default=None)}
        event |= {"rounds": [(one.started_seconds, one.finished_seconds) for one in evicted]}  # time.monotonic()
        if files:
            span = f"last used {age_text(min(ages))} to {age_text(max(ages))} ago"
            texts.append(f"evicted {files:,} blocks, {size_text(size)}, {span} ({', '.join(reasons)})")
        if collected:
            texts.append(f"removed {collected:,} temp files of killed writers and quarantined files beyond the limit")
        return event, texts

    def _state(self) -> dict[str, Any]:
        root = self._evictor.root
        left = {**root._asdict(), "excess_bytes": self._evictor.excess_bytes} if root else None
        return {"root": left, "coverage": self._coverage.as_dict()}

    def _left_texts(self) -> list[str]:
        root, excess = self._evictor.root, self._evictor.excess_bytes
        if not self._coverage.bases:
            return ["nothing was measured or removed"]
        if root is None:
            reason = self._trouble or "another evictor held the lease all the time"
            return [f"nothing was measured or removed: {reason}"]
        left = f"left: {root.files:,.0f} blocks, {size_text(root.bytes)}"
        left += f"; {size_text(excess)} too many" if excess > 0 else ""
        return [left] if excess > 0 or self._coverage.is_complete else [left, NOT_KNOWN]

    def _totals(self, began: float) -> dict[str, Any]:
        totals = {"evicted_files": self._files, "evicted_bytes": self._bytes, "collected_files": self._collected}
        totals["swept_files"] = self._collected  # the name of an earlier version
        return {f"total_{name}": figure for name, figure in totals.items()} | {
            "rounds_done": self._rounds,
            "seconds": time.monotonic() - began,
        }

    def _totals_text(self, began: float) -> str:
        rounds = f"{self._rounds:,} rounds in {age_text(time.monotonic() - began)}"
        return (
            f"{rounds}: evicted {self._files:,} blocks, {size_text(self._bytes)}; gc removed {self._collected:,} files"
        )

    def _exit_code(self, is_beyond: bool) -> int:
        if is_beyond:
            return ExitCode.FAIL
        is_known = self._coverage.is_complete and self._evictor.root is not None
        return ExitCode.PASS if is_known else ExitCode.INCONCLUSIVE


def _check_shares(config: CapacityConfig, coverage: Coverage) -> None:
    models = sorted({folder.mapper.run.model_name for folder in coverage.folders})
    if models and (unknown := sorted(set(config.shares) - set(models))):
        raise ConfigError(
            f"--share names {', '.join(map(repr, unknown))}, which no folder below {path_text(coverage.root_dir)} has; "
            f"valid names: {', '.join(models)}"
        )
