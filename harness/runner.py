"""Makes a run: its folder, its root, its workers through a scenario, then the verdicts over what they recorded.

The command line calls it. It prints nothing, and judges only through the checkers; what a run left in its folder is all
that a later `judge` needs.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.adapters import TIERS, adapter_class, tier_python
from harness.checkers import CHECKERS
from harness.checkers.base import Verdict
from harness.checkers.whereabouts import Whereabouts
from harness.core.device import measure
from harness.core.environment import describe
from harness.core.free_space import Reserve, RoomWatch
from harness.core.history import History, in_words
from harness.core.inputs import read_json
from harness.core.run_files import write_json
from harness.core.run_root import run_root
from harness.core.seeds import fresh_seed
from harness.core.statistics import percentile
from harness.entry_point import HARNESS, ExitCode, Terminated, check_packages, errno_text
from harness.recorded_run import check_run, read_results
from harness.runtime.accounting import Accounting
from harness.runtime.placement import Here, Placement
from harness.runtime.process import LAST_OUTPUT_LINES
from harness.runtime.supervisor import Child, WorkerFailed, Workers
from harness.scenarios import scenario
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, check_machine, check_root, check_tier

RESULTS_VERSION = 2
EXIT_CODES = {"true": ExitCode.PASS, "false": ExitCode.FAIL, "unknown": ExitCode.INCONCLUSIVE}
ERROR_FILE = "scenario-error.txt"
LOW_BYTES = 1 << 20
REMOVERS = 8
FILES_MAX = 2_000_000
"""Files under the root that are listed after a run; more is an error of the run, not of the tier."""
DEVICE_SHARE = 1 / 20
DEVICE_SECONDS_MAX = 1.0
DEVICE_SECONDS_MIN = 0.1
"""The device is measured for so much of the run's own time; a run too short for that goes without."""


@dataclass
class Results:
    """What `results.json` holds: the verdict and what decided it, or why there is none.

    Each of `verdicts` has `name`, `value`, `figure`, `data`, `findings` (`Finding`s, whose records are in the file) and
    `omitted`, the number of findings beyond those. `results.schema.json` declares the file.
    """

    verdict: str  # the worst of `verdicts`: "false", else "unknown", else "true"
    verdicts: list[dict[str, Any]]
    scenario: str
    tier: str
    seed: int
    command: str
    reason: str = ""  # why the run did not come to its end
    interrupted: bool = False
    terminated: bool = False  # interrupted by SIGTERM
    seconds: float = 0.0
    run_dir: str = ""
    totals: dict[str, float] = field(default_factory=dict)
    device: dict[str, Any] = field(
        default_factory=dict
    )  # what the device did without the tier, or why it was not asked
    last_output: dict[str, str] = field(default_factory=dict)  # of processes that died, by their label
    unwritten: list[str] = field(default_factory=list)  # files of the run folder that could not be written, and why

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return ExitCode.TERMINATED if self.terminated else ExitCode.INTERRUPTED
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        verdicts = [v | {"findings": [finding.to_json() for finding in v["findings"]]} for v in self.verdicts]
        version = {"version": RESULTS_VERSION}
        return {**version, **dataclasses.asdict(self), "verdicts": verdicts, "exit_code": int(self.exit_code)}


