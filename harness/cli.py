"""The command line: `kvtier-harness`, also `python -m harness`. Names every sub-command and the module that holds it.

A sub-command's module is imported when the sub-command is called: `--help` and `--version` need click alone.
docs/exit-codes.md has the exit codes.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence

import click

from harness.commands.lazy import LazyGroup, member
from harness.entry_point import HARNESS, VERSION, ExitCode

COMMANDS = {
    "run": member("harness.commands.run:run_group", "Run a scenario against a tier and judge it."),
    "node": member("harness.commands.node:node", "Run a scenario over several nodes: one call on each."),
    "conform": member("harness.commands.conform:conform", "Run the contract and all scenarios on one tier."),
    "explore": member(
        "harness.commands.explore:explore", "Run small programs in each order of their system calls that can differ."
    ),
    "list": member("harness.commands.listing:list_all", "List scenarios, tiers and mutants."),
    "check": member("harness.commands.check:check", "Judge a recorded run again."),
    "report": member("harness.commands.report:report", "Write the report of a recorded run again."),
    "compare": member("harness.commands.compare:compare_runs", "Compare two recorded runs."),
    "watch": member("harness.commands.watch:watch", "Judge a root that live engines use, from outside."),
    "observe": member(
        "harness.commands.observe:observe", "Run the scenario load with Prometheus and Grafana beside it."
    ),
    "clean": member("harness.commands.clean:clean", "List or remove the folders that killed runs left in a root."),
    "install-peer": member("harness.commands.install_peer:install_peer", "Install a peer's tier in a folder."),
    "findings": member("harness.commands.findings:findings", "Compare vLLM's tier with kvtier, case by case."),
    "conformance": member("harness.commands.conformance:conformance", "Judge tiers of other projects by one suite."),
    "mutants": member("harness.commands.mutants:mutants", "Run tiers with a known defect: each must be detected."),
    "false-alarms": member("harness.commands.false_alarms:false_alarms", "Run correct tiers: each run must pass."),
    "shared-volume": member(
        "harness.commands.shared_volume:shared_volume", "Run scenarios on two hosts that share a network file system."
    ),
    "e2e-vllm": member("harness.e2e.run:main", "Run real vLLM engines on one root."),
    "bench": member("harness.bench.commands:bench", "Measure tiers, side by side or against an earlier commit."),
    "overhead": member("harness.bench.overhead:main", "Measure the overhead of metrics and tracing."),
    "docs": member("harness.commands.docs:docs", "Write generated pages of docs/."),
}
EXPECTED = {
    "harness.core.inputs:UsageError": ExitCode.USAGE,
    "harness.adapters:UnknownTier": ExitCode.USAGE,
    "harness.adapters.base:PeerMissing": ExitCode.INCONCLUSIVE,
    "harness.monitoring.live_dashboards:NoDashboards": ExitCode.INCONCLUSIVE,
    "harness.monitoring.live_dashboards:NoPrometheus": ExitCode.INCONCLUSIVE,
    "harness.cluster.store:ClusterLost": ExitCode.IO,
    "harness.commands.install_peer:InstallFailed": ExitCode.IO,
}
"""Exceptions whose text is a sentence for the user. Where one was raised, its module has been imported."""


@click.group(cls=LazyGroup, members=lambda: COMMANDS)
@click.version_option(VERSION, prog_name=HARNESS.program)
@click.option("--debug", is_flag=True, expose_value=False, help="print the traceback of an error")
def cli() -> None:
    """Judge tiered KV-cache offload managers: several processes, one root, a verdict."""


def main(arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Carries out the command and ends the process with its exit code."""
    expected: dict[type[Exception], ExitCode] = {}

    def carry_out(arguments: Sequence[str]) -> object:
        try:
            return cli.main(list(arguments), prog_name=HARNESS.program, standalone_mode=False)
        except Exception:
            expected.update(_imported())
            raise

    HARNESS.answer(carry_out, sys.argv[1:] if arguments is None else arguments, expected)


def _imported() -> dict[type[Exception], ExitCode]:
    """`EXPECTED`, as far as its modules have been imported."""
    found = {}
    for place, code in EXPECTED.items():
        module, _, name = place.partition(":")
        if module in sys.modules:
            found[getattr(sys.modules[module], name)] = code
    return found
