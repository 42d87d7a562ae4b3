"""Facts about a finding from the history, beyond those of its checker: request, restart, file, writer, trace id.

A field that the history does not decide stays unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from harness.checkers.base import Lives, called
from harness.core.findings import About, Finding
from harness.core.history import History, Job
from harness.core.run_files import trace_ids


class Whereabouts:
    """The records of a history, by what findings name. `run_name` is the name of the run's folder, from which
    trace ids derive; empty if no spans were recorded."""

    def __init__(self, history: History, run_name: str = "") -> None:
        self._lives, self._run_name = Lives(history), run_name
        self._replayed = {(r.process, r.request) for r in history.requests}
        self._jobs: dict[tuple[int, int], list[Job]] = defaultdict(list)
        self._stores: dict[int, list[Job]] = defaultdict(list)
        for job in history.jobs:
            self._jobs[job.process, job.job_id].append(job)
            if job.direction == "store":
                for block in job.ok:
                    self._stores[block].append(job)
        self._names: dict[int, dict[int, str]] = defaultdict(dict)
        self._blocks: dict[str, int] = {}
        for name in history.names:
            self._names[name.block][name.process] = name.name
            self._blocks.setdefault(name.name, name.block)

    def completed(self, texts: Iterable[str]) -> list[Finding]:
        """All findings with what is known of them; a plain sentence becomes a doubt."""
        return [self._complete(t) if isinstance(t, Finding) else Finding(t, kind="doubt") for t in texts]

    def _complete(self, finding: Finding) -> Finding:
        about = finding.about
        if about.process is not None and about.job is not None:
            about = self._by_job(about, self._jobs.get((about.process, about.job), []))
        if about.block is None and about.file is not None and self._blocks.get(about.file, -1) >= 0:
            about = about._replace(block=self._blocks[about.file])
        if about.block is not None:
            about = self._by_block(about, about.block)
        if about.incarnation is None and about.process is not None and about.process >= 0 and about.seconds is not None:
            about = about._replace(incarnation=self._lives.at(about.process, about.seconds).incarnation)
        if about.trace_id is None and self._run_name and (about.process, about.request) in self._replayed:
            trace_id, _ = trace_ids(self._run_name, f"{about.process}-{about.request}")
            about = about._replace(trace_id=trace_id)
        return Finding(finding, about, finding.kind)

    def _by_job(self, about: About, jobs: list[Job]) -> About:
        if len(jobs) != 1:  # none, or several under one number
            return about
        (job,) = jobs
        slots = dict(zip(job.blocks, job.slots, strict=False))  # an earlier version recorded no slots
        return about._replace(
            slot=slots.get(about.block) if about.slot is None and about.block is not None else about.slot,
            request=job.request if about.request is None else about.request,
            seconds=job.finished_seconds if about.seconds is None else about.seconds,
        )

    def _by_block(self, about: About, block: int) -> About:
        names = self._names.get(block, {})
        file = names.get(-1 if about.process is None else about.process, next(iter(names.values()), None))
        at = float("inf") if about.seconds is None else about.seconds
        before = [job for job in self._stores.get(block, []) if job.finished_seconds <= at]
        last = max(before, key=lambda job: job.finished_seconds, default=None)
        writer = None
        if last is not None:
            writer = called(last.process, self._lives.at(last.process, last.submitted_seconds).incarnation)
        return about._replace(
            file=file if about.file is None else about.file, writer=writer if about.writer is None else about.writer
        )
