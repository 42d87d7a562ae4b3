"""The starvation checker against simulated schedules: the right pool is passed, each way to get it wrong is
detected.

The simulator is a discrete-event model of two queues and two groups of threads, on a clock of whole microseconds. It
shares no code with the pool or the checker.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.checkers import Verdict
from harness.checkers.starvation import check
from harness.core.history import Direction, Gauge, History, Note, Record, Task
from harness.core.seeds import stream
from tests.tiering.harness.checkers.records import canary, good_history, job, note, start, stop, task

Flaw = Literal["none", "lifo", "other first", "one thread sleeps", "no help", "zero own threads", "random"]

US = 1e-6
OTHER: dict[Direction, Direction] = {"load": "store", "store": "load"}


class Arrival(NamedTuple):
    at: int
    direction: Direction
    service: int


def simulate(
    arrivals: list[Arrival], n_read: int, n_write: int, handovers: list[int], flaw: Flaw = "none"
) -> list[Task]:
    """Run a schedule; the i-th hand-over (wake-up or end of task to next start) takes `handovers[i % n]`."""
    groups: list[Direction] = ["load"] * n_read + ["store"] * n_write
    queues: dict[Direction, deque[tuple[int, Arrival, int]]] = {"load": deque(), "store": deque()}
    idle: deque[int] = deque(range(len(groups)))
    events: list[tuple[int, int, int, int]] = []  # time, arrivals before picks, number, arrival or thread
    for i, arrival in enumerate(arrivals):
        heapq.heappush(events, (arrival.at, 0, i, i))
    tasks: list[Task] = []
    tick = 0
    rng = stream(1, "simulator")

    def delay() -> int:
        nonlocal tick
        tick += 1
        return handovers[tick % len(handovers)]

    def pop(thread: int) -> tuple[int, Arrival, int] | None:
        group = groups[thread]
        order = [group, OTHER[group]]
        if flaw == "other first" or (flaw == "random" and rng.random() < 0.5):
            order.reverse()
        if flaw == "no help":
            order = [group]
        if flaw == "zero own threads":
            order = ["load", "store"]
        for direction in order:
            if queues[direction]:
                return queues[direction].pop() if flaw == "lifo" else queues[direction].popleft()
        return None

    while events:
        now, kind, number, who = heapq.heappop(events)
        if kind == 0:
            arrival = arrivals[who]
            queues[arrival.direction].append((number, arrival, len(queues[arrival.direction])))
            awake = [t for t in idle if not (flaw == "one thread sleeps" and t == 0)]
            own = [t for t in awake if groups[t] == arrival.direction]
            helpers = [] if flaw == "no help" else awake
            for thread in (own or helpers)[:1]:
                idle.remove(thread)
                heapq.heappush(events, (now + delay(), 1, len(tasks), thread))
            continue
        picked = pop(who)
        if picked is None:
            idle.append(who)
            continue
        job_id, arrival, depth = picked
        end = now + arrival.service
        stamps = (arrival.at * US, now * US, end * US)
        tasks.append(Task(0, job_id, arrival.direction, groups[who], who, arrival.service, depth, *stamps))
        heapq.heappush(events, (end + delay(), 1, len(tasks), who))
    return tasks


def judge(tasks: list[Task], n_read: int, n_write: int) -> Verdict:
    options = {"read_threads": n_read, "write_threads": n_write}
    return check(History.of([start(0), *tasks, stop(0)], options=options))


def flood(count: int, seed: int = 3) -> list[Arrival]:
    """More work than the threads can do, of both classes, in bursts: every thread is busy, both queues are long."""
    rng = stream(seed, "flood")
    arrivals, now = [], 0
    for _ in range(count):
        now += rng.choice([0, 0, 5, 40])
        arrivals.append(Arrival(now, rng.choice(["load", "store"]), rng.randint(50, 150)))
    return arrivals


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.integers(0, 3000),
        st.sampled_from(["load", "store"]),
        st.integers(20, 400),
    ),
    min_size=1,
    max_size=60,
).map(sorted)
HANDOVERS = st.lists(st.integers(0, 8), min_size=1, max_size=7)
THREADS = st.integers(1, 4)


@settings(max_examples=300)
@given(ARRIVALS, THREADS, THREADS, HANDOVERS)
def test_the_right_schedule_is_never_convicted(arrivals: list[Arrival], n: int, m: int, handovers: list[int]) -> None:
    tasks = simulate(arrivals, n, m, handovers)
    assert len(tasks) == len(arrivals)
    verdict = judge(tasks, n, m)
    assert verdict.value in ("true", "unknown"), verdict.findings
    assert not verdict.findings
    for direction in ("load", "store"):
        worst = verdict.data[direction]
        assert worst["longest_wait_seconds"] <= worst["wait_bound_seconds"] + 2 * US


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_the_right_schedule_is_true_under_a_flood_and_wrong_ones_are_false(n: int, m: int) -> None:
    arrivals = flood(400)
    verdict = judge(simulate(arrivals, n, m, [0, 1, 3]), n, m)
    assert verdict.value == "true", verdict
    assert verdict.data["met"] > 300
    flaws: list[Flaw] = ["lifo", "other first", "random", "zero own threads"]
    for flaw in flaws:
        verdict = judge(simulate(arrivals, n, m, [0, 1, 3], flaw), n, m)
        assert verdict.value == "false", flaw
        assert verdict.findings[0].startswith("process 0: a ")


def test_each_flaw_is_called_by_its_name() -> None:
    arrivals = flood(300)
    said = {
        flaw: " | ".join(judge(simulate(arrivals, 2, 2, [0, 1], flaw), 2, 2).findings)
        for flaw in ("lifo", "other first", "zero own threads")
    }
    assert "not FIFO" in said["lifo"]
    assert "was taken by a thread of the load group while" in said["other first"]
    assert "was taken by a thread of the store group while" in said["zero own threads"]


def test_a_thread_that_sleeps_while_its_own_class_waits_is_found() -> None:
    arrivals = [Arrival(i * 2000, "load", 10000) for i in range(50)] + [Arrival(1, "store", 10000)]
    for n in (1, 2, 3):
        tasks = simulate(sorted(arrivals), n, 1, [1], "one thread sleeps")
        verdict = judge(tasks, n, 1)
        assert verdict.value == "false", n
        assert "waited while a thread that never ran anything of the load group was free for" in verdict.findings[0]
        assert judge(simulate(sorted(arrivals), n, 1, [1]), n, 1).value == "true"


def test_threads_that_never_help_the_other_class_are_found() -> None:
    arrivals = sorted([Arrival(i * 4000, "load", 10000) for i in range(50)] + [Arrival(1, "store", 10000)])
    verdict = judge(simulate(arrivals, 1, 2, [1], "no help"), 1, 2)
    assert verdict.value == "false"
    assert "waited while thread 1 of the store group was free for" in " ".join(verdict.findings)


# --- by hand, one rule each; threads 0 (load group) and 1 (store group) ---

RIGHT = [
    task("load", "load", 0, 0.0, 0.0, 1.0, job_id=1),
    task("store", "store", 1, 0.0, 0.0, 1.0, job_id=2),
    task("load", "load", 0, 0.1, 1.0, 2.0, job_id=3),
    task("load", "store", 1, 0.2, 1.0, 2.0, job_id=4),
    task("store", "store", 1, 0.5, 2.0, 3.0, job_id=5),
]


def by_hand(*tasks: Task, **options: int) -> Verdict:
    return check(History.of([start(0), *tasks, stop(0)], options={"read_threads": 1, "write_threads": 1, **options}))


def test_a_store_thread_that_takes_a_load_before_its_own_store_is_found() -> None:
    verdict = by_hand(*RIGHT)
    assert verdict.value == "false"  # job 4 was taken by the store's thread although job 5 waited
    assert verdict.findings[0] == (
        "process 0: a load task of job 4 was taken by a thread of the store group while 1 store tasks waited, "
        "the oldest for 500 ms"
    )
    repaired = [*RIGHT[:4], RIGHT[4]._replace(enqueued_seconds=1.5)]
    assert by_hand(*repaired).value == "true"


@pytest.mark.parametrize(
    ("tasks", "finding"),
    [
        (
            [
                task("load", "load", 0, 0.0, 0.0, 1.0),
                task("load", "load", 0, 0.2, 2.0, 3.0, job_id=7),
                task("load", "load", 0, 0.4, 1.0, 2.0, job_id=8),
                task("store", "store", 1, 0.5, 0.5, 3.0),
            ],
            "a load task of job 8 started 1.00 s before that of job 7, which had come earlier: not FIFO",
        ),
        (
            [task("load", "load", 0, 0.5, 0.25, 1.0, job_id=7), task("store", "store", 1, 0.6, 0.6, 1.0)],
            "a load task of job 7 is not enqueued, started and finished in this order",
        ),
        (
            [
                task("load", "load", 0, 0.0, 0.0, 1.0, job_id=6),
                task("load", "load", 0, 0.5, 0.5, 1.0, job_id=7),
                task("store", "store", 1, 0.5, 0.5, 1.0),
            ],
            "a load task of job 7 ran on a thread that was still busy with job 6",
        ),
        (
            [
                task("load", "load", 0, 0.0, 0.0, 1.0),
                task("store", "store", 1, 0.0, 0.0, 6.0),
                task("load", "load", 0, 0.5, 20.0, 20.5),
            ],
            "a load task of job 0 waited while thread 0 of the load group was free for 19.00 s; a hand-over may take",
        ),
    ],
)
def test_one_broken_rule(tasks: list[Task], finding: str) -> None:
    verdict = by_hand(*tasks)
    assert verdict.value == "false"
    assert finding in verdict.findings[0]


def test_overtakes_are_counted_with_their_bound() -> None:
    tasks = [
        task("load", "load", 0, 0.0, 0.0, 10.0),
        task("store", "store", 1, 0.0, 0.0, 1.0),
        *(task("store", "store", 1, 0.75 + i, 1.0 + i, 2.0 + i) for i in range(9)),
        task("load", "load", 0, 0.5, 10.0, 11.0),
    ]
    verdict = by_hand(*tasks)
    assert verdict.value == "true", verdict.findings
    assert verdict.data["load"]["most_overtakes"] == 9
    assert verdict.data["load"]["overtakes_bound"] == 11  # ceil(9.5 / 1) + 1, one thread
    assert "loads: longest wait 9.50 s (bound 10.00 s), overtaken by 9 stores at most" in verdict.figure


def test_a_bound_that_the_thread_count_belies_is_found() -> None:
    """Five loads one after the other are right for one thread; with five, none of them had to wait."""
    tasks = [task("load", "load", 0, 0.0, float(i), i + 1.0) for i in range(5)]
    tasks += [task("store", "store", 9, 0.05, i + 0.05, i + 1.05) for i in range(5)]
    assert by_hand(*tasks).value == "true"
    assert by_hand(*tasks, read_threads=5).value == "false"


def test_too_many_overtakes_are_said_with_their_bound() -> None:
    """The load's own thread runs a hundred short stores while the load waits."""
    short = [task("store", "load", 0, 0.5 + i / 100, 0.5 + i / 100, 0.51 + i / 100, job_id=i) for i in range(100)]
    tasks = [
        task("load", "load", 0, 0.0, 0.0, 0.5),
        task("store", "store", 1, 0.0, 0.0, 1.0),
        *short,
        task("load", "load", 0, 0.25, 1.5, 1.75, job_id=500),
    ]
    verdict = by_hand(*tasks)
    assert verdict.value == "false"
    assert verdict.data["load"]["most_overtakes"] == 100
    # A few of the hundred starts are shown, so that other rules are too; the others are counted.
    assert verdict.findings[-1] == "and 94 more"
    few = by_hand(*tasks[:2], *short[:10], tasks[-1]._replace(started_seconds=0.6))
    assert "a load task of job 500 was overtaken by 10 store tasks; the bound is 2" in " | ".join(few.findings)


