"""Which failures a shortage of the machine explains: those of the operating system that the harness itself observed.

Reads the notes "room" that the harness recorded during the run. The tier's own report is not enough: an ENOSPC while
the file system had space stays a finding, and so does an EMFILE of a process with an ample limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from harness.core import notes
from harness.core.history import History, Job, Note

SLACK_SECONDS = 0.5
"""Samples are taken now and then; a file system fills and empties between two of them."""
AMPLE_DESCRIPTORS = 1024
"""The usual limit of open files: a tier that needs more has opened more than it should."""
AMPLE_THREADS = 64
"""Threads of a process besides those of the tier's options."""
_DISK = ("ENOSPC", "EDQUOT", "EROFS", "EIO")


class Shortages:
    """What was short in a run, and where."""

    def __init__(self, history: History) -> None:
        self._history = history
        rooms = [n for n in history.notes if n.is_a(notes.Room)]
        self._episodes = [n for n in rooms if "errno" in n.detail]
        self._least = {n.detail["place"]: n.detail for n in rooms if "errno" not in n.detail}

    def of_job(self, job: Job) -> str:
        """Why blocks of this job failed, as one sentence, if the machine explains all of it; else an empty string."""
        reasons = job.reasons.split() or (["ENOSPC"] if job.direction == "store" else [])
        found = [self._of(job.process, reason, job.submitted_seconds, job.finished_seconds) for reason in reasons]
        return found[0] if found and all(found) else ""

    def of_error(self, note: Note) -> str:
        """The same of an exception that a worker noted."""
        if not (reason := note.detail.get("errno")):
            return ""
        return self._of(note.process, reason, note.monotonic_seconds, note.monotonic_seconds)

    def of_time(self, begin: float, end: float) -> str:
        """The first shortage of the root in a time, for what tells no reason."""
        return self._of(-1, "ENOSPC", begin, end) or self._of(-1, "EROFS", begin, end)

    def least_free(self, place: str = "root") -> float:
        """Bytes that were free at all times; inf where nobody sampled."""
        return float(self._least.get(place, {}).get("least_free_bytes", math.inf))

    def _of(self, process: int, reason: str, begin: float, end: float) -> str:
        if reason in _DISK:
            return self._episode(reason, ("root",), begin, end)
        if reason in ("EMFILE", "ENFILE"):
            return self._small_limit(process, "fds_max", AMPLE_DESCRIPTORS, reason, "RLIMIT_NOFILE")
        if reason == "ENOMEM":
            low = self._episode(reason, ("memory",), begin, end)
            return low or self._small_limit(process, "address_space_max", math.inf, reason, "RLIMIT_AS")
        if reason == "EAGAIN":
            return self._few_threads(process)
        return ""

    def _episode(self, reason: str, places: Iterable[str], begin: float, end: float) -> str:
        for note in self._episodes:
            detail = note.detail
            overlaps = (
                detail["from_seconds"] - SLACK_SECONDS <= end and begin <= detail["until_seconds"] + SLACK_SECONDS
            )
            if detail["place"] in places and detail["errno"] == reason and overlaps:
                if detail["place"] == "memory":
                    return f"{reason}: only {detail['least_free_bytes'] >> 20} MiB of memory were available"
                left = f", {detail['least_free_bytes'] >> 10} KiB left" if reason == "ENOSPC" else ""
                return f"{reason}: the file system of the root {detail['path']} refused it{left}"
        return ""

    def _small_limit(self, process: int, name: str, ample: float, reason: str, limit: str) -> str:
        for start in self._history.starts:
            value = start.detail.get(name)
            if start.process == process and value is not None and value < ample:
                return f"{reason}: the limit of process {process} ({limit}) is {value:,}"
        return ""

    def _few_threads(self, process: int) -> str:
        own = next((s.detail for s in self._history.starts if s.process == process), {})
        most = AMPLE_THREADS + int(own.get("read_threads") or 0) + int(own.get("write_threads") or 0)
        threads = [g.values["threads"] for g in self._history.gauges if g.process == process and "threads" in g.values]
        if max(threads, default=0.0) > most:
            return ""
        return f"EAGAIN: the operating system refused process {process} another thread or process"
