"""Each condition does to a run's process what its name says, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harness.core.seeds import stream
from harness.false_alarms.conditions import CONDITIONS, Surroundings
from harness.faults.mounts import is_mounted
from harness.faults.rules import FaultUnavailable

SEED = 33
"""The first stop comes soon."""
AFFINITY = "import os; print(len(os.sched_getaffinity(0)))"


@contextmanager
def surroundings(name: str, folder: Path) -> Iterator[Surroundings]:
    """The condition, or a skipped test where this machine cannot make it."""
    try:
        with CONDITIONS[name][1](folder, stream(SEED)) as around:
            yield around
    except FaultUnavailable as error:
        pytest.skip(str(error))


def said(around: Surroundings, *command: str) -> str:
    return subprocess.run([*around.prefix, *command], capture_output=True, text=True, check=True).stdout.strip()


def await_(happened: object, what: str) -> None:
    deadline = time.monotonic() + 30
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["tmpfs", "ext4", "xfs", "fuse"])
def test_a_file_system_of_that_kind_lies_below_the_root(name: str, tmp_path: Path) -> None:
    with surroundings(name, tmp_path) as around:
        assert around.root_dir is not None
        assert is_mounted(around.root_dir)
        kind = {"fuse": "fuse.faultfs"}.get(name, name)
        kinds = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
        assert kinds[str(around.root_dir)].startswith(kind.split(".")[0])
        (around.root_dir / "a file").write_text("bytes")
    assert not is_mounted(around.root_dir)
    assert list(tmp_path.iterdir()) == []


def test_one_core_is_all_that_a_run_gets(tmp_path: Path) -> None:
    with surroundings("one-core", tmp_path) as around:
        assert said(around, sys.executable, "-c", AFFINITY) == "1"
    assert len(os.sched_getaffinity(0)) == os.cpu_count()


def test_a_memory_cgroup_holds_the_run_and_its_neighbour(tmp_path: Path) -> None:
    with surroundings("memory", tmp_path) as around:
        group = Path(around.prefix[-1]).parent
        assert group.name in said(around, "cat", "/proc/self/cgroup")
        await_(lambda: len((group / "cgroup.procs").read_text().split()) == 1, "the neighbour is in the cgroup")
    await_(lambda: not group.exists() or group.rmdir(), "the cgroup is removed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "times"), [("cpu1", 1), ("cpu4", 4)])
def test_neighbours_are_as_many_as_said_and_end_with_the_condition(name: str, times: int, tmp_path: Path) -> None:
    with surroundings(name, tmp_path):
        hogs = psutil.Process().children()
        assert len(hogs) == times * (os.cpu_count() or 1)
    assert not any(hog.is_running() for hog in hogs)


def test_an_io_neighbour_writes_to_the_disk_of_the_runs(tmp_path: Path) -> None:
    with surroundings("io", tmp_path):
        (folder,) = tmp_path.iterdir()
        await_(lambda: (folder / "file").exists() and (folder / "file").stat().st_size, "the neighbour has written")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_stopped_with_all_that_it_started_and_goes_on(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=0)"
    leader = psutil.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        await_(lambda: leader.children(), "the child has begun")
        both = [leader, *leader.children()]
        with surroundings("stop", tmp_path) as around, around.beside(leader.pid):
            await_(lambda: all(p.status() == psutil.STATUS_STOPPED for p in both), "both are stopped")
        assert all(p.status() != psutil.STATUS_STOPPED for p in both)
    finally:
        leader.communicate(b"\n")
    assert leader.returncode == 0
