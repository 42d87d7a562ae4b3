"""`kvtier-harness docs filesystems RUN...` prints the tables of docs/filesystems.md from runs of `outage` and
`power_loss`.

Every value comes from the runs' folders. The text of the page is written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.report.verdict_text import VERDICT_WORDS
from harness.runner import judge


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def volume_table(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """One column per run: what `volume.json` and the verdict of "outage" hold."""
    rows: dict[str, list[str]] = {}

    def add(name: str, text: str) -> None:
        rows.setdefault(name, []).append(text)

    for facts, verdict in runs:
        data = verdict["data"]
        add("mount options", facts["mount_options"])
        for what, said in facts["abilities"].items():
            add(what, said)
        add("the volume: visible, never looked up before", _seconds(facts["visible unasked seconds"]))
        add("the volume: visible, seen as missing before", _seconds(facts["visible missed seconds"]))
        add("the same, its directory opened before each look", _seconds(facts["visible missed, folder seconds"]))
        add("the volume: a removed file seems there for", _seconds(facts["gone seconds"]))
        for what, seconds in data["visible_seconds"].items():
            add(f"the tier: visible, {what}", _seconds(seconds))
        add("bound that the harness checks", _seconds(verdict["bound"]))
        for what, text in (("cut", "a host cut off"), ("power", "a host's power lost"), ("server", "server restarted")):
            add(f"{text}: works again after", _seconds(data["recovery_seconds"].get(what)))
        for what, text in (("cut", "a host cut off"), ("power", "a host's power lost")):
            add(f"{text}: the other host waits for", _seconds(data["others_waited_seconds"].get(what)))
        add("a host cut off: longest that a call hung", _seconds(data["hung_seconds"].get("cut", 0.0)))
        add("threads replaced at a time, in one process", f"{data['threads_hung']:g}")
        add("blocks that failed in all outages", str(data.get("failed blocks", 0)))
        add("reported blocks lost with a host's power", str(data.get("lost with the power", 0)))
        add("throughput to local, write / read", f"{facts['write ratio']:.2f} / {facts['read ratio']:.2f}")
        add("verdict of outage", VERDICT_WORDS[verdict["value"]])
    names = [facts["file_system"] for facts, _ in runs]
    return [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"] + [
        f"| {name} | {' | '.join(values)} |" for name, values in rows.items()
    ]


def power_table(cases: list[dict[str, Any]]) -> list[str]:
    """One line per case."""
    names = ("failure", "file_system", "way", "reported", "present", "missing", "damaged", "wrong")
    heads = ("power fails by", "file system", "stores", *names[3:])
    return [f"| {' | '.join(heads)} |", "|---" * len(names) + "|"] + [
        f"| {' | '.join(str(case[name]) for name in names)} |" for case in cases
    ]


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(runs: tuple[Path, ...]) -> None:
    """Print the tables of docs/filesystems.md from these run folders."""
    volumes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    cases: list[dict[str, Any]] = []
    for run in runs:
        verdict = judge(run).verdicts[0]
        if verdict["name"] == "power_loss":
            cases += verdict["data"]["cases"]
        else:
            options = json.loads((run / "options.json").read_text())
            bound = {"bound": options["visible_seconds_max"]}
            volumes.append((json.loads((run / "volume.json").read_text()), verdict | bound))
    for table in (volume_table(volumes) if volumes else [], power_table(cases) if cases else []):
        click.echo("\n".join(table))