def test_a_wait_beyond_the_bound_is_said_with_both_figures() -> None:
    stolen = [task("store", "load", 0, 0.5, i + 1.0, i + 2.0, job_id=i) for i in range(3)]
    verdict = by_hand(
        task("load", "load", 0, 0.0, 0.0, 1.0),
        task("store", "store", 1, 0.0, 0.0, 4.0),
        *stolen,
        task("load", "load", 0, 0.25, 4.0, 5.0, job_id=500),
    )
    assert verdict.value == "false"
    assert "a load task of job 500 waited 3.75 s behind 0 others; the bound is 1.00 s" in " | ".join(verdict.findings)
    assert "longest wait 3.75 s (bound 1.00 s)" in verdict.figure


def test_a_class_without_threads_has_no_bound() -> None:
    tasks = [
        task("load", "load", 0, 0.0, 0.0, 1.0),
        task("store", "load", 0, 0.5, 1.0, 2.0),
        task("load", "load", 0, 0.6, 2.0, 3.0),
    ]
    verdict = check(History.of([start(0), *tasks, stop(0)]))
    assert verdict.value == "false"
    assert "no thread belongs to stores, so nothing bounds their wait" in " ".join(verdict.findings)


def test_the_canary_widens_what_a_handover_may_take() -> None:
    tasks = [
        task("load", "load", 0, 0.0, 0.0, 1.0),
        task("store", "store", 1, 0.0, 0.0, 6.0),
        task("load", "load", 0, 0.5, 25.0, 26.0),
    ]
    history = History.of([start(0), *tasks, stop(0)])
    assert check(history).value == "false"  # free for 24 s, the longest task took 6
    history.notes.append(canary(0, 4.0))
    assert check(history).value == "true"
    history.notes[:] = [canary(1, 4.0)]  # another process's noise is no excuse
    assert check(history).value == "false"


