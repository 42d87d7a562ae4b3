"""What a run needs is compared with what there is before anything starts, and no run is refused that would work."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest

from harness.core.limits import Machine, Needs, Place, amount, shortage
from harness.runner import run
from harness.scenarios import scenario, scenarios
from harness.scenarios.base import check_machine

SMALL = Needs(processes=4, threads=8, slots=256, block_bytes=256 << 10, root_blocks=1000)
ROOT = Place("/kv", device=1, free_bytes=1 << 30, free_files=1e6, in_memory=False)
AMPLE = Machine(8 << 30, math.inf, 10_000.0, 32_000.0, 1024.0, math.inf, ROOT, dataclasses.replace(ROOT, device=2))


def test_what_is_there_is_enough() -> None:
    assert shortage(SMALL, AMPLE) == ""


@pytest.mark.parametrize(
    ("needs", "machine", "words"),
    [
        (
            {"block_bytes": 4 << 30},
            {},
            "about 512 GiB of memory (4 processes, each with 256 slots of 4 GiB), 8 GiB is free",
        ),
        (
            {"processes": 100_000},
            {},
            "100,000 processes, each with 256 slots of 256 KiB), 8 GiB is free; use a smaller",
        ),
        (
            {"threads": 2500},
            {},
            "10,012 threads (4 processes, each with 2,503), the limits of this machine leave 10,000",
        ),
        (
            {"processes": 1, "threads": 9000},
            {"process_threads": 5000.0},
            "9,003 threads, the kernel (vm.max_map_count)",
        ),
        ({}, {"descriptors": 16.0}, "20 open files for 4 processes, the limit (RLIMIT_NOFILE) is 16; raise it"),
        ({}, {"process_bytes": float(64 << 20)}, "its limit (RLIMIT_AS) is 64 MiB; raise it with `ulimit -v`"),
        ({}, {"file_bytes": 4096.0}, "a block is a file of 256 KiB, the limit (RLIMIT_FSIZE) is 4 KiB"),
        ({"root_blocks": 5000}, {}, "1.22 GiB for blocks in the file system of /kv, 1 GiB is free; use a --root-dir"),
        (
            {},
            {"runs": dataclasses.replace(ROOT, path="/r", device=2, free_bytes=5)},
            "8 MiB for records in the file system of /r, 5 B",
        ),
        ({}, {"root": dataclasses.replace(ROOT, free_files=12)}, "1,000 files in the file system of /kv, 12 are free"),
        (
            {"root_blocks": 33_000},
            {"root": dataclasses.replace(ROOT, free_bytes=1 << 40, in_memory=True)},
            "of memory (4 processes",
        ),
    ],
)
def test_a_lacking_resource_is_reported_with_the_option_to_change(
    needs: dict[str, Any], machine: dict[str, Any], words: str
) -> None:
    said = shortage(dataclasses.replace(SMALL, **needs), dataclasses.replace(AMPLE, **machine))
    assert words in said
    assert "\n" not in said


def test_a_root_and_a_folder_of_runs_on_one_file_system_share_what_is_free() -> None:
    needs = dataclasses.replace(SMALL, root_blocks=4000)
    just = dataclasses.replace(ROOT, free_bytes=1001 << 20)
    assert shortage(needs, dataclasses.replace(AMPLE, root=just)) == ""
    assert "for blocks" in shortage(needs, dataclasses.replace(AMPLE, root=just, runs=just))


def test_this_machine_is_read_where_the_folders_are_not_there_yet(tmp_path: Path) -> None:
    machine = Machine.here(tmp_path / "a" / "b", tmp_path)
    assert (machine.root.path, machine.root.device) == (str(tmp_path), os.stat(tmp_path).st_dev)
    assert 0 < machine.memory_bytes < 1 << 50
    assert machine.tasks > 100
    assert [amount(n) for n in (5, 1 << 20, 1 << 42, 1 << 52)] == ["5 B", "1 MiB", "4 TiB", "4,096 TiB"]


@pytest.mark.parametrize("name", [item.name for item in scenarios() if not item.apart])
def test_no_scenario_is_refused_as_it_is_by_default(name: str, tmp_path: Path) -> None:
    chosen = scenario(name)
    for tier in ("memory", "kvtier"):
        options = chosen.options(tier=tier, seed=1, root_dir=str(tmp_path))
        check_machine(chosen, options, tmp_path, chosen.prepare(options))


@pytest.mark.slow
def test_the_contract_stores_at_least_its_declared_needs(tmp_path: Path) -> None:
    """Those of other scenarios are tested with their runs."""
    options = {**scenario(name := "contract").short, "tier": "memory", "seed": 1, "seconds": 0.0}
    chosen = scenario(name)
    needs = chosen.needs(chosen.options(**options), chosen.prepare(chosen.options(**options)))
    results = run(chosen, chosen.options(**options), tmp_path)
    files = (Path(results.run_dir) / "files.json").read_text()
    assert files.count(".bin") >= needs.root_blocks > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["run", "load", "--processes", "4096", "--slots", "1048576"],
            "of memory (4,096 processes, each with 1,048,576",
        ),
        (
            ["run", "load", "--block-bytes", "1GiB", "--slots", "4096"],
            "of memory (4 processes, each with 4,096 slots of",
        ),
        (["run", "sharing", "--processes", "4000", "--block-bytes", "64MiB"], "of memory (4,000 processes"),
        (["conform", "kvtier", "--scenario", "load", "--processes", "4000"], ": the run needs about"),
    ],
)
def test_what_this_machine_lacks_is_one_sentence_before_anything_starts(
    arguments: list[str], words: str, tmp_path: Path, say: Any
) -> None:
    done = say(*arguments)
    assert done.exit_code == 64, done
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
