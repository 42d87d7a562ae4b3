"""The command `kvtier`: look at a root, and check it, beside running engines. For people and for cron jobs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from kvtier import __version__
from kvtier.config import KvtierError
from kvtier.survey import Folder, Summary, folders, summarise, verify

EXIT_BAD_INPUT = 64  # as the harness: told apart from findings


class _Group(click.Group):
    """Turns kvtier's errors into one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KvtierError as error:
            click.echo(f"kvtier: {error}", err=True)
            sys.exit(EXIT_BAD_INPUT)


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Look after a root directory that tiers share."""


@main.command()
@click.argument("root_dir")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object per folder")
def inspect(root_dir: str, as_json: bool) -> None:
    """Models, fingerprints, block counts, bytes, ages and writers below ROOT_DIR."""
    summaries = [summarise(folder) for folder in folders(root_dir)]
    if as_json:
        for summary in summaries:
            click.echo(json.dumps(_as_dict(summary)))
        return
    for summary in summaries:
        click.echo(_as_text(summary))
    if not summaries:
        click.echo(f"no blocks below {root_dir}: no folder holds a config.json")


@main.command(name="verify")
@click.argument("root_dir")
@click.option("--fix", is_flag=True, help="set aside what is not the block it should be (into quarantine/)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def verify_command(root_dir: str, fix: bool, as_json: bool) -> None:
    """Read every block below ROOT_DIR once and check it. Safe while engines run. Exit code 1 when one is corrupt."""
    found: Counter[str] = Counter()
    corrupt: list[dict[str, str]] = []
    selected = list(folders(root_dir))
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for folder in selected:
            total = sum(1 for _ in folder.blocks())
            task = progress.add_task(folder.mapper.run.model_name, total=total)
            for block, outcome in verify(folder, fix):
                progress.advance(task)
                found["unverified" if outcome.ok and outcome.writer is None else outcome.reason or "right"] += 1
                if not outcome.ok and outcome.reason != "ENOENT":  # gone meanwhile: evicted, nothing wrong
                    corrupt.append(
                        {"path": block.path, "reason": outcome.reason or "", "set_aside": outcome.set_aside or ""}
                    )
    if as_json:
        click.echo(json.dumps({"blocks": dict(found), "corrupt": corrupt}))
    else:
        for entry in corrupt:
            where = f" -> {entry['set_aside']}" if entry["set_aside"] else ""
            click.echo(f"{entry['reason']}: {entry['path']}{where}")
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.items())) or "no blocks"
        click.echo(f"{sum(found.values()):,} blocks: {counts}")
    sys.exit(1 if corrupt else 0)


def size_text(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def age_text(seconds: float) -> str:
    """Seconds for people."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _as_text(summary: Summary) -> str:
    mapper, record = summary.folder.mapper, summary.folder.record
    lines = {"blocks": f"{summary.blocks:,}, {size_text(summary.bytes)}"}
    if summary.blocks:
        lines["last used"] = f"{age_text(summary.newest_seconds)} to {age_text(summary.oldest_seconds)} ago"
    if record:
        lines["hash"] = f"{record.get('hash_algorithm')}, seed digest {str(record.get('none_hash_digest'))[:8]}"
    else:
        lines["hash"] = "not recorded: kvtier has not opened this folder"
    if len(summary.seeds) > 1:
        counts = ", ".join(f"{seed[:8]} ({blocks:,} blocks)" for seed, blocks in summary.seeds.most_common())
        lines["MISMATCH"] = f"writers with different seeds share nothing: {counts}"
    writers = []
    if summary.writers:
        writers.append(f"{len(summary.writers)} instance{'s' * (len(summary.writers) > 1)} of kvtier")
    if summary.unsealed:
        writers.append(f"vLLM ({summary.unsealed:,} blocks without trailer)")
    if writers:
        sampled = "" if summary.sampled == summary.blocks else f", of {summary.sampled:,} blocks sampled"
        lines["writers"] = " and ".join(writers) + sampled
    if summary.temps or summary.quarantined:
        lines["left over"] = f"{summary.temps:,} temp files, {summary.quarantined:,} files set aside"
    head = f"{mapper.run.model_name}, rank {mapper.rank}: {mapper.blocks_path}"
    return "\n".join([head, *(f"  {name:<10} {text}" for name, text in lines.items())])


def _as_dict(summary: Summary) -> dict[str, Any]:
    folder: Folder = summary.folder
    return {
        "fields": folder.mapper.fields,
        "fingerprint": folder.mapper.digest,
        "rank": folder.mapper.rank,
        "path": folder.mapper.blocks_path,
        "record": folder.record,
        "blocks": summary.blocks,
        "bytes": summary.bytes,
        "newest_seconds": summary.newest_seconds,
        "oldest_seconds": summary.oldest_seconds,
        "writers": dict(summary.writers),
        "seeds": dict(summary.seeds),
        "unsealed": summary.unsealed,
        "sampled": summary.sampled,
        "temps": summary.temps,
        "quarantined": summary.quarantined,
    }
