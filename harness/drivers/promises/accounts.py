"""Promises about what a tier says of itself: its own checks, gauges, counts, metrics, events, and its instance id."""

from __future__ import annotations

from collections import Counter

from harness.adapters.base import Adapter
from harness.adapters.metric_meanings import Done, contradictions, scrape
from harness.checkers.base import some
from harness.drivers.promises.subject import Subject, keys_of, require


def accounts_are_in_order(subject: Subject) -> None:
    """The tier's own checks find nothing, its gauges are numbers, and its schedule covers the stored bytes."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 8)
    subject.store(adapter, blocks)
    subject.load(adapter, blocks)
    require(not adapter.findings(), f"the tier's own checks found: {some(adapter.findings())}")
    odd = [name for name, value in adapter.gauges().items() if not isinstance(value, int | float)]
    require(not odd, f"gauges that are no numbers: {some(odd)}")
    if adapter.exposes_schedule:
        tasks = adapter.tasks()
        stored = sum(task.bytes for task in tasks if task.direction == "store")
        least = len(blocks) * subject.setup.block_bytes
        require(stored >= least, f"the schedule has {stored} bytes stored; the store had {least}")
        require(not adapter.tasks(), "the schedule returned a task twice")


def counts_are_of_what_happened(subject: Subject) -> None:
    """The blocks that a tier counts as stored, loaded and failed are those of its results, in each instance from 0."""
    for _ in range(2):
        adapter = subject.open()
        counts = adapter.counts()
        wrong = {name: value for name, value in counts.items() if value}
        require(not wrong, f"a new instance has counts other than 0: {some(wrong.items())}")
        stored, absent = subject.blocks(adapter, 5), subject.blocks(adapter, 2)
        seen = Counter[str]()
        for _ in range(2):  # the second time the blocks are present
            seen["stored"] += len(subject.store(adapter, stored).ok)
        seen["loaded"] += len(subject.load(adapter, stored).ok)
        with subject.request(adapter) as name:
            subject.ask(adapter, absent, name)
            result = subject.load_hits(adapter, absent, range(2), name)
        seen["failed"] += len(result.failed)
        counts = dict(adapter.counts())
        if not counts or adapter.keeps_in_memory:  # it counts nothing, or files alone
            return
        told = {name: counts.get(name, 0.0) for name in ("stored", "loaded")}
        told["failed"] = sum(value for name, value in counts.items() if name.startswith("failed"))
        odd = [f"{told[name]:g} {name} for {seen[name]}" for name in told if told[name] != seen[name]]
        require(not odd, f"the tier counts other blocks than its results have: {some(odd)}")
        subject.close(adapter)


def events_are_reported_once(subject: Subject) -> None:
    """Each block that an instance stored is reported once as having appeared, and none that was not stored."""
    adapter = subject.open(report_events=True)
    if adapter.events() is None:
        return  # the tier does not say
    blocks = subject.blocks(adapter, 6)
    subject.store(adapter, blocks)
    told = adapter.events() or []
    subject.load(adapter, blocks)
    told += adapter.events() or []
    appeared = Counter(key for key, removed in told if not removed)
    wrong = set(appeared) ^ set(keys_of(blocks))
    require(not wrong, f"events name {len(appeared)} blocks, 6 were stored; {len(wrong)} differ")
    require(max(appeared.values()) == 1, "a block is reported twice as having appeared")
    require(not any(removed for _, removed in told), "a block is reported as removed, and nothing removed it")


def metrics_are_true(subject: Subject) -> None:
    """Counters, histograms and gauges of a tier's own endpoint are those of the results of its instance, from 0."""
    beside = subject.open(serve_metrics=True)
    if beside.metrics_address() is None or not beside.metric_meanings():
        return  # it serves none, or the adapter does not say what they mean
    noise = [Done("store", len(subject.store(beside, subject.blocks(beside, 3)).ok), 0)]
    for _ in range(2):
        adapter = subject.open(serve_metrics=True)
        done = []
        stored, absent = subject.blocks(adapter, 5), subject.blocks(adapter, 2)
        for _ in range(2):  # the second time the blocks are present
            done.append(Done("store", len(subject.store(adapter, stored).ok), 0))
        done.append(Done("load", len(subject.load(adapter, stored).ok), 0))
        with subject.request(adapter) as name:
            subject.ask(adapter, absent, name)
            for blocks in (absent, [stored[0], *absent]):
                result = subject.load_hits(adapter, blocks, range(len(blocks)), name)
                done.append(Done("load", len(result.ok), len(result.failed)))
        _compare(adapter, done)
        subject.close(adapter)
    _compare(beside, noise)


def _compare(adapter: Adapter, done: list[Done]) -> None:
    address = adapter.metrics_address()
    assert address is not None, "it had one before"
    odd = contradictions(scrape(address, adapter.metric_meanings()), done, adapter.setup.block_bytes)
    require(not odd, f"the endpoint has other figures than the results of the instance's jobs: {some(odd)}")


def instances_have_their_own_ids(subject: Subject) -> None:
    """Each instance has an id of its own, also after it is opened again on the same root."""
    ids = []
    for _ in range(3):
        adapter = subject.open()
        if adapter.instance_id() is None:
            return  # its blocks carry no id
        require(adapter.instance_id() == adapter.instance_id(), "an instance has two ids")
        ids.append(adapter.instance_id())
        subject.close(adapter)
    ids += [subject.open().instance_id() for _ in range(2)]
    require(len(set(ids)) == len(ids), f"{len(ids)} instances have {len(set(ids))} ids")
