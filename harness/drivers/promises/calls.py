"""Promises about single calls: jobs and their one result, lookups, steps, and the ends of requests."""

from __future__ import annotations

import time

from harness.adapters.base import Finished
from harness.core import content
from harness.core.patience import Patience
from harness.drivers.promises.subject import PAUSE_SECONDS, Subject, keys_of, require


def nothing_comes_without_a_job(subject: Subject) -> None:
    """There is no result without a job, also after a drain, and each job has one result."""
    adapter = subject.open()
    adapter.drain()
    require(not adapter.poll(), "a result, although no job was submitted")
    subject.store(adapter, subject.blocks(adapter, 3))
    for _ in range(3):
        adapter.step()
    adapter.drain()
    require(not adapter.poll(), "a result came twice")


def absent_blocks_fail_to_load(subject: Subject) -> None:
    """A load of blocks that were never stored fails for these, and has one result."""
    adapter = subject.open()
    stored, absent = subject.blocks(adapter, 3), subject.blocks(adapter, 3)
    subject.store(adapter, stored)
    both = [stored[0], absent[0], stored[1], absent[1], stored[2], absent[2]]
    with subject.request(adapter) as name:
        subject.ask(adapter, both, name)
        result = subject.load_hits(adapter, both, range(6), name)
    wrong = [key for key in result.ok if key in keys_of(absent)]
    require(not wrong, f"{len(wrong)} of 3 blocks that were never stored are reported loaded")
    subject.load_all(adapter, stored[1:], "stored blocks, after a load beside blocks that were never stored,")


def empty_calls_are_harmless(subject: Subject) -> None:
    """Calls without blocks, requests without calls, and steps without work change nothing."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 4)
    subject.store(adapter, blocks)
    with subject.request(adapter) as name:
        require(adapter.lookup([], name) == [], "a lookup of no keys has verdicts")
        for _ in range(5):
            adapter.step()
    for _ in range(5):
        adapter.step()
        require(not adapter.poll(), "a result, although no job was submitted")
    subject.load_all(adapter, blocks, "blocks, after steps without work,")


def job_numbers_may_come_again(subject: Subject) -> None:
    """After its result a job's number may be used for another job, which has its own result."""
    adapter = subject.open()
    for number in (0, 7):
        for _ in range(3):
            blocks = subject.blocks(adapter, 2)
            with subject.request(adapter) as name:
                subject.submit(adapter, "store", blocks, (0, 1), name, number)
                subject.account(subject.results(adapter, [number])[number], blocks)
                subject.ask(adapter, blocks, name)
                subject.submit(adapter, "load", blocks, (2, 3), name, number)
                result = subject.results(adapter, [number])[number]
            subject.account(result, blocks)
            subject.right(adapter, result, blocks, (2, 3))
            require(not result.failed, "a load failed that has the number of an earlier job")


