"""`kvtier-harness clean ROOT_DIR`: lists and removes the folders that killed runs left; a run mentions them first."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

import click

from harness.commands.click_types import PATH
from harness.core.inputs import UsageError
from harness.core.run_root import Left, left_behind, remove, size


@click.command()
@click.argument("root_dir", type=PATH)
@click.option("--yes", is_flag=True, help="remove them; without it, they are only listed")
@click.option("--other-hosts", is_flag=True, help="also those of other hosts, whose runs this host cannot see")
def clean(root_dir: str, yes: bool, other_hosts: bool) -> None:
    """List or remove the folders harness-* that killed runs left in ROOT_DIR.

    Only folders that carry the harness's mark (.harness-*.json beside them) and whose run no longer lives. Nothing
    else in ROOT_DIR is touched, and no link is followed. A kept folder (--keep) carries no mark.
    """
    if not os.path.isdir(root_dir):
        raise UsageError(f"ROOT_DIR is {root_dir!r}, which is not a directory")
    found = left_behind(root_dir)
    chosen = [left for left in found if left.state == "killed" or (other_hosts and left.state == "other host")]
    for left in found:
        what = f"{left.path.name}: {size_text([left])}, run of {left.mark.started}"
        if left.state == "live":
            click.echo(f"{what}: not removed, its run lives (process {left.mark.pid} on {left.mark.host})")
        elif left not in chosen:
            click.echo(f"{what}: not removed, its run was on host {left.mark.host!r}; to include it: --other-hosts")
        elif yes:
            remove(left)
            click.echo(f"{what}: removed")
        else:
            click.echo(what)
    if not chosen:
        click.echo(f"no folder of a killed run in {root_dir}")
    elif not yes:
        options = " --other-hosts" * other_hosts
        click.echo(f"nothing is removed; to remove: {command(root_dir)}{options}")


def notice(root_dir: str | None) -> None:
    """Says on stderr, in one line, what killed runs left in the root of a run that is about to start."""
    left = [one for one in left_behind(root_dir) if one.state == "killed"] if root_dir else []
    if root_dir and left:
        folders = "1 folder of a killed run" if len(left) == 1 else f"{len(left)} folders of killed runs"
        text = f"{folders} in {root_dir} ({size_text(left)}); to remove: {command(root_dir)}"
        print(f"kvtier-harness: {text}", file=sys.stderr)


def command(root_dir: str) -> str:
    return shlex.join(["kvtier-harness", "clean", root_dir, "--yes"])


def size_text(left: Sequence[Left]) -> str:
    """Files and bytes of folders, for a message."""
    sizes = [size(one.path) for one in left]
    least = "" if all(complete for _, _, complete in sizes) else "at least "
    files = sum(files for files, _, _ in sizes)
    return f"{least}{sum(s[1] for s in sizes) / (1 << 20):,.1f} MiB in {files:,} file{'s' * (files != 1)}"
