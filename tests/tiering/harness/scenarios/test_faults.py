"""`run faults`: kvtier keeps its guarantees under faults of every kind, findings name those that flawed tiers break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.faults import FAULTS
from harness.runner import Results, run
from harness.scenarios import scenario
from harness.scenarios.base import UsageError
from harness.scenarios.faults import FaultsOptions, prepare

SCENARIO = scenario("faults")
FLAWED = "tests.tiering.harness.broken.flawed"
ROOT = Path(__file__).parents[4]
ONE_OF_EACH_KIND = (
    *("damage_bit_flip", "damage_directory", "damage_swap", "stale_temps", "fd_limit", "file_size_limit"),
    *("enospc_third_write", "killed_at_link", "disk_full", "read_only", "clock_stepped", "hostile_config"),
    *("eio_write", "short_read", "lost_write", "vanished", "hung_read", "no_direct_io", "disconnected"),
    *("estale_publish", "enotconn_all"),
)
SHORT: dict[str, Any] = {"seed": 4, "block_bytes": 16 << 10, "slots": 64, "config_every": 24}


def meet(tmp_path: Path, *names: str, **changes: Any) -> tuple[Results, dict[str, Any], list[str]]:
    """Results, the rows of the table of faults, and the findings of its checker."""
    results = run(SCENARIO, FaultsOptions(**{**SHORT, "fault": names, **changes}), tmp_path / "runs")
    (verdict,) = [v for v in results.verdicts if v["name"] == "faults"]
    return results, verdict["data"]["faults"], verdict["findings"]


def test_one_fault_of_each_kind_is_there() -> None:
    assert {FAULTS[name].mechanism for name in ONE_OF_EACH_KIND} == {fault.mechanism for fault in FAULTS.values()}


def test_kvtier_keeps_its_guarantees_under_one_fault_of_each_kind(tmp_path: Path) -> None:
    results, table, _ = meet(tmp_path, *ONE_OF_EACH_KIND, tier="kvtier")
    assert results.verdict == "true", str(results.verdicts)
    assert set(table) == set(ONE_OF_EACH_KIND)
    assert {row["verdict"] for row in table.values()} <= {"true", "skipped"}
    assert table["damage_bit_flip"]["expected"]["counted"] == "yes", "kvtier counts by reason, and is seen to"
    assert table["damage_bit_flip"]["hurt"], "a fault that hurts nothing shows nothing"
    assert all(row["why"] for row in table.values() if row["verdict"] == "skipped")


def test_a_stack_repairs_a_damaged_block_by_the_process_that_missed_it(tmp_path: Path) -> None:
    """The process that stored it holds it in memory, and writes it no second time."""
    names = ("damage_bit_flip", "damage_truncate", "stale_temps")
    results, table, _ = meet(tmp_path, *names, tier="kvtier-stack")
    assert results.verdict == "true", str(results.verdicts)
    assert {row["verdict"] for row in table.values()} == {"true"}
    assert table["damage_bit_flip"]["expected"]["counted"] == "yes"
    assert table["damage_truncate"]["expected"]["counted"] in ("yes", "not shown"), "a lookup may call it a miss"


def test_a_tier_without_checksums_returns_wrong_bytes_and_is_told(tmp_path: Path) -> None:
    results, table, findings = meet(tmp_path, "damage_bit_flip", "damage_truncate", tier=f"{FLAWED}:KeepsNoChecksums")
    assert results.verdict == "false"
    assert table["damage_bit_flip"]["verdict"] == "false"
    assert any(f.startswith("damage_bit_flip") and "no wrong byte" in f for f in findings)
    assert table["damage_truncate"]["verdict"] == "true", "a short file it refuses"
    assert table["damage_truncate"]["expected"]["counted"] == "not shown"


def test_the_oracle_keeps_it_too(tmp_path: Path) -> None:
    faults = [name for name in ONE_OF_EACH_KIND if name != "hung_read"]  # it waits in its submits, and is not asked to
    results, table, _ = meet(tmp_path, *faults, tier="memory")
    assert results.verdict == "true", str(results.verdicts)
    assert table["damage_bit_flip"]["hurt"], "a fault that hurts nothing shows nothing"


@pytest.mark.parametrize(
    ("tier", "item"),
    [("AllOrNothing", "others unharmed"), ("NeverForgives", "works again"), ("CountsNothingFailed", "counted")],
)
def test_a_flawed_tier_is_told_which_debt_it_did_not_pay(tmp_path: Path, tier: str, item: str) -> None:
    results, table, findings = meet(tmp_path, "damage_truncate", tier=f"{FLAWED}:{tier}")
    assert results.verdict == "false"
    assert table["damage_truncate"]["expected"][item] not in ("yes", "not shown")
    assert any(f"{item}: " in finding for finding in findings)


def test_faults_are_chosen_by_name_or_by_their_beginning() -> None:
    chosen = prepare(FaultsOptions(fault=("hung*", "erofs"))).faults
    assert [f.name for f in chosen] == ["erofs", "hung_read", "hung_write", "hung_device"]
    assert len(prepare(FaultsOptions()).faults) == len(FAULTS)
    with pytest.raises(UsageError, match="--fault is 'nonsense'"):
        prepare(FaultsOptions(fault=("nonsense",)))