def results_come_once_whenever_polled(subject: Subject) -> None:
    """Each result comes from one poll, also when others were polled before and when nothing is polled for long."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 24)
    found: dict[int, Finished] = {}
    with subject.request(adapter) as name:
        jobs = []
        for i, block in enumerate(blocks):
            jobs.append(subject.submit(adapter, "store", [block], [i], name))
            if i % 3 == 0:
                subject.take(adapter, jobs, found)
        adapter.drain()
        for _ in range(3):
            adapter.step()
        subject.take(adapter, jobs, found)
        require(len(found) == len(jobs), f"{len(jobs) - len(found)} of {len(jobs)} results did not come")
        require(not adapter.poll(), "a result came twice")
    for job, block in zip(jobs, blocks, strict=True):
        subject.account(found[job], [block])
    subject.load_all(adapter, blocks, "blocks of single jobs")


def a_job_may_name_a_block_twice(subject: Subject) -> None:
    """A job that names a block twice has one result, and both slots of a load have its bytes."""
    adapter = subject.open()
    a, b = subject.blocks(adapter, 2)
    with subject.request(adapter) as name:
        job = subject.submit(adapter, "store", [a, b, a], range(3), name)
        stored = subject.results(adapter, [job])[job]
        require(set(stored.ok) == {a.key, b.key}, "a store that names a block twice did not store its blocks")
        subject.ask(adapter, [a, b], name)
        job = subject.submit(adapter, "load", [b, a, b], range(4, 7), name)
        result = subject.results(adapter, [job])[job]
    require(set(result.ok) == {a.key, b.key}, "a load that names a block twice did not load its blocks")
    subject.right(adapter, result, [b, a, b], range(4, 7))


def lookups_answer_each_key(subject: Subject) -> None:
    """A lookup has one verdict for each key at its place, the same again, for each of several requests at once."""
    adapter = subject.open()
    stored, absent = subject.blocks(adapter, 16), subject.blocks(adapter, 16)
    subject.store(adapter, stored)
    mixed = [block for pair in zip(stored, absent, strict=True) for block in pair]
    mixed = [*mixed, mixed[0], mixed[1], *mixed[::-1]]
    wanted = ["hit" if block in stored else "miss" for block in mixed]
    with subject.request(adapter) as one, subject.request(adapter) as two:
        adapter.lookup(keys_of(mixed), one)  # the other request asks before the first has its answers
        for name in (two, one, one):
            got = subject.ask(adapter, mixed, name)
            wrong = sum(verdict != right for verdict, right in zip(got, wanted, strict=True))
            require(not wrong, f"{wrong} of {len(mixed)} verdicts of a lookup of present and absent blocks are wrong")
    with subject.request(adapter) as late:
        require(subject.ask(adapter, mixed, late) == wanted, "a later request has other verdicts on the same blocks")


def requests_may_end_before_their_jobs(subject: Subject) -> None:
    """Stores of a finished request have results. A request may end without a lookup, or without a load of its hits."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 8)
    with subject.request(adapter) as name:
        job = subject.submit(adapter, "store", blocks, range(8), name)
    subject.account(subject.results(adapter, [job])[job], blocks)
    with subject.request(adapter):
        adapter.step()
    with subject.request(adapter) as name:
        subject.ask(adapter, blocks, name)  # hits without a load
    with subject.request(adapter) as name:
        adapter.lookup(keys_of(subject.blocks(adapter, 4)), name)  # its answers never come
    result = subject.load(adapter, blocks)
    require(not result.failed, "blocks that an earlier request had found and not loaded could not be loaded")


def requests_do_not_disturb_each_other(subject: Subject) -> None:
    """The end of one request takes no answer and no job from another, also of one with the same name before."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 6)
    subject.store(adapter, blocks)
    adapter.request_started("again")
    adapter.lookup(keys_of(blocks), "again")
    adapter.request_finished("again")
    adapter.request_started("again")
    with subject.request(adapter) as other:
        subject.ask(adapter, blocks, other)
        require(set(subject.ask(adapter, blocks, "again")) == {"hit"}, "a request of a used name misses stored blocks")
        job = subject.submit(adapter, "load", blocks, range(6), other)
        adapter.request_finished("again")
        result = subject.results(adapter, [job])[job]
    subject.account(result, blocks)
    subject.right(adapter, result, blocks, range(6))
    require(not result.failed, "a load failed when another request ended")


def pending_work_is_reported(subject: Subject) -> None:
    """Work is pending while a job has no result, and none is once all results were taken."""
    adapter = subject.open()
    if adapter.has_pending_work() is None:
        return  # the tier does not say
    blocks = subject.blocks(adapter, 8)
    with subject.request(adapter) as name:
        job = subject.submit(adapter, "store", blocks, range(8), name)
        told = adapter.has_pending_work()
        subject.results(adapter, [job])
    require(told, "no work is pending, though a job has no result yet")
    patience = Patience(subject.answer_seconds_max)
    while adapter.has_pending_work():
        require(not patience.is_over(), f"work is pending {subject.answer_seconds_max:g} s after the last result")
        adapter.step()
        adapter.poll()
        time.sleep(PAUSE_SECONDS)


def slots_of_failed_loads_are_given_back(subject: Subject) -> None:
    """After a load that failed its slots serve other jobs, whose blocks have their bytes."""
    adapter = subject.open()
    stored, absent = subject.blocks(adapter, 4), subject.blocks(adapter, 4)
    subject.store(adapter, stored)
    with subject.request(adapter) as name:
        subject.ask(adapter, [*stored, *absent], name)
        job = subject.submit(adapter, "load", absent, range(4), name)
        subject.results(adapter, [job])
        for index in range(4):
            content.poison(subject.slot(adapter, index))
        result = subject.load_hits(adapter, stored, range(4), name)
    require(not result.failed, "stored blocks could not be loaded into slots of a load that failed")
