"""Whether processes find each other's blocks. The hit ratio is compared with two oracles of the replayed requests.

Upper oracle: one endless shared cache. Lower oracle: one endless cache for each process. Both depend on which process
got which request, not on the order: of a block every reference but the first can hit. A reference that could hit and
did not is *lost*. The first missing block of its request gives the reason:
- in flight: no store of that block had ended when the request looked it up; both processes computed it;
- not stored: no store of it succeeded (refused, failed, or the process was killed);
- load failed: a load of it in this request failed, so it was computed again;
- no room: the tier reports that it had blocks of this request and no free slot to load them into;
- given up: the run ended before the request did;
- not looked up: the request stored its blocks at once, so that processes store them at the same time;
- evicted: the tier has reported evictions since its store, and each evicted block explains one lost block;
- unexplained: it was stored, and was not found.

true: there are hits that need another process, no more hits than the upper oracle has, and no unexplained loss.
false: more hits than the upper oracle, or an unexplained loss.
unknown: no block to share in this traffic, one process, nothing stored, at least half of what sharing adds to private
caches lost because no slot was free, or no hit although every loss is explained.

Not covered: whether hits had the right bytes (integrity), how fast sharing is, tiers that evict. With a root that was
filled before the run (`warm_root` in its options) the upper bound is not judged.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from harness.checkers.base import About, Finding, Findings, Rule, Value, Verdict, percent, some
from harness.checkers.evictions import Evictions
from harness.core.history import History, Request
from harness.core.request_traces import oracle_hit_ratio

REASONS = {
    "in flight": "store still running",
    "not stored": "never stored",
    "load failed": "load failed",
    "no room": "no free slot",
    "given up": "run ended",
    "not looked up": "stored without a lookup",
    "evicted": "evicted",
    "unexplained": "unexplained",
}
"""Why a possible hit was missed, and what the figure calls it."""

FOUND = Rule(
    "sharing/stored-is-found",
    "A block whose store was reported ok before a request started is a hit for that request, in any process.",
    "losses with a known cause: a load that failed, no free slot, a request that the end of the run cut off, an "
    "evicted block. Volumes that cache names need the scenario `sharing` with its option `lookups`",
)
RULES = (FOUND,)


def check(history: History) -> Verdict:
    """Judges `requests`, `jobs`, `starts` and the option `warm_root`."""
    requests = sorted(history.requests, key=lambda r: (r.intended_seconds, r.request))
    blocks = [r.blocks for r in requests]
    shared = oracle_hit_ratio(blocks)
    private = oracle_hit_ratio(blocks, [r.process for r in requests])
    hits, total, gain = sum(r.hit_blocks for r in requests), shared.blocks, shared.hit_blocks - private.hit_blocks
    stored = Counter(b for j in history.jobs if j.direction == "store" for b in j.ok)
    lost, examples = _losses(history, requests)
    processes = {r.process for r in requests}
    foreign = _cross_process_hits(requests)
    findings = Findings(RULES)
    digests = {s.none_hash_digest for s in history.starts}
    if len(digests) > 1:
        findings.add(f"processes chain their block names from {len(digests)} different seeds ({some(sorted(digests))})")
    for text in examples:
        findings.add(text, rule=FOUND)  # with its record

    value: Value
    why = ""
    if not total:
        value, why = "unknown", "no request in the history; "
    elif hits > shared.hit_blocks and not history.options.get("warm_root"):
        value, why = "false", "more hits than one shared endless cache could have; "
        findings.add(
            f"{hits} blocks are said to have hit, but only {shared.hit_blocks} references had been seen before",
        )
    elif any(r.hit_blocks > len(r.blocks) or r.hit_blocks < 0 for r in requests):
        value, why = "false", "a request hit more blocks than it has; "
        impossible = some(r.request for r in requests if not 0 <= r.hit_blocks <= len(r.blocks))
        findings.add(f"request {impossible} is said to have hit more blocks than it has")
    elif lost["unexplained"]:
        value, why = "false", f"{lost['unexplained']} references missed blocks that had been stored before; "
    elif len(processes) < 2:
        value, why = "unknown", "one process has nobody to share with; "
    elif not stored:
        value, why = "unknown", "no store succeeded; "
    elif not gain:
        value, why = "unknown", "no process was dealt a block that another had; "
    elif lost["no room"] * 2 >= gain:
        value, why = "unknown", f"the tier had no room for {lost['no room']} references to blocks that were there; "
    elif not foreign:
        value, why = "unknown", "no hit that needed another process, though each miss is explained; "
    else:
        value = "true"
    explained = ", ".join(f"{text}: {lost[r]}" for r, text in REASONS.items() if lost[r] or r == "unexplained")
    duplicates = sum(stored.values()) / len(stored) if stored else math.nan
    figure = (
        f"{why}{percent(hits, total)} of {total} block references hit, between {percent(private.hit_blocks, total)} "
        f"(private caches) and {percent(shared.hit_blocks, total)} (one shared); possible hits missed: "
        f"{sum(lost.values())} ({explained})"
    )
    data = {
        "processes": len(processes),
        "blocks": total,
        "hit_blocks": hits,
        "hit_ratio": hits / total if total else 0.0,
        "private_hit_blocks": private.hit_blocks,
        "private_hit_ratio": private.ratio,
        "shared_hit_blocks": shared.hit_blocks,
        "shared_hit_ratio": shared.ratio,
        "hits_needing_another_process": foreign,
        "lost": dict(lost),
        "blocks_stored": len(stored),
        "block_writes": sum(stored.values()),
        "duplicate_write_factor": duplicates if stored else None,
        "none_hash_digests": len(digests),
    }
    return Verdict("sharing", value, figure, findings.list(), data)


def _losses(history: History, requests: list[Request]) -> tuple[Counter[str], list[Finding]]:
    """References that could have hit and did not, by reason, and a sentence for each unexplained request."""
    stored_at: dict[int, float] = {}
    failed_loads: set[tuple[int, int, int]] = set()
    for job in history.jobs:
        if job.direction == "store":
            for block in job.ok:
                stored_at[block] = min(job.finished_seconds, stored_at.get(block, math.inf))
        else:
            failed_loads.update((job.process, job.request, block) for block in job.failed)
    evictions = Evictions(history)
    lost: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    examples: list[Finding] = []
    seen: set[int] = set()
    for request in sorted(requests, key=lambda r: r.started_seconds):
        missed = request.blocks[max(0, request.hit_blocks) :]
        could_hit = sum(block in seen for block in missed)
        seen.update(request.blocks)
        if not could_hit:
            continue
        first = missed[0]
        if (request.process, request.request, first) in failed_loads:
            reason = "load failed"
        elif first not in stored_at:
            reason = "not stored"
        elif stored_at[first] > request.started_seconds:
            reason = "in flight"
        elif request.short_of_room:
            reason = "no room"
        elif request.outcome == "info":
            reason = "given up"
        elif not request.looked_up:
            reason = "not looked up"
        elif evictions.explain(first, stored_at[first], request.finished_seconds):
            reason = "evicted"
        else:
            reason = "unexplained"
            text = (
                f"request {request.request} of process {request.process} missed block {first}, stored "
                f"{request.started_seconds - stored_at[first]:.3f} s before; {could_hit} blocks lost"
            )
            about = About(
                seconds=request.started_seconds,
                process=request.process,
                request=request.request,
                block=first,
                expected="a hit",
                seen="a miss",
            )
            examples.append(Finding(text, about))
        lost[reason] += could_hit
    return lost, examples


def _cross_process_hits(requests: list[Request]) -> int:
    """Hits on blocks that their process had never asked for before: somebody else must have stored them."""
    mine: dict[int, set[int]] = defaultdict(set)
    count = 0
    for request in sorted(requests, key=lambda r: r.started_seconds):
        count += sum(block not in mine[request.process] for block in request.blocks[: max(0, request.hit_blocks)])
        mine[request.process].update(request.blocks)
    return count
