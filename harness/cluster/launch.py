"""Rank, number of nodes, and the address of rank 0, from the variables that a launcher sets; no launcher is called.

In this order: RANK and WORLD_SIZE (torchrun, or set by hand), SLURM_PROCID (srun), OMPI_COMM_WORLD_RANK (mpirun),
JOB_COMPLETION_INDEX (Kubernetes Indexed Job). MASTER_ADDR and MASTER_PORT name rank 0 for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.core.inputs import UsageError

PORT = 29631
"""Of rank 0, where nothing says otherwise."""
NODES_MAX = 4096


@dataclass(frozen=True)
class Launch:
    """This node's place among all nodes. `given_store`: the launcher itself serves a store at the address.

    `name` separates what several launches put into one such store.
    """

    rank: int
    size: int
    address: str
    port: int
    given_store: bool = False
    name: str = ""


def launched(
    environ: Mapping[str, str],
    rank: int | None = None,
    size: int | None = None,
    address: str | None = None,
    port: int | None = None,
) -> Launch:
    """The place that the variables give, or the arguments where they are not None. Raises `UsageError`."""
    found_rank, found_size, found_address = _from_launcher(environ)
    rank = found_rank if rank is None else rank
    size = found_size if size is None else size
    if rank is None or size is None:
        raise UsageError(
            f"the {'rank of this node' if rank is None else 'number of nodes'} is unknown: start `kvtier-harness node` "
            f"by torchrun, srun, mpirun or a Kubernetes Indexed Job with WORLD_SIZE, or give --rank and --nodes"
        )
    if not 0 <= rank < size <= NODES_MAX:
        raise UsageError(f"rank {rank} of {size} nodes; ranks are 0 to the number of nodes - 1, at most {NODES_MAX}")
    address = address or environ.get("MASTER_ADDR") or found_address
    if not address:
        if size > 1:
            raise UsageError("the address of rank 0 is unknown; give --address, or set MASTER_ADDR on all nodes")
        address = "127.0.0.1"
    port = _number(environ, "MASTER_PORT") or PORT if port is None else port
    if not 0 < port < 65536:
        raise UsageError(f"MASTER_PORT is {port}; valid: 1 to 65535")
    given = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    name = f"{environ.get('TORCHELASTIC_RUN_ID', '')}/{environ.get('TORCHELASTIC_RESTART_COUNT', '')}" if given else ""
    return Launch(rank, size, address, port, given, name)


def _from_launcher(environ: Mapping[str, str]) -> tuple[int | None, int | None, str | None]:
    for rank, size, address in (
        ("RANK", "WORLD_SIZE", None),
        ("SLURM_PROCID", "SLURM_NTASKS", _first_node(environ.get("SLURM_STEP_NODELIST", ""))),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
        ("JOB_COMPLETION_INDEX", "WORLD_SIZE", None),
    ):
        if rank in environ:
            return _number(environ, rank), _number(environ, size), address
    return None, _number(environ, "WORLD_SIZE"), None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}; it takes an integer") from None


def _first_node(node_list: str) -> str | None:
    """The first host of Slurm's list: "n1" of "n1,n2", "gpu07-ib" of "gpu[07-09,12]-ib"."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", node_list)
    return "".join(part or "" for part in match.groups()) if match else None