def run(
    chosen: Scenario,
    options: CommonOptions,
    runs_dir: Path = Path("runs"),
    on_start: Callable[[CommonOptions, Path, str], None] = lambda options, run_dir, traffic: None,
    on_tick: Callable[[Sequence[Child]], None] = lambda children: None,
    on_stage: Callable[[str], None] = lambda stage: None,
    placement: Placement | None = None,
) -> Results:
    """Run a scenario, its workers where `placement` puts them (default: here), and judge it. Raises `UsageError` and
    `PeerMissing` before anything is made; after that every end, also Ctrl-C, leaves a judged folder."""
    check_packages()
    if options.seed is None:
        options = dataclasses.replace(options, seed=fresh_seed())
    assert options.seed is not None
    python = tier_python(options.tier)
    placement = placement or Here()
    if options.root_dir is not None:
        check_root(options.root_dir)
    check_tier(options)
    check_machine(chosen, options, runs_dir, machines=placement.machines)
    prepared = chosen.prepare(options)
    check_machine(chosen, options, runs_dir, prepared, placement.machines)
    placement.check(options.root_dir)
    run_dir = _make_run_dir(runs_dir, f"{chosen.name}-{options.tier.replace(':', '.')}")
    command = shlex.join([HARNESS.program, *placement.words, "run", chosen.name, *as_arguments(options)])
    write_json(
        run_dir / "options.json",
        {
            **dataclasses.asdict(options),
            "scenario": chosen.name,
            "command": command,
            "traffic": getattr(prepared, "source", ""),
            "cpus": os.cpu_count(),
        },
    )
    with run_root(options.root_dir, run_dir, options.keep) as root_dir:
        return _run(chosen, options, prepared, python, run_dir, root_dir, placement, on_start, on_tick, on_stage)


def _run(
    chosen: Scenario,
    options: CommonOptions,
    prepared: Any,
    python: str,
    run_dir: Path,
    root_dir: Path,
    placement: Placement,
    on_start: Callable[[CommonOptions, Path, str], None],
    on_tick: Callable[[Sequence[Child]], None],
    on_stage: Callable[[str], None],
) -> Results:
    """`run` once its folders are made."""
    write_json(run_dir / "environment.json", describe(root_dir))
    reserve = Reserve(run_dir)
    on_start(options, run_dir, getattr(prepared, "source", ""))
    started_seconds = time.monotonic()
    ended: dict[str, Any] = {"interrupted": False, "reason": ""}
    room = RoomWatch({"root": root_dir, "runs": run_dir}, _low_bytes(options))
    placement.begin(run_dir, root_dir)
    workers = Workers(on_tick, placement)
    accounting = Accounting(run_dir, workers.watched)
    context = Context(options, run_dir, root_dir, workers, python)
    try:
        with workers:
            try:
                chosen.run(context, prepared)
            except KeyboardInterrupt as error:
                ended = _interrupted(error, "; what was recorded until then is kept and judged")
                workers.broken_off = "the run was interrupted"
            except Exception as error:
                ended["reason"] = _why_it_broke_off(error, run_dir)
                workers.broken_off = "the run was broken off"
    except KeyboardInterrupt as error:  # the second one: the workers were killed
        ended = _interrupted(error, " twice; the workers were killed")
    seconds = time.monotonic() - started_seconds
    with _patience():
        accounting.close()
        room.probe("root", options.block_bytes)
        reserve.release()  # what could not be written until now can be
        workers.complete()
        lost = placement.collect()
        context.close(room.close())
        ended["reason"] = "; ".join(filter(None, [ended["reason"], *dict.fromkeys(workers.troubles), *lost]))
        if ended["interrupted"]:
            device = {"why": "the run was interrupted"}
        elif seconds * DEVICE_SHARE < DEVICE_SECONDS_MIN:
            device = {"why": "the run was too short"}
        else:
            on_stage("measuring the device")
            device = measure(root_dir, options.block_bytes, min(DEVICE_SECONDS_MAX, seconds * DEVICE_SHARE))
        ended |= {"seconds": round(seconds, 3), "device": device}
        unwritten = _written(run_dir / "run.json", ended)
        on_stage("judging")
        files = list(itertools.islice(_files(root_dir), FILES_MAX))
        unwritten += _written(run_dir / "files.json", files)
        history = History.read(run_dir)
        history.files = files
        results = _judged(history, ended, run_dir)
        results.unwritten = unwritten
        results.unwritten += _written(run_dir / "results.json", results.to_json())
        _point_latest(run_dir.parent, run_dir)
    if not options.keep:
        on_stage(f"removing {len(files):,} files")
        try:
            _remove(root_dir, files)
        except KeyboardInterrupt as error:
            ended = _interrupted(error, " while the files of the root were removed")
            results = dataclasses.replace(results, interrupted=True, terminated=ended["terminated"])
            results.reason = results.reason or ended["reason"]
    return results


