"""The command `watch`: judges a root that live engines use, from outside, by looking at it again and again."""

from __future__ import annotations

import sys
import time

import click

from harness.commands.click_types import ADDRESS, PATH, PAUSE, SECONDS
from harness.core.inputs import UsageError
from harness.monitoring.audit import RootUnreadable, Watch, age_text
from harness.report.verdict_text import VERDICT_WORDS
from harness.runner import EXIT_CODES


@click.command()
@click.argument("root_dir", type=PATH)
@click.option("--seconds", type=SECONDS, default=60.0, show_default=True, help="how long to watch")
@click.option("--every", type=PAUSE, default=5.0, show_default=True, help="seconds between two looks")
@click.option(
    "--metrics", type=ADDRESS, multiple=True, metavar="HOST:PORT", help="an engine's /metrics, for cross-process hits"
)
@click.option(
    "--window",
    type=SECONDS,
    default=3600.0,
    show_default=True,
    help="files in quarantine and old temp files count from so many seconds before the watch on; 0: from its start",
)
def watch(root_dir: str, seconds: float, every: float, metrics: tuple[str, ...], window: float) -> None:
    """Judge a root that live engines use, from outside. Exit code 1 when something is wrong, 2 when nothing moved or
    something could not be read."""
    watching, deadline = Watch(root_dir, metrics, window), time.monotonic() + seconds
    findings: dict[str, None] = {}
    moved = older = 0
    try:
        while True:
            now = watching.look()
            moved += now.new_blocks
            older += now.older
            findings |= dict.fromkeys(now.findings)
            hits = "" if now.cross_process_hits is None else f", {now.cross_process_hits:,.0f} cross-process hits"
            rate = f"{now.new_blocks / now.seconds:.1f} new/s" if now.seconds else "first look"
            print(
                f"{now.blocks:,} blocks, {now.bytes / 2**20:,.0f} MiB, {rate}, {now.gone_blocks:,} gone, "
                f"{len(now.writers)} writers, {now.verified:,} verified{hits}, findings: {len(findings)}",
                flush=True,
            )
            if (left := deadline - time.monotonic()) <= 0:
                break
            time.sleep(min(every, left))
    except RootUnreadable as error:
        raise UsageError(str(error)) from error
    for finding in findings:
        print(f"  {finding}")
    for path, problem in now.unreadable.items():
        print(f"  not judged: {path} {problem}")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(watching.since_seconds))
    if older:
        files = f"{older:,} file{'s' * (older != 1)}"
        print(f"not judged: {files} in quarantine or unpublished since before {since}; to judge older ones: --window")
    verdict = "false" if findings else "true" if moved and not now.unreadable else "unknown"
    judged = f"files in quarantine judged since {since} ({age_text(window)} before the watch)"
    print(f"verdict {VERDICT_WORDS[verdict]}; {judged}")
    sys.exit(EXIT_CODES[verdict])
