"""The command `node`: one call on each node, by torchrun, srun, mpirun or an Indexed Job, makes one run over all nodes.

Rank 0 carries out the command that follows, as `kvtier-harness` would on one machine, with its workers on all nodes.
The other ranks are agents: they end with exit code 0 when the run is over, whatever its verdict.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from harness.commands.click_types import PATH, SECONDS, Number
from harness.core.inputs import UsageError

COMMAND = "run"


@click.command(name="node", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--rank", type=Number(int, 0, 4095), default=None, help="of this node (default: the launcher's)")
@click.option("--nodes", "size", type=Number(int, 1, 4096), default=None, help="how many (default: the launcher's)")
@click.option("--address", default=None, help="of rank 0 (default: MASTER_ADDR, or the first node of Slurm's list)")
@click.option("--port", type=Number(int, 1, 65535), default=None, help="of rank 0 (default: MASTER_PORT, or 29631)")
@click.option("--root-dir-here", type=PATH, default=None, help="this node's path of --root-dir, where it differs")
@click.option("--join-seconds", type=SECONDS, default=120.0, show_default=True, help="by then all nodes must have come")
@click.option(
    "--visible-seconds",
    type=SECONDS,
    default=65.0,
    show_default=True,
    help="by then each node must see what the others wrote; more than the volume's longest delay",
)
@click.option("--loss-seconds", type=SECONDS, default=15.0, show_default=True, help="a node silent for so long is lost")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def node(
    rank: int | None,
    size: int | None,
    address: str | None,
    port: int | None,
    root_dir_here: str | None,
    join_seconds: float,
    visible_seconds: float,
    loss_seconds: float,
    command: Sequence[str],
) -> None:
    """Run a scenario over several nodes: `node -- run SCENARIO --root-dir ROOT ...`, the same call on each node."""
    from harness.cluster.agent import Agent  # here: `--help` does without
    from harness.cluster.launch import launched
    from harness.cluster.nodes import Nodes
    from harness.cluster.store import torch_store

    name, arguments = _scenario(command)
    launch = launched(os.environ, rank, size, address, port)
    connect, server = torch_store(launch, join_seconds)
    if launch.rank > 0:
        Agent(launch.rank, launch.size, connect, root_dir_here, loss_seconds, join_seconds).serve()
        return
    if root_dir_here is not None:
        raise UsageError("--root-dir-here is for the other ranks; rank 0 names the volume by --root-dir")
    with Nodes.gathered(launch.size, connect, join_seconds, loss_seconds, visible_seconds) as nodes:
        from harness.commands.run import command as run_command

        run_command(name, nodes).main(arguments, prog_name=f"{COMMAND} {name}", standalone_mode=False)
    del server  # it has served until here


def _scenario(command: Sequence[str]) -> tuple[str, list[str]]:
    """The scenario and its arguments. Raises `UsageError`."""
    from harness.scenarios import scenarios

    names = [item.name for item in scenarios() if item.on_nodes]
    if command[0] != COMMAND or len(command) < 2 or command[1] not in names:
        raise UsageError(
            f"what runs on the nodes is {' '.join(command[:2])!r}; valid: {COMMAND} SCENARIO, with one of "
            f"{', '.join(names)}"
        )
    return command[1], list(command[2:])
