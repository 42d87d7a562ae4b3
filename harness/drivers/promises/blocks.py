"""Promises about slots and about blocks of one root: what is stored is found and loads with its bytes, nothing else."""

from __future__ import annotations

from harness.core import content
from harness.drivers.promises.subject import SLOTS_MIN, Subject, require


def slots_are_memory(subject: Subject) -> None:
    """The slots are writable, contiguous bytes of the shape that the setup states."""
    adapter = subject.open()
    view = adapter.view
    shape = (subject.setup.slots, subject.setup.block_bytes)
    require(view.format == "B", f"the slots have the format {view.format!r}, not 'B'")
    require(not view.readonly, "the slots are read-only")
    require(view.c_contiguous, "the slots are not contiguous")
    require(view.shape == shape, f"the slots have the shape {view.shape}, not {shape}")
    subject.slot(adapter, 3)[:8] = b"the same"
    require(bytes(adapter.view.cast("B")[3 * shape[1] :][:8]) == b"the same", "two views are not of the same memory")


def absent_blocks_are_misses(subject: Subject) -> None:
    """A block that was never stored is a miss."""
    adapter = subject.open()
    verdicts = subject.look_up(adapter, subject.blocks(adapter, 8))
    require(set(verdicts) == {"miss"}, f"of 8 blocks that were never stored {verdicts.count('hit')} are hits")


def stored_blocks_load(subject: Subject) -> None:
    """A stored block is found and loads with its bytes, into other slots and in another order."""
    adapter = subject.open()
    for count in (1, 7):
        blocks = subject.blocks(adapter, count)
        subject.store(adapter, blocks)
        result = subject.load(adapter, blocks[::-1], range(9, 9 + count))
        require(not result.failed, f"{len(result.failed)} of {count} stored blocks could not be loaded")


def hits_in_flight_load(subject: Subject) -> None:
    """A block that is a hit while its store is in flight can be loaded at once."""
    adapter = subject.open()
    for _ in range(4):
        blocks = subject.blocks(adapter, 4)
        with subject.request(adapter) as name:
            jobs = [subject.submit(adapter, "store", blocks, range(4), name)]
            verdicts = subject.ask(adapter, blocks, name)
            hits = [block for block, verdict in zip(blocks, verdicts, strict=True) if verdict == "hit"]
            if hits:
                jobs.append(subject.submit(adapter, "load", hits, range(8, 8 + len(hits)), name))
            results = subject.results(adapter, jobs)
        if hits:
            result = results[jobs[1]]
            require(not result.failed, f"{len(result.failed)} of {len(hits)} hits could not be loaded at once")
            subject.right(adapter, result, hits, range(8, 8 + len(hits)))


def another_instance_finds_them(subject: Subject) -> None:
    """A block that one instance stored is found by an earlier instance, which had missed it, and by a later one."""
    one, two = subject.open(), subject.open()
    blocks = subject.blocks(one, 5)
    subject.look_up(two, blocks)
    subject.store(one, blocks)
    for other in (two, subject.open()):
        subject.load_all(other, blocks, "blocks of another instance")


def jobs_touch_only_their_slots(subject: Subject) -> None:
    """A store leaves its slots unchanged, a load writes its own slots, and no job writes another's."""
    adapter = subject.open()
    old = subject.blocks(adapter, 8)
    subject.store(adapter, old)
    fresh = subject.blocks(adapter, 8)
    for index in range(subject.setup.slots):
        subject.slot(adapter, index)[:] = bytes([index % 251]) * subject.setup.block_bytes
    with subject.request(adapter) as name:
        require(set(subject.ask(adapter, old, name)) == {"hit"}, "blocks reported stored are not found")
        jobs = []
        for i in range(8):
            jobs.append(subject.submit(adapter, "store", [fresh[i]], [3 * i], name))
            jobs.append(subject.submit(adapter, "load", [old[i]], [3 * i + 1], name))
        subject.results(adapter, jobs)
    for index in range(subject.setup.slots):
        slot = subject.slot(adapter, index)
        number, kind = divmod(index, 3)
        if number < 8 and kind < 2:
            wrong = content.judge(slot, (fresh, old)[kind][number].identity)
            require(not wrong, f"slot {index} of a {('store', 'load')[kind]} has wrong bytes after it: {wrong}")
        else:
            same = slot == bytes([index % 251]) * subject.setup.block_bytes
            require(same, f"slot {index}, which belongs to no job, was written")
    for index in range(subject.setup.slots):
        subject.slot(adapter, index)[:] = bytes([index % 251]) * subject.setup.block_bytes
    subject.load(adapter, old, range(4, 12))
    for index in [*range(4), *range(12, subject.setup.slots)]:
        same = subject.slot(adapter, index) == bytes([index % 251]) * subject.setup.block_bytes
        require(same, f"slot {index}, which belongs to no job, was written by a load of 8 blocks")


