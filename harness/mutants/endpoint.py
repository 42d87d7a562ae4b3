"""Mutants whose Prometheus endpoint is wrong, over the reference tier with an endpoint. Workers load them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from harness.adapters.base import Finished, TierSetup
from harness.adapters.metric_meanings import Meaning
from harness.adapters.reference import ReferenceAdapter
from harness.core.history import DIRECTIONS, Direction
from harness.mutants.base import breaks, detected_by

ODD = r"the endpoint has other figures than the results .*"


class WithEndpoint(ReferenceAdapter):
    """The reference tier with counters, a histogram and a gauge of its jobs: correct."""

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        registry = self.registry()
        by = ["direction"]
        self.blocks = Counter("blocks", "Blocks.", ["direction", "outcome"], registry=registry)
        self.seconds = Histogram("job_seconds", "Jobs.", by, registry=registry)
        self.flying = Gauge("flying", "Jobs without a result.", registry=registry)
        self._server: WSGIServer | None = None
        if setup.serve_metrics:
            self._server, self._thread = start_http_server(0, "127.0.0.1", registry)

    def registry(self) -> CollectorRegistry:
        """Of this instance."""
        return CollectorRegistry()

    def metrics_address(self) -> str | None:
        return f"127.0.0.1:{self._server.server_port}" if self._server else None

    def metric_meanings(self) -> Sequence[Meaning]:
        found = [Meaning("jobs in flight", "flying")]
        for direction in DIRECTIONS:
            of = {"direction": direction}
            found += [
                Meaning("blocks ok", "blocks_total", {**of, "outcome": "ok"}, direction),
                Meaning("blocks failed", "blocks_total", {**of, "outcome": "failed"}, direction),
                Meaning("jobs timed", "job_seconds_count", of, direction),
            ]
        return found

    def submit_store(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self.flying.inc()
        super().submit_store(job_id, keys, slots, req_id)
        self.ended("store", self._finished[-1])

    def submit_load(self, job_id: int, keys: Sequence[bytes], slots: Sequence[int], req_id: str) -> None:
        self.flying.inc()
        super().submit_load(job_id, keys, slots, req_id)
        self.ended("load", self._finished[-1])

    def ended(self, direction: Direction, result: Finished) -> None:
        """Count a job."""
        self.blocks.labels(direction, "ok").inc(len(result.ok))
        self.blocks.labels(direction, "failed").inc(len(result.failed))
        self.seconds.labels(direction).observe(0.001)
        self.flying.dec()

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


@breaks("metrics_are_true", ODD + r"20 blocks ok \(store\) for 10")
class CountsEachBlockTwice(WithEndpoint):
    """A stored block is counted when it is written and when it is reported."""

    def ended(self, direction: Direction, result: Finished) -> None:
        super().ended(direction, result)
        if direction == "store":
            self.blocks.labels(direction, "ok").inc(len(result.ok))


@breaks("metrics_are_true", ODD + r"0 blocks failed \(load\) for 4")
class CountsNoFailedBlock(WithEndpoint):
    """A block that fails is not counted."""

    def ended(self, direction: Direction, result: Finished) -> None:
        super().ended(direction, result._replace(failed=()))


@breaks("metrics_are_true", ODD + r"2 jobs in flight \(both\) for 0")
class KeepsFailedJobsInFlight(WithEndpoint):
    """The gauge of jobs in flight does not fall when a block of the job fails."""

    def ended(self, direction: Direction, result: Finished) -> None:
        super().ended(direction, result)
        if result.failed:
            self.flying.inc()


@breaks("metrics_are_true", ODD + r"6 jobs timed \(load\) for 3")
class TimesEachJobTwice(WithEndpoint):
    """The histogram of a load observes it twice."""

    def ended(self, direction: Direction, result: Finished) -> None:
        super().ended(direction, result)
        if direction == "load":
            self.seconds.labels(direction).observe(0.001)


@detected_by(
    "results/metrics", r"other figures than the results of its jobs: .*blocks ok \(store\) for", scenario="lifecycle"
)
class KeepsCountsOfTheDead(WithEndpoint):
    """The counters of a process begin where those of its earlier incarnation ended."""

    bookkeeping: ClassVar[tuple[str, ...]] = ("config.json", "counts-*")

    def __init__(self, setup: TierSetup) -> None:
        super().__init__(setup)
        self._stored = Path(self._folder, f"counts-{setup.process}")
        if self._stored.exists():
            self.blocks.labels("store", "ok").inc(self._stored.stat().st_size)

    def ended(self, direction: Direction, result: Finished) -> None:
        super().ended(direction, result)
        if direction == "store":
            with self._stored.open("ab") as file:
                file.write(b"." * len(result.ok))
