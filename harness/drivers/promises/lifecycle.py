"""Promises about opening, draining and closing, with stores and loads in flight, in this instance and beside it."""

from __future__ import annotations

import contextlib
import time

import psutil

from harness.adapters.base import Adapter, Finished
from harness.core.history import DIRECTIONS
from harness.core.patience import Patience
from harness.drivers.promises.subject import PAUSE_SECONDS, Block, Subject, require

JOB_BLOCKS = 2
JOBS = 8


class InFlight:
    """Stores of fresh blocks and loads of stored ones, submitted together and not polled."""

    def __init__(self, subject: Subject, adapter: Adapter, name: str) -> None:
        self.subject, self.adapter = subject, adapter
        old = subject.blocks(adapter, JOBS * JOB_BLOCKS // 2)
        subject.store(adapter, old)
        fresh = subject.blocks(adapter, JOBS * JOB_BLOCKS // 2)
        adapter.request_started(name)
        subject.ask(adapter, old, name)
        self.jobs: dict[int, tuple[str, list[Block], range]] = {}
        for number in range(JOBS):
            loading, first = number % 2, number // 2 * JOB_BLOCKS
            blocks = (old if loading else fresh)[first : first + JOB_BLOCKS]
            slots = range(number * JOB_BLOCKS, (number + 1) * JOB_BLOCKS)
            job = subject.submit(adapter, "load" if loading else "store", blocks, slots, name)
            self.jobs[job] = ("load" if loading else "store", blocks, slots)

    def judge(self, results: dict[int, Finished], when: str, each: bool = True) -> list[Block]:
        """Require a result of each job (if `each`), and the bytes of each load; blocks whose stores are reported ok."""
        missing = self.jobs.keys() - results.keys()
        require(not missing or not each, f"{when} {len(missing)} of {len(self.jobs)} jobs have no result")
        stored: list[Block] = []
        for job in self.jobs.keys() - missing:
            direction, blocks, slots = self.jobs[job]
            self.subject.account(results[job], blocks)
            if direction == "load":
                self.subject.right(self.adapter, results[job], blocks, slots)
            else:
                stored += [block for block in blocks if block.key in results[job].ok]
        return stored

    def polled(self) -> dict[int, Finished]:
        found: dict[int, Finished] = {}
        self.subject.take(self.adapter, self.jobs, found)
        return found


def drain_waits_for_all(subject: Subject) -> None:
    """After a drain every store and load submitted before it has its result, and the results are true."""
    adapter = subject.open()
    flight = InFlight(subject, adapter, "contract-drained")
    adapter.drain()
    stored = flight.judge(flight.polled(), "after a drain")
    require(len(stored) == JOBS * JOB_BLOCKS // 2, "a drain cancelled stores of an open instance on a healthy device")
    require(not adapter.poll(), "after a drain a result came twice")
    adapter.request_finished("contract-drained")
    subject.load_all(adapter, stored, "blocks stored before a drain")
    subject.load_all(subject.open(), stored, "blocks stored before a drain")


def close_answers_for_all(subject: Subject) -> None:
    """After close every store and load in flight has one result, and each block reported stored is found and right."""
    adapter = subject.open()
    flight = InFlight(subject, adapter, "contract-closed")
    subject.close(adapter)
    stored = flight.judge(flight.polled(), "after close", each=adapter.answers_at_close)
    require(not adapter.poll(), "after close a result came twice")
    if stored:
        verdicts = subject.look_up(subject.open(), stored)
        lost = verdicts.count("miss")
        require(not lost, f"{lost} of {len(stored)} blocks stored before close are lost")
        subject.load_all(subject.open(), stored, "blocks stored before close")


def calls_after_close_are_harmless(subject: Subject) -> None:
    """An instance may be closed, polled and drained again. A submit after close returns or raises: no hang, no thread
    that stays, no second result, no wrong byte."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 3)
    subject.store(adapter, blocks)
    subject.close(adapter)
    threads = psutil.Process().num_threads()
    adapter.poll()
    adapter.close()
    adapter.drain()
    require(not adapter.poll(), "a result, although no job was submitted after close")
    found: dict[int, Finished] = {}
    for direction in DIRECTIONS:
        with contextlib.suppress(Exception):  # refused in whatever words
            job = subject.submit(adapter, direction, blocks, range(3), "late")
            for _ in range(3):
                adapter.poll() if direction == "store" else subject.take(adapter, [job], found)
        for result in found.values():
            subject.right(adapter, result, blocks, range(3))
    require(psutil.Process().num_threads() <= threads, "a call after close started a thread that stays")
    subject.load_all(subject.open(), blocks, "blocks stored before an instance was used after its close")


def others_come_and_go(subject: Subject) -> None:
    """Instances that open, store, load and close take nothing from one that stores and loads at the same time."""
    adapter = subject.open()
    for round_ in range(4):
        name = f"contract-staying-{round_}"
        guest = subject.open() if round_ % 2 else None
        flight = InFlight(subject, adapter, name)
        guest = guest or subject.open()
        shared = subject.blocks(guest, 3)
        subject.store(guest, shared, subject.setup.slots - 3)
        InFlight(subject, guest, f"{name}-guest")
        subject.close(guest)
        results = subject.results(adapter, flight.jobs)
        stored = flight.judge(results, "while another instance closed,")
        failed = sum(len(result.failed) for result in results.values())
        require(not failed, f"{failed} blocks failed while another instance opened and closed")
        adapter.request_finished(name)
        subject.load_all(adapter, [*stored, *shared], "blocks, after another instance closed,")


def a_reopened_root_has_everything(subject: Subject) -> None:
    """An instance that opens a root again finds all that earlier ones stored, each time."""
    stored: list[Block] = []
    for _ in range(4):
        adapter = subject.open()
        if stored:
            subject.load_all(adapter, stored[-subject.setup.slots :], "blocks stored before the instance was closed")
            lost = subject.look_up(adapter, stored).count("miss")
            require(not lost, f"{lost} of {len(stored)} blocks of earlier instances are not found")
        fresh = subject.blocks(adapter, 12)
        subject.store(adapter, fresh)
        stored += fresh
        subject.close(adapter)


def close_gives_everything_back(subject: Subject) -> None:
    """A closed instance leaves no thread running and no descriptor open."""
    me = psutil.Process()
    subject.close(subject.open())  # what is made once per process is no leak
    before = me.num_fds(), me.num_threads()
    for _ in range(2):
        adapter = subject.open()
        blocks = subject.blocks(adapter, 4)
        subject.store(adapter, blocks)
        subject.load(adapter, blocks)
        subject.close(adapter)
    patience = Patience(subject.answer_seconds_max)
    # The kernel still counts a thread just after its join, and the harness's own threads open files in /proc at times.
    after = before
    while not patience.is_over():
        after = me.num_fds(), me.num_threads()
        if after[0] <= before[0] and after[1] <= before[1]:
            break
        time.sleep(PAUSE_SECONDS)
    require(after[0] <= before[0], f"two instances left {after[0] - before[0]} descriptors open")
    require(after[1] <= before[1], f"two instances left {after[1] - before[1]} threads running")