def slots_are_free_after_the_result(subject: Subject) -> None:
    """After a job's result the tier neither reads nor writes its slots."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 8)
    with subject.request(adapter) as name:
        job = subject.submit(adapter, "store", blocks, range(8), name)
        subject.account(subject.results(adapter, [job])[job], blocks)
        for index in range(8):  # at once, as an engine gives the slots to other blocks
            content.poison(subject.slot(adapter, index))
    subject.load_all(subject.open(), blocks, "blocks whose slots were written after the result")
    with subject.request(adapter) as name:
        require(set(subject.ask(adapter, blocks, name)) == {"hit"}, "blocks reported stored are not found")
        subject.load_hits(adapter, blocks, range(8, 16), name)
        for index in range(16):
            content.poison(subject.slot(adapter, index))
        for _ in range(3):
            adapter.step()
    adapter.drain()
    adapter.poll()
    untouched = bytes([content.POISON]) * subject.setup.block_bytes
    written = [index for index in range(16) if subject.slot(adapter, index) != untouched]
    require(not written, f"slot {written[:1]} was written after the result of its job")


def large_jobs_lose_nothing(subject: Subject) -> None:
    """A job over all slots stores and loads every block, also its last."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, subject.setup.slots)
    subject.store(adapter, blocks)
    subject.load_all(subject.open(), blocks, "blocks of one job")


def many_jobs_at_once(subject: Subject) -> None:
    """Each of many jobs in flight together has its own result."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, SLOTS_MIN)
    with subject.request(adapter) as name:
        jobs = {subject.submit(adapter, "store", [block], [i], name): block for i, block in enumerate(blocks)}
        for job, result in subject.results(adapter, jobs).items():
            subject.account(result, [jobs[job]])
    subject.load_all(adapter, blocks, "blocks of single jobs")


def storing_twice_is_harmless(subject: Subject) -> None:
    """A present block may be stored again, by this or another instance, also at the same time."""
    one, two = subject.open(), subject.open()
    blocks = subject.blocks(one, 6)
    subject.store(one, blocks[:3])
    subject.store(two, blocks[::-1])
    fresh = subject.blocks(one, 6)
    with subject.request(one) as a, subject.request(two) as b:
        jobs = [(each, subject.submit(each, "store", fresh, range(6), name)) for each, name in ((one, a), (two, b))]
        for each, job in jobs:
            subject.account(subject.results(each, [job])[job], fresh)
    subject.load_all(subject.open(), [*blocks, *fresh], "blocks that were stored twice")


def a_vanished_block_is_no_data(subject: Subject) -> None:
    """A block whose file vanishes between lookup and load is not reported loaded with wrong bytes and fails no other
    block; a later instance misses it, and it can be stored again."""
    one = subject.open()
    blocks = subject.blocks(one, 5)
    subject.store(one, blocks)
    two = subject.open()
    with subject.request(two) as name:
        require(set(subject.ask(two, blocks, name)) == {"hit"}, "blocks reported stored are not found")
        subject.file(two, blocks[2]).unlink()
        result = subject.load_hits(two, blocks, range(5), name)
    lost = set(result.failed) - {blocks[2].key}
    require(not lost, f"with one block of 5 gone, {len(lost)} of the others were not loaded")
    late = subject.open()
    require(
        subject.look_up(late, [blocks[2]]) == ["miss"],
        "a block whose file is gone is a hit for a later instance",
    )
    subject.store(late, [blocks[2]])
    again = subject.load(subject.open(), blocks)
    require(not again.failed, "a block that was gone and was stored again could not be loaded")


def a_failed_load_becomes_a_miss(subject: Subject) -> None:
    """A block that could not be loaded is a miss in the next request, until it is stored again."""
    one = subject.open()
    blocks = subject.blocks(one, 3)
    subject.store(one, blocks)
    two = subject.open()
    with subject.request(two) as name:
        require(set(subject.ask(two, blocks, name)) == {"hit"}, "blocks reported stored are not found")
        subject.file(two, blocks[1]).unlink()
        result = subject.load_hits(two, blocks, range(3), name)
    if blocks[1].key in result.ok:
        return  # the tier had the bytes elsewhere, and they were right
    verdicts = subject.look_up(two, blocks)
    require(verdicts[1] == "miss", "a block that could not be loaded is a hit for the same instance afterwards")
    subject.store(two, [blocks[1]])
    subject.load_all(two, blocks, "blocks of which one was gone and was stored again")