LOADS = [task("load", "load", 0, i * 1.0, i * 1.0, i + 0.5) for i in range(5)]
STORES = [task("store", "store", 1, i + 0.6, i + 0.6, i + 0.9) for i in range(5)]


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        (LOADS, "no store in the history"),
        (STORES, "no load in the history"),
        (LOADS + STORES, "never met"),
        (LOADS + [t._replace(process=1, enqueued_seconds=t.enqueued_seconds - 0.3) for t in STORES], "never met"),
    ],
)
def test_what_shows_no_contention_is_unknown(tasks: list[Task], why: str) -> None:
    verdict = check(History.of([start(0), start(1), *tasks, stop(0), stop(1)]))
    assert verdict.value == "unknown", verdict
    assert why in verdict.figure


def free_threads(pauses: int, without_cpu: float) -> Verdict:
    """Eight threads are free for 148 ms while one load waits, so many times. The canary is 4 ms late at most; a thread
    was runnable without a CPU for `without_cpu` seconds of each. As recorded beside a busy neighbour, with niced
    threads."""
    records: list[Record] = [start(0), canary(0, 0.004, at=100.0)]
    for at in map(float, range(1, pauses + 1)):
        for thread in range(8):
            group: Direction = "load" if thread < 4 else "store"
            records.append(task(group, group, thread, at - 0.1, at - 0.1, at - 0.095, job_id=thread))
        records.append(task("load", "load", 1, at, at + 0.148, at + 0.15, job_id=100))
        waited = note("delayed", at + 0.149, 0, from_seconds=at - 0.005, seconds=without_cpu)
        records += [waited] if without_cpu else []
    return check(History.of([*records, stop(0)], options={"read_threads": 4, "write_threads": 4}))


