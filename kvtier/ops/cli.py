"""The command `kvtier`: inspect, verify, evict and remove below a root, beside running engines. For people and cron."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from kvtier import __version__
from kvtier.config import CapacityConfig, ConfigError, KvtierError, parse_size
from kvtier.exit_codes import KVTIER, ExitCode
from kvtier.fs.block_io import QUARANTINED_FOR
from kvtier.ops.catalog import GONE, Folder, Summary, UnreadableRootError, note, ranks, summarise, verify
from kvtier.ops.evict_command import Evict
from kvtier.ops.gc import remove_run
from kvtier.ops.text import age_text, path_text, size_text
from kvtier.ops.unaccounted_files import Coverage, cover

EXIT_BAD_INPUT = ExitCode.USAGE
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 86400.0  # of `evict --every`
FIELD_TEXT_MAX = 200  # of a field of a run configuration, such as the names of all layers
_EXPECTED: dict[type[Exception], ExitCode] = {UnreadableRootError: ExitCode.IO, KvtierError: ExitCode.USAGE}


class _Group(click.Group):
    """Ends with one sentence and an exit code of docs/exit-codes.md, whatever is raised."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        run = functools.partial(super().main, prog_name=KVTIER.program, standalone_mode=False)
        KVTIER.answer(run, sys.argv[1:] if args is None else args, _EXPECTED)


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    return None if text is None else parse_size(param.opts[0], text)


def _pause(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    seconds = None
    if text is not None:
        with contextlib.suppress(ValueError):
            seconds = float(text)
        if seconds is None or not PAUSE_SECONDS_MIN <= seconds <= PAUSE_SECONDS_MAX:
            limits = f"{PAUSE_SECONDS_MIN:g} to {PAUSE_SECONDS_MAX:g}"
            raise ConfigError(f"{param.opts[0]} is {text!r}; it takes a number of seconds from {limits}")
    return seconds


@click.group(cls=_Group)
@click.version_option(__version__, prog_name=KVTIER.program)
@click.option("--debug", is_flag=True, expose_value=False, help="print the traceback of an error")
def main() -> None:
    """Inspect and maintain a root directory that tiers share."""


@main.command()
@click.argument("root_dir")
@click.option("--quarantined", is_flag=True, help="list the files that were quarantined, too")
@click.option("--aside", is_flag=True, hidden=True)  # the name of an earlier version
@click.option("--json", "as_json", is_flag=True, help="print one JSON object per folder, then one for the root")
def inspect(root_dir: str, quarantined: bool, aside: bool, as_json: bool) -> None:
    """Models, fingerprints, block counts, bytes, ages and writers below ROOT_DIR.

    Exit code 2 when a folder could not be read, when files below ROOT_DIR belong to no readable folder, or when there
    is no kvtier folder at all.
    """
    coverage = cover(root_dir)
    for summary in map(summarise, coverage.folders):
        run = _own_fields(summary.folder, coverage.folders)
        click.echo(json.dumps(_as_dict(summary)) if as_json else _as_text(summary, run))
        for path, status in summary.folder.quarantined() if (quarantined or aside) and not as_json else ():
            click.echo(
                f"    {path_text(path)}: {size_text(status.st_size)}, {age_text(time.time() - status.st_mtime)} old"
            )
    if as_json:
        click.echo(json.dumps({"coverage": coverage.as_dict()}))
    elif coverage.is_complete and not coverage.folders:
        click.echo(f"no blocks below {path_text(root_dir)}: engines have opened it and stored nothing yet")
    _end(coverage, as_json)


def _end(coverage: Coverage, as_json: bool, is_bad: bool = False) -> None:
    """Print what was not seen, and exit: 1 when something is bad, 2 when something was not seen, else 0."""
    for problem in coverage.problems() if not as_json else ():
        click.echo(problem)
    sys.exit(ExitCode.FAIL if is_bad else ExitCode.PASS if coverage.is_complete else ExitCode.INCONCLUSIVE)


@main.command(name="verify")
@click.argument("root_dir")
@click.option("--fix", is_flag=True, help="move what is not the block it should be to quarantine/")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def verify_command(root_dir: str, fix: bool, as_json: bool) -> None:
    """Read every block below ROOT_DIR once and check it. Safe while engines run.

    Exit code 1 when a block is corrupt, or something else has a block's name; 2 when a folder or a block could not be
    read, when files below ROOT_DIR belong to no readable folder, or when there is no kvtier folder at all.
    """
    found: Counter[str] = Counter()
    corrupt: list[dict[str, str]] = []
    coverage = cover(root_dir)
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for folder in coverage.folders:
            total = sum(1 for _ in folder.blocks(any_kind=True))
            task = progress.add_task(folder.mapper.run.model_name, total=total)
            for block, outcome, writer in verify(folder, fix):
                progress.advance(task)
                found["unverified" if outcome.ok and outcome.writer is None else outcome.reason or "right"] += 1
                if outcome.reason is not None and outcome.reason in QUARANTINED_FOR:
                    where = {"path": block.path, "quarantined": outcome.quarantined or ""}
                    corrupt.append({**where, "reason": outcome.reason, "writer": writer.hex() if writer else ""})
                elif outcome.reason is not None and outcome.reason not in GONE:
                    note(coverage.unreadable, block.path, f"cannot be read: {outcome.reason}")
    if as_json:
        click.echo(json.dumps({"blocks": dict(found), "corrupt": corrupt, "coverage": coverage.as_dict()}))
    else:
        for entry in corrupt:
            written = f" (writer {entry['writer']})" if entry["writer"] else ""
            moved = f" -> {entry['quarantined']}" if entry["quarantined"] else ""
            click.echo(f"{entry['reason']}: {path_text(entry['path'])}{written}{moved}")
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.items())) or "no blocks"
        click.echo(f"{sum(found.values()):,} blocks: {counts}")
    _end(coverage, as_json, bool(corrupt))


