"""Runs over two nodes whose second agent is a thread of the test: real workers, a store in memory."""

from __future__ import annotations

import glob
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.adapters.base import TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.cluster import agent as agent_module
from harness.cluster.agent import Agent
from harness.cluster.nodes import Nodes
from harness.cluster.store import ClusterLost
from harness.core.history import History
from harness.core.inputs import UsageError
from harness.core.run_root import run_root
from harness.runner import Results, run
from harness.scenarios import scenario
from tests.tiering.harness.cluster.memory_store import MemoryStore

ME = "tests.tiering.harness.cluster.test_nodes"
SHORT: dict[str, Any] = {"seed": 3, "seconds": 0.0, "block_bytes": 16384, "slots": 64}
JOIN_SECONDS = 60.0


class NodeLocal(KvtierAdapter):
    """Processes of one node share; nodes do not: the root is a folder of the node's own."""

    def __init__(self, setup: TierSetup) -> None:
        folder = Path(setup.run_dir) / "of-this-node"
        folder.mkdir(exist_ok=True)
        super().__init__(TierSetup(**{**setup.to_json(), "root_dir": str(folder)}))


@contextmanager
def cluster(
    root_here: Path | None = None, visible_seconds: float = 20.0, loss_seconds: float = 30.0
) -> Iterator[tuple[Nodes, MemoryStore, list[BaseException]]]:
    """Two nodes: the second is an agent in a thread. What its agent raises is in the list once the block has ended."""
    store, raised = MemoryStore(), []

    def serve() -> None:
        try:
            here = str(root_here) if root_here else None
            Agent(1, 2, store.connect, here, loss_seconds, JOIN_SECONDS).serve()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Nodes.gathered(2, store.connect, JOIN_SECONDS, loss_seconds, visible_seconds) as nodes:
            yield nodes, store, raised
    finally:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive()
        assert not glob.glob(f"{tempfile.gettempdir()}/kvtier-node-*"), "the agent left its folder"


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this test alone: other agents may run on this machine."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def sharing(nodes: Nodes, root: Path, **changes: Any) -> Results:
    item = scenario("sharing")
    return run(item, item.options(**{**SHORT, "root_dir": str(root), **changes}), root.parent / "runs", placement=nodes)


@pytest.mark.slow
def test_a_tier_that_shares_on_each_node_alone_is_detected(root: Path) -> None:
    with cluster() as (nodes, _, _):
        results = sharing(nodes, root, tier=f"{ME}:NodeLocal", processes=4)
    assert results.verdict == "false"
    visibility = next(v for v in results.verdicts if v["name"] == "visibility")
    misses = [str(finding) for finding in visibility["findings"]]
    assert any("got a miss" in text for text in misses), misses
    assert visibility["data"]["hits_of_others"] > 0, "processes of one node share"


@pytest.mark.slow
def test_a_lost_node_takes_its_processes_with_it_and_the_others_go_on(root: Path) -> None:
    with cluster(loss_seconds=2.0) as (nodes, store, raised):
        item, cut = scenario("sharing"), []

        def on_tick(children: Any) -> None:
            if not cut and any(child.process == 1 and child.counts.get("carried_out") for child in children):
                cut.append(True)
                store.deaf |= {"from-1", "to-1"}  # no message passes any more

        options = item.options(**{**SHORT, "root_dir": str(root), "processes": 4})
        results = run(item, options, root.parent / "runs", on_tick=on_tick, placement=nodes)
    assert results.verdict == "unknown", str(results.verdicts)
    assert "node 1" in results.reason
    assert "was lost: no message from it for 2 s" in results.reason
    history = History.read(Path(results.run_dir))
    outside = {stop.process: stop.outside for stop in history.stops}
    assert "lost with its node" in outside[1]
    assert {process: outside[process] for process in (0, 2)} == {0: "", 2: ""}
    assert [type(error) for error in raised] == [ClusterLost], "the agent ends too, by itself"


@pytest.mark.slow
def test_an_agent_whose_rank_0_is_gone_ends_its_workers_and_removes_its_folder(root: Path) -> None:
    with cluster(loss_seconds=30.0) as (nodes, store, raised):
        item = scenario("sharing")

        def on_tick(children: Any) -> None:
            if any(child.process == 1 and child.state == "running" for child in children):
                store.end()

        results = run(
            item,
            item.options(**{**SHORT, "root_dir": str(root)}),
            root.parent / "runs",
            on_tick=on_tick,
            placement=nodes,
        )
    assert "rank 0 was lost" in str(raised[0])
    assert results.verdict == "unknown"


def test_nodes_that_mount_different_volumes_are_named(root: Path) -> None:
    other = root.parent / "other"
    other.mkdir()
    with cluster(root_here=other, visible_seconds=0.2) as (nodes, _, _), pytest.raises(UsageError) as refused:
        sharing(nodes, root)
    assert str(refused.value).startswith("node 0 (")
    assert "does not see what node 1 (" in str(refused.value)
    assert not list(root.iterdir()) + list(other.iterdir())
    assert not (root.parent / "runs").exists()


def test_a_root_that_is_missing_on_a_node_is_named(root: Path) -> None:
    with cluster(root_here=root.parent / "nothing") as (nodes, _, _), pytest.raises(UsageError) as refused:
        sharing(nodes, root)
    assert "does not exist on node 1" in str(refused.value)
    assert not list(root.iterdir())


def test_a_root_must_be_given_and_must_have_no_other_run(root: Path) -> None:
    with cluster() as (nodes, _, _):
        with pytest.raises(UsageError, match="--root-dir is missing"):
            sharing(nodes, root, root_dir=None)
        other = run_root(str(root), root.parent / "another", keep=False)
        with other, pytest.raises(UsageError, match="another run uses --root-dir"):
            sharing(nodes, root)


def test_a_node_that_never_comes_and_one_of_another_version_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterLost, match=r"rank 1, 2 of 3 nodes did not come within 0\.1 s"):
        Nodes.gathered(3, MemoryStore().connect, 0.1, 1.0, 1.0)
    monkeypatch.setattr(agent_module, "VERSION", "0.0.9")
    with (
        pytest.raises(UsageError, match=r"node 1 \(.*\) has kvtier 0.0.9, node 0 \(.*; install one version"),
        cluster(),
    ):
        pass


def test_a_rank_that_is_started_twice_is_refused() -> None:
    with cluster() as (_, store, _), pytest.raises(UsageError, match="rank 1 was started twice"):
        Agent(1, 2, store.connect, None, 1.0, 1.0)
