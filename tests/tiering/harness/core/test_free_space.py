"""What the machine refuses is unknown, with the errno and the place; what a tier makes up or causes is its own."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.checkers import CHECKERS
from harness.checkers.machine_refusals import Shortages
from harness.core.free_space import RESERVE_BYTES, Reserve, RoomWatch
from harness.core.history import Gauge, History
from harness.core.installation import ROOT as REPOSITORY
from harness.runner import Results, judge, run
from harness.runtime.supervisor import Child
from harness.scenarios import scenario
from harness.scenarios.load import LoadOptions
from tests.tiering.harness.checkers.records import good_history, job, note, start, stop

SHORT_OF = "tests.tiering.harness.broken.shortages"
SMALL: dict[str, Any] = {"tier": "memory", "processes": 2, "seed": 5, "block_bytes": 65536, "seconds": 1.0}


def load(tmp_path: Path, on_tick: Any = lambda children: None, **changes: Any) -> Results:
    runs_dir = changes.pop("runs_dir", tmp_path / "runs")
    return run(scenario("load"), LoadOptions(**{**SMALL, **changes}), runs_dir, on_tick=on_tick)


def findings(results: Results, *names: str) -> str:
    return "\n".join(f for v in results.verdicts if v["name"] in names or not names for f in v["findings"])


def value(results: Results, name: str) -> str:
    (verdict,) = [v for v in results.verdicts if v["name"] == name]
    return str(verdict["value"])


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of `size` bytes."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# --- file systems ---


@pytest.mark.parametrize("tier", ["memory", "kvtier"])
def test_a_root_that_is_too_small_is_no_defect_of_the_tier(tier: str, tmp_path: Path) -> None:
    chosen, options = scenario("load"), LoadOptions(**{**SMALL, "tier": tier})
    least = chosen.needs(options, chosen.prepare(options)).root_blocks * options.block_bytes
    with small_disk(tmp_path / "small", int(1.3 * least) + (1 << 20)) as root:
        results = load(tmp_path, tier=tier, root_dir=str(root), slots=512)
    assert results.verdict == "unknown", findings(results)
    assert "ENOSPC: the file system of the root" in findings(results, "results")
    assert str(root) in findings(results, "results")


def test_a_full_folder_of_runs_is_no_defect_of_the_tier_and_the_verdict_is_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with small_disk(tmp_path / "small", 24 << 20) as runs_dir:

        def fill(children: Sequence[Child]) -> None:
            if any(child.counts.get("stores") for child in children) and not (runs_dir / "ballast").exists():
                with suppress(OSError), open(runs_dir / "ballast", "wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass

        results = load(tmp_path, fill, runs_dir=runs_dir, root_dir=str(root), seconds=20.0, requests=400)
        assert results.verdict == "unknown", findings(results)
        assert "its history could not be written: ENOSPC (No space left on device)" in findings(results, "leftovers")
        assert str(runs_dir) in findings(results, "leftovers")
        run_dir = Path(results.run_dir)
        assert json.loads((run_dir / "results.json").read_text())["verdict"] == "unknown"
        assert not (run_dir / ".reserve").exists()


def test_an_enospc_that_is_made_up_is_a_finding(tmp_path: Path) -> None:
    results = load(tmp_path, tier=f"{SHORT_OF}:MakesUpEnospc")
    assert value(results, "results") == "false"
    assert "with ENOSPC although no fault was injected and" in findings(results, "results")
    assert "or more were free" in findings(results, "results")


# --- processes ---


def test_a_process_that_something_outside_killed_is_no_defect_of_the_tier(tmp_path: Path) -> None:
    def kill(children: Sequence[Child]) -> None:
        first, second = children
        if first.state == "running" and first.counts.get("stores"):
            os.kill(first.pid, signal.SIGKILL)
        if first.state == "dead":
            second.send(stop=True)

    results = load(tmp_path, kill, seconds=600.0, requests=400)
    assert results.verdict == "unknown", findings(results)
    assert "process 0: it was ended by SIGKILL, which neither the tier nor the harness sent" in findings(results)


def test_a_start_that_the_operating_system_refuses_is_no_defect_of_the_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, started = subprocess.Popen, []

    def few(*arguments: Any, **keywords: Any) -> Any:
        if "harness.runtime.worker" in arguments[0]:
            started.append(arguments)
            if len(started) > 3:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(*arguments, **keywords)

    monkeypatch.setattr(subprocess, "Popen", few)
    results = load(tmp_path, processes=8)
    assert results.verdict == "unknown", findings(results)
    assert results.reason == "process 3 could not be started: EAGAIN (Resource temporarily unavailable)"


@pytest.mark.parametrize(("ready", "times"), [(0, 1), (2, 1), (2, 2)])
def test_an_interrupted_start_of_many_processes_is_no_defect_of_the_tier(
    ready: int, times: int, tmp_path: Path
) -> None:
    interrupts = []

    def interrupt(children: Sequence[Child]) -> None:
        is_due = len(children) == 6 and sum(child.state == "ready" for child in children) >= ready
        if is_due and len(interrupts) < times:
            interrupts.append(1)
            raise KeyboardInterrupt

    results = load(tmp_path, interrupt, processes=6)
    assert results.interrupted
    assert len(interrupts) == times
    assert results.verdict == "unknown", findings(results)
    assert "the harness ended it: the run was interrupted" in findings(results, "leftovers") or times == 1


# --- descriptors ---


SMALL_LIMIT, AMPLE_LIMIT, LEAK = (
    (64, "NeedsManyDescriptors"),
    (1200, "NeedsManyDescriptors"),
    (64, "LeaksUntilTheLimit"),
)
Limited = dict[tuple[int, str], Results]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Limited:
    """(limit of open files of each process, tier) -> its run. The runs are made at the same time."""
    env, started = {**os.environ, "PYTHONPATH": str(REPOSITORY)}, {}
    for most, tier in (SMALL_LIMIT, AMPLE_LIMIT, LEAK):
        command = [sys.executable, "-m", "harness", "run", "load", "--tier", f"{SHORT_OF}:{tier}", "--quiet"]
        command += ["--processes", "2", "--seed", "5", "--block-bytes", "4096", "--seconds", "1"]
        folder = tmp_path_factory.mktemp("runs")
        shell = ["bash", "-c", f'ulimit -n {most}; exec "$@"', "bash", *command]
        started[most, tier] = folder, subprocess.Popen(shell, cwd=folder, env=env, stdout=subprocess.DEVNULL)
    for _, process in started.values():
        process.wait()
    return {key: judge(folder / "runs/latest") for key, (folder, _) in started.items()}


def test_a_small_limit_of_open_files_is_no_defect_of_the_tier(limited: Limited) -> None:
    results = limited[SMALL_LIMIT]
    assert value(results, "results") == "unknown", findings(results)
    assert "EMFILE: the limit of process" in findings(results, "results")
    assert "(RLIMIT_NOFILE) is 64" in findings(results, "results")


def test_a_leak_until_no_descriptor_is_left_is_the_tiers(limited: Limited) -> None:
    results = limited[LEAK]
    assert value(results, "leftovers") == "false"
    assert "more descriptors than it began with" in findings(results, "leftovers")


def test_what_opens_more_than_an_ample_limit_is_the_tiers(limited: Limited) -> None:
    results = limited[AMPLE_LIMIT]
    assert value(results, "results") == "false"
    assert "with EMFILE although no fault was injected" in findings(results, "results")


# --- what is measured, and how it is believed ---


def test_what_is_short_is_noted_with_its_place_and_time(tmp_path: Path) -> None:
    watch = RoomWatch({"root": tmp_path, "runs": tmp_path / "nowhere"}, low_bytes=1 << 60)
    watch.probe("root", 4096)
    notes = watch.close()
    (short,) = [n for n in notes if n.detail.get("errno") and n.detail["place"] == "root"]
    assert (short.detail["errno"], short.detail["path"]) == ("ENOSPC", str(tmp_path))
    assert short.detail["least_free_bytes"] > 0
    assert not list(tmp_path.iterdir())


def test_what_is_short_when_the_watch_ends_is_noted_from_the_sample_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, sampled = [1 << 30], threading.Event()

    def statvfs(path: str) -> Any:
        sampled.set()
        return SimpleNamespace(f_bavail=free[0], f_frsize=1, f_flag=0, f_files=0, f_favail=0)

    monkeypatch.setattr("harness.core.free_space.SAMPLE_SECONDS", 600.0)
    monkeypatch.setattr(os, "statvfs", statvfs)
    watch = RoomWatch({"root": tmp_path}, low_bytes=1 << 20)
    assert sampled.wait(30)
    filled = time.monotonic()
    free[0] = 0
    notes = watch.close()
    (short,) = [n for n in notes if n.detail.get("errno") and n.detail["place"] == "root"]
    assert short.detail["from_seconds"] <= filled <= short.detail["until_seconds"]


def test_a_place_with_room_is_not_short(tmp_path: Path) -> None:
    watch = RoomWatch({"root": tmp_path}, low_bytes=1)
    watch.probe("root", 4096)
    assert not [n for n in watch.close() if "errno" in n.detail and n.detail["place"] == "root"]


def test_the_reserve_takes_room_until_it_is_released(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) >= RESERVE_BYTES
    reserve.release()
    reserve.release()
    assert not list(tmp_path.iterdir())


def short(reason: str, since: float, until: float, place: str = "root") -> Any:
    detail = {"place": place, "path": "/kv", "least_free_bytes": 0, "errno": reason}
    return note("room", since, from_seconds=since, until_seconds=until, **detail)


@pytest.mark.parametrize(
    ("reasons", "at", "explained"),
    [
        ("ENOSPC", 20.25, True),
        ("", 20.25, True),
        ("ENOSPC EIO", 20.25, False),
        ("EIO", 20.25, False),
        ("ENOSPC", 60.0, False),
        ("EDQUOT", 20.25, False),
    ],
)
def test_a_failure_is_believed_only_when_its_shortage_was_seen(reasons: str, at: float, explained: bool) -> None:
    history = good_history()
    history.notes.append(short("ENOSPC", 20.0, 21.0))
    history.jobs.append(job(0, 9, "store", [5], at, at + 0.2, failed=[5], reasons=reasons))
    verdict = CHECKERS["results"](history)
    assert verdict.value == ("unknown" if explained else "false")
    assert ("/kv" in "\n".join(verdict.findings)) == explained


def test_a_load_without_a_reason_is_not_explained_by_a_full_disk() -> None:
    history = good_history()
    history.notes.append(short("ENOSPC", 20.0, 21.0))
    history.jobs.append(job(0, 9, "load", [0], 20.25, 20.5, failed=[0]))
    assert CHECKERS["results"](history).value == "false"


def test_a_process_that_raised_what_the_machine_refused_is_not_judged() -> None:
    history = good_history()
    history.notes += [short("ENOSPC", 20.0, 21.0), note("error", 20.5, 1, "OSError: full", errno="ENOSPC", path="/kv")]
    history.stops[:] = [stop(0), stop(1, exit_code=70)]
    assert CHECKERS["results"](history).value == "unknown"
    assert CHECKERS["leftovers"](history).value == "unknown"
    history.notes.append(note("error", 20.6, 1, "KeyError: 3"))
    assert CHECKERS["leftovers"](history).value == "false"


def test_threads_that_run_away_are_the_tiers() -> None:
    history = History.of([start(0)])
    error = note("error", 1.0, 0, "RuntimeError: can't start new thread", errno="EAGAIN", path="")
    assert Shortages(history).of_error(error).startswith("EAGAIN")
    history.add(Gauge(0, 0.5, {"threads": 5000.0}))
    assert Shortages(history).of_error(error) == ""


def test_wrong_bytes_on_a_full_disk_are_wrong(tmp_path: Path) -> None:
    history = good_history()
    history.notes.append(short("ENOSPC", 0.0, 100.0))
    history.jobs.append(job(0, 9, "load", [0], 20.25, 20.5, wrong=[(0, "short")]))
    assert CHECKERS["integrity"](history).value == "false"