@main.command()
@click.argument("root_dir")
@click.option(
    "--max-bytes", callback=_size, metavar="SIZE", help="limit of the blocks below ROOT_DIR: 500GB, 10GiB, ..."
)
@click.option("--min-free-bytes", callback=_size, metavar="SIZE", help="space that stays free in its file system")
@click.option("--high-water", default=CapacityConfig.high_water, show_default=True, help="evict above this part of it")
@click.option("--low-water", default=CapacityConfig.low_water, show_default=True, help="... down to this one")
@click.option("--share", "shares", multiple=True, metavar="MODEL=WEIGHT", help="weights of models, 1 unless given")
@click.option(
    "--every", callback=_pause, metavar="SECONDS", help="pause between two rounds; runs until Ctrl-C or SIGTERM"
)
@click.option("--once", is_flag=True, help="until nothing has to be evicted, then end: the default")
@click.option("--dry-run", is_flag=True, help="only print what would be evicted")
@click.option("--json", "as_json", is_flag=True, help="print JSON objects, one per line")
def evict(
    root_dir: str, shares: tuple[str, ...], every: float | None, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Remove the least recently used blocks below ROOT_DIR until it is within its limits, and collect garbage.

    Safe while engines run, and beside other evictors: one of them evicts at a time. Exit code 0: the root is within its
    limits; 1: it is not (with --dry-run: blocks would be evicted); 2: not known: another evictor held the lease, a
    folder could not be read, files below ROOT_DIR belong to no readable folder, or there is no kvtier folder at all.
    """
    if given.pop("once") and every:
        raise ConfigError("--once and --every are both given; choose one")
    if dry_run and every:
        raise ConfigError("--dry-run and --every are both given; choose one")
    command = Evict(root_dir, CapacityConfig(shares=_shares(shares), **given), as_json)
    sys.exit(command.dry_run() if dry_run else command.every(every) if every else command.once())


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


@main.command()
@click.argument("root_dir")
@click.argument("folder")
@click.option("--yes", is_flag=True, help="remove; without it, only print what would be removed")
def remove(root_dir: str, folder: str, yes: bool) -> None:
    """Remove all blocks of one run configuration: FOLDER is its folder's name below ROOT_DIR, or the fingerprint in it.

    No engine may be using it: its loads stay right, but blocks that it stores afterwards would belong to no folder.
    """
    coverage = cover(root_dir)
    known = {os.path.basename(base): base for base in (*coverage.bases, *coverage.damaged_bases())}
    chosen = [base for name, base in known.items() if folder in (name, name.rpartition("_")[2])]
    if len(chosen) != 1:
        choices = ", ".join(map(path_text, known)) or f"none ({'; '.join(coverage.problems()) or 'it is empty'})"
        raise ConfigError(f"folder is {folder!r}; valid choices: {choices}")
    (base,) = chosen
    for found in (found for found in coverage.folders if found.mapper.base_path == base):
        click.echo(_as_text(summarise(found, trailers_max=0)))
    if base not in coverage.bases:
        size = sum(coverage.largest[path] for path in (base, *ranks(base)))
        click.echo(
            f"{path_text(base)}: {size_text(size)} in it and in its ranks' folders; its config.json is unreadable"
        )
    if not yes:
        click.echo(
            f"nothing is removed; to remove it, for ever: kvtier remove {root_dir} {os.path.basename(base)} --yes"
        )
        return
    try:
        remove_run(base)
    except OSError as error:
        click.echo(f"kvtier: not all of {path_text(base)} could be removed: {error}", err=True)
        sys.exit(ExitCode.IO)
    click.echo(f"removed {base} and the blocks of its ranks")


def _own_fields(folder: Folder, folders: Sequence[Folder]) -> str:
    """The fields of a run configuration that differ between the run configurations of its model; "" without others."""
    of_model = [one.mapper.fields for one in folders if one.mapper.run.model_name == folder.mapper.run.model_name]
    names = dict.fromkeys(name for fields in of_model for name in fields)
    differing = [name for name in names if any(f.get(name) != of_model[0].get(name) for f in of_model)]
    own = folder.mapper.fields
    texts = {name: json.dumps(own[name]) if name in own else "not set" for name in differing}
    return ", ".join(f"{name} {textwrap.shorten(text, FIELD_TEXT_MAX)}" for name, text in texts.items())


def _as_text(summary: Summary, run: str = "") -> str:
    mapper, record = summary.folder.mapper, summary.folder.record
    lines = {"run": run} if run else {}
    lines["blocks"] = f"{summary.blocks:,}, {size_text(summary.bytes)}"
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
        lines["left over"] = f"{summary.temps:,} temp files, {summary.quarantined:,} quarantined files"
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
