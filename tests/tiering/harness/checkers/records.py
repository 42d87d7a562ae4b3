"""Records of hand-written histories: every field has a sane value, and a test states only what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.core.history import Direction, History, Job, Name, Note, Request, Start, Stop, Task, encode
from harness.runner import judge


def start(process: int, incarnation: int = 0, at: float = 0.0, digest: str = "d1ge57") -> Start:
    return Start(process, incarnation, 1000 + process, "kvtier", digest, at, 1e9, {})


def stop(process: int, incarnation: int = 0, at: float = 100.0, exit_code: int = 0, **more: Any) -> Stop:
    fields = {"pinned_slots": 0, "leaked_fds": 0, "findings": [], **more}
    return Stop(process, incarnation, at, exit_code, **fields)


def request(
    process: int, number: int, blocks: list[int], hits: int, at: float, started: float | None = None
) -> Request:
    begun = at if started is None else started
    return Request(process, number, blocks, hits, at, begun, begun + 0.5, 1e9, "ok")


def job(
    process: int, job_id: int, direction: Direction, blocks: list[int], submitted: float, finished: float, **more: Any
) -> Job:
    failed = more.get("failed", [])
    fields = {
        "request": 0,
        "submit_returned_seconds": submitted,
        "wall_seconds": 1e9,
        "outcome": "fail" if failed else "ok",
        "ok": [b for b in blocks if b not in failed],
        "failed": failed,
        "results": 1,
        "wrong": [],
        "bytes_ok": 4096 * (len(blocks) - len(failed)),
        **more,
    }
    return Job(
        process=process,
        job_id=job_id,
        direction=direction,
        blocks=blocks,
        submitted_seconds=submitted,
        finished_seconds=finished,
        **fields,
    )


def task(
    direction: Direction,
    group: Direction,
    thread: int,
    enqueued: float,
    started: float,
    finished: float,
    job_id: int = 0,
    process: int = 0,
) -> Task:
    return Task(process, job_id, direction, group, thread, 4096, 0, enqueued, started, finished)


def note(kind: str, at: float = 0.0, process: int = -1, text: str = "", **detail: Any) -> Note:
    return Note(process, at, kind, text, detail)


def canary(process: int, late: float, at: float = 1.0) -> Note:
    return note("canary", at, process, late_seconds=late)


def name_of(block: int) -> str:
    return f"model_r0/{block:03x}/{block:08x}.bin"


def good_history() -> History:
    """Two processes and a conversation that wanders between them: whatever a checker asks, the answer is yes.

    Process 0 stores 0 1 2; process 1 loads them and stores 3; process 0 loads 3 of the other and stores 4.
    """
    history = History.of(
        [
            start(0),
            start(1),
            canary(0, 0.002),
            canary(1, 0.002),
            request(0, 0, [0, 1, 2], 0, 1.0),
            request(1, 1, [0, 1, 2, 3], 3, 10.0),
            request(0, 2, [0, 1, 2, 3, 4], 4, 20.0),
            job(0, 0, "store", [0, 1, 2], 1.0, 1.5, request=0),
            job(1, 0, "load", [0, 1, 2], 10.0, 10.5, request=1),
            job(1, 1, "store", [3], 10.25, 10.75, request=1),
            job(0, 1, "load", [0, 1, 2, 3], 20.0, 20.5, request=2),
            job(0, 2, "store", [4], 20.25, 20.75, request=2),
            task("store", "store", 1, 1.0, 1.0, 1.5, job_id=0),
            task("load", "load", 0, 20.0, 20.0, 20.5, job_id=1),
            task("store", "store", 1, 20.25, 20.25, 20.75, job_id=2),
            task("load", "load", 0, 10.0, 10.0, 10.5, process=1),
            task("store", "store", 1, 10.25, 10.25, 10.75, job_id=1, process=1),
            *(Name(0, b, name_of(b)) for b in range(5)),
            *(Name(1, b, name_of(b)) for b in range(4)),
            stop(0),
            stop(1),
        ],
        files=["model/config.json", "model/kvtier.json", *map(name_of, range(5))],
        options={"processes": 2, "read_threads": 1, "write_threads": 1},
    )
    return history


def run_folder(folder: Path, history: History, **changes: Any) -> Path:
    """A run's folder as `run` leaves it, judged."""
    folder.mkdir(parents=True)
    records = [r for name in ("starts", "requests", "jobs", "tasks", "names", "gauges", "notes", "stops")
               for r in getattr(history, name)]  # fmt: skip
    (folder / "history-0.jsonl").write_text("".join(encode(record) + "\n" for record in records))
    (folder / "files.json").write_text(json.dumps(history.files))
    options = {"scenario": "load", "tier": "memory", "seed": 7, "command": "python -m harness run load --seed 7"}
    (folder / "options.json").write_text(json.dumps({**options, **history.options, **changes.pop("options", {})}))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.7", "root": {"file_system": "xfs"}}))
    (folder / "run.json").write_text(json.dumps({"interrupted": False, "reason": "", "seconds": 30.0, **changes}))
    judge(folder)
    return folder
