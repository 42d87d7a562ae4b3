"""The command `kvtier`: look at a root, check it, keep it small, beside running engines. For people and cron jobs."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from kvtier import __version__
from kvtier.capacity import Capacity, Evicted
from kvtier.config import CapacityConfig, ConfigError, KvtierError, parse_size
from kvtier.entry import KVTIER, ExitCode
from kvtier.layout import check_root
from kvtier.removal import remove_run
from kvtier.survey import Folder, Summary, bases, folders, summarise, verify

EXIT_BAD_INPUT = ExitCode.USAGE
STUCK_SECONDS = 10.0  # `evict --once` gives up when for so long nothing goes


class _Group(click.Group):
    """Ends with one sentence and an exit code of docs/exit-codes.md, whatever is raised."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        run = functools.partial(super().main, prog_name=KVTIER.program, standalone_mode=False)
        KVTIER.answer(run, sys.argv[1:] if args is None else args, {KvtierError: ExitCode.USAGE})


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    return None if text is None else parse_size(param.opts[0], text)


@click.group(cls=_Group)
@click.version_option(__version__, prog_name=KVTIER.program)
@click.option("--debug", is_flag=True, expose_value=False, help="print the traceback of an error")
def main() -> None:
    """Look after a root directory that tiers share."""


@main.command()
@click.argument("root_dir")
@click.option("--aside", is_flag=True, help="list the files that were set aside, too")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object per folder")
def inspect(root_dir: str, aside: bool, as_json: bool) -> None:
    """Models, fingerprints, block counts, bytes, ages and writers below ROOT_DIR."""
    summaries = [summarise(folder) for folder in folders(root_dir)]
    if as_json:
        for summary in summaries:
            click.echo(json.dumps(_as_dict(summary)))
        return
    for summary in summaries:
        click.echo(_as_text(summary))
        for path, status in summary.folder.quarantined() if aside else ():
            click.echo(f"    {path}: {size_text(status.st_size)}, {age_text(time.time() - status.st_mtime)} old")
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


