"""What samples of a tier's own Prometheus endpoint mean, in words of the history, and one scrape of the endpoint."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from harness.core.history import Direction

Quantity = Literal["jobs", "blocks ok", "blocks failed", "bytes", "jobs timed", "jobs in flight"]
SCRAPE_SECONDS_MAX = 10.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy of the environment does not reach an endpoint on this machine's loopback."""


class Meaning(NamedTuple):
    """The sum of the samples that have this name and at least these labels is the quantity, since the instance was
    opened.

    "jobs" have their result, "blocks ok" and "blocks failed" are those of results, "bytes" are of the blocks ok, "jobs
    timed" is the count of a histogram of jobs, "jobs in flight" is a gauge. Without a direction: of both.
    """

    quantity: Quantity
    sample: str
    labels: Mapping[str, str] = {}
    direction: Direction | None = None

    @property
    def name(self) -> str:
        return f"{self.quantity} ({self.direction or 'both'})"


class Done(NamedTuple):
    """What the history has of one job with its result."""

    direction: Direction
    blocks_ok: int
    blocks_failed: int


def scrape(address: str, meanings: Sequence[Meaning]) -> dict[str, float]:
    """Quantity by its name, from one scrape of host:port. Raises OSError where nobody answers."""
    from prometheus_client.parser import text_string_to_metric_families  # a peer's environment may lack it

    with _DIRECT.open(f"http://{address}/metrics", timeout=SCRAPE_SECONDS_MAX) as answer:
        text = answer.read().decode()
    found = dict.fromkeys((meaning.name for meaning in meanings), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for meaning in meanings:
                if sample.name == meaning.sample and meaning.labels.items() <= sample.labels.items():
                    found[meaning.name] += sample.value
    return found


def expected(jobs: Iterable[Done], block_bytes: int) -> Counter[str]:
    """Every quantity by its name, as the results of `jobs` have it; none is in flight."""
    found: Counter[str] = Counter()
    for job in jobs:
        for of in (job.direction, "both"):
            found[f"jobs ({of})"] += 1
            found[f"jobs timed ({of})"] += 1
            found[f"blocks ok ({of})"] += job.blocks_ok
            found[f"blocks failed ({of})"] += job.blocks_failed
            found[f"bytes ({of})"] += job.blocks_ok * block_bytes
    return found


def contradictions(told: Mapping[str, float], jobs: Iterable[Done], block_bytes: int) -> list[str]:
    """In words, each quantity of a scrape that is not what the results of the instance's jobs have."""
    right = expected(jobs, block_bytes)
    return [f"{value:g} {name} for {right[name]}" for name, value in told.items() if value != right[name]]