def test_a_thread_without_a_cpu_was_not_idle() -> None:
    """A niced thread was woken and got no CPU for 148 ms, while the canary was on time: once this failed a tier."""
    assert free_threads(5, 0.0).value == "false"
    assert "that and more 15 times in this process" in free_threads(5, 0.0).findings[0]
    excused = free_threads(5, 0.1485)
    assert excused.value == "unknown", excused
    assert "but the process was hindered for 148 ms" in excused.findings[0]


def test_a_process_that_died_is_judged_by_order_only() -> None:
    lazy = [
        task("load", "load", 0, 0.0, 0.0, 1.0),
        task("store", "store", 1, 0.0, 0.0, 6.0),
        task("load", "load", 0, 0.5, 25.0, 26.0),
    ]
    assert by_hand(*lazy).value == "false"
    died = check(History.of([start(0), *lazy, stop(0, exit_code=-9)]))
    assert died.value == "unknown"
    assert "every process died" in died.figure
    assert check(History.of([start(0), *RIGHT, stop(0, exit_code=-9)])).value == "false"


def test_a_thread_that_was_replaced_is_not_idle_for_ever_after() -> None:
    """Thread 0 hung, thread 2 took its place: only a tier that says it replaces threads is excused."""
    rest = [
        task("store", "store", 1, 1.0, 1.0, 2.0),
        *(task("load", "load", 2, 5.6, 6.0 + i / 2, 6.5 + i / 2) for i in range(8)),
    ]
    records = [start(0), task("load", "load", 0, 0.5, 0.5, 5.5), *rest, stop(0)]
    options = {"read_threads": 1, "write_threads": 1}
    assert check(History.of(records, options=options)).value == "false"
    excused = check(History.of([*records, Gauge(0, 3.0, {"load_threads_hung": 1.0})], options=options))
    assert excused.value == "unknown", excused
    told_two = check(
        History.of([*records, Gauge(0, 3.0, {"load_threads_hung": 1.0})], options={**options, "read_threads": 2})
    )
    assert told_two.value == "false", told_two


