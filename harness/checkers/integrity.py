"""Whether every loaded byte is right. The worker compared each block of each load reported ok with its content.

Judged: each block reported loaded, also of jobs that failed in part.

Not covered: blocks reported failed (the content of their slots is undefined), blocks that were never loaded, blocks
served from memory without a job.

false: any wrong block. unknown: no block was verified.
"""

from __future__ import annotations

from collections import Counter

from harness.checkers.base import Findings, Rule, Value, Verdict, of_job
from harness.core.history import History

BYTES = Rule(
    "integrity/bytes",
    "Each block of a load that was reported ok holds exactly its bytes, which follow from what it is.",
)
RULES = (BYTES,)


def check(history: History) -> Verdict:
    """Judges `jobs`."""
    findings = Findings(RULES)
    verified = verified_bytes = loads = 0
    kinds: Counter[str] = Counter()
    for job in history.jobs:
        if job.direction == "load":
            loads += 1
            verified += len(job.ok)
            verified_bytes += job.bytes_ok
        for block, how in job.wrong:
            kinds[how.partition(":")[0]] += 1
            findings.add(
                f"block {block}, loaded by process {job.process} in job {job.job_id}: {how}",
                rule=BYTES,
                **of_job(job, block=block, expected=f"the content of block {block}", seen=how),
            )
    value: Value = "false" if findings else "true" if verified else "unknown"
    figure = f"{verified} blocks of {loads} load jobs checked byte for byte, {findings.count} wrong"
    data = {
        "blocks_verified": verified,
        "bytes_verified": verified_bytes,
        "blocks_wrong": findings.count,
        "wrong_by_kind": dict(kinds),
    }
    return Verdict("integrity", value, figure, findings.list(), data)