@main.command()
@click.argument("root_dir")
@click.option(
    "--max-bytes", callback=_size, metavar="SIZE", help="the blocks below ROOT_DIR take no more: 500GB, 10GiB, ..."
)
@click.option("--min-free-bytes", callback=_size, metavar="SIZE", help="so much stays free in its file system")
@click.option("--high-water", default=CapacityConfig.high_water, show_default=True, help="evict above this part of it")
@click.option("--low-water", default=CapacityConfig.low_water, show_default=True, help="... down to this one")
@click.option("--share", "shares", multiple=True, metavar="MODEL=WEIGHT", help="weights of models, 1 unless given")
@click.option("--every", type=click.FloatRange(0.1), metavar="SECONDS", help="go on for ever, with such pauses")
@click.option("--once", is_flag=True, help="until nothing has to go, then end: the default")
@click.option("--dry-run", is_flag=True, help="only say what would go")
@click.option("--json", "as_json", is_flag=True, help="print JSON objects, one per line")
def evict(
    root_dir: str, shares: tuple[str, ...], every: float | None, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Remove the least recently used blocks below ROOT_DIR until it is within its limits, and what dead writers left.

    Safe while engines run, and beside other evictors: one of them works at a time. Exit code 0: the root is within its
    limits; 1: it is not (with --dry-run: something would go); 2: unknown, since another evictor is always at work.
    """
    if given.pop("once") and every:
        raise ConfigError("--once and --every are both given; choose one")
    capacity = Capacity(root_dir, CapacityConfig(shares=_shares(shares), **given))
    check_root(root_dir)
    if dry_run:
        plan = capacity.plan()
        for measured, quota, cutoff in plan.quotas:
            folder = measured.folder
            what = {"model": folder.mapper.run.model_name, "rank": folder.mapper.rank, "bytes": round(quota)}
            unused = max(0.0, time.time() - cutoff)
            text = f"would evict about {size_text(quota)} of {what['model']}, rank {what['rank']}, not used for "
            text += f"{age_text(unused)} ({plan.reason})"
            click.echo(json.dumps({**what, "unused_seconds": unused, "reason": plan.reason}) if as_json else text)
        if not (plan.quotas or as_json):
            click.echo("nothing has to go")
        sys.exit(1 if plan.quotas else 0)
    while True:
        evicted = _settle(capacity)
        if not every:
            capacity.sweep_for(math.inf)
        _say_evicted(capacity, evicted, as_json)
        if not every:
            sys.exit(2 if capacity.root is None else 1 if capacity.excess_bytes > 0 else 0)
        time.sleep(every)


def _shares(texts: tuple[str, ...]) -> dict[str, float]:
    shares = {}
    for text in texts:
        model, _, weight = text.rpartition("=")
        try:
            shares[model] = float(weight)
        except ValueError:
            model = ""
        if not model:
            raise ConfigError(f"--share is {text!r}; it takes MODEL=WEIGHT, such as org/model=2")
    return shares


def _settle(capacity: Capacity) -> list[Evicted]:
    """Rounds until nothing has to go, or nothing goes."""
    evicted: list[Evicted] = []
    least, since = math.inf, time.monotonic()
    while True:
        pause = capacity.step()
        evicted += (new := capacity.take_facts())
        size = capacity.root.bytes if capacity.root else math.inf
        now = time.monotonic()
        if new or size < least:
            least, since = size, now
        if (capacity.root and capacity.excess_bytes <= 0) or now - since > STUCK_SECONDS:
            return evicted
        time.sleep(pause)


def _say_evicted(capacity: Capacity, evicted: list[Evicted], as_json: bool) -> None:
    root, swept = capacity.root, capacity.swept_files
    capacity.swept_files = 0
    files, size = sum(one.files for one in evicted), sum(one.bytes for one in evicted)
    ages = [age for one in evicted for age in one.ages_seconds]
    reasons = sorted({one.reason for one in evicted})
    if as_json:
        gone = {"evicted_files": files, "evicted_bytes": size, "reasons": reasons, "swept_files": swept}
        gone |= {"least_age_seconds": min(ages, default=None)}
        gone |= {"rounds": [(one.started_seconds, one.finished_seconds) for one in evicted]}  # time.monotonic()
        left = root and {**root._asdict(), "excess_bytes": capacity.excess_bytes}
        click.echo(json.dumps({**gone, "root": left}))
        return
    if files:
        span = f"last used {age_text(min(ages))} to {age_text(max(ages))} ago"
        click.echo(f"evicted {files:,} blocks, {size_text(size)}, {span} ({', '.join(reasons)})")
    if swept:
        click.echo(f"swept {swept:,} files that dead writers left, or beyond what quarantine may hold")
    if root is None:
        click.echo("another evictor has been at work all the time; nothing was done")
    else:
        over = f"; {size_text(capacity.excess_bytes)} too many" if capacity.excess_bytes > 0 else ""
        click.echo(f"left: {root.files:,.0f} blocks, {size_text(root.bytes)}{over}")


@main.command()
@click.argument("root_dir")
@click.argument("folder")
@click.option("--yes", is_flag=True, help="do it; without it, only say what would go")
def remove(root_dir: str, folder: str, yes: bool) -> None:
    """Remove all blocks of one run configuration: FOLDER is its folder's name below ROOT_DIR, or the fingerprint in it.

    No engine may be using it: what it has loaded stays right, but what it stores afterwards would belong to nobody.
    """
    known = {os.path.basename(base): base for base in bases(root_dir)}
    chosen = [base for name, base in known.items() if folder in (name, name.rpartition("_")[2])]
    if len(chosen) != 1:
        raise ConfigError(
            f"folder is {folder!r}; valid choices: {', '.join(known) or 'none, the root holds no blocks'}"
        )
    (base,) = chosen
    for found in (found for found in folders(root_dir) if found.mapper.base_path == base):
        click.echo(_as_text(summarise(found, trailers_max=0)))
    if not yes:
        click.echo(
            f"nothing is removed; to remove it, for ever: kvtier remove {root_dir} {os.path.basename(base)} --yes"
        )
        return
    try:
        remove_run(base)
    except OSError as error:
        click.echo(f"kvtier: not all of {base} could be removed: {error}", err=True)
        sys.exit(1)
    click.echo(f"removed {base} and the blocks of its ranks")


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
