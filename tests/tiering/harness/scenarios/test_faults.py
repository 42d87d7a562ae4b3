"""`run faults`: kvtier keeps its guarantees under faults of every kind, findings name those that flawed tiers break."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.faults import FAULTS
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.faults import FaultsOptions, prepare
from tests.tiering.harness.together import run_together

pytestmark = pytest.mark.timeout(600)  # of all the runs that the fixture makes
FLAWED = "tests.tiering.harness.broken.flawed"
ONE_OF_EACH_KIND = (
    *("damage_bit_flip", "damage_directory", "damage_swap", "stale_temps", "fd_limit", "file_size_limit"),
    *("enospc_third_write", "killed_at_link", "disk_full", "read_only", "clock_stepped", "hostile_config"),
    *("eio_write", "short_read", "lost_write", "vanished", "hung_read", "no_direct_io", "disconnected"),
    *("estale_publish", "enotconn_all"),
)
SHORT: dict[str, Any] = {"seed": 4, "block_bytes": 16 << 10, "slots": 64, "config_every": 24}


ONE_OF_EACH_MECHANISM = tuple({FAULTS[name].mechanism: name for name in reversed(ONE_OF_EACH_KIND)}.values())
NO_CHECKSUMS, FLAWS = (
    f"{FLAWED}:KeepsNoChecksums",
    {
        "AllOrNothing": "others unharmed",
        "NeverForgives": "works again",
        "CountsNothingFailed": "counted",
    },
)
MET: dict[str, tuple[str, ...]] = {
    "kvtier": ONE_OF_EACH_KIND,
    "memory": ("damage_bit_flip", *ONE_OF_EACH_MECHANISM),
    "kvtier-stack": ("damage_bit_flip", "damage_truncate", "stale_temps"),
    NO_CHECKSUMS: ("damage_bit_flip", "damage_truncate"),
    **{f"{FLAWED}:{tier}": ("damage_truncate",) for tier in FLAWS},
}
"""Tier -> the faults that it meets."""


class Met(NamedTuple):
    """A run, the rows of the table of faults, and the findings of its checker."""

    results: Results
    table: dict[str, Any]
    findings: list[str]


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Met]:
    """Tier -> its run. Two at once: that of kvtier lasts as long as the others together."""
    options = {tier: FaultsOptions(**SHORT, tier=tier, fault=names) for tier, names in MET.items()}
    runs = run_together("faults", options, tmp_path_factory.mktemp("runs"), at_once=2)
    of = {tier: next(v for v in results.verdicts if v["name"] == "faults") for tier, results in runs.items()}
    return {tier: Met(runs[tier], of[tier]["data"]["faults"], of[tier]["findings"]) for tier in runs}


def test_one_fault_of_each_kind_is_there() -> None:
    assert {FAULTS[name].mechanism for name in ONE_OF_EACH_KIND} == {fault.mechanism for fault in FAULTS.values()}


def test_kvtier_keeps_its_guarantees_under_one_fault_of_each_kind(met: dict[str, Met]) -> None:
    results, table, _ = met["kvtier"]
    assert results.verdict == "true", str(results.verdicts)
    assert set(table) == set(ONE_OF_EACH_KIND)
    assert {row["verdict"] for row in table.values()} <= {"true", "skipped"}
    assert table["damage_bit_flip"]["expected"]["counted"] == "yes", "kvtier counts by reason, and is seen to"
    assert table["damage_bit_flip"]["hurt"], "a fault that hurts nothing shows nothing"
    assert all(row["why"] for row in table.values() if row["verdict"] == "skipped")


def test_a_stack_repairs_a_damaged_block_by_the_process_that_missed_it(met: dict[str, Met]) -> None:
    """The process that stored it holds it in memory, and writes it no second time."""
    results, table, _ = met["kvtier-stack"]
    assert results.verdict == "true", str(results.verdicts)
    assert {row["verdict"] for row in table.values()} == {"true"}
    assert table["damage_bit_flip"]["expected"]["counted"] == "yes"
    assert table["damage_truncate"]["expected"]["counted"] in ("yes", "not shown"), "a lookup may call it a miss"


def test_wrong_bytes_of_a_tier_without_checksums_are_found(met: dict[str, Met]) -> None:
    results, table, findings = met[NO_CHECKSUMS]
    assert results.verdict == "false"
    assert table["damage_bit_flip"]["verdict"] == "false"
    assert any(f.startswith("damage_bit_flip") and "no wrong byte" in f for f in findings)
    assert table["damage_truncate"]["verdict"] == "true", "a short file it refuses"
    assert table["damage_truncate"]["expected"]["counted"] == "not shown"


def test_the_reference_tier_keeps_them_under_one_fault_of_each_mechanism(met: dict[str, Met]) -> None:
    results, table, _ = met["memory"]
    assert results.verdict == "true", str(results.verdicts)
    assert table["damage_bit_flip"]["hurt"], "a fault that hurts nothing shows nothing"


@pytest.mark.parametrize(("tier", "item"), FLAWS.items())
def test_a_finding_names_the_guarantee_that_a_flawed_tier_breaks(met: dict[str, Met], tier: str, item: str) -> None:
    results, table, findings = met[f"{FLAWED}:{tier}"]
    assert results.verdict == "false"
    assert table["damage_truncate"]["expected"][item] not in ("yes", "not shown")
    assert any(f"{item}: " in finding for finding in findings)


def test_faults_are_chosen_by_name_or_by_their_beginning() -> None:
    chosen = prepare(FaultsOptions(fault=("hung*", "erofs"))).faults
    assert [f.name for f in chosen] == ["erofs", "hung_read", "hung_write", "hung_device"]
    assert len(prepare(FaultsOptions()).faults) == len(FAULTS)
    with pytest.raises(UsageError, match="--fault is 'nonsense'"):
        prepare(FaultsOptions(fault=("nonsense",)))


def test_a_damage_that_the_file_system_of_the_root_cannot_have_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "mkfifo", refuse)
    options = FaultsOptions(**SHORT, tier="memory", fault=("damage_fifo", "damage_truncate"))
    results = run(scenario("faults"), options, tmp_path / "runs")
    assert results.verdict == "true", str(results.verdicts)
    table = next(v for v in results.verdicts if v["name"] == "faults")["data"]["faults"]
    assert table["damage_fifo"]["verdict"] == "skipped"
    assert "the root's file system refuses it: ENOSYS" in table["damage_fifo"]["why"]