def test_incarnations_are_schedules_of_their_own() -> None:
    """The same thread numbers, before and after a restart; nothing is compared across."""
    again = [t._replace(**{f: getattr(t, f) + 50.0 for f in t._fields if f.endswith("_seconds")}) for t in RIGHT[:4]]
    first = [*RIGHT[:2], task("load", "load", 0, 0.1, 49.0, 51.5)]
    records = [start(0), *first, stop(0, exit_code=-9, at=49.5), start(0, 1, at=49.75), *again, stop(0, 1)]
    verdict = check(History.of(records))
    assert verdict.value == "true", verdict


# --- jobs only ---


def jobs_only(*jobs: object, **options: int) -> Verdict:
    return check(History.of([start(0), *jobs, stop(0)], options={"read_threads": 2, "write_threads": 2, **options}))  # type: ignore[list-item]


def test_jobs_alone_pass_a_fair_tier() -> None:
    loads = [job(0, i, "load", [i], i * 1.0, i + 2.0) for i in range(100)]
    stores = [job(0, 200 + i, "store", [i], i * 1.0, i + 6.0) for i in range(100)]
    verdict = jobs_only(*loads, *stores)
    assert verdict.value == "true", verdict
    assert "jobs only" in verdict.figure
    assert "longest from submit to result 6.00 s" in verdict.figure


@pytest.mark.parametrize("change", [lambda h: None, lambda h: h.tasks.clear()])
def test_both_ways_pass_the_good_history(change: Callable[[History], None]) -> None:
    history = good_history()
    change(history)
    assert check(history).value == "true"


@pytest.mark.parametrize("starved", ["load", "store"])
def test_jobs_alone_detect_a_tier_that_runs_one_class_only(starved: Direction) -> None:
    running = OTHER[starved]
    flood = [job(0, i, running, [i], i * 0.1, i * 0.1 + 0.5) for i in range(500)]
    late = [job(0, 1000 + i, starved, [i], i * 0.1, 60.0 + i) for i in range(5)]
    verdict = jobs_only(*flood, *late)
    assert verdict.value == "false"
    assert f"no {starved} finished for" in verdict.findings[0]
    never = [j._replace(results=0, outcome="info", ok=[], finished_seconds=60.0) for j in late]
    assert jobs_only(*flood, *never).value == "false"