def _low_bytes(options: CommonOptions) -> int:
    """What the workers may have half written at any moment: with less free, their file system is full."""
    writers = options.processes * max(1, options.write_threads or 0)
    return LOW_BYTES + 2 * writers * options.block_bytes


def _why_it_broke_off(error: Exception, run_dir: Path) -> str:
    """One sentence. What the scenario itself did not expect leaves its traceback in the run's folder."""
    if isinstance(error, WorkerFailed):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        return f"the run was broken off by the operating system: {in_words(error)}"
    with suppress(OSError):
        (run_dir / ERROR_FILE).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"the scenario failed: {_in_one_line(error)} (traceback in {ERROR_FILE})"


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _interrupted(error: KeyboardInterrupt, how: str) -> dict[str, Any]:
    terminated = isinstance(error, Terminated)
    word = "terminated by SIGTERM" if terminated else "interrupted"
    return {"interrupted": True, "terminated": terminated, "reason": word + how}


def judge(run_dir: Path) -> Results:
    """Judge a recorded run (again): pure checkers over its history. Writes and returns its `results.json`."""
    check_run(run_dir)
    history = History.read(run_dir)
    ended: dict[str, Any] = read_json(run_dir / "run.json", dict) if (run_dir / "run.json").exists() else {}
    results = _judged(history, ended, run_dir)
    results.unwritten = _written(run_dir / "results.json", results.to_json())
    return results


def ensure_results(run_dir: Path) -> Path:
    """The same folder, judged again if its results.json is missing or damaged. Raises `UsageError` if it is no run."""
    check_run(run_dir)
    try:
        read_results(run_dir)
    except UsageError:
        judge(run_dir)
    return run_dir


def _judged(history: History, ended: dict[str, Any], run_dir: Path) -> Results:
    options = history.options
    whereabouts = Whereabouts(history, run_dir.name if any(run_dir.glob("spans-*.jsonl")) else "")
    verdicts = [_check(name, history, whereabouts) for name in scenario(options["scenario"]).checkers]
    values = {v["value"] for v in verdicts}
    reason = ended.get("reason", "the run did not come to its end")
    worst = "false" if "false" in values else "unknown" if "unknown" in values or reason else "true"
    return Results(
        verdict=worst,
        verdicts=verdicts,
        scenario=options["scenario"],
        tier=options["tier"],
        seed=options["seed"],
        command=options["command"],
        reason=reason,
        interrupted=ended.get("interrupted", False),
        terminated=ended.get("terminated", False),
        seconds=ended.get("seconds", 0.0),
        run_dir=str(run_dir),
        totals=totals(history),
        device=ended.get("device", {}),
        last_output=_last_words(history, run_dir),
    )


def _written(path: Path, value: object) -> list[str]:
    """As `write_json`, for what may be missing at the end: a list with a sentence if it cannot be written, else []."""
    try:
        write_json(path, value)
    except OSError as error:
        return [f"{str(path)!r} cannot be written: {errno_text(error)}"]
    return []


def _check(name: str, history: History, whereabouts: Whereabouts) -> dict[str, Any]:
    """One of `Results.verdicts`. A checker that fails on this history has no verdict."""
    try:
        verdict = CHECKERS[name](history)
    except Exception as error:
        verdict = Verdict(name, "unknown", f"the checker failed on this history: {_in_one_line(error)}", [], {})
    found = whereabouts.completed(verdict.findings)
    return {
        "name": verdict.name,
        "value": verdict.value,
        "figure": verdict.figure,
        "findings": [finding for finding in found if finding.kind != "omitted"],
        "omitted": sum(finding.omitted for finding in found),
        "data": verdict.data,
    }


