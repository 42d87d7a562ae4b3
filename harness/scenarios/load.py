"""Several processes share one root while traffic is replayed through them; every loaded byte is checked.

Proves for this traffic on this machine: processes share (hit ratio between two computed oracles), derive equal names,
starve no class, return only right bytes, give each job one result, and leave nothing behind. It does not prove anything
about crashes, faults, other seeds, or other file systems than the one under the root.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core import notes
from harness.core.limits import Needs
from harness.core.request_traces import PlannedRequest, TraceError, TraceRequest, plan, read_trace, synthetic_trace
from harness.runtime.device_probe import device_probe
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option

SYNTHETIC_REQUESTS_PER_SECOND = 20
SYNTHETIC_SECONDS = 30.0  # the synthetic trace's length where --seconds is 0
RECORDED_SPEED = 20.0
LATE_FACTOR = 1.5
"""Under overload requests start late; none starts later than this times --seconds, so that the run ends."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions(CommonOptions):
    """Options of `run load`."""

    seed: int | None = option(0, "the integer that the synthetic trace derives from: the same traffic each time", low=0)
    trace: str | None = option(
        None, "Mooncake JSONL file to replay (default: a synthetic trace of the same shape)", is_path=True
    )
    requests: int | None = option(None, "replay only the first so many requests of the trace", low=1, high=10**7)
    speed: float | None = option(
        None,
        "times faster than recorded; 0: as fast as it goes (default: 20, a synthetic trace fills --seconds)",
        low=0,
    )
    window: int = option(4, "requests in flight per process", low=1)
    stall_seconds: float = option(30.0, "a process in which nothing moves for so long is given up", low=0.1)
    trace_every: int = option(20, "write spans of every n-th request of a process; 0: of none", low=0)
    watch_windows: float = option(
        0.0, "watch in every other window of so many seconds, to see what watching costs; 0: all the time", low=0
    )


@dataclass(frozen=True)
class Traffic:
    """Who replays what and when, and in words where it comes from."""

    plans: list[list[PlannedRequest]]
    source: str


def prepare(options: LoadOptions) -> Traffic:
    """Read or make the trace and deal it."""
    assert options.seed is not None
    seconds = options.seconds or math.inf
    if options.trace is None:
        length = options.seconds or SYNTHETIC_SECONDS
        count = options.requests or max(options.processes, round(SYNTHETIC_REQUESTS_PER_SECOND * length))
        trace, source = synthetic_trace(options.seed, count), f"synthetic trace, {count} requests"
        speed, horizon = options.speed, length
    else:
        trace, source = _recorded(options), f"{Path(options.trace).name}"
        speed, horizon = RECORDED_SPEED if options.speed is None else options.speed, seconds
    closed = speed == 0
    if closed:
        speed, horizon = 1.0, math.inf
    plans = [plan(trace, process, options.processes, horizon, speed) for process in range(options.processes)]
    if closed:
        plans = [[request._replace(start_seconds=0.0) for request in mine] for mine in plans]
    total = sum(map(len, plans))
    how = (
        "as fast as it goes" if closed else "in real time" if speed == 1 else f"{speed:g} times faster" if speed else ""
    )
    return Traffic(plans, ", ".join(filter(None, [source, how, f"{total} of {len(trace)} requests"])))


def needs(options: LoadOptions, traffic: Traffic | None) -> Needs:
    """The root holds each block of the traffic once; a quarter of them where the time may be over before the traffic,
    none where the traffic is as long as the time allows."""
    blocks: set[int] = set()
    if traffic is not None and not (options.speed == 0 and options.seconds):
        blocks = {block for mine in traffic.plans for request in mine for block in request.trace.hash_ids}
    return common_needs(options, root_blocks=len(blocks) // 4 if options.seconds else len(blocks))


def _recorded(options: LoadOptions) -> list[TraceRequest]:
    assert options.trace is not None
    try:
        return read_trace(options.trace)[: options.requests]
    except TraceError as error:
        raise UsageError(f"--trace: {error}") from error


def run(context: Context, traffic: Traffic) -> None:
    """Start the workers, let them go at one moment, and wait until the traffic is replayed."""
    options: LoadOptions = context.options
    limit = options.seconds * LATE_FACTOR if options.seconds else None
    if limit is not None and options.speed == 0:
        limit = options.seconds
    children = []
    for process, mine in enumerate(traffic.plans):
        requests = [[request.start_seconds, request.request, list(request.trace.hash_ids)] for request in mine]
        arguments = {"requests": requests, "window": options.window, "start_seconds_max": limit}
        arguments["stall_seconds_max"] = options.stall_seconds
        watch: dict[str, Any] = {
            "serve_metrics": True,
            "trace_every": options.trace_every,
            "watch_windows": options.watch_windows,
        }
        children.append(context.start(process, "replay", arguments, **watch))
    context.workers.await_ready(children)
    go_seconds = context.workers.go(children)
    context.note(go_seconds, notes.Phase(source=traffic.source), "traffic starts")
    with device_probe(context.root_dir, options.block_bytes, context.note):
        context.workers.wait(children)
    context.note(time.monotonic(), notes.Phase(), "traffic ended")


SCENARIO = Scenario(
    name="load",
    text=__doc__ or "",
    options=LoadOptions,
    checkers=("sharing", "determinism", "starvation", "nonblocking", "integrity", "results", "leftovers"),
    prepare=prepare,
    run=run,
    needs=needs,
    on_nodes=True,
    short={"processes": 2, "requests": 150, "speed": 0.0, "seconds": 5.0, "block_bytes": 16384, "slots": 512},
)