def test_jobs_alone_without_both_classes_or_contention_are_unknown() -> None:
    loads = [job(0, i, "load", [i], i * 1.0, i + 0.5) for i in range(10)]
    apart = [job(0, 20 + i, "store", [i], i + 0.6, i + 0.9) for i in range(10)]
    assert jobs_only(*loads).value == "unknown"
    assert jobs_only(*apart).value == "unknown"
    assert jobs_only(*loads, *apart).value == "unknown"
    elsewhere = [j._replace(process=1, submitted_seconds=j.submitted_seconds - 0.3) for j in apart]
    assert jobs_only(*loads, *elsewhere).value == "unknown"  # another process's queue


# --- the yardsticks: the canary of that time, the gauges, the scheduler's own clock ---

BRISK = [task("load", "load", 0, 0.0, 0.0, 0.01), task("store", "store", 1, 0.0, 0.0, 0.01)]


def with_noise(wait: tuple[float, float], *canaries: Note) -> Verdict:
    """One load waits while both threads are free."""
    late = task("load", "load", 0, *wait, wait[1] + 0.01, job_id=9)
    last = task("store", "store", 1, wait[1], wait[1], wait[1] + 0.01)
    return check(History.of([start(0), *canaries, *BRISK, late, last, stop(0)]))


def test_a_wait_is_measured_by_the_noise_of_its_own_time() -> None:
    stall, quiet = canary(0, 0.5, at=1.0), [canary(0, 0.001, at=float(i)) for i in range(2, 9)]
    assert with_noise((0.5, 0.9), stall, *quiet).value == "true"  # in that second others woke late too
    assert with_noise((5.2, 5.6), stall, *quiet).value == "false"
    assert with_noise((0.5, 3.5), stall, *quiet).value == "false", "a quiet second lies within the wait"
    assert with_noise((0.5, 3.5), stall, *(canary(0, 0.5, at=float(i)) for i in range(2, 9))).value == "true"


def test_a_task_that_never_begins_is_known_by_the_age_in_the_gauges() -> None:
    def judged(age: float) -> Verdict:
        gauge = Gauge(0, 5.0, {"store_oldest_seconds": age})
        return check(
            History.of([start(0), *(canary(0, 0.001, at=float(i)) for i in range(1, 6)), *BRISK, gauge, stop(0)])
        )

    verdict = judged(4.5)
    assert verdict.value == "false"
    assert "the oldest store task in the queue, as its gauges say, waited while" in verdict.findings[0]
    assert "free for 4.50 s" in verdict.findings[0]
    assert not judged(0.0).findings


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({}, ""),
        ({"submitted": 0.75}, "a load task of job 1 claims to have come 250 ms before the job was submitted"),
        (
            {"submit_returned_seconds": 0.4},
            "a load task of job 1 claims to have come 100 ms after the job's submit had",
        ),
        ({"finished": 0.9}, "a load task of job 1 claims to have ended 100 ms after the job's result was there"),
        ({"finished": 3.0}, "the tasks of job 1 claim to have ended 2.00 s before a poll that did not return its"),
    ],
)
def test_stamps_are_held_against_the_schedulers_clock(change: dict[str, float], finding: str) -> None:
    times = {"submitted": 0.5, "finished": 1.05, "submit_returned_seconds": 0.5, **change}
    tasks = [task("load", "load", 0, 0.5, 0.5, 1.0, job_id=1), task("store", "store", 1, 0.6, 0.6, 1.0, job_id=2)]
    gauge = Gauge(0, 1.0, {"longest_pass_seconds": 0.05})
    verdict = check(History.of([start(0), job(0, 1, "load", [1], **times), *tasks, gauge, stop(0)]))
    assert finding in "\n".join(verdict.findings)
    assert verdict.value == ("false" if finding else "true"), verdict
    assert verdict.data["tasks_compared_with_jobs"] == 1