def totals(history: History) -> dict[str, float]:
    """Sums over the whole run, for the last line of a run, the head of its report, and lists of runs."""
    sums: dict[str, float] = {
        "requests": len(history.requests),
        "blocks": sum(len(r.blocks) for r in history.requests),
        "hit_blocks": sum(r.hit_blocks for r in history.requests),
        "jobs": len(history.jobs),
    }
    ended = [j for j in history.jobs if j.outcome != "info"]
    seconds = max((j.finished_seconds for j in ended), default=0.0) - min(
        (j.submitted_seconds for j in ended), default=0.0
    )
    for direction, past in (("load", "loaded"), ("store", "stored")):
        mine = [j for j in ended if j.direction == direction]
        sums[f"{past}_bytes"] = moved = sum(j.bytes_ok for j in mine)
        if mine and seconds > 0:
            sums[f"{direction}_mib_per_second"] = moved / seconds / (1 << 20)
            took = [j.finished_seconds - j.submitted_seconds for j in mine]
            sums[f"{direction}_p50_seconds"] = percentile(took, 0.5, "inverted_cdf")
            sums[f"{direction}_p99_seconds"] = percentile(took, 0.99, "inverted_cdf")
    return sums


def _last_words(history: History, run_dir: Path) -> dict[str, str]:
    """The last lines on stderr of each process that failed, by its label; processes without any are left out."""
    said = {}
    for stop in history.stops:
        label = f"{stop.process}" + (f".{stop.incarnation}" if stop.incarnation else "")
        path = run_dir / f"stderr-{label}.txt"
        if stop.exit_code and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_OUTPUT_LINES:]
            if lines:
                said[label] = "\n".join(lines)
    return said


def _make_run_dir(runs_dir: Path, what: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in what)
    for number in itertools.count():
        path = runs_dir / (f"{stamp}-{safe}" + (f"-{number}" if number else ""))
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"the run's folder {str(path)!r} cannot be made: {error.strerror}") from error
        return path.resolve()
    raise AssertionError("unreachable")


def _point_latest(runs_dir: Path, run_dir: Path) -> None:
    """`latest` always leads somewhere: the new link replaces the old one in one step."""
    fresh = runs_dir / f".latest-{run_dir.name}"
    with suppress(OSError):  # some file systems have no symbolic links; the path is printed all the same
        fresh.symlink_to(run_dir.name)
        fresh.replace(runs_dir / "latest")


def _files(root_dir: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root_dir):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), root_dir)


def _remove(root_dir: Path, files: Sequence[str]) -> None:
    """Several at once: some file systems discard on the device at each unlink, one after the other."""

    def unlink(name: str) -> None:
        with suppress(OSError):
            (root_dir / name).unlink()

    with ThreadPoolExecutor(REMOVERS) as pool:
        list(pool.map(unlink, files))
    shutil.rmtree(root_dir, ignore_errors=True)


def as_arguments(options: CommonOptions) -> Iterator[str]:
    """The options as the command line takes them, those that are not the default."""
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if value == item.default:
            continue
        name = f"--{item.name.replace('_', '-')}"
        if value is True:
            yield name
        else:
            for part in value if isinstance(value, tuple) else (value,):
                yield from (name, str(part))


@contextmanager
def _patience() -> Iterator[None]:
    """Ctrl-C and SIGTERM have no effect while the run is judged, which takes seconds and ends the run anyway."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def known_tiers() -> dict[str, str]:
    """Tier names and what each is, or why it cannot be used here."""
    said = {}
    for name in TIERS:
        try:
            tier_python(name)
        except Exception as error:
            said[name] = f"not usable here: {error}"
        else:
            said[name] = (adapter_class(name).__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
    return said
