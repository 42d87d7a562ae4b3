"""Rank, number of nodes and address from the variables of each launcher."""

from __future__ import annotations

import pytest

from harness.cluster.launch import PORT, Launch, launched
from harness.core.inputs import UsageError

ADDRESS = {"MASTER_ADDR": "10.0.0.7"}
TORCHRUN = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "r"}


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        pytest.param(
            {"RANK": "1", "WORLD_SIZE": "3", "MASTER_PORT": "4000", **ADDRESS}, Launch(1, 3, "10.0.0.7", 4000), id="set"
        ),
        pytest.param(
            {
                "RANK": "0",
                "WORLD_SIZE": "2",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RUN_ID": "r",
                **ADDRESS,
            },
            Launch(0, 2, "10.0.0.7", PORT, True, "r/"),
            id="torchrun",
        ),
        pytest.param(
            {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "gpu[07-09,12]-ib,login1"},
            Launch(2, 4, "gpu07-ib", PORT),
            id="srun, nodes in brackets",
        ),
        pytest.param(
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n1,n2"},
            Launch(0, 2, "n1", PORT),
            id="srun, nodes by name",
        ),
        pytest.param(
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", **ADDRESS},
            Launch(1, 2, "10.0.0.7", PORT),
            id="mpirun",
        ),
        pytest.param(
            {"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "fit-0.fit"},
            Launch(1, 2, "fit-0.fit", PORT),
            id="Kubernetes",
        ),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1"}, Launch(0, 1, "127.0.0.1", PORT), id="one node"),
    ],
)
def test_each_launcher_gives_the_place(environ: dict[str, str], launch: Launch) -> None:
    assert launched(environ) == launch


def test_arguments_win_over_variables() -> None:
    assert launched({"RANK": "0", "WORLD_SIZE": "1", **ADDRESS}, 1, 2, "host", 5) == Launch(1, 2, "host", 5)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "rank of this node is unknown"),
        ({"RANK": "0"}, "number of nodes is unknown"),
        ({"RANK": "two", "WORLD_SIZE": "2"}, "RANK is 'two'; it takes an integer"),
        ({"RANK": "2", "WORLD_SIZE": "2", **ADDRESS}, "rank 2 of 2 nodes"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "the address of rank 0 is unknown"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000", **ADDRESS}, "MASTER_PORT is 70000"),
    ],
)
def test_what_is_missing_or_wrong_is_named(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        launched(environ)
