"""Runs of one scenario at the same time, each in a process of its own: most of a run's seconds are spent in waiting.

For runs whose checkers judge no time. A module makes all its runs in one fixture, and each test looks at its own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from harness.core.installation import ROOT
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import CommonOptions

Key = TypeVar("Key")
PR_SET_PDEATHSIG = 1


def run_together(name: str, options: Mapping[Key, CommonOptions], folder: Path, at_once: int = 4) -> dict[Key, Results]:
    """One run of scenario `name` for each of `options`, in folders of their own. What a run raises is raised here."""
    request = pickle.dumps((name, list(options.values()), folder, at_once))
    # A process without threads, which may fork: the runs share its imports.
    command = [sys.executable, "-m", "tests.tiering.harness.together"]
    done = subprocess.run(command, cwd=ROOT, input=request, stdout=subprocess.PIPE, check=True)
    outcomes: list[Any] = pickle.loads(done.stdout)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return dict(zip(options, outcomes, strict=True))


def _run(name: str, options: CommonOptions, folder: Path) -> Results | BaseException:
    try:
        return run(scenario(name), options, folder)
    except BaseException as error:
        return error


def stored_files(results: Results) -> int:
    """Block files under the run's root at its end."""
    return (Path(results.run_dir) / "files.json").read_text().count(".bin")


def _end_with_parent() -> None:
    """A worker of the pool would wait for ever for a parent that was killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    name, options, folder, at_once = pickle.load(sys.stdin.buffer)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(at_once, len(options)), mp_context=fork, initializer=_end_with_parent) as pool:
        runs = [pool.submit(_run, name, one, folder / str(number)) for number, one in enumerate(options)]
        sys.stdout.buffer.write(pickle.dumps([one.result() for one in runs]))


if __name__ == "__main__":
    main()
