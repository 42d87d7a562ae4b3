"""Two runs compared: what differs is found, what does not is not, and the intervals are as wide as they should be."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.core.history import History, Record
from harness.core.seeds import stream
from harness.report.comparison_page import write_comparison
from harness.report.run_differences import DRAWS, Difference, Side, compare, in_words
from tests.tiering.harness.checkers.records import job, request, start, task

SECONDS = 20.0


def traffic(seed: int, slower: float = 1.0, seconds: float = SECONDS, bursts: bool = False) -> History:
    """Loads at random moments that take about 5 ms; in `bursts`, those of one second are slow or fast together."""
    random = stream(seed, "compare")
    records: list[Record] = [start(0), start(1)]
    for number in range(int(20 * seconds)):
        at = random.uniform(0, seconds)
        mood = stream(seed, "mood", int(at)).uniform(0.3, 3.0) if bursts else 1.0
        took = random.gammavariate(4, 0.00125) * slower * mood
        records.append(job(number % 2, number, "load", [number], at, at + took, bytes_ok=1 << 20))
    return History.of(records)


def side(folder: str, history: History) -> Side:
    results = {"verdict": "true", "verdicts": [], "reason": "", "scenario": "load", "tier": "x<y>", "command": "run a"}
    return Side(Path("/runs") / folder, {**results, "device": {}}, {"python": folder}, history)


def differences(a: History, b: History) -> dict[str, Difference]:
    return {d.name: d for d in compare(side("a", a), side("b", b))}


def test_what_is_twice_as_slow_is_worse_and_the_rest_is_not_told_apart() -> None:
    found = differences(traffic(1), traffic(2, slower=2.0))
    assert set(found) == {"loaded", "load jobs p50", "load jobs p99"}
    median = found["load jobs p50"]
    assert median.word == "worse"
    assert median.ratio_low < median.ratio < median.ratio_high
    assert median.ratio == pytest.approx(2.0, rel=0.2)
    assert found["loaded"].word == "no difference seen"
    back = differences(traffic(2, slower=2.0), traffic(1))["load jobs p50"]
    assert back.word == "better"
    assert back.ratio == pytest.approx(1 / median.ratio)
    assert "B is worse in load jobs p50 (+" in in_words(list(found.values()))


def test_more_bytes_are_better() -> None:
    half = traffic(3)
    half.jobs = half.jobs[::2]
    assert differences(half, traffic(4))["loaded"].word == "better"


@pytest.mark.parametrize("bursts", [False, True])
def test_two_runs_of_the_same_are_rarely_told_apart(bursts: bool) -> None:
    """Of 20 pairs one or two are expected, a few more in bursts; drawing single jobs would tell most of those apart."""
    words = [
        differences(traffic(2 * i, bursts=bursts), traffic(2 * i + 1, bursts=bursts))["load jobs p50"].word
        for i in range(20)
    ]
    assert words.count("no difference seen") >= (14 if bursts else 17), words


def test_a_run_too_short_has_a_ratio_and_no_interval() -> None:
    found = differences(traffic(1, seconds=1.5), traffic(2))["load jobs p50"]
    assert found.word == "not known"
    assert math.isnan(found.ratio_low)
    assert found.to_json()["ratio_low"] is None
    assert found.ratio > 0


def test_runs_of_nothing_have_nothing_to_compare() -> None:
    assert compare(side("a", History()), side("b", traffic(1))) == []
    assert "no figure in common" in in_words([])


def test_the_same_two_runs_give_the_same_intervals() -> None:
    a, b = traffic(1), traffic(2, slower=1.3)
    assert [d.to_json() for d in compare(side("a", a), side("b", b))] == [
        d.to_json() for d in compare(side("a", a), side("b", b))
    ]
    assert DRAWS >= 500, "fewer draws make the ends of a 95 % interval a matter of luck"


def test_hits_and_waits_are_compared_where_both_runs_have_them() -> None:
    def with_requests(hits: Sequence[int]) -> History:
        history = traffic(1)
        for number in range(100):
            history.add(request(0, number, [0, 1, 2, 3], hits[number % len(hits)], 0.2 * number))
            at = 0.2 * number
            history.add(task("store", "store", 0, at, at + 0.01 * hits[0], at + 0.1))
        return history

    found = differences(with_requests([1]), with_requests([3]))
    assert (found["block hits"].a, found["block hits"].b, found["block hits"].word) == (25.0, 75.0, "better")
    assert found["wait of store tasks p99"].word == "worse"


def test_the_page_shows_both_and_names_what_was_different(tmp_path: Path) -> None:
    a, b = side("a", traffic(1)), side("b", traffic(2, slower=2.0))
    page = write_comparison(a, b, compare(a, b), tmp_path / "compare.html").read_text()
    body, data = page.split("<script ", 1)
    assert "x&lt;y&gt;" in body
    assert "<td>python</td><td>a</td><td>b</td>" in body
    assert "load jobs p50" in body
    figures = json.loads(data.split(">", 1)[1].split("</script>")[0])["figures"]
    assert len(figures) == body.count('class="plot"') == 3
