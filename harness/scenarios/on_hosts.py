"""A scenario's context whose processes run on the hosts of a volume, in turn: process 0 on host 0, 1 on host 1, 2 on
host 0.

Any scenario that starts its processes through the context runs on it unchanged; `shared_volume` makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.hosts.base import Host, Volume
from harness.runtime.supervisor import Child
from harness.runtime.worker import Instruction
from harness.scenarios.base import Context, Scenario


@dataclass
class OnHosts(Context):
    """`root_dir` is the root as this machine sees it, below `volume.seen_here`; each host has a path of its own."""

    volume: Volume = field(kw_only=True)

    def host(self, process: int) -> Host:
        """Where a process runs."""
        return self.volume.hosts[process % len(self.volume.hosts)]

    def processes(self, host: Host, among: range) -> list[int]:
        """Those of `among` that run on a host."""
        return [process for process in among if self.host(process) is host]

    def start(
        self,
        process: int,
        driver: str = "replay",
        arguments: Mapping[str, Any] | None = None,
        env: Mapping[str, str | None] | None = None,
        **changes: Any,
    ) -> Child:
        host = self.host(process)
        root = Path(changes.pop("root_dir", self.root_dir))
        if root.is_relative_to(self.volume.seen_here):
            root = host.mount / root.relative_to(self.volume.seen_here)
        setup = self.setup(process, root_dir=str(root), **changes)
        instruction = Instruction(self.options.tier, setup, dict(arguments or {}), driver)
        return self.workers.start(instruction, env, host.python(self.python))


def placed(scenario: Scenario, volume: Volume) -> Scenario:
    """The same scenario with its processes on the volume's hosts."""

    def run(context: Context, plan: Any) -> None:
        there = OnHosts(
            context.options,
            context.run_dir,
            context.root_dir,
            context.workers,
            context.python,
            volume.sees_mounts,
            volume=volume,
        )
        try:
            scenario.run(there, plan)
        finally:
            there.close()

    return dataclasses.replace(scenario, run=run)
